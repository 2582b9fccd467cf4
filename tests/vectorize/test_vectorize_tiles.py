"""Tiles of one big map, separated each on its own window, give the nuclei of the whole map: none lost, none doubled."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.segmentation import watershed

from benchmarks.synthetic import SyntheticTile, synthetic_tile
from wsiseg.config import SeparateConfig
from wsiseg.errors import InputError
from wsiseg.separate import find_markers, resolve_params, separate
from wsiseg.types import Box, TileStats
from wsiseg.vectorize import tile_stats, vectorize

SIZE = 1500
PARAMS = resolve_params(SeparateConfig(), {}, 0.25)


@pytest.fixture(scope="module")
def tissue() -> SyntheticTile:
    return synthetic_tile(1500, SIZE, seed=11)


def window(tile: SyntheticTile, box: Box) -> np.ndarray:
    """Pixels of ``box``; px outside the slide are background."""
    out = np.zeros((2, box.h, box.w), np.uint8)
    y0, y1, x0, x1 = max(box.y, 0), min(box.y1, SIZE), max(box.x, 0), min(box.x1, SIZE)
    out[:, y0 - box.y : y1 - box.y, x0 - box.x : x1 - box.x] = tile.prob[:, y0:y1, x0:x1]
    return out


def segment(tile: SyntheticTile, side: int) -> tuple[dict[int, tuple[bytes, ...]], TileStats]:
    """Nuclei by id: (ring, columns) as bytes; and the summed statistics."""
    nuclei: dict[int, tuple[bytes, ...]] = {}
    total = TileStats()
    for y in range(0, SIZE, side):
        for x in range(0, SIZE, side):
            core = Box(x, y, min(side, SIZE - x), min(side, SIZE - y))
            read = core.padded(64)
            prob = window(tile, read)
            found = separate(prob, PARAMS)
            batch = vectorize(found, prob, read, core)
            total += tile_stats(prob, found, read, core, (prob[1] > 0).astype(np.uint8))
            for k, key in enumerate(batch.columns["nucleus_id"].tolist()):
                assert key not in nuclei, "doubled"
                ring = batch.xy[batch.ring_offsets[k] : batch.ring_offsets[k + 1]]
                nuclei[key] = (ring.tobytes(), *(v[k].tobytes() for v in batch.columns.values()))
    return nuclei, total


def test_tiled_equals_whole(tissue: SyntheticTile) -> None:
    whole, whole_sums = segment(tissue, SIZE)
    assert len(whole) > 1000
    for side in (200, 333, 512, 1000):
        tiled, sums = segment(tissue, side)
        same = sum(tiled.get(key) == value for key, value in whole.items())
        assert same >= 0.999 * len(whole), f"{side}: {same} of {len(whole)} identical"
        assert len(tiled.keys() ^ whole.keys()) <= 0.001 * len(whole), side
        assert (sums.core_px, sums.tissue_px) == (SIZE**2, (tissue.prob[1] > 0).sum())
        assert (sums.sum_center_u8, sums.sum_material_u8) == tuple(tissue.prob.sum(axis=(1, 2), dtype=np.int64))
        assert sums.material_px == pytest.approx(whole_sums.material_px, rel=1e-3)


def test_same_pixels_as_scikit_image(tissue: SyntheticTile) -> None:
    prob = tissue.prob
    plain = resolve_params(SeparateConfig(compactness=0.0, seed_recall=False), {}, 0.25)
    found = separate(prob, plain)
    anchors = find_markers(prob, plain)
    assert len(anchors) == len(found.anchors)
    padded = np.pad(prob[1].astype(np.int64), 1, mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
    seeds = np.zeros(prob[0].shape, np.int32)
    seeds[anchors[:, 1], anchors[:, 0]] = np.arange(1, len(anchors) + 1)
    reference = watershed(4080 - smooth, seeds, mask=smooth >= plain.material_threshold)
    mask = (reference > 0) | (found.labels > 0)
    assert (reference == found.labels)[mask].mean() >= 0.998


def test_labels_agree_with_the_truth(tissue: SyntheticTile) -> None:
    found = separate(tissue.prob, PARAMS)
    truth_of = np.concatenate([[0], tissue.truth[found.anchors[:, 1], found.anchors[:, 0]]])
    both = (found.labels > 0) & (tissue.truth > 0)
    assert (truth_of[found.labels] == tissue.truth)[both].mean() > 0.99
    assert abs(len(found.anchors) - len(tissue.centers)) <= 0.01 * len(tissue.centers)


def test_statistics_refuse_a_core_outside_the_window(tissue: SyntheticTile) -> None:
    read = Box(0, 0, 200, 100)
    prob = window(tissue, read)
    found = separate(prob, PARAMS)
    with pytest.raises(InputError, match="core inside the window"):
        tile_stats(prob, found, read, Box(150, 0, 60, 20))
    with pytest.raises(InputError, match="tissue mask of shape"):
        tile_stats(prob, found, read, read, np.zeros((5, 5), np.uint8))
    assert tile_stats(prob, found, read, read).tissue_px == 200 * 100

"""CryoNuSeg's auxiliary masks against their definitions, pixel by pixel."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from wsiseg.datasets.masks import auxiliary_masks, border_weights, write_masks
from wsiseg.errors import FormatError
from wsiseg.labels import read_labels, write_labels

LABELS = hnp.arrays(np.int32, (9, 11), elements=st.sampled_from([0, 0, 0, 1, 2, 5]))


def distance(labels: np.ndarray, y: int, x: int, ids: set[int]) -> float:
    """Distance from a pixel to the nearest pixel whose id is among ``ids``."""
    return min((math.hypot(y - v, x - u) for v, u in np.argwhere(np.isin(labels, list(ids)))), default=math.inf)


def neighbors(labels: np.ndarray, y: int, x: int) -> set[int]:
    return set(labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].ravel().tolist()) - {0}


@settings(max_examples=25, deadline=None)
@given(LABELS)
def test_masks_follow_their_definitions(labels: np.ndarray) -> None:
    got = auxiliary_masks(labels)
    everything = set(np.unique(labels).tolist())
    raw = np.zeros(labels.shape)
    h, w = labels.shape
    for y in range(h):
        for x in range(w):
            assert got.binary[y, x] == (labels[y, x] != 0)
            free = labels[y, x] != 0 and len(neighbors(labels, y, x)) == 1
            assert got.border_removed[y, x] == free
            if labels[y, x]:
                raw[y, x] = distance(labels, y, x, everything - {int(labels[y, x])})
    finite = np.where(np.isfinite(raw), raw, 0)
    if np.isfinite(raw).all():
        np.testing.assert_allclose(got.distance, finite / max(finite.max(), 1), atol=1e-6)
    for y in range(h):
        for x in range(w):
            cross = [(y, x), (y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [got.border_removed[v, u] for v, u in cross if 0 <= v < h and 0 <= u < w]
            assert got.eroded[y, x] == all(inside)


@settings(max_examples=25, deadline=None)
@given(LABELS, st.sampled_from([(10.0, 25.0), (5.0, 4.0)]))
def test_weights_are_the_formula_of_the_paper(labels: np.ndarray, parameters: tuple[float, float]) -> None:
    w0, sigma2 = parameters
    got = border_weights(labels, w0, sigma2)
    ids = sorted(set(np.unique(labels).tolist()) - {0})
    share = {c: 1 / (labels.astype(bool) == c).sum() for c in (False, True) if (labels.astype(bool) == c).any()}
    for y, x in np.ndindex(labels.shape):
        nucleus = bool(labels[y, x])
        expected = share[nucleus] / max(share.values())
        if not nucleus and len(ids) > 1:
            d1, d2 = sorted(distance(labels, y, x, {k}) for k in ids)[:2]
            expected += w0 * math.exp(-((d1 + d2) ** 2) / (2 * sigma2))
        assert got[y, x] == pytest.approx(expected, rel=1e-5)


def test_far_nuclei_weigh_as_the_formula_states() -> None:
    """Distances beyond the windows: only what is too small to be seen may be left out."""
    labels = np.zeros((60, 120), np.int32)
    labels[5:10, 5:10], labels[40:45, 20:30], labels[20:25, 95:105] = 1, 2, 3
    got = border_weights(labels)
    balance = (labels > 0).sum() / (labels == 0).sum()
    for y, x in ((0, 0), (25, 15), (30, 60), (59, 119), (33, 24)):
        d1, d2 = sorted(distance(labels, y, x, {k}) for k in (1, 2, 3))[:2]
        expected = balance + 10 * math.exp(-((d1 + d2) ** 2) / 50)
        assert got[y, x] == pytest.approx(expected, abs=2e-6)


def touching() -> np.ndarray:
    labels = np.zeros((40, 50), np.uint16)
    labels[5:20, 5:20], labels[5:20, 20:35], labels[28:36, 10:40] = 1, 2, 3
    return labels


def test_the_folders_of_the_published_set(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_labels(tmp_path / "in" / "a_01.png", touching())
    assert write_masks(tmp_path / "in", tmp_path / "out") == 1
    masks = auxiliary_masks(touching())
    published = {
        "mask binary": 255 * masks.binary,
        "mask binary without border": 255 * masks.border_removed,
        "mask binary without border erode": 255 * masks.eroded,
        "distance maps": np.round(255 * masks.distance),
        "weighted_maps": np.round(255 * masks.weight / masks.weight.max()),
        "weighted_maps_erode": np.round(255 * masks.weight_eroded / masks.weight_eroded.max()),
    }
    for folder, expected in published.items():
        with Image.open(tmp_path / "out" / folder / "a_01.png") as picture:
            assert picture.mode == "L"
            np.testing.assert_array_equal(np.asarray(picture), expected)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "out" / "weighted_maps" / "a_01.tif"), masks.weight)
    ids = tifffile.imread(tmp_path / "out" / "label masks modify" / "a_01.tif")
    assert ids.dtype == np.uint16
    np.testing.assert_array_equal(ids, touching())


def test_overlapping_rois_go_to_the_later_one(tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile")
    organ = tmp_path / "set" / "human brain"
    for folder in ("tissue images", "Imagej_zips"):
        (organ / folder).mkdir(parents=True)
    Image.new("RGB", (50, 40), "pink").save(organ / "tissue images" / "b_01.png")
    with zipfile.ZipFile(organ / "Imagej_zips" / "b_01.zip", "w") as archive:
        for number, (x0, y0, x1, y1) in enumerate([(5, 5, 22, 20), (20, 5, 35, 20), (10, 28, 40, 36)]):
            roi = roifile.ImagejRoi.frompoints(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32))
            roi.roitype = roifile.ROI_TYPE.POLYGON
            archive.writestr(f"{number:04d}.roi", roi.tobytes())
    assert write_masks(tmp_path / "set", tmp_path / "out") == 1
    np.testing.assert_array_equal(read_labels(tmp_path / "out" / "label masks modify" / "b_01.tif"), touching())


def test_edges_of_the_possible(tmp_path: Path) -> None:
    empty = auxiliary_masks(np.zeros((6, 7), np.int32))
    assert not empty.binary.any()
    assert (empty.distance == 0).all()
    assert (empty.weight == 1).all()
    full = auxiliary_masks(np.ones((6, 7), np.int32))
    assert (full.weight == 1).all()
    assert (full.distance == 1).all()
    with pytest.raises(FormatError, match="not a known data set"):
        write_masks(tmp_path, tmp_path / "out")

"""Rings, sums and columns against pixel sets, scikit-image and shapely."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from scipy import ndimage as ndi
from skimage.measure import perimeter_crofton, regionprops

from benchmarks.synthetic import synthetic_tile
from tests.oracles import contours as oracle
from tests.oracles.maps import adversarial, random_maps
from wsiseg.config import SeparateConfig
from wsiseg.errors import InputError
from wsiseg.schema import BATCH_COLUMNS
from wsiseg.separate import SeparateParams, resolve_params, separate
from wsiseg.types import Box, Instances, PolygonBatch
from wsiseg.vectorize import area_of_rings, rasterize, vectorize

MAPS = adversarial()
LOOSE = SeparateParams(8000, 2040, 3, 256, 0, True, 1, 262143)


def instances_of(labels: np.ndarray) -> Instances:
    """Any label image of 4-connected regions: the first pixel of each is its marker."""
    flat = labels.ravel()
    first = [int(np.flatnonzero(flat == k)[0]) for k in range(1, int(labels.max(initial=0)) + 1)]
    anchors = np.array([(i % labels.shape[1], i // labels.shape[1]) for i in first], np.int32).reshape(-1, 2)
    return Instances(labels=labels.astype(np.int32), anchors=anchors)


def polygons(batch: PolygonBatch) -> np.ndarray:
    index = np.repeat(np.arange(len(batch)), np.diff(batch.ring_offsets))
    return shapely.polygons(shapely.linearrings(batch.xy.astype(float), indices=index)) if len(batch) else np.array([])


def painted(labels: np.ndarray) -> np.ndarray:
    """Every label with its holes, the smallest on top."""
    regions = [(oracle.filled(labels == k), k) for k in range(1, int(labels.max(initial=0)) + 1)]
    out = np.zeros_like(labels)
    for region, k in sorted(regions, key=lambda r: (-int(r[0].sum()), -r[1])):
        out[region] = k
    return out


def assert_equals_oracle(found: Instances, prob: np.ndarray) -> None:
    H, W = found.labels.shape
    read = Box(1000, 70, W, H)
    batch = vectorize(found, prob, read, read)
    assert len(batch) == len(found.anchors)
    for k in range(len(batch)):
        region = found.labels == k + 1
        ring = batch.xy[batch.ring_offsets[k] : batch.ring_offsets[k + 1]]
        assert [(x - 1000, y - 70) for x, y in ring.tolist()] == oracle.ring_of(region)
        n, si, sj, *_, pixels, material = oracle.sums_of(region, prob[1].astype(np.int64))
        y0, x0 = np.argwhere(region)[0]
        columns = {name: values[k] for name, values in batch.columns.items()}
        assert columns["area_wpx"] == n
        assert columns["cx_wpx"] == pytest.approx(1000.5 + x0 + si / n, abs=1e-9)
        assert columns["cy_wpx"] == pytest.approx(70.5 + y0 + sj / n, abs=1e-9)
        assert columns["material_prob"] == int(np.floor(material / pixels + 0.5))
        x, y = found.anchors[k]
        assert columns["center_prob"] == prob[0, y, x]
        assert columns["nucleus_id"] == (70 + int(y)) * 2**31 + 1000 + int(x)
    shapes = polygons(batch)
    assert shapely.is_valid(shapes).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(shapes)).all()
    np.testing.assert_array_equal(area_of_rings(batch.xy, batch.ring_offsets), batch.columns["area_wpx"])
    np.testing.assert_array_equal(rasterize(batch, read), painted(found.labels))


@pytest.mark.parametrize("name", sorted(MAPS))
def test_adversarial_maps(name: str) -> None:
    assert_equals_oracle(separate(MAPS[name], LOOSE), MAPS[name])


@settings(max_examples=150, deadline=None)
@given(prob=random_maps())
def test_random_maps(prob: np.ndarray) -> None:
    assert_equals_oracle(separate(prob, LOOSE), prob)


@settings(max_examples=150, deadline=None)
@given(prob=random_maps())
def test_rough_components(prob: np.ndarray) -> None:
    """Percolation clusters: corner touches, leaking holes and one-pixel necks by the dozen."""
    labels, _ = ndi.label(prob[0] > 100)
    assert_equals_oracle(instances_of(labels), prob)


def test_sums_equal_pixel_sums() -> None:
    from wsiseg.vectorize import _cpu

    rng = np.random.default_rng(0)
    labels, n = ndi.label(rng.random((90, 80)) < 0.62)
    labels = labels.astype(np.int32)
    material = rng.integers(0, 256, labels.shape).astype(np.uint8)
    first, pixels, total = _cpu.scan_labels(labels, material, n)
    _, _, sums = _cpu.trace_rings(labels, first, np.arange(n), 0, 0)
    got = np.column_stack([sums, pixels[1:], total[1:]])
    assert got[:, 0].max() > 1000
    for k in range(n):
        assert tuple(got[k].tolist()) == oracle.sums_of(labels == k + 1, material.astype(np.int64))


@pytest.fixture(scope="module")
def tissue() -> tuple[Instances, np.ndarray, PolygonBatch]:
    tile = synthetic_tile(700, 1000, seed=3)
    found = separate(tile.prob, resolve_params(SeparateConfig(), {}, 0.25))
    box = Box(0, 0, 1000, 1000)
    return found, tile.prob, vectorize(found, tile.prob, box, box)


def test_columns_are_those_of_the_schema(tissue: tuple[Instances, np.ndarray, PolygonBatch]) -> None:
    found, prob, batch = tissue
    empty = vectorize(found, prob, Box(0, 0, 1000, 1000), Box(5000, 5000, 10, 10))
    assert len(empty) == 0
    for b in (batch, empty):
        assert list(b.columns) == [c.name for c in BATCH_COLUMNS]
        assert [str(v.dtype) for v in b.columns.values()] == [c.arrow for c in BATCH_COLUMNS]
        assert b.xy.dtype == np.int32
        assert b.ring_offsets.dtype == np.int64
        assert rasterize(b, Box(0, 0, 9, 9)).shape == (9, 9)


def test_columns_agree_with_scikit_image(tissue: tuple[Instances, np.ndarray, PolygonBatch]) -> None:
    _, _, batch = tissue
    painted_labels = rasterize(batch, Box(0, 0, 1000, 1000))
    props = regionprops(painted_labels)
    assert len(props) == len(batch) > 400
    column = batch.columns
    crofton = np.array([perimeter_crofton(np.pad(p.image, 1), directions=4) for p in props])
    np.testing.assert_allclose(column["area_wpx"], [p.area for p in props], rtol=0)
    np.testing.assert_allclose(column["cx_wpx"], [p.centroid[1] + 0.5 for p in props], rtol=1e-12)
    np.testing.assert_allclose(column["cy_wpx"], [p.centroid[0] + 0.5 for p in props], rtol=1e-12)
    np.testing.assert_allclose(column["major_wpx"], [p.axis_major_length for p in props], rtol=1e-5)
    np.testing.assert_allclose(column["minor_wpx"], [p.axis_minor_length for p in props], rtol=1e-5)
    np.testing.assert_allclose(column["perimeter_wpx"], crofton, rtol=1e-6)
    # scikit-image: angle from the row axis, the other way round; compare as axes (modulo pi)
    difference = column["orientation_rad"].astype(float) - (np.pi / 2 - np.array([p.orientation for p in props]))
    assert np.abs(np.sin(difference)).max() < 1e-4
    assert (column["orientation_rad"] > -np.pi / 2).all()
    assert (column["orientation_rad"] <= np.pi / 2).all()


def test_perimeter_and_axes_of_a_disc() -> None:
    yy, xx = np.mgrid[:401, :401]
    labels = ((yy - 200) ** 2 + (xx - 200) ** 2 <= 180**2).astype(np.int32)
    box = Box(0, 0, 401, 401)
    column = vectorize(instances_of(labels), np.zeros((2, 401, 401), np.uint8), box, box).columns
    assert column["perimeter_wpx"][0] == pytest.approx(2 * np.pi * 180, rel=0.01)
    assert column["major_wpx"][0] == pytest.approx(360, rel=0.005)
    assert column["minor_wpx"][0] == pytest.approx(360, rel=0.005)
    assert (column["cx_wpx"][0], column["cy_wpx"][0]) == (200.5, 200.5)


def test_rasterize_clips_to_its_box(tissue: tuple[Instances, np.ndarray, PolygonBatch]) -> None:
    _, _, batch = tissue
    whole = rasterize(batch, Box(0, 0, 1000, 1000))
    for box in (Box(100, 250, 333, 1), Box(-20, -30, 200, 90), Box(990, 5, 40, 400), Box(2000, 0, 5, 5)):
        view = np.zeros((box.h, box.w), np.int32)
        y0, y1, x0, x1 = max(box.y, 0), min(box.y1, 1000), max(box.x, 0), min(box.x1, 1000)
        if x1 > x0:
            view[y0 - box.y : y1 - box.y, x0 - box.x : x1 - box.x] = whole[y0:y1, x0:x1]
        np.testing.assert_array_equal(rasterize(batch, box), view)


def test_label_without_pixels_is_refused() -> None:
    bad = Instances(labels=np.zeros((8, 8), np.int32), anchors=np.array([[3, 3]], np.int32))
    box = Box(0, 0, 8, 8)
    with pytest.raises(InputError, match="label 1 has none"):
        vectorize(bad, np.zeros((2, 8, 8), np.uint8), box, box)
    with pytest.raises(InputError, match="expected labels"):
        vectorize(bad, np.zeros((2, 8, 8), np.uint8), Box(0, 0, 9, 8), box)

"""Label images and maps: the pixels of the nuclei, exactly."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiseg.errors import FormatError, InputError
from wsiseg.export.geojson import read_geojson
from wsiseg.export.incoming import Provenance, Source
from wsiseg.export.raster import write_label_image, write_ome_labels
from wsiseg.export.table import write_imported_table
from wsiseg.read import TissueMask, tissue_cells, tissue_frac
from wsiseg.tables.regions import rasterize_region
from wsiseg.tables.source import open_nuclei
from wsiseg.types import Box, SlideMeta
from wsiseg.write.maps import MAP_NAMES, maps_are_of, read_maps, slide_maps, write_maps

REGION = Box(2000, 2000, 900, 700)


def plain_raster(path: Path, region: Box) -> np.ndarray:
    """Which pixel centers lie in which polygon, asked of GEOS one polygon at a time, the smaller polygons last."""
    table = pq.read_table(path)
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    ids = table["nucleus_id"].to_numpy()
    out = np.zeros((region.h, region.w), np.int64)
    x, y = np.meshgrid(np.arange(region.w) + region.x + 0.5, np.arange(region.h) + region.y + 0.5)
    near = shapely.intersects(shapes, shapely.box(region.x, region.y, region.x1, region.y1))
    for k in sorted(np.flatnonzero(near), key=lambda k: -shapes[k].area):
        out[shapely.contains_xy(shapes[k], x, y)] = ids[k]
    return out


def test_a_region_is_drawn_pixel_for_pixel(table_path: Path) -> None:
    source = open_nuclei(table_path)
    ids = np.sort(pq.read_table(table_path)["nucleus_id"].to_numpy())
    labels = rasterize_region(source, REGION, ids)
    truth = plain_raster(table_path, REGION)
    got = np.where(labels > 0, ids[labels - 1], 0)
    assert (truth > 0).sum() > 5_000
    same = got == truth
    # nuclei of equal area that overlap may be drawn in either order; everything else is equal
    assert ((got > 0) == (truth > 0)).all()
    assert same.mean() > 0.999


def test_png_and_tiff_hold_the_same_labels(table_path: Path, tmp_path: Path) -> None:
    source = open_nuclei(table_path)
    png = write_label_image(source, tmp_path / "a.png", REGION)
    write_label_image(source, tmp_path / "a.tif", REGION)
    a, b = np.asarray(Image.open(tmp_path / "a.png")), tifffile.imread(tmp_path / "a.tif")
    assert (a == b).all()
    assert a.dtype == np.uint16
    assert png.n_nuclei == len(np.unique(a)) - 1
    with pytest.raises(InputError, match="w and h above 0"):
        write_label_image(source, tmp_path / "b.png", Box(0, 0, 0, 5))
    with pytest.raises(FormatError):
        write_label_image(source, tmp_path / "b.jpg", REGION)


def test_ome_zarr_labels_are_sharded_numbered_and_levelled(table_path: Path, tmp_path: Path) -> None:
    source = open_nuclei(table_path)
    out = tmp_path / "a.zarr"
    region = Box(1500, 1500, 2500, 1800)
    write_ome_labels(source, out, region, shard_px=1024)
    root = zarr.open_group(str(out), mode="r")
    assert root.attrs["ome"]["version"] == "0.5"
    assert root["labels"].attrs["ome"]["labels"] == ["nuclei"]
    group = root["labels/nuclei"]
    ome = group.attrs["ome"]
    assert ome["image-label"]["source"] == {"image": "../../"}
    (entry,) = ome["multiscales"]
    assert [a["name"] for a in entry["axes"]] == ["y", "x"]
    assert entry["datasets"][1]["coordinateTransformations"][0] == {"type": "scale", "scale": [0.5, 0.5]}
    assert entry["datasets"][0]["coordinateTransformations"][1] == {"type": "translation", "translation": [375.0, 375.0]}
    array = group["0"]
    assert array.shape == (1800, 2500)
    assert array.shards == (1024, 1024)
    assert array.chunks == (512, 512)
    ids = group["nucleus_id"][:]
    whole = rasterize_region(source, region, ids)
    assert (array[:] == whole).all()
    for k in range(1, len(entry["datasets"])):
        step = 2**k
        assert (group[str(k)][:] == whole[::step, ::step]).all()
    with pytest.raises(InputError, match="exists"):
        write_ome_labels(source, out, region)


def test_maps_are_exact_at_every_level(table_path: Path, tmp_path: Path) -> None:
    source = open_nuclei(table_path)
    tissue = TissueMask(np.random.default_rng(0).integers(0, 2, (50, 60)).astype(np.uint8), 200.0, 230.5, 150.0)
    maps = slide_maps(source, tissue=partial(tissue_cells, tissue))
    table = pq.read_table(table_path)
    area_px = table["area_px"].to_numpy().astype(np.float64)
    assert maps.count.sum() == 2000
    assert maps.area_um2.sum() == pytest.approx(table["area_um2"].to_numpy().sum(dtype=np.float64))
    assert maps.covered_px.sum() == pytest.approx(area_px.sum(), rel=1e-9)
    cx, cy = (table[c].to_numpy() for c in ("cx", "cy"))
    row, column = 100, 120
    inside = (cx // 32 == column) & (cy // 32 == row)
    assert maps.count[row, column] == inside.sum()
    assert maps.tissue_px is not None
    assert maps.tissue_px[row, column] == pytest.approx(tissue_frac(tissue, Box(column * 32, row * 32, 32, 32)) * 1024)
    coarse = maps
    while max(coarse.count.shape) > 1:
        coarse = coarse.halved()
    density, mean, cover, on_tissue = coarse.stack()[:, 0, 0]
    assert density == pytest.approx(2000 / (12000 * 12000 * 0.25**2 * 1e-6), rel=1e-6)
    assert mean == pytest.approx(table["area_um2"].to_numpy().mean(dtype=np.float64), rel=1e-6)
    assert cover == pytest.approx(area_px.sum() / 12000**2, rel=1e-6)
    assert on_tissue == pytest.approx(tissue_frac(tissue, Box(0, 0, 12000, 12000)), rel=1e-6)
    out = tmp_path / "maps.zarr"
    assert write_maps(source, out, tissue=partial(tissue_cells, tissue)).n_nuclei == 2000
    root = zarr.open_group(str(out), mode="r")
    assert [c["label"] for c in root.attrs["ome"]["omero"]["channels"]] == list(MAP_NAMES)
    assert np.array_equal(root["0"][:], maps.stack(), equal_nan=True)
    assert np.array_equal(root["1"][:], maps.halved().stack(), equal_nan=True)
    assert root["0"].metadata.codecs[0].chunk_shape == (1, 256, 256)  # a shard's inner chunks
    level = read_maps(out, max_cells=100 * 100)
    assert level.cell_px == 128
    assert np.array_equal(level.values, maps.halved().halved().stack(), equal_nan=True)
    assert maps_are_of(out, table_path)
    assert not maps_are_of(tmp_path, table_path)
    with pytest.raises(InputError, match="4 px or more"):
        slide_maps(source, cell_px=3)
    with pytest.raises(FormatError, match="maps of a slide"):
        read_maps(tmp_path)


def test_cover_is_near_what_pixels_say_and_giants_count(tmp_path: Path) -> None:
    ring = np.array([[100, 100], [900, 100], [900, 700], [100, 700]])
    small = np.array([[0, 0], [40, 0], [40, 30], [0, 30]]) + 950
    features = [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*r.tolist(), r[0].tolist()]]}, "properties": {}}
        for r in (ring, small)
    ]
    path, out = tmp_path / "a.geojson", tmp_path / "a.parquet"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    provenance = Provenance("qupath")
    meta = SlideMeta("S", "S.svs", 1024, 1024, 0.25, "user")
    write_imported_table(read_geojson(Source(path), provenance), out, meta, provenance)
    source = open_nuclei(out)
    whole = np.zeros((1024, 1024))
    whole[100:700, 100:900] = whole[950:980, 950:990] = 1  # of rectangles the box is the polygon: exact
    for cell_px in (32, 100):
        side = -(-1024 // cell_px) * cell_px
        padded = np.zeros((side, side))
        padded[:1024, :1024] = whole
        truth = padded.reshape(side // cell_px, cell_px, -1, cell_px).sum(axis=(1, 3))
        assert slide_maps(source, cell_px=cell_px).covered_px == pytest.approx(truth)
    part = slide_maps(source, Box(64, 640, 128, 128))
    assert part.covered_px == pytest.approx(whole[640:768, 64:192].reshape(4, 32, 4, 32).sum(axis=(1, 3)))
    assert part.count.sum() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 900), st.integers(1, 900), st.integers(5, 300))
def test_tissue_of_cells_is_that_of_boxes(seed: int, w: int, h: int, cell_px: int) -> None:
    rng = np.random.default_rng(seed)
    tissue = TissueMask(rng.integers(0, 2, (7, 9)).astype(np.uint8), *rng.uniform(20, 90, 2), *rng.uniform(-50, 200, 2))
    region = Box(int(rng.integers(-100, 300)), int(rng.integers(-100, 300)), w, h)
    cells = tissue_cells(tissue, region, cell_px)
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            x, y = region.x + column * cell_px, region.y + row * cell_px
            box = Box(x, y, min(cell_px, region.x1 - x), min(cell_px, region.y1 - y))
            assert cells[row, column] == pytest.approx(tissue_frac(tissue, box) * box.w * box.h, abs=1e-6)

"""Label images and maps: the pixels of the nuclei, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
import zarr
from PIL import Image

from wsiseg.errors import FormatError, InputError
from wsiseg.export.maps import MAP_NAMES, slide_maps, write_maps
from wsiseg.export.raster import rasterize_region, write_label_image, write_ome_labels
from wsiseg.export.source import open_nuclei
from wsiseg.types import Box

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
    maps = slide_maps(source)
    table = pq.read_table(table_path)
    assert maps.count.sum() == 2000
    assert maps.area_um2.sum() == pytest.approx(table["area_um2"].to_numpy().sum(dtype=np.float64))
    assert maps.covered_px.sum() == pytest.approx(
        shapely.union_all(shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))).area, rel=0.01
    )
    cx, cy = (table[c].to_numpy() for c in ("cx", "cy"))
    row, column = 100, 120
    inside = (cx // 32 == column) & (cy // 32 == row)
    assert maps.count[row, column] == inside.sum()
    coarse = maps
    while max(coarse.count.shape) > 1:
        coarse = coarse.halved()
    density, mean, cover = coarse.stack()[:, 0, 0]
    assert density == pytest.approx(2000 / (12000 * 12000 * 0.25**2 * 1e-6), rel=1e-6)
    assert mean == pytest.approx(table["area_um2"].to_numpy().mean(dtype=np.float64), rel=1e-6)
    assert cover == pytest.approx(maps.covered_px.sum() / 12000**2, rel=1e-6)
    out = tmp_path / "maps.zarr"
    assert write_maps(source, out).n_nuclei == 2000
    root = zarr.open_group(str(out), mode="r")
    assert [c["label"] for c in root.attrs["ome"]["omero"]["channels"]] == list(MAP_NAMES)
    assert np.array_equal(root["0"][:], maps.stack(), equal_nan=True)
    assert np.array_equal(root["1"][:], maps.halved().stack(), equal_nan=True)
    with pytest.raises(InputError, match="multiple of 4"):
        slide_maps(source, cell_px=30)

"""Folders and files for viewers: read back by other libraries, and compared with the table and the slide."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from urllib.parse import unquote, urlparse

import geopandas
import numpy as np
import openslide
import pyarrow.csv
import pytest
import shapely
import tifffile
import zarr
from click.testing import CliRunner

from tests.command import call
from tests.export.test_features import blobs, make_run
from tests.run.conftest import SLIDE
from wsiseg.cli import main
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.export.pyramid import BRIGHTEST_OD
from wsiseg.export.xenium import MAX_VERTICES
from wsiseg.summarize import RUIFROK_JOHNSTON

MPP = 0.499


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("viewers") / "run", blobs(3, 120), 1.0)


@pytest.fixture(scope="module")
def table(run: Path) -> geopandas.GeoDataFrame:
    return geopandas.read_parquet(run / f"nuclei/{SLIDE.stem}.parquet")


@pytest.fixture
def classified(tmp_path: Path) -> Path:
    """A run with nuclei of two classes, imported with its slide."""
    features = []
    for k in range(40):
        shape = shapely.Point(300 + 37 * k, 400 + 31 * k).buffer(9 + k % 5)
        geometry = shapely.geometry.mapping(shape)
        features.append({"type": "Feature", "properties": {"class": 'Odd, "name"' if k % 3 else "Tumor"}, "geometry": geometry})
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    list(import_files([tmp_path / "a.geojson"], "qupath", tmp_path / "run", ImportOptions(slide=str(SLIDE))))
    return tmp_path / "run"


def test_heat_map_counts_every_nucleus(run: Path, table: geopandas.GeoDataFrame, tmp_path: Path) -> None:
    call("export", run, "--to", "heatmap", "--cell-px", 200, "-o", tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    analysis = document["provenance"]["analysis"]
    with openslide.OpenSlide(SLIDE) as slide:
        width, height = slide.dimensions
    assert [analysis["size"][0] * width, analysis["size"][1] * height] == pytest.approx([200, 200])
    assert document["provenance"]["image"]["slide"] == SLIDE.stem
    names = [f["name"] for f in analysis["fields"]]
    assert names[0] == analysis["setting"]["field"]
    found = 0
    for x, y, density, mean, cover in document["data"]:
        x0, y0 = round(x * width), round(y * height)
        assert (x0 % 200, y0 % 200) == (0, 0)
        inside = table[(table["cx"] >= x0) & (table["cx"] < x0 + 200) & (table.cy >= y0) & (table.cy < y0 + 200)]
        area_mm2 = min(200, width - x0) * min(200, height - y0) * MPP**2 * 1e-6
        assert density == pytest.approx(len(inside) / area_mm2, abs=1e-3)
        assert mean == pytest.approx(inside.area_um2.mean(), abs=1e-3)
        for value, field in zip((density, mean, cover), analysis["fields"], strict=True):
            assert field["range"][0] <= value < field["range"][1]  # the viewer draws no others
        found += len(inside)
    assert found == len(table)


def test_heat_map_that_no_database_takes(run: Path, tmp_path: Path) -> None:
    rows = [{"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(shapely.box(5, 5, 20, 20))}]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": rows}))
    options = ImportOptions(mpp=0.25, slide_id="S", width_px=100_000, height_px=80_000)
    list(import_files([tmp_path / "a.geojson"], "qupath", tmp_path / "run", options))
    text = call("export", tmp_path / "run", "--to", "heatmap", "--cell-px", 8, "-o", tmp_path / "a.json", code=2)
    assert "125,000,000" in text
    assert "--cell-px" in text
    call("export", tmp_path / "run", "--to", "heatmap", "-o", tmp_path / "a.json")


def test_tissuumaps(run: Path, table: geopandas.GeoDataFrame, tmp_path: Path) -> None:
    call("export", run, "--to", "tissuumaps", "--image-mpp", 2, "-o", tmp_path / "a.tissuumaps")
    folder = tmp_path / "a.tissuumaps"
    project = json.loads((folder / "project.tmap").read_text())
    (layer,), (markers,), (regions,) = project["layers"], project["markerFiles"], project["regionFiles"]
    assert layer["tileSource"].removesuffix(".dzi") == "slide.tif"
    factor = markers["expectedHeader"]["coord_factor"]
    assert project["mpp"] == pytest.approx(MPP / factor)
    assert project["mpp"] == pytest.approx(2, rel=0.1)
    rows = pyarrow.csv.read_csv(folder / markers["path"]).to_pandas()
    header = markers["expectedHeader"]
    assert {header[k] for k in ("X", "Y", "cb_col", "gb_col")} <= set(rows.columns)
    assert rows.nucleus_id.tolist() == table.nucleus_id.tolist()
    np.testing.assert_allclose(rows[["x", "y"]], table[["cx", "cy"]])
    outlines = geopandas.read_file(folder / regions["path"]).set_crs(None, allow_override=True)
    np.testing.assert_allclose(outlines.area / factor**2, table.area, rtol=0.02)
    moved = [abs(a.centroid.x / factor - b.centroid.x) for a, b in zip(outlines.geometry, table.geometry, strict=True)]
    assert max(moved) < 0.1
    with openslide.OpenSlide(folder / "slide.tif") as small, openslide.OpenSlide(SLIDE) as whole:
        thumbnail = np.asarray(whole.get_thumbnail(small.dimensions).resize(small.dimensions), np.float64)
        shown = np.asarray(small.read_region((0, 0), 0, small.dimensions).convert("RGB"), np.float64)
    assert np.abs(shown - thumbnail).mean() < 6


def test_tissuumaps_colors_classes(classified: Path, tmp_path: Path) -> None:
    call("export", classified, "--to", "tissuumaps", "-o", tmp_path / "a.tissuumaps")
    project = json.loads((tmp_path / "a.tissuumaps/project.tmap").read_text())
    (markers,) = project["markerFiles"]
    rows = pyarrow.csv.read_csv(tmp_path / "a.tissuumaps/nuclei.csv").to_pandas()
    counts = rows["class"].value_counts().to_dict()
    assert counts == {"Tumor": 14, 'Odd, "name"': 26}
    assert markers["expectedRadios"]["cb_gr_dict"]
    assert set(json.loads(markers["expectedHeader"]["cb_gr_dict"])) == set(counts)


def test_qupath_project(run: Path, table: geopandas.GeoDataFrame, tmp_path: Path) -> None:
    out = tmp_path / "pro ject"
    call("export", run, "--to", "qupath-project", "-o", out)
    project = json.loads((out / "project.qpproj").read_text(encoding="utf-8"))
    assert unquote(urlparse(project["uri"]).path) == str(out / "project.qpproj")
    (image,) = project["images"]
    assert project["lastID"] == image["entryID"] == 1
    builder = image["serverBuilder"]
    assert Path(unquote(urlparse(builder["uri"]).path)) == SLIDE
    with openslide.OpenSlide(SLIDE) as slide:
        size = slide.dimensions
        levels = [{"width": w, "height": h} for w, h in slide.level_dimensions]
    metadata = builder["metadata"]
    assert (metadata["width"], metadata["height"]) == size
    assert [{k: v for k, v in level.items() if k != "downsample"} for level in metadata["levels"]] == levels
    assert metadata["pixelCalibration"]["pixelWidth"] == {"value": MPP, "unit": "µm"}
    features = json.loads(gzip.decompress((out / f"nuclei/{image['imageName']}.geojson.gz").read_bytes()))["features"]
    assert len(features) == len(table)
    assert {f["properties"]["objectType"] for f in features} == {"detection"}
    (script,) = (out / "scripts").glob("*.groovy")
    assert "'nuclei'" in script.read_text()
    assert (out / "data/1/thumbnail.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_work_in_a_qupath_project_is_kept(run: Path, tmp_path: Path) -> None:
    call("export", run, "--to", "qupath-project", "-o", tmp_path / "p")
    assert "already exists" in call("export", run, "--to", "qupath-project", "-o", tmp_path / "p", code=2)
    call("export", run, "--to", "qupath-project", "-o", tmp_path / "p", "--overwrite")
    (tmp_path / "p/data/1/data.qpdata").write_bytes(b"what someone drew")
    text = call("export", run, "--to", "qupath-project", "-o", tmp_path / "p", "--overwrite", code=2)
    assert "saved work" in text
    assert (tmp_path / "p/data/1/data.qpdata").read_bytes() == b"what someone drew"


def test_project_without_the_slides_that_are_gone(run: Path, tmp_path: Path) -> None:
    both = make_run(tmp_path / "run", blobs(4, 20), 1.0)
    for folder, ending in (("nuclei", "parquet"), ("slides", "json")):
        (both / folder / f"gone.{ending}").write_bytes((both / folder / f"{SLIDE.stem}.{ending}").read_bytes())
    record = json.loads((both / "slides/gone.json").read_text())
    record["row"]["slide_id"] = "gone"
    record["row"]["path"] = "/nowhere/gone.svs"
    record.pop("file", None)
    (both / "slides/gone.json").write_text(json.dumps(record))
    text = call("export", both, "--to", "qupath-project", "-o", tmp_path / "p", code=1)
    assert "/nowhere/gone.svs" in text
    assert "--path-map" in text
    (image,) = json.loads((tmp_path / "p/project.qpproj").read_text())["images"]
    assert image["imageName"] == SLIDE.stem


def polygons(root: zarr.Group, which: int, mpp: float) -> list[shapely.Polygon]:
    vertices, counts = np.asarray(root["polygon_vertices"])[which], np.asarray(root["polygon_num_vertices"])[which]
    assert vertices.dtype == np.float32
    return [shapely.Polygon(v.reshape(-1, 2)[:n] / mpp) for v, n in zip(vertices, counts, strict=True)]


def test_xenium_explorer(run: Path, table: geopandas.GeoDataFrame, tmp_path: Path) -> None:
    call("export", run, "--to", "xenium", "-o", tmp_path / "a.xenium")
    folder = tmp_path / "a.xenium"
    facts = json.loads((folder / "experiment.xenium").read_text())
    assert facts["num_cells"] == len(table)
    with zarr.storage.ZipStore(folder / facts["xenium_explorer_files"]["cells_zarr_filepath"], mode="r") as store:
        root = zarr.open_group(store, mode="r", zarr_format=2)
        assert root.attrs["number_cells"] == len(table)
        assert root.attrs["polygon_set_names"] == ["nucleus", "cell"]
        summary = dict(zip(root["cell_summary"].attrs["column_names"], np.asarray(root["cell_summary"]).T, strict=True))
        shapes = polygons(root, 0, MPP)
        ids = np.asarray(root["cell_id"])
        assert root["polygon_vertices"].shape == (2, len(table), 2 * MAX_VERTICES)
        assert shapes == polygons(root, 1, MPP)
    np.testing.assert_allclose(summary["nucleus_area"], table.area_um2, rtol=1e-5)
    np.testing.assert_allclose(summary["cell_centroid_x"], table["cx"] * MPP, rtol=1e-6)
    for mine, whole in zip(shapes, table.geometry, strict=True):
        assert mine.is_valid
        assert mine.intersection(whole).area / mine.union(whole).area > 0.85
    rows = pyarrow.csv.read_csv(folder / "nuclei.csv").to_pandas()
    assert rows.nucleus_id.tolist() == table.nucleus_id.tolist()
    for text, (prefix, suffix) in zip(rows.cell_id, ids.tolist(), strict=True):  # as 10x describes the texts
        letters, number = text.split("-")
        assert int("".join("0123456789abcdef"["abcdefghijklmnop".index(c)] for c in letters), 16) == prefix
        assert int(number) == suffix == 1


def test_xenium_image(run: Path, tmp_path: Path) -> None:
    call("export", run, "--to", "xenium", "-o", tmp_path / "a.xenium")
    facts = json.loads((tmp_path / "a.xenium/experiment.xenium").read_text())
    with tifffile.TiffFile(tmp_path / "a.xenium" / facts["images"]["morphology_filepath"]) as tiff:
        assert tiff.is_ome
        (series,) = tiff.series
        levels = [level.asarray() for level in series.levels]
        assert f'PhysicalSizeX="{facts["pixel_size"]}"' in tiff.ome_metadata
    with openslide.OpenSlide(SLIDE) as slide:
        rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"), np.float64)
    vectors = np.array(RUIFROK_JOHNSTON) / np.linalg.norm(RUIFROK_JOHNSTON, axis=1, keepdims=True)
    part = -np.log10((rgb[900:1100, 700:900] + 1) / 256).reshape(-1, 3)
    density = np.linalg.lstsq(vectors.T, part.T, rcond=None)[0][0].reshape(200, 200)
    expected = np.clip(density / BRIGHTEST_OD, 0, 1) * 255
    assert levels[0].shape == rgb.shape[:2]
    assert np.abs(levels[0][900:1100, 700:900] - expected).max() < 1.5
    assert len(levels) == 3
    for fine, coarse in itertools.pairwise(levels):
        h, w = fine.shape[0] // 2, fine.shape[1] // 2
        means = fine[: 2 * h, : 2 * w].reshape(h, 2, w, 2).mean(axis=(1, 3))
        assert np.abs(coarse[:h, :w] - means).max() <= 0.5


def test_xenium_cells_and_classes(classified: Path, tmp_path: Path) -> None:
    call("cells", classified, "--expand-um", 4)
    call("export", classified, "--to", "xenium", "--cells", "-o", tmp_path / "a.xenium")
    name = next((classified / "cells").glob("*.parquet")).name
    cells = geopandas.read_parquet(classified / "cells" / name)
    kinds = geopandas.read_parquet(classified / "nuclei" / name).class_name
    with zarr.storage.ZipStore(tmp_path / "a.xenium/cells.zarr.zip", mode="r") as store:
        root = zarr.open_group(store, mode="r", zarr_format=2)
        for mine, whole in zip(polygons(root, 1, MPP), cells.geometry, strict=True):
            assert mine.intersection(whole).area / mine.union(whole).area > 0.8
        np.testing.assert_allclose(np.asarray(root["cell_summary"])[:, 2], cells.area * MPP**2, rtol=1e-6)
    with zarr.storage.ZipStore(tmp_path / "a.xenium/analysis.zarr.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r", zarr_format=2)["cell_groups"]
        (names,) = group.attrs["group_names"]
        indices, starts = np.asarray(group["0/indices"]), np.asarray(group["0/indptr"])
    for members, kind in zip(np.split(indices, starts[1:]), names, strict=True):
        assert members.tolist() == np.flatnonzero(kinds == kind).tolist()


@pytest.mark.parametrize("fmt", ["qupath-project", "tissuumaps", "xenium"])
def test_no_nucleus_and_no_slide(run: Path, tmp_path: Path, fmt: str) -> None:
    words = ["export", str(run), "--to", fmt, "-o", str(tmp_path / "out"), "--region", "0,0,10,10"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code != 0
    assert "no nucleus" in done.output or "no slide has a nucleus" in done.output
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    gone = make_run(tmp_path / "run", blobs(3, 20), 1.0, path=Path("/nowhere/CMU-1-Small-Region.svs"))
    text = call("export", gone, "--to", fmt, "-o", tmp_path / "out", code=2)
    assert "/nowhere/CMU-1-Small-Region.svs" in text
    assert "--path-map" in text
    call("export", gone, "--to", fmt, "-o", tmp_path / "out", "--path-map", f"/nowhere={SLIDE.parent}")
    alone = tmp_path / "alone.parquet"
    alone.write_bytes((run / f"nuclei/{SLIDE.stem}.parquet").read_bytes())
    assert "is only known within its run folder" in call("export", alone, "--to", fmt, "-o", tmp_path / "other", code=2)


def test_the_same_bytes_again(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for fmt in ("heatmap", "qupath-project", "tissuumaps", "xenium"):
            call("export", run, "--to", fmt, "--image-mpp", 4, "-o", tmp_path / name / fmt)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) > 10
    for file in files:
        one, two = ((tmp_path / name / file).read_bytes() for name in ("a", "b"))
        assert one.replace(str(tmp_path / "a").encode(), b"") == two.replace(str(tmp_path / "b").encode(), b""), file

"""CellViT, label images and HoVer-NeXt become our table; whole run folders from other tools' files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import measure

from tests.export.tables import SLIDE_ID
from tests.run.conftest import SLIDE
from wsiseg.errors import DuplicateSlideError, FormatError, InputError, MissingMppError
from wsiseg.export.cellvit import read_cellvit
from wsiseg.export.convert import ExportOptions, export_tables, query_run
from wsiseg.export.geojson import read_geojson
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.export.incoming import Provenance, Source, safe_name
from wsiseg.export.labelmap import label_windows
from wsiseg.tables.source import open_nuclei
from wsiseg.types import Box


def cell(x: float, y: float, kind: int = 1) -> dict:
    return {
        "bbox": [[y, x], [y + 9, x + 9]],
        "centroid": [x + 4, y + 4],
        "type_prob": 0.9,
        "type": kind,
        "contour": [[x, y], [x, y + 9], [x + 9, y + 9], [x + 9, y]],
        "patch_coordinates": [1, 2],
        "cell_status": 8,
    }


def test_cellvit_cells(tmp_path: Path) -> None:
    path = tmp_path / "cells.json"
    tree = {
        "wsi_metadata": {"base_mpp": 0.25},
        "type_map": {"1": "Neoplastic", "2": "Dead"},
        "cells": [cell(10, 20), cell(50, 70, 2), {**cell(1, 1), "contour": [[1, 1], [2, 2]]}],
    }
    path.write_text(json.dumps(tree))
    (done,) = import_files([path], "cellvit", tmp_path / "run", ImportOptions(slide_id="S1"))
    assert done.n_nuclei == 2
    assert done.skipped == {"outlines of fewer than three points": 1}
    table = pq.read_table(tmp_path / "run/nuclei/S1.parquet")
    assert set(table["class_name"].to_pylist()) == {"Neoplastic", "Dead"}
    assert sorted(table["cx"].to_pylist()) == [14.5, 54.5]
    assert table["area_um2"].to_pylist() == pytest.approx([81 / 16] * 2)
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    assert shapely.is_ccw(shapely.get_exterior_ring(shapes)).all()
    path.write_text(json.dumps({"cells": [{"centroid": [1, 2]}]}))
    with pytest.raises(FormatError, match="cell 0"):
        list(read_cellvit(Source(path), Provenance("cellvit")))


def blobs(seed: int, shape: tuple[int, int], n: int) -> np.ndarray:
    """Discs that may overlap earlier ones, cutting some of them in pieces."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    out = np.zeros(shape, np.int32)
    for k in range(1, n + 1):
        cy, cx, r = rng.uniform(0, shape[0]), rng.uniform(0, shape[1]), rng.uniform(2, 9)
        out[(y - cy) ** 2 + (x - cx) ** 2 < r * r] = 3 * k
    return out


def largest_pieces(labels: np.ndarray) -> dict[int, set[tuple[int, int]]]:
    """Plain: the largest 4-connected piece of each label as a set of pixels."""
    out = {}
    for k in np.unique(labels)[1:]:
        pieces = measure.label(labels == k, connectivity=1)
        sizes = np.bincount(pieces.ravel())[1:]
        out[int(k)] = (int(sizes.max()), len(sizes))
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(20, 90))
def test_windows_of_a_label_map_own_each_label_once_whole(seed: int, block: int) -> None:
    labels = blobs(seed, (110, 130), 40)
    truth = largest_pieces(labels)
    got: dict[int, tuple[int, int]] = {}
    for window in label_windows(labels, block_px=block, halo_px=40):
        at = window.anchors + np.array([window.read.x, window.read.y])
        core = window.core
        inside = (at >= (core.x, core.y)).all(1) & (at < (core.x1, core.y1)).all(1)
        for k in np.flatnonzero(inside):
            assert int(window.ids[k]) not in got
            got[int(window.ids[k])] = (int((window.labels == k + 1).sum()), 2 if window.flags[k] else 1)
    assert {k: (n, min(pieces, 2)) for k, (n, pieces) in truth.items()} == got


@pytest.mark.parametrize("kind", ["tif", "npy", "zarr", "zarr.zip"])
def test_label_images_give_back_their_pixels(tmp_path: Path, kind: str) -> None:
    labels = blobs(5, (300, 260), 60)
    path = tmp_path / f"S2.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, labels)
    elif kind == "npy":
        np.save(path, labels)
    elif kind == "zarr":
        zarr.save_array(str(path), labels)
    else:
        store = zarr.storage.ZipStore(path, mode="w")
        zarr.create_array(store, data=labels)
        store.close()
    (done,) = import_files([path], "labels", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="S2"))
    truth = largest_pieces(labels)
    assert done.n_nuclei == len(truth)
    assert done.flags.get("SPLIT", 0) == sum(n > 1 for _, n in truth.values())
    (drawn,) = export_tables(tmp_path / "run", "labels-tiff", tmp_path / "out.tif", ExportOptions(region=Box(0, 0, 260, 300)))
    again = tifffile.imread(drawn.path)
    keep = np.isin(labels, [k for k, (_, n) in truth.items() if n == 1])
    # same partition of the pixels of whole labels: a one to one pairing of ids (a hole's pixels may be filled)
    pairs = {(int(a), int(b)) for a, b in zip(labels[keep], again[keep], strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    table = pq.read_table(tmp_path / "run/nuclei/S2.parquet")
    regions = {r.label: r for r in measure.regionprops(labels) if truth[r.label][1] == 1 and r.area == r.area_filled}
    areas = {round(a) for a in table["area_px"].to_pylist()}
    assert {int(r.area) for r in regions.values()} <= areas


def test_hovernext_with_classes_and_scale(tmp_path: Path) -> None:
    labels = np.zeros((60, 80), np.int32)
    labels[10:20, 30:50], labels[40:44, 5:9] = 7, 9
    np.save(tmp_path / "pinst_pp.npy", labels)
    (tmp_path / "class_inst.json").write_text(json.dumps({"7": [2, [15, 40]], "9": [1, [42, 7]]}))
    options = ImportOptions(mpp=0.25, label_mpp=0.5, slide_id="S3", classes=tmp_path / "class_inst.json", dx=100, dy=200)
    (done,) = import_files([tmp_path / "pinst_pp.npy"], "hovernext", tmp_path / "run", options)
    table = pq.read_table(tmp_path / "run/nuclei/S3.parquet").sort_by("area_px")
    assert done.n_nuclei == 2
    assert table["class_name"].to_pylist() == ["1", "2"]
    assert table["area_px"].to_pylist() == [64, 800]
    assert table["area_um2"].to_pylist() == [4, 50]
    big = shapely.from_wkb(table["geometry"][1].as_py())
    assert big.bounds == (160, 220, 200, 240)


def test_a_name_without_an_ending_is_a_folder_for_one_slide_too(table_path: Path, tmp_path: Path) -> None:
    (done,) = export_tables(table_path, "qupath", tmp_path / "new", ExportOptions())
    assert done.path == tmp_path / "new" / f"{table_path.stem}.geojson.gz"
    assert done.path.is_file()


def test_a_run_of_imports_has_statistics_queries_and_exports(table_path: Path, tmp_path: Path) -> None:
    (out,) = export_tables(table_path, "qupath", tmp_path / "a.geojson.gz", ExportOptions(frame="slide"))
    run = tmp_path / "run"
    options = ImportOptions(mpp=0.25, width_px=12000, height_px=12000, slide_id="A", cohort="LUAD")
    import_files([out.path], "qupath", run, options)
    import_files([out.path], "qupath", run, ImportOptions(mpp=0.25, slide_id="B", cohort="BRCA"))
    rows = {r["slide_id"]: r for r in pq.read_table(run / "slides.parquet").to_pylist()}
    truth = pq.read_table(table_path)["area_um2"].to_numpy()
    assert set(rows) == {"A", "B"}
    assert rows["A"]["n_nuclei"] == 2000
    assert rows["A"]["area_mean_um2"] == pytest.approx(truth.mean(dtype=np.float64))
    assert rows["A"]["nuclei_per_mm2"] is None  # nobody measured the tissue
    assert rows["A"]["center_prob_mean"] is not None
    assert rows["A"]["material_prob_mean"] is None
    table, units = query_run(run, "select cohort, count(*) n, avg(area_um2) area_um2 from nuclei group by all order by all")
    assert table["cohort"].to_pylist() == ["BRCA", "LUAD"]
    assert table["n"].to_pylist() == [2000, 2000]
    assert units == {"area_um2": "um^2"}
    done = list(export_tables(run, "quip", tmp_path / "quip", slide_ids=["A"]))
    assert done[0].n_nuclei == 2000
    assert open_nuclei(run / "nuclei/A.parquet").imported["sha256"]
    with pytest.raises(InputError, match="The query failed"):
        query_run(run, "select nothing from nowhere")
    again = import_files([out.path], "qupath", run, options)  # the same file again is no conflict
    assert again[0].n_nuclei == 2000
    out.path.write_bytes(out.path.read_bytes() + b"")
    other = tmp_path / "other.geojson"
    other.write_text('{"type":"FeatureCollection","features":[]}')
    with pytest.raises(DuplicateSlideError, match="A"):
        import_files([other], "qupath", run, options)


def test_with_its_slide_an_import_has_tissue_and_can_be_judged(tmp_path: Path) -> None:
    from wsiseg.evaluation import load_instances
    from wsiseg.qc.patch_pictures import make_patches
    from wsiseg.qc.runs import find_run_outliers, load_run

    labels = np.zeros((2967, 2220), np.int32)
    y, x = np.mgrid[:2967, :2220]
    labels[(y % 40 < 14) & (x % 50 < 18)] = 1
    labels = measure.label(labels, connectivity=1).astype(np.int32)
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    (done,) = import_files([tmp_path / "labels.tif"], "labels", tmp_path / "run", ImportOptions(slide=str(SLIDE), cohort="CMU"))
    assert done.slide_id == SLIDE.stem
    assert done.n_nuclei == labels.max()
    (row,) = pq.read_table(tmp_path / "run/slides.parquet").to_pylist()
    assert row["mpp"] == pytest.approx(0.499)
    assert row["tissue_mm2"] > 0.1
    assert row["nuclei_per_mm2"] == pytest.approx(done.n_nuclei / row["tissue_mm2"])
    assert (row["width_px"], row["height_px"]) == (2220, 2967)
    assert (load_instances(tmp_path / f"run/nuclei/{SLIDE.stem}.parquet", (2967, 2220)) != 0).sum() == (labels != 0).sum()
    run = load_run(tmp_path / "run")
    assert len(find_run_outliers(run)) == 1
    patches = make_patches(run, 2)
    assert patches.failed == []
    assert patches.patches == 2


def test_missing_mpp_and_evil_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    path.write_text('{"type":"FeatureCollection","features":[]}')
    with pytest.raises(MissingMppError, match="--mpp"):
        import_files([path], "qupath", tmp_path / "run")
    with pytest.raises(FormatError, match="can be a file name"):
        import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25, slide_id="../../evil"))
    with pytest.raises(FormatError, match="can be a file name"):
        safe_name("a/b", "here")
    assert list(tmp_path.parent.glob("evil*")) == []
    (done,) = import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25))
    assert done.n_nuclei == 0
    (row,) = pq.read_table(tmp_path / "run/slides.parquet").to_pylist()
    assert row["slide_id"] == "a"
    assert row["status"] == "empty"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "geometry", "coordinates", "features", "properties", "classification", "cells", "contour", "name"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(JSON)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, tree: object) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "f.json"
    for document in (tree, {"features": [{"type": "Feature", "geometry": tree}]}, {"cells": [{"contour": tree, "type": 1}]}):
        path.write_text(json.dumps(document))
        for reader in (read_geojson, read_cellvit):
            try:
                chunks = list(reader(Source(path), Provenance("fuzz")))
            except FormatError:
                continue
            assert all(np.isfinite(c.xy).all() for c in chunks)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    for name in ("f.json", "f.json.gz", "f.zip"):
        path = tmp_path_factory.mktemp("fuzz") / name
        path.write_bytes(data)
        try:
            list(read_geojson(Source(path), Provenance("fuzz")))
        except FormatError as err:
            if str(path) not in str(err):
                raise


def test_slide_id_is_the_real_slides_name() -> None:
    from wsiseg.export.imports import _stem

    assert _stem(f"{SLIDE_ID}.svs") == SLIDE_ID
    assert _stem("x_cell_detection.geojson") == "x"
    assert _stem("a.b.geojson.gz") == "a.b"


def test_real_files_of_other_tools(wsiseg_data: Path, tmp_path: Path) -> None:
    formats = wsiseg_data / "formats"
    (path,) = formats.glob("cellvitpp_*.geojson")
    with pytest.raises(FormatError, match=r"geometries of type MultiPoint: 3.*points and lines have no area"):
        import_files([path], "qupath", tmp_path / "run", ImportOptions(mpp=0.25))
    for path in sorted((formats / "nuc_eval_examples/GT").glob("*.tif")):
        (done,) = import_files([path], "labels", tmp_path / "run", ImportOptions(mpp=0.25))
        truth = largest_pieces(tifffile.imread(path))
        assert done.n_nuclei == len(truth)
        table = pq.read_table(tmp_path / f"run/nuclei/{path.stem}.parquet")
        assert shapely.is_valid(shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))).all()
        assert table["area_px"].to_numpy().sum() >= sum(n for n, _ in truth.values())

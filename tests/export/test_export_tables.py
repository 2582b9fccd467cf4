"""SpatialData, AnnData, GeoPackage, CSV, ROI sets and annotation stores, each opened by its own readers."""

from __future__ import annotations

import builtins
import json
import sqlite3
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
import zarr

from tests.export.tables import SLIDE_ID, slide_meta
from wsiseg.errors import BackendUnavailableError, FormatError, InputError
from wsiseg.export.annstore import FEATURES
from wsiseg.export.frames import write_csv, write_geopackage, write_roi_zip
from wsiseg.export.geojson import read_geojson
from wsiseg.export.incoming import Provenance, Source
from wsiseg.export.spatial import write_anndata, write_spatialdata
from wsiseg.export.table import write_imported_table
from wsiseg.export.tiatoolbox import read_annotation_store, write_annotation_store
from wsiseg.tables.source import Selection, open_nuclei, with_features
from wsiseg.types import Box

REGION = Selection(Box(2000, 2000, 3000, 3000))


def truth_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(path)
    return table["nucleus_id"].to_numpy(), shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))


def test_spatialdata_store(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.zarr"
    done = write_spatialdata(open_nuclei(table_path), out)
    assert done.n_nuclei == 2000
    frame = geopandas.read_parquet(out / "shapes/nuclei/shapes.parquet")
    ids, shapes = truth_of(table_path)
    assert frame.index.name == "nucleus_id"
    assert (frame.index.to_numpy() == ids).all()
    assert shapely.equals_exact(np.asarray(frame.geometry.values), shapes, 0).all()
    assert set(frame.geom_type) == {"Polygon"}
    root = zarr.open_consolidated(str(out), zarr_format=3)
    assert root.attrs["spatialdata_attrs"]["version"] == "0.2"
    attributes = dict(root["shapes/nuclei"].attrs)
    assert attributes["encoding-type"] == "ngff:shapes"
    assert [t["output"]["name"] for t in attributes["coordinateTransformations"]] == ["global", "um"]
    with pytest.raises(InputError, match="does not allow empty shapes"):
        write_spatialdata(open_nuclei(table_path), tmp_path / "b.zarr", Selection(Box(0, 0, 10, 10)))
    assert not (tmp_path / "b.zarr").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_spatialdata_store_opened_by_spatialdata(table_path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spatialdata = pytest.importorskip("spatialdata")
        out = tmp_path / "a.zarr"
        write_spatialdata(open_nuclei(table_path), out)
        store = spatialdata.read_zarr(out)
        frame = store.shapes["nuclei"]
        ids, shapes = truth_of(table_path)
        assert (frame.index.to_numpy() == ids).all()
        assert shapely.equals_exact(np.asarray(frame.geometry.values), shapes, 0).all()
        assert set(store.coordinate_systems) == {"global", "um"}
        table = store.tables["nuclei_features"]
        assert spatialdata.models.get_table_keys(table) == ("nuclei", "region", "nucleus_id")
        spatialdata.models.TableModel().validate(table)
        joined, matched = spatialdata.join_spatialelement_table(
            sdata=store, spatial_element_names="nuclei", table_name="nuclei_features", how="left"
        )
        assert (joined["nuclei"].index == matched.obs["nucleus_id"]).all()
        assert len(matched) == len(ids)
        areas = spatialdata.get_values("area_um2", sdata=store, element_name="nuclei", table_name="nuclei_features")
        assert (np.asarray(areas)[:, 0] == pq.read_table(table_path)["area_um2"].to_numpy()).all()
        moved = spatialdata.transform(frame, to_coordinate_system="um")
        assert np.asarray(moved.area) == pytest.approx(np.asarray(areas)[:, 0], rel=1e-5)
        near = spatialdata.bounding_box_query(
            store, axes=("x", "y"), min_coordinate=[2000, 2000], max_coordinate=[3000, 3000], target_coordinate_system="global"
        )
        assert len(near.shapes["nuclei"]) == np.count_nonzero(shapely.intersects(shapes, shapely.box(2000, 2000, 3000, 3000)))


def test_the_table_of_a_spatialdata_store_is_plain_zarr(table_path: Path, tmp_path: Path) -> None:
    write_spatialdata(open_nuclei(table_path), tmp_path / "a.zarr", REGION)
    table = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")["tables/nuclei_features"]
    assert dict(table.attrs)["spatialdata-encoding-type"] == "ngff:regions_table"
    frame = geopandas.read_parquet(tmp_path / "a.zarr/shapes/nuclei/shapes.parquet")
    assert (table["obs/nucleus_id"][:] == frame.index.to_numpy()).all()
    assert table["obs/_index"][:].tolist() == frame.index.astype(str).tolist()
    assert list(frame.columns) == ["geometry"]  # a number in both would be ambiguous to spatialdata.get_values
    stored = pq.read_table(table_path).to_pandas(ignore_metadata=True).set_index("nucleus_id").loc[frame.index]
    assert (table["obsm/spatial"][:] == stored[["cx", "cy"]].to_numpy()).all()
    assert (table["X"][:, 0] == stored["area_um2"].to_numpy()).all()


def test_anndata_has_squidpys_convention(table_path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata = pytest.importorskip("anndata")
        out = tmp_path / "a.h5ad"
        done = write_anndata(open_nuclei(table_path), out, REGION)
        data = anndata.read_h5ad(out)
    table = pq.read_table(table_path)
    cx, cy = (table[c].to_numpy() for c in ("cx", "cy"))
    inside = (cx >= 2000) & (cx < 5000) & (cy >= 2000) & (cy < 5000)
    assert data.n_obs == done.n_nuclei == inside.sum()
    assert list(data.var_names) == list(FEATURES[:7])  # a table without features has those that are stored
    assert (data.obs_names == table["nucleus_id"].to_numpy()[inside].astype(str)).all()
    assert (data.obs["tile_id"].to_numpy() == table["tile_id"].to_numpy()[inside]).all()
    assert data.obsm["spatial"].dtype == np.float64
    assert (data.obsm["spatial"] == np.stack([cx, cy], 1)[inside]).all()
    assert (data.X[:, 0] == table["area_um2"].to_numpy()[inside]).all()
    scales = data.uns["spatial"][SLIDE_ID]["scalefactors"]
    assert scales["tissue_hires_scalef"] == 1
    diameters = np.sqrt(table["area_px"].to_numpy()[inside].astype(np.float64) * 4 / np.pi)
    assert scales["spot_diameter_fullres"] == pytest.approx(diameters.mean(), rel=1e-5)


def test_anndata_of_an_import_has_its_classes(tmp_path: Path, excerpts: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata = pytest.importorskip("anndata")
        table, provenance = tmp_path / "p.parquet", Provenance("qupath")
        path = excerpts / "puma_roi_008_excerpt.geojson"
        write_imported_table(read_geojson(Source(path), provenance), table, slide_meta(), provenance)
        source = with_features(open_nuclei(table))
        write_anndata(source, tmp_path / "p.h5ad")
        data = anndata.read_h5ad(tmp_path / "p.h5ad")
        data.write_h5ad(tmp_path / "again.h5ad")  # the package can write what it read
    stored = pq.read_table(table)
    assert data.obs["class_name"].astype(str).tolist() == stored["class_name"].to_pylist()
    assert data.obs["import_flags"].tolist() == stored["import_flags"].to_pylist()
    assert list(data.var_names) == [f for f in FEATURES if f in source.columns]
    assert np.isnan(data[:, "center_prob"].X).all()  # QuPath gave no score
    assert (data[:, "circularity"].X > 0.3).all()


def test_h5ad_is_plain_hdf5(table_path: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    write_anndata(open_nuclei(table_path), tmp_path / "a.h5ad", REGION)
    table = pq.read_table(table_path)
    cx, cy = (table[c].to_numpy() for c in ("cx", "cy"))
    inside = (cx >= 2000) & (cx < 5000) & (cy >= 2000) & (cy < 5000)
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file.attrs["encoding-type"] == "anndata"
        assert file["obs/_index"].asstr()[:].tolist() == table["nucleus_id"].to_numpy()[inside].astype(str).tolist()
        assert (file["obsm/spatial"][:] == np.stack([cx, cy], 1)[inside]).all()
        assert (file["X"][:, 0] == table["area_um2"].to_numpy()[inside]).all()
        assert file["var/_index"].asstr()[:].tolist() == list(FEATURES[:7])
    write_anndata(open_nuclei(table_path), tmp_path / "none.h5ad", Selection(Box(0, 0, 10, 10)))
    with h5py.File(tmp_path / "none.h5ad") as file:
        assert file["X"].shape == (0, 7)


def test_geopackage_and_csv(table_path: Path, tmp_path: Path) -> None:
    source = open_nuclei(table_path)
    ids, shapes = truth_of(table_path)
    write_geopackage(source, tmp_path / "a.gpkg")
    frame = geopandas.read_file(tmp_path / "a.gpkg", layer="nuclei")
    assert (frame["nucleus_id"].to_numpy() == ids).all()
    assert shapely.equals_exact(np.asarray(frame.geometry.values), shapes, 0).all()
    for name in ("a.csv", "a.csv.gz"):
        write_csv(source, tmp_path / name)
        read = pd.read_csv(tmp_path / name)
        assert (read["nucleus_id"].to_numpy() == ids).all()
        assert shapely.equals_exact(shapely.from_wkt(read["geometry_wkt"].to_numpy(object)), shapes, 0).all()
        assert read["area_um2"].to_numpy() == pytest.approx(pq.read_table(table_path)["area_um2"].to_numpy(), rel=1e-6)


def test_roi_set_opened_by_roifile(table_path: Path, tmp_path: Path) -> None:
    roifile = pytest.importorskip("roifile")
    source = open_nuclei(table_path)
    done = write_roi_zip(source, tmp_path / "a.zip", REGION)
    rois = roifile.roiread(tmp_path / "a.zip")
    assert len(rois) == done.n_nuclei > 50
    ids, shapes = truth_of(table_path)
    by_id = dict(zip(ids.tolist(), shapes, strict=True))
    for roi in rois:
        got = shapely.Polygon(roi.coordinates() + np.array([2000, 2000]))
        assert got.equals(by_id[int(roi.name)])
    with pytest.raises(InputError, match="region"):
        write_roi_zip(source, tmp_path / "b.zip", Selection())


def test_annotation_store_schema_and_round_trip(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.db"
    assert write_annotation_store(open_nuclei(table_path), out).n_nuclei == 2000
    with sqlite3.connect(out) as db:
        columns = [row[1] for row in db.execute("PRAGMA table_info(annotations)")]
        assert columns == ["id", "key", "objtype", "cx", "cy", "geometry", "properties", "area"]
        assert json.loads(dict(db.execute("SELECT key, value FROM metadata"))["compression"]) == "zlib"
        # the query that TIAToolbox makes of a window: the R-tree, then the annotations
        boxes = "SELECT count(*) FROM rtree WHERE max_x >= ? AND min_x <= ? AND max_y >= ? AND min_y <= ?"
        (n,) = db.execute(boxes, (2000, 3000, 2000, 3000)).fetchone()
        key, blob, properties, area = db.execute(
            "SELECT key, geometry, properties, area FROM annotations WHERE id = 1"
        ).fetchone()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
    _, shapes = truth_of(table_path)
    assert n == np.count_nonzero(shapely.intersects(shapely.envelope(shapes), shapely.box(2000, 2000, 3000, 3000)))
    assert shapely.from_wkb(zlib.decompress(blob)).equals_exact(shapes[0], 0)
    assert area == shapes[0].area
    assert json.loads(properties)["type"] == "Nucleus"
    assert len(key) == 36
    provenance = Provenance("tiatoolbox")
    back = tmp_path / "back.parquet"
    done = write_imported_table(read_annotation_store(Source(out), provenance), back, slide_meta(), provenance)
    assert done.n_nuclei == 2000
    assert provenance.mpp == 0.25
    a, b = (np.sort(shapely.to_wkt(shapely.normalize(truth_of(p)[1]))) for p in (table_path, back))
    assert (a == b).all()
    probs = [np.sort(pq.read_table(p)["center_prob"].to_numpy()) for p in (table_path, back)]
    assert (probs[0] == probs[1]).all()


def test_broken_annotation_stores_say_so(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.db"
    write_annotation_store(open_nuclei(table_path), out)
    with sqlite3.connect(out) as db:
        db.execute("UPDATE annotations SET geometry = x'00ff00' WHERE id = 7")
    db.close()
    with pytest.raises(FormatError, match="annotation 7"):
        list(read_annotation_store(Source(out), Provenance("tiatoolbox")))
    cut = tmp_path / "cut.db"
    cut.write_bytes(out.read_bytes()[:5000])
    with pytest.raises(FormatError, match=r"cut\.db"):
        list(read_annotation_store(Source(cut), Provenance("tiatoolbox")))
    with pytest.raises(FormatError, match="no such"):
        list(read_annotation_store(Source(tmp_path / "none.db"), Provenance("tiatoolbox")))


def test_a_missing_library_names_its_extra(table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.split(".")[0] in {"geopandas", "roifile", "h5py"}:
            raise ImportError(name)
        return real(name, *rest)

    for name in ("geopandas", "roifile", "h5py"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    source = open_nuclei(table_path)
    for write, extra in ((write_geopackage, "geo"), (write_roi_zip, "imagej"), (write_anndata, "spatial")):
        with pytest.raises(BackendUnavailableError, match=rf"wsiseg\[{extra}\]"):
            write(source, tmp_path / "x", REGION)
    assert not list(tmp_path.iterdir())


def test_the_room_loads_no_heavy_library() -> None:
    heavy = {"zarr", "geopandas", "duckdb", "anndata", "pandas", "shapely"}
    code = f"import sys, wsiseg.export; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_annotation_store_opened_and_written_by_tiatoolbox(
    table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storage = pytest.importorskip("tiatoolbox.annotation.storage")
        # it asks sqlite3 for its options in a way that not every build of Python allows; nothing else of it is replaced
        options = ["ENABLE_RTREE", "ENABLE_MATH_FUNCTIONS"]
        monkeypatch.setattr(storage.SQLiteStore, "compile_options", staticmethod(lambda: options))
        out = tmp_path / "a.db"
        write_annotation_store(open_nuclei(table_path), out)
        store = storage.SQLiteStore(out)
        _, shapes = truth_of(table_path)
        assert len(store) == 2000
        found = store.query((2000, 2000, 3000, 3000), geometry_predicate="intersects")
        assert len(found) == np.count_nonzero(shapely.intersects(shapes, shapely.box(2000, 2000, 3000, 3000)))
        assert {a.properties["type"] for a in found.values()} == {"Nucleus"}
        theirs = storage.SQLiteStore(tmp_path / "b.db")
        theirs.append_many([storage.Annotation(s, {"type": "Tumor", "prob": 0.5}) for s in shapes[:50]])
        theirs.append(storage.Annotation(shapely.Point(3, 4), {}))
        theirs.close()
        store.close()
    provenance = Provenance("tiatoolbox")
    back = tmp_path / "b.parquet"
    done = write_imported_table(read_annotation_store(Source(tmp_path / "b.db"), provenance), back, slide_meta(), provenance)
    assert done.n_nuclei == 50
    assert done.skipped == {"geometries of type Point": 1}
    table = pq.read_table(back)
    assert set(table["class_name"].to_pylist()) == {"Tumor"}
    assert set(table["center_prob"].to_pylist()) == {128}
    a, b = (np.sort(shapely.to_wkt(shapely.normalize(s))) for s in (shapes[:50], truth_of(back)[1]))
    assert (a == b).all()

"""QuPath GeoJSON: what QuPath's reader demands, and the way back."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from tests.export.tables import SLIDE_ID, slide_meta
from wsiseg.errors import FormatError
from wsiseg.export.geojson import read_geojson
from wsiseg.export.incoming import Provenance, Source
from wsiseg.export.qupath import write_geojson
from wsiseg.export.table import write_imported_table
from wsiseg.export.text import NAMESPACE
from wsiseg.tables.source import Selection, open_nuclei
from wsiseg.types import Box


def features_of(path: Path) -> list[dict]:
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["features"]


def sorted_polygons(table_path: Path) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(table_path)
    ids = table["nucleus_id"].to_numpy()
    order = np.argsort(ids)
    return ids[order], shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))[order]


def test_every_feature_is_what_qupath_demands(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.geojson"
    done = write_geojson(open_nuclei(table_path), out)
    features = features_of(out)
    assert done.n_nuclei == len(features) == 2000
    assert done.n_repaired == done.n_dropped == 0
    for f in features:
        assert f["type"] == "Feature"
        assert "objectType" not in f
        assert f["properties"]["objectType"] == "detection"
        assert set(f["properties"]["classification"]) == {"name", "color"}
        assert all(isinstance(v, int) and 0 <= v <= 255 for v in f["properties"]["classification"]["color"])
        assert f["properties"]["isLocked"] is False
        assert str(uuid.UUID(f["id"])) == f["id"]
        (ring,) = f["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        assert len(ring) >= 5
    assert len({f["id"] for f in features}) == 2000
    shapes = shapely.from_geojson([json.dumps(f["geometry"]) for f in features])
    assert shapely.is_valid(shapes).all()
    nucleus_id = features[0]["properties"]["metadata"]["nucleus_id"]
    assert features[0]["id"] == str(uuid.uuid5(uuid.uuid5(NAMESPACE, SLIDE_ID), nucleus_id))


def test_geometry_and_measurements_are_those_of_the_table_relative_to_the_bounds(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.geojson"
    write_geojson(open_nuclei(table_path), out)
    table = pq.read_table(table_path)
    truth = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    frame = geopandas.read_file(out)
    moved = shapely.transform(np.asarray(frame.geometry.values), lambda xy: xy + np.array([300, 200]))
    assert shapely.equals_exact(moved, truth, 0).all()
    measured = [f["properties"]["measurements"] for f in features_of(out)]
    assert [np.float32(m["Area µm^2"]) for m in measured] == table["area_um2"].to_pylist()
    assert [round(m["Center probability"] * 255) for m in measured] == table["center_prob"].to_pylist()
    full = tmp_path / "full.geojson"
    write_geojson(open_nuclei(table_path), full, origin="slide", measurements=())
    first = features_of(full)[0]
    assert first["geometry"]["coordinates"][0][0] == list(truth[0].exterior.coords[0])
    assert first["properties"]["measurements"] == {}


def test_two_decimals_of_a_resampled_slide_stay_valid(scaled_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.geojson"
    write_geojson(open_nuclei(scaled_path), out, origin="slide")
    shapes = geopandas.read_file(out).geometry
    assert shapes.is_valid.all()
    truth = shapely.from_wkb(pq.read_table(scaled_path)["geometry"].to_numpy(zero_copy_only=False))
    assert (np.abs(shapely.get_coordinates(shapes.values) - shapely.get_coordinates(truth)) <= 0.005 + 1e-9).all()


def test_windows_partition_the_slide_and_samples_nest(table_path: Path, tmp_path: Path) -> None:
    source = open_nuclei(table_path)
    ids: list[str] = []
    for x in range(0, 12000, 4000):
        for y in range(0, 12000, 4000):
            out = tmp_path / f"{x}_{y}.geojson"
            write_geojson(source, out, Selection(Box(x, y, 4000, 4000)), geometry="centroid")
            ids += [f["properties"]["metadata"]["nucleus_id"] for f in features_of(out)]
    assert sorted(map(int, ids)) == sorted(pq.read_table(table_path)["nucleus_id"].to_pylist())
    few, more = tmp_path / "few.geojson", tmp_path / "more.geojson"
    assert write_geojson(source, few, Selection(sample=50)).n_nuclei == 50
    assert write_geojson(source, more, Selection(sample=300)).n_nuclei == 300
    assert {f["id"] for f in features_of(few)} < {f["id"] for f in features_of(more)}


def test_gzip_has_the_same_bytes_every_time_and_the_same_text(table_path: Path, tmp_path: Path) -> None:
    source = open_nuclei(table_path)
    outs = [tmp_path / n for n in ("a.geojson.gz", "b.geojson.gz", "c.geojson")]
    for out in outs:
        write_geojson(source, out)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert gzip.decompress(outs[0].read_bytes()) == outs[2].read_bytes()


@pytest.mark.parametrize("name", ["a.geojson", "a.geojson.gz"])
def test_there_and_back_gives_the_same_nuclei(table_path: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    write_geojson(open_nuclei(table_path), out)
    provenance = Provenance("qupath")
    chunks = read_geojson(Source(out, dx=300, dy=200), provenance)
    back = tmp_path / "back.parquet"
    done = write_imported_table(chunks, back, slide_meta(bounds=(300, 200)), provenance)
    assert done.n_nuclei == 2000
    assert done.flags == {}
    before_ids, before = sorted_polygons(table_path)
    after_ids, after = sorted_polygons(back)
    assert (before_ids == after_ids).all()
    assert shapely.equals_exact(before, after, 0).all()
    a, b = (pq.read_table(p).sort_by("nucleus_id") for p in (table_path, back))
    for column, tolerance in (("area_um2", 1e-4), ("cx", 0.07), ("cy", 0.07)):
        assert np.abs(a[column].to_numpy() - b[column].to_numpy()).max() <= tolerance
    assert (
        a["center_prob"].equals(b["center_prob"].cast("uint8"))
        or (np.abs(a["center_prob"].to_numpy().astype(int) - b["center_prob"].to_numpy().astype(int)) == 0).all()
    )
    again = write_geojson(open_nuclei(back), tmp_path / "again.geojson")
    assert again.n_nuclei == 2000


POLYGON = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]], [[2, 2], [2, 4], [4, 4], [2, 2]]]}


@pytest.mark.parametrize(
    ("document", "n", "skipped"),
    [
        ({"type": "FeatureCollection", "features": []}, 0, {}),
        ([{"type": "Feature", "geometry": POLYGON, "properties": {"classification": "Tumor"}}], 1, {}),
        ({"type": "Feature", "geometry": POLYGON}, 1, {}),
        (POLYGON, 1, {}),
        ([{"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [POLYGON["coordinates"]] * 3}}], 3, {}),
        ([{"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}], 0, {"geometries of type Point": 1}),
        ({"crs": None, "features": [{"type": "Feature", "geometry": POLYGON}], "n": 12}, 1, {}),
    ],
)
def test_shapes_of_documents(document: object, n: int, skipped: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    provenance = Provenance("qupath")
    chunks = list(read_geojson(Source(path), provenance))
    assert sum(map(len, chunks)) == n
    assert provenance.skipped == skipped
    for chunk in chunks:
        assert (chunk.flags & 16).all()  # the hole was filled, and said so


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty file"),
        ('{"features":[{"type":"Feature","geo', "character 13"),
        ('{"features":[1]}', "feature 0"),
        ('[{"geometry":{"type":"Polygon","coordinates":[[[0,0],[1,0],[1,NaN],[0,0]]]}}]', "finite"),
        ('[{"geometry":{"type":"Polygon","coordinates":[[[0,0],[1,0],[1,1e300],[0,0]]]}}]', r"below 2\^31"),
        ('[{"geometry":{"type":"Polygon","coordinates":[[[0,0],["a",0],[1,1],[0,0]]]}}]', "numbers"),
        ('[{"geometry":{"type":"Polygon","coordinates":7}}]', "coordinates"),
        ('[{"geometry":{"type":"Polygon","coordinates":[[0,0]]}}]', "ring of points"),
        ("[" * 100000, "too deep"),
        ("[] trailing", "character 3"),
    ],
)
def test_broken_files_say_where(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.geojson"
    path.write_text(text)
    with pytest.raises(FormatError, match=says) as err:
        list(read_geojson(Source(path), Provenance("qupath")))
    assert "broken.geojson" in str(err.value)


def test_truncated_gzip_is_a_format_error(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.geojson.gz"
    write_geojson(open_nuclei(table_path), out)
    out.write_bytes(out.read_bytes()[:20000])
    with pytest.raises(FormatError, match="truncated"):
        list(read_geojson(Source(out), Provenance("qupath")))


def test_self_crossing_rings_are_flagged_kept_and_repaired_on_the_way_out(tmp_path: Path) -> None:
    bow = [[0, 0], [10, 10], [10, 0], [0, 4], [0, 0]]
    path = tmp_path / "bow.geojson"
    path.write_text(json.dumps([{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [bow]}}]))
    provenance = Provenance("qupath")
    back = tmp_path / "bow.parquet"
    done = write_imported_table(read_geojson(Source(path), provenance), back, slide_meta(), provenance)
    assert done.flags == {"INVALID": 1}
    (kept,) = shapely.from_wkb(pq.read_table(back)["geometry"].to_numpy(zero_copy_only=False))
    assert shapely.equals_exact(kept, shapely.Polygon(bow), 0) or shapely.equals_exact(kept, shapely.Polygon(bow[::-1]), 0)
    out = tmp_path / "out.geojson"
    assert write_geojson(open_nuclei(back), out).n_repaired == 1
    (shape,) = geopandas.read_file(out).geometry
    assert shape.is_valid
    with pytest.raises(FormatError, match="crosses or touches"):
        write_imported_table(read_geojson(Source(path), provenance), back, slide_meta(), provenance, strict=True)


def test_measures_against_shapely_and_moments_of_a_raster(table_path: Path) -> None:
    from wsiseg.export.incoming import measures
    from wsiseg.tables import wkb_rings

    table = pq.read_table(table_path).slice(0, 200)
    xy, offsets = wkb_rings(table["geometry"])
    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    got = measures(xy, offsets, 0.5)
    assert got["area_px"] == pytest.approx(shapely.area(shapes))
    assert got["perimeter_um"] == pytest.approx(shapely.length(shapes) * 0.5)
    centers = shapely.get_coordinates(shapely.centroid(shapes))
    assert np.stack([got["cx"], got["cy"]], 1) == pytest.approx(centers)
    # the write room measured the same regions from pixel sums (their second moments are about pixel centers: 1/12 less)
    assert got["major_um"] / 2 == pytest.approx(table["major_um"].to_numpy(), abs=0.06)
    angle = got["orientation_rad"] - table["orientation_rad"].to_numpy()
    elongated = got["major_um"] > 1.1 * got["minor_um"]
    assert np.abs((angle[elongated] + np.pi / 2) % np.pi - np.pi / 2).max() < 0.02


def test_the_part_of_a_puma_file_imports_unchanged(tmp_path: Path, excerpts: Path) -> None:
    check_puma([excerpts / "puma_roi_008_excerpt.geojson"], tmp_path)


def test_puma_files_import_unchanged(tmp_path: Path, wsiseg_data: Path) -> None:
    check_puma(sorted((wsiseg_data / "formats/puma_geojson").glob("*.geojson")), tmp_path)


def check_puma(paths: list[Path], tmp_path: Path) -> None:
    assert paths
    for path in paths:
        provenance = Provenance("qupath")
        out = tmp_path / f"{path.stem}.parquet"
        done = write_imported_table(read_geojson(Source(path), provenance), out, slide_meta(), provenance)
        raw = json.loads(path.read_text())["features"]
        whole = shapely.from_geojson([json.dumps(f["geometry"]) for f in raw])
        parts = shapely.get_parts(whole)
        assert done.n_nuclei == len(parts)
        table = pq.read_table(out)
        shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
        assert np.sort(shapely.area(shapes)) == pytest.approx(
            np.sort(shapely.area(shapely.polygons(shapely.get_exterior_ring(parts))))
        )
        assert set(table["class_name"].to_pylist()) == {f["properties"]["classification"]["name"] for f in raw}

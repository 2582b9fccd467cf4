"""QuIP / TCIA folders and caMicroscope marks, byte by byte, and the known defects of the release."""

from __future__ import annotations

import csv
import datetime
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.export.tables import SLIDE_ID, slide_meta
from wsiseg.errors import FormatError, InputError
from wsiseg.export.incoming import Flag, Provenance, Source
from wsiseg.export.marks import read_marks, write_marks
from wsiseg.export.quip import read_quip, write_quip
from wsiseg.export.table import Imported, write_imported_table
from wsiseg.tables.source import open_nuclei

NAME = re.compile(r"^(\d+)_(\d+)_(\d+)_(\d+)_([\d.]+)_(\d+)-features\.csv$")
ALGMETA_KEYS = [
    "input_type",
    "otsu_ratio",
    "curvature_weight",
    "min_size",
    "max_size",
    "ms_kernel",
    "declump_type",
    "levelset_num_iters",
    "mpp",
    "image_width",
    "image_height",
    "tile_minx",
    "tile_miny",
    "tile_width",
    "tile_height",
    "patch_minx",
    "patch_miny",
    "patch_width",
    "patch_height",
    "output_level",
    "out_file_prefix",
    "subject_id",
    "case_id",
    "analysis_id",
    "analysis_execution_date",
    "version",
    "analysis_desc",
]


def geometry_of(path: Path) -> np.ndarray:
    return shapely.from_wkb(pq.read_table(path)["geometry"].to_numpy(zero_copy_only=False))


def plain_reader(folder: Path) -> list[tuple[int, np.ndarray]]:
    """Read as the pipeline's own scripts do: csv.DictReader, split on colons."""
    rows = []
    for path in sorted(folder.glob("*-features.csv")):
        assert len(path.name.removesuffix("-features.csv").split("_")) == 6
        with path.open() as stream:
            rows += [
                (int(r["AreaInPixels"]), np.array([float(v) for v in r["Polygon"][1:-1].split(":")]).reshape(-1, 2))
                for r in csv.DictReader(stream)
            ]
    return rows


def import_quip(path: Path, out: Path, **known: object) -> tuple[Imported, Provenance]:
    provenance = Provenance("quip")
    return write_imported_table(read_quip(Source(path, **known), provenance), out, slide_meta(), provenance), provenance


@pytest.fixture(scope="module")
def folder(table_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quip")
    done = write_quip(open_nuclei(table_path), out, executed=datetime.datetime(2026, 1, 2, 3, 4, 5))
    assert done.n_nuclei == 2000
    return done.path


def test_files_are_byte_for_byte_of_the_release_s_form(folder: Path) -> None:
    assert folder.name == f"{SLIDE_ID}.svs"
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 2 * len(list(folder.glob("*.csv"))) > 8
    for path in folder.glob("*.csv"):
        match = NAME.match(path.name)
        assert match
        x, y, w, h = map(int, match.groups()[:4])
        text = path.read_bytes().decode("ascii")
        assert text.startswith("AreaInPixels,PhysicalSize,Polygon\n")
        assert re.fullmatch(r"(\d+,\d+,\[-?\d+\.\d(:-?\d+\.\d)+\]\n)+", text.split("\n", 1)[1])
        meta = json.loads(path.with_name(path.name.replace("-features.csv", "-algmeta.json")).read_text())
        assert list(meta) == ALGMETA_KEYS
        assert (meta["tile_minx"], meta["tile_miny"], meta["tile_width"], meta["tile_height"]) == (x, y, w, h)
        assert meta["analysis_execution_date"] == "2026-01-02_03:04:05"
        assert meta["case_id"] == SLIDE_ID.split(".")[0]
        assert meta["out_file_prefix"] == path.name.removesuffix("-features.csv")


def test_a_plain_reader_finds_every_nucleus_once_with_its_area(folder: Path, table_path: Path) -> None:
    rows = plain_reader(folder)
    truth = geometry_of(table_path)
    read = shapely.polygons([shapely.linearrings(xy) for _, xy in rows])
    assert sorted(shapely.to_wkt(shapely.normalize(read))) == sorted(shapely.to_wkt(shapely.normalize(truth)))
    assert [a for a, _ in rows] == pytest.approx(shapely.area(read))
    for path in folder.glob("*.csv"):
        x, y, w, h = map(int, path.name.split("_")[:4])
        cx, cy = shapely.get_coordinates(
            shapely.centroid(shapely.polygons([shapely.linearrings(r) for _, r in plain_reader_one(path)]))
        ).T
        assert ((cx >= x) & (cx < x + w) & (cy >= y) & (cy < y + h)).all()


def plain_reader_one(path: Path) -> list[tuple[int, np.ndarray]]:
    with path.open() as stream:
        return [
            (int(r["AreaInPixels"]), np.array([float(v) for v in r["Polygon"][1:-1].split(":")]).reshape(-1, 2))
            for r in csv.DictReader(stream)
        ]


def test_there_and_back(folder: Path, table_path: Path, tmp_path: Path) -> None:
    done, provenance = import_quip(folder, tmp_path / "back.parquet")
    assert done.n_nuclei == 2000
    assert done.flags == {}
    assert (provenance.width_px, provenance.height_px, provenance.mpp) == (12000, 12000, 0.25)
    assert provenance.slide_name == f"{SLIDE_ID}.svs"
    before, after = (
        np.sort(shapely.to_wkt(shapely.normalize(geometry_of(p)))) for p in (table_path, tmp_path / "back.parquet")
    )
    assert (before == after).all()
    table = pq.read_table(tmp_path / "back.parquet")
    assert table["center_prob"].null_count == table.num_rows
    facts = open_nuclei(tmp_path / "back.parquet").imported
    assert facts["format"] == "quip"
    assert "center_prob" in facts["missing"]


def test_second_export_to_the_same_place_is_refused(folder: Path, table_path: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        write_quip(open_nuclei(table_path), folder.parent)
    assert write_quip(open_nuclei(table_path), folder.parent, executed=datetime.datetime(2026, 1, 2, 3, 4, 5), overwrite=True)


def old_tile(folder: Path, rings: list[list[float]], w: int, h: int, date: str | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    stem = f"4001_8001_{w}_{h}_0.25_1"
    lines = "".join(f"50,50,[{':'.join(f'{v:.1f}' for v in ring)}]\n" for ring in rings)
    (folder / f"{stem}-features.csv").write_text("AreaInPixels,PhysicalSize,Polygon\n" + lines)
    if date:
        meta = {"image_width": 9000, "image_height": 9000, "analysis_execution_date": date}
        (folder / f"{stem}-algmeta.json").write_text(json.dumps(meta))
    return folder


def mis_scaled(ring: list[float], w: int, h: int) -> list[float]:
    """What the old pipeline did to a true ring: it scaled the axes of a tile by each other's size."""
    return [(v - 4001) * h / w + 4001 if k % 2 == 0 else (v - 8001) * w / h + 8001 for k, v in enumerate(ring)]


TRUE_RING = [4101.0, 8301.0, 4121.0, 8301.0, 4121.0, 8331.0, 4101.0, 8331.0]
LOW_RING = [4101.0, 8901.0, 4121.0, 8901.0, 4121.0, 8931.0, 4101.0, 8931.0]


@pytest.mark.parametrize(("date", "suspect"), [(None, True), ("2019-11-30_10:00:00", True), ("2019-12-08_10:00:00", False)])
def test_edge_tiles_of_the_old_pipeline_are_flagged_and_kept(tmp_path: Path, date: str | None, suspect: bool) -> None:
    w, h = 4000, 1000
    rings = [mis_scaled(r, w, h) for r in (TRUE_RING, LOW_RING)]
    out = tmp_path / "t.parquet"
    done, _ = import_quip(old_tile(tmp_path / "s.svs", rings, w, h, date), out)
    both = {"EDGE_TILE_SUSPECT": 2, "EDGE_TILE_PROVEN": 2}
    assert done.flags == (both if suspect else {})
    got = {tuple(np.round(g.bounds, 1)) for g in geometry_of(out)}
    assert got == {tuple(np.round(shapely.Polygon(np.reshape(r, (-1, 2))).bounds, 1)) for r in rings}


def test_the_repair_is_applied_only_when_requested(tmp_path: Path) -> None:
    w, h = 4000, 1000
    rings = [mis_scaled(TRUE_RING, w, h)]
    out = tmp_path / "t.parquet"
    done, provenance = import_quip(old_tile(tmp_path / "s.svs", rings, w, h), out, fix_edge_tiles=True)
    assert done.flags == {}
    assert "one_pass_fix" in provenance.notes[0]
    (got,) = geometry_of(out)
    assert got.bounds == pytest.approx((4101, 8301, 4121, 8331), abs=0.3)  # the file's one decimal, stretched fourfold
    closed = [[*TRUE_RING, *TRUE_RING[:2]]]  # as the repair script leaves them
    done, _ = import_quip(old_tile(tmp_path / "r.svs", closed, w, h), out, fix_edge_tiles=True)
    (got,) = geometry_of(out)
    assert got.bounds == (4101, 8301, 4121, 8331)


def test_square_tiles_are_not_suspect_and_giants_are_flagged(tmp_path: Path) -> None:
    giant = [4001.0, 8001.0, 4401.0, 8001.0, 4401.0, 8401.0, 4001.0, 8401.0]
    done, provenance = import_quip(
        old_tile(tmp_path / "s.svs", [TRUE_RING, giant, [1.0, 2.0, 3.0, 4.0]], 4000, 4000), tmp_path / "t.parquet"
    )
    assert done.n_nuclei == 2
    assert done.flags == {"GIANT": 1}
    assert provenance.skipped == {"outlines of fewer than three points": 1}
    table = pq.read_table(tmp_path / "t.parquet")
    assert [f & Flag.GIANT for f in table["import_flags"].to_pylist()].count(Flag.GIANT) == 1


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("1_2_3-features.csv", "AreaInPixels,PhysicalSize,Polygon\n", "expected a name"),
        ("1_2_0_4_0.25_1-features.csv", "AreaInPixels,PhysicalSize,Polygon\n", "expected a name"),
        ("1_1_40_40_0.25_1-features.csv", "", "empty file"),
        ("1_1_40_40_0.25_1-features.csv", "a,b,c\n1,2,3\n", "expected the columns"),
        ("1_1_40_40_0.25_1-features.csv", "AreaInPixels,PhysicalSize,Polygon\n1,1,[1:2:3:4:5:6]\n1,1,[1:2:3:4:5]\n", "line 3"),
        ("1_1_40_40_0.25_1-features.csv", "AreaInPixels,PhysicalSize,Polygon\n1,1,[1:2:3:4:5:x]\n", "line 2"),
        ("1_1_40_40_0.25_1-features.csv", "AreaInPixels,PhysicalSize,Polygon\n1,1,[1:2:3:4:5:nan]\n", "line 2"),
        ("1_1_40_40_0.25_1-features.csv", "AreaInPixels,PhysicalSize,Polygon\n1,1,[1:2:3:4:5:1e300]\n", "line 2"),
        ("1_1_40_40_0.25_1-features.csv", "AreaInPixels,PhysicalSize,Polygon\n1,1,[1:2:3:4:5:6\n", "line 2"),
        ("1_1_40_40_0.25_1-features.csv", "AreaInPixels,PhysicalSize,Polygon\n1,1\n", "expected the columns"),
    ],
)
def test_broken_csv_states_the_position(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=says) as err:
        list(read_quip(Source(tmp_path), Provenance("quip")))
    assert name in str(err.value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "1_1_40_40_0.25_1-features.csv"
    path.write_bytes(b"AreaInPixels,PhysicalSize,Polygon\n1,1,[1.0:2.0:3.0:4.0:5.0:6.0]\n" + data)
    try:
        chunks = list(read_quip(Source(path), Provenance("quip")))
    except FormatError:
        return
    assert all(np.isfinite(c.xy).all() for c in chunks)


def test_marks_there_and_back(table_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "marks.json"
    assert write_marks(open_nuclei(table_path), out).n_nuclei == 2000
    document = json.loads(out.read_text().splitlines()[0])
    assert list(document) == [
        "properties",
        "geometries",
        "footprint",
        "parent_id",
        "normalized",
        "bbox",
        "x",
        "y",
        "object_type",
        "provenance",
    ]
    annotations = document["properties"]["annotations"]
    assert list(annotations) == ["AreaInPixels", "PhysicalSize", "ns", "name"]
    (feature,) = document["geometries"]["features"]
    ring = np.array(feature["geometry"]["coordinates"][0])
    assert document["bbox"] == [*ring.min(0), *ring.max(0)]
    assert feature["bound"]["type"] == "Polygon"
    assert shapely.Polygon(feature["bound"]["coordinates"][0]).bounds == tuple(document["bbox"])
    assert document["provenance"]["image"]["subject"] == "TCGA-05-4249"
    assert shapely.Polygon(ring * 12000).area == pytest.approx(annotations["AreaInPixels"])
    provenance = Provenance("marks")
    back = tmp_path / "back.parquet"
    chunks = read_marks(Source(out, width_px=12000, height_px=12000), provenance)
    assert write_imported_table(chunks, back, slide_meta(), provenance).n_nuclei == 2000
    before, after = (np.sort(shapely.to_wkt(shapely.normalize(geometry_of(p)))) for p in (table_path, back))
    assert (before == after).all()


def test_marks_without_a_size_or_out_of_range_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text("{}\n")
    with pytest.raises(InputError, match="--width and --height"):
        list(read_marks(Source(path), Provenance("marks")))
    with pytest.raises(FormatError, match="line 1"):
        list(read_marks(Source(path, width_px=10, height_px=10), Provenance("marks")))
    path.write_text('\n{"broken"\n')
    with pytest.raises(FormatError, match="line 2"):
        list(read_marks(Source(path, width_px=10, height_px=10), Provenance("marks")))


def test_the_part_of_the_real_quip_marks_imports_unchanged(excerpts: Path, tmp_path: Path) -> None:
    check_marks(excerpts / "quip_segments_excerpt.json", 20, tmp_path)


def test_the_real_quip_marks_import_unchanged(wsiseg_data: Path, tmp_path: Path) -> None:
    check_marks(wsiseg_data / "formats/quip_segments_TCGA-05-4249.json", 100, tmp_path)


def check_marks(path: Path, n: int, tmp_path: Path) -> None:
    # the largest extent that these fractions allow does not matter: any size gives their rectangles back
    width, height = 100_000, 80_000
    provenance = Provenance("marks")
    out = tmp_path / "m.parquet"
    done = write_imported_table(
        read_marks(Source(path, width_px=width, height_px=height), provenance), out, slide_meta(), provenance
    )
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    assert done.n_nuclei == len(documents) == n
    assert provenance.slide_name == "TCGA-05-4249-01Z-00-DX1"
    truth = shapely.area(
        [
            shapely.Polygon(np.array(d["geometries"]["features"][0]["geometry"]["coordinates"][0]) * (width, height))
            for d in documents
        ]
    )
    assert np.sort(shapely.area(geometry_of(out))) == pytest.approx(np.sort(truth))

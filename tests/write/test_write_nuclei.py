"""The polygon table read by other people's tools, against the rings that went in."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import geopandas
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.rings import nuclei, shoelace
from wsiseg.config import WriteConfig
from wsiseg.errors import FormatError, InputError, WsisegError
from wsiseg.schema import NUCLEI
from wsiseg.tables import arrow_schema, read_nuclei, read_table_meta, sweep_partials, wkb_rings
from wsiseg.types import Box, PolygonBatch, SlideMeta, Tile, TileStats
from wsiseg.write import TableSummary, write_nuclei_table, write_part
from wsiseg.write.nuclei import level0_coordinates, outward_float32, snap_step_px

ROOT = Path(__file__).resolve().parents[2]
CELL = 3000
FACTS: dict[str, object] = {"digest": "d", "model": {"sha256": "ab"}}
SCALES = [1.0, 2.0, 1.38, 1.996, 0.69, 0.4, 0.05, 100.0]


def slide(scale: float = 1.0) -> SlideMeta:
    mpp = 0.2527 if scale == 1.0 else 0.25 * scale
    return SlideMeta("S1", "/data/in/S1.svs", 60_000, 50_000, mpp, "openslide", bounds_x=11, mtime_ns=5)


def shifted(batch: PolygonBatch, dx: int, dy: int) -> PolygonBatch:
    move = {"nucleus_id": dy * 2**31 + dx, "cx_wpx": dx, "cy_wpx": dy}
    columns = {k: v + move.get(k, 0) if k in move else v for k, v in batch.columns.items()}
    return PolygonBatch(batch.xy + np.array([dx, dy], np.int32), batch.ring_offsets, columns)


def make_parts(folder: Path, n_tiles: int = 4, n: int = 300, digest: str = "d") -> tuple[list[Path], list[PolygonBatch]]:
    folder.mkdir(exist_ok=True)
    paths, batches = [], []
    for k in range(n_tiles):
        batch = shifted(nuclei(k, n, CELL - 100, shapes=min(n, 300)), 20_000 + k % 8 * CELL, 18_000 + k // 8 * CELL)
        tile = Tile("S1", k, Box(k * CELL, 0, CELL, CELL), Box(k * CELL, 0, CELL, CELL), 1.0, 0.5)
        paths.append(folder / f"{k:06d}.parquet")
        batches.append(batch)
        write_part(paths[-1], batch, tile, TileStats(core_px=1), {"read": time.time()}, digest)
    return paths, batches


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[PolygonBatch], TableSummary]:
    folder = tmp_path_factory.mktemp("nuclei")
    parts, batches = make_parts(folder / "parts")
    summary = write_nuclei_table(parts, folder / "S1.parquet", slide(), 1.0, FACTS, WriteConfig(row_group_rows=128))
    return folder / "S1.parquet", batches, summary


def covering(path: Path) -> np.ndarray:
    """Return the bbox column, float64 (N, 4); geopandas leaves it out of what it returns."""
    column = pq.read_table(path, columns=["bbox"])["bbox"].combine_chunks()
    return np.stack([column.field(i).to_numpy() for i in range(4)], axis=1).astype(np.float64)


def rings_by_id(batches: list[PolygonBatch]) -> dict[int, np.ndarray]:
    return {
        int(i): b.xy[b.ring_offsets[k] : b.ring_offsets[k + 1]] for b in batches for k, i in enumerate(b.columns["nucleus_id"])
    }


def test_every_ring_arrives_as_it_was(table: tuple[Path, list[PolygonBatch], TableSummary]) -> None:
    path, batches, summary = table
    read = pq.read_table(path)
    xy, offsets = wkb_rings(read["geometry"])
    truth = rings_by_id(batches)
    ids = read["nucleus_id"].to_pylist()
    assert sorted(ids) == sorted(truth)
    assert summary.n_nuclei == len(ids) == 1200
    assert summary.n_bytes == path.stat().st_size
    for k, i in enumerate(ids):
        assert np.array_equal(xy[offsets[k] : offsets[k + 1]], truth[i])


def test_geometry_is_valid_counterclockwise_and_of_the_counted_area(
    table: tuple[Path, list[PolygonBatch], TableSummary],
) -> None:
    path, batches, _ = table
    frame = geopandas.read_parquet(path)
    assert frame.crs is None
    assert frame.geometry.is_valid.all()
    assert frame.geometry.exterior.is_ccw.all()
    area = {int(i): int(a) for b in batches for i, a in zip(b.columns["nucleus_id"], b.columns["area_wpx"], strict=True)}
    assert np.array_equal(frame.geometry.area, frame.nucleus_id.map(area))
    assert np.array_equal(frame.area_px, frame.geometry.area)
    assert np.allclose(frame.area_um2, frame.geometry.area * 0.2527**2, rtol=1e-6)
    center = shapely.centroid(frame.geometry.values)
    assert np.abs(frame["cx"] - shapely.get_x(center)).max() <= 1 / 32 + 1e-6
    assert np.abs(frame["cy"] - shapely.get_y(center)).max() <= 1 / 32 + 1e-6
    assert np.array_equal(frame.bounds.to_numpy(), covering(path))


def test_schema_and_metadata(table: tuple[Path, list[PolygonBatch], TableSummary]) -> None:
    path, _, summary = table
    read = pq.read_schema(path)
    assert read.remove_metadata().equals(arrow_schema(NUCLEI), check_metadata=True)
    facts = read_table_meta(path)
    assert facts["digest"] == "d"
    assert facts["slide"]["mpp"] == 0.2527
    assert facts["slide"]["mpp_source"] == "openslide"
    assert facts["slide"]["bounds_x"] == 11
    assert (facts["schema"], facts["scale"], facts["n_nuclei"]) == ("1", 1.0, 1200)
    text = json.dumps(facts)
    assert "/data/in" not in text
    assert "mtime" not in text
    check_geo(path, summary)


def check_geo(path: Path, summary: TableSummary) -> None:
    """Check the rules of the GeoParquet 1.1.0 specification that concern one WKB polygon column."""
    schema = pq.read_schema(path)
    geo = json.loads(schema.metadata[b"geo"])
    assert set(geo) >= {"version", "primary_column", "columns"}
    assert geo["version"] == "1.1.0"
    column = geo["columns"][geo["primary_column"]]
    assert set(column) <= {"encoding", "geometry_types", "crs", "orientation", "edges", "bbox", "epoch", "covering"}
    assert column["encoding"] == "WKB"
    assert column["crs"] is None
    assert column["orientation"] == "counterclockwise"
    assert column["edges"] in ("planar", "spherical")
    geometry = geopandas.read_parquet(path).geometry
    assert sorted(column["geometry_types"]) == sorted(set(geometry.geom_type))
    if len(geometry):
        assert column["bbox"] == list(geometry.total_bounds) == list(summary.bbox or ())
    for paths in column["covering"].values():
        assert sorted(paths) == ["xmax", "xmin", "ymax", "ymin"]
        assert [f.name for f in schema.field(paths["xmin"][0]).type] == ["xmin", "ymin", "xmax", "ymax"]
        for name, (root, leaf) in paths.items():
            assert leaf == name
            assert schema.field(root).nullable == schema.field("geometry").nullable
            assert str(schema.field(root).type.field(leaf).type) in ("float", "double")
    assert str(schema.field("geometry").type) == "binary"


@pytest.mark.parametrize(
    "window", [(20_500, 18_300, 900, 700), (22_900, 18_000, 300, 3000), (0, 0, 10, 10), (0, 0, 60_000, 60_000)]
)
def test_window_reads_agree_with_brute_force(
    table: tuple[Path, list[PolygonBatch], TableSummary], window: tuple[int, int, int, int]
) -> None:
    path, batches, _ = table
    box = Box(*window)
    inside = set()
    for i, ring in rings_by_id(batches).items():
        (x0, y0), (x1, y1) = ring.min(0), ring.max(0)
        if x0 <= box.x1 and x1 >= box.x and y0 <= box.y1 and y1 >= box.y:
            inside.add(i)
    assert set(read_nuclei(path, box, ["nucleus_id"])["nucleus_id"].to_pylist()) == inside
    frame = geopandas.read_parquet(path, bbox=(box.x, box.y, box.x1, box.y1))
    assert set(frame.nucleus_id) == inside
    query = f"""select nucleus_id, area_um2 from '{path}' where bbox.xmin <= {box.x1} and bbox.xmax >= {box.x}
                and bbox.ymin <= {box.y1} and bbox.ymax >= {box.y}"""
    rows = duckdb.sql(query).fetchall()
    assert {r[0] for r in rows} == inside
    full = pq.read_table(path)
    area = dict(zip(full["nucleus_id"].to_pylist(), full["area_um2"].to_pylist(), strict=True))
    assert all(area[i] == a for i, a in rows)


def test_duckdb_reads_every_number(table: tuple[Path, list[PolygonBatch], TableSummary]) -> None:
    path, _, _ = table
    full = pq.read_table(path)
    columns = duckdb.sql(f"select * exclude (geometry, bbox), bbox.* from '{path}'").fetchnumpy()
    for name in [n for n in full.column_names if n not in ("geometry", "bbox")]:
        assert np.array_equal(columns[name], full[name].to_numpy()), name
    limits = covering(path)
    for k, name in enumerate(("xmin", "ymin", "xmax", "ymax")):
        assert np.array_equal(columns[name], limits[:, k])
    value = "geometry" if geometry_is_blob(path) else "ST_AsWKB(geometry)"
    blobs = duckdb.sql(f"select {value} from '{path}'")
    assert [bytes(r[0]) for r in blobs.fetchall()] == full["geometry"].to_pylist()


def geometry_is_blob(path: Path) -> bool:
    """Return whether this DuckDB shows the geometry column as bytes (before 1.1 or without its own GEOMETRY type)."""
    return "BLOB" in str(duckdb.sql(f"select typeof(geometry) from '{path}' limit 1").fetchall())


def test_bytes_do_not_depend_on_the_order_of_parts_or_on_the_clock(tmp_path: Path) -> None:
    tables = []
    for run, step in enumerate((1, -1)):
        parts, _ = make_parts(tmp_path / f"run{run}", n=120)  # seconds in the parts differ: time.time()
        out = tmp_path / f"out{run}.parquet"
        write_nuclei_table(parts[::step], out, slide(), 1.0, FACTS, WriteConfig())
        tables.append(out.read_bytes())
    assert tables[0] == tables[1]


def test_layout_options_do_not_change_content(tmp_path: Path) -> None:
    parts, _ = make_parts(tmp_path / "p", n=120)
    reads = []
    for k, config in enumerate((WriteConfig(), WriteConfig(row_group_rows=100, zstd_level=3))):
        write_nuclei_table(parts, tmp_path / f"{k}.parquet", slide(), 1.0, FACTS, config)
        reads.append(pq.read_table(tmp_path / f"{k}.parquet"))
    assert reads[0].equals(reads[1])
    assert pq.read_metadata(tmp_path / "1.parquet").num_row_groups == 5


@pytest.mark.parametrize("empty_parts", [False, True])
def test_slide_without_nuclei(tmp_path: Path, empty_parts: bool) -> None:
    parts = make_parts(tmp_path / "p", n_tiles=1, n=3)[0] if empty_parts else []
    for path in parts:
        empty = nuclei(0, 3, 500)
        batch = PolygonBatch(empty.xy[:0], empty.ring_offsets[:1], {k: v[:0] for k, v in empty.columns.items()})
        write_part(path, batch, Tile("S1", 0, Box(0, 0, 9, 9), Box(0, 0, 9, 9), 1.0, 0.0), TileStats(), {}, "d")
    summary = write_nuclei_table(parts, tmp_path / "e.parquet", slide(), 1.0, FACTS, WriteConfig())
    assert (summary.n_nuclei, summary.bbox) == (0, None)
    assert pq.read_schema(tmp_path / "e.parquet").names == [c.name for c in NUCLEI]
    assert len(geopandas.read_parquet(tmp_path / "e.parquet")) == 0
    assert duckdb.sql(f"select count(*) from '{tmp_path / 'e.parquet'}'").fetchall() == [(0,)]
    check_geo(tmp_path / "e.parquet", summary)


@pytest.mark.parametrize("scale", SCALES[1:])
def test_resampled_slides_stay_valid_and_keep_their_area(tmp_path: Path, scale: float) -> None:
    parts, batches = make_parts(tmp_path / "p", n_tiles=2, n=150)
    write_nuclei_table(parts, tmp_path / "t.parquet", slide(scale), scale, FACTS, WriteConfig())
    frame = geopandas.read_parquet(tmp_path / "t.parquet").set_index("nucleus_id")
    assert frame.geometry.is_valid.all()
    assert frame.geometry.exterior.is_ccw.all()
    truth = {int(i): (int(a), len(rings_by_id(batches)[int(i)])) for b in batches
             for i, a in zip(b.columns["nucleus_id"], b.columns["area_wpx"], strict=True)}  # fmt: skip
    count = np.array([truth[i][0] for i in frame.index], float)
    vertices = np.array([truth[i][1] for i in frame.index])
    half = snap_step_px(scale) / 2
    bound = frame.geometry.length * half + vertices * half**2
    assert (np.abs(frame.geometry.area - count / scale**2) <= bound * (1 + 1e-9)).all()
    assert np.allclose(frame.area_px, count / scale**2, rtol=1e-6)
    assert np.allclose(frame.area_um2, count * 0.25**2, rtol=1e-6)
    limits = covering(tmp_path / "t.parquet")
    exact = frame.bounds.to_numpy()
    assert (limits[:, :2] <= exact[:, :2]).all()
    assert (limits[:, 2:] >= exact[:, 2:]).all()
    assert np.abs(limits - exact).max() <= np.abs(exact).max() * 2**-23


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SCALES) | st.floats(0.02, 120.0), st.integers(-(2**20), 2**28))
def test_snapping_is_strictly_increasing_and_close(scale: float, start: int) -> None:
    wpx = np.arange(start, start + 200)
    out = level0_coordinates(wpx, scale)
    step = snap_step_px(scale)
    assert (np.diff(out) > 0).all()
    assert np.array_equal(out % step, np.zeros(200))
    assert step <= 1 / (16 * scale) or scale == 1.0
    assert np.abs(out - wpx / scale).max() <= step / 2 * (1 + 1e-9)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=20))
def test_float32_bounds_enclose_and_are_the_nearest_that_do(values: list[float]) -> None:
    exact = np.array(values)
    low, high = outward_float32(exact, up=False), outward_float32(exact, up=True)
    assert (low.astype(np.float64) <= exact).all()
    assert (high.astype(np.float64) >= exact).all()
    assert (np.nextafter(low, np.float32(np.inf)) >= high).all()


def test_measures_are_rounded_as_the_schema_states(tmp_path: Path) -> None:
    parts, batches = make_parts(tmp_path / "p", n_tiles=1, n=200)
    write_nuclei_table(parts, tmp_path / "t.parquet", slide(), 1.0, FACTS, WriteConfig())
    frame = pq.read_table(tmp_path / "t.parquet").to_pandas().set_index("nucleus_id").loc[batches[0].columns["nucleus_id"]]
    meanings = {c.name: c.meaning for c in NUCLEI}
    for name, source, unit in (("perimeter_um", "perimeter_wpx", 0.2527), ("major_um", "major_wpx", 0.2527),
                               ("minor_um", "minor_wpx", 0.2527), ("orientation_rad", "orientation_rad", 1.0)):  # fmt: skip
        per = int(meanings[name].rsplit("1/", 1)[1].split()[0])
        values = frame[name].to_numpy(np.float64)
        assert np.array_equal(values * per, np.rint(values * per))
        assert np.abs(values - batches[0].columns[source] * unit).max() <= 0.5 / per + 1e-6
    for name in ("center_prob", "material_prob"):
        assert np.array_equal(frame[name], batches[0].columns[name])
    assert (frame["tile_id"] == 0).all()


def test_one_nucleus_in_two_tiles_is_an_error(tmp_path: Path) -> None:
    parts, batches = make_parts(tmp_path / "p", n_tiles=2, n=20)
    tile = Tile("S1", 1, Box(0, 0, 9, 9), Box(0, 0, 9, 9), 1.0, 0.5)
    write_part(parts[1], batches[0], tile, TileStats(), {}, "d")
    with pytest.raises(WsisegError, match=r"tiles [01] and [01].*exactly one tile"):
        write_nuclei_table(parts, tmp_path / "t.parquet", slide(), 1.0, FACTS, WriteConfig())
    assert not (tmp_path / "t.parquet").exists()


def test_wrong_parts_are_refused(tmp_path: Path) -> None:
    parts, _ = make_parts(tmp_path / "p", n_tiles=1, n=5)
    others, _ = make_parts(tmp_path / "q", n_tiles=2, n=5, digest="e")
    out = tmp_path / "t.parquet"
    with pytest.raises(FormatError, match="config d, got e"):
        write_nuclei_table([parts[0], others[1]], out, slide(), 1.0, FACTS, WriteConfig())
    with pytest.raises(FormatError, match="slide S2, got S1"):
        write_nuclei_table(parts, out, SlideMeta("S2", "x", 1, 1, 0.25, "user"), 1.0, FACTS, WriteConfig())
    with pytest.raises(FormatError, match="missing"):
        write_nuclei_table([tmp_path / "none"], out, slide(), 1.0, FACTS, WriteConfig())
    with pytest.raises(InputError, match="scale"):
        write_nuclei_table(parts, out, slide(), 0.0, FACTS, WriteConfig())
    parts[0].write_bytes(parts[0].read_bytes()[:-9])
    with pytest.raises(FormatError, match="checksum"):
        write_nuclei_table(parts, out, slide(), 1.0, FACTS, WriteConfig())
    assert not out.exists()


def test_parts_of_different_ring_coding_go_into_one_table(tmp_path: Path) -> None:
    parts, batches = make_parts(tmp_path / "p", n_tiles=2, n=30)
    big = np.array([(0, 0), (300, 0), (300, 40), (7, 90), (0, 0)], np.int32)  # a slanted edge, and steps beyond int8
    columns = {k: v[:1] for k, v in shifted(nuclei(9, 1, 500), 1000, 1000).columns.items()}
    odd = PolygonBatch(big + 1000, np.array([0, 5]), columns)
    write_part(tmp_path / "p" / "odd", odd, Tile("S1", 9, Box(0, 0, 9, 9), Box(0, 0, 9, 9), 1.0, 1.0), TileStats(), {}, "d")
    write_nuclei_table([parts[0], tmp_path / "p" / "odd", parts[1]], tmp_path / "t.parquet", slide(), 1.0, FACTS, WriteConfig())
    read = pq.read_table(tmp_path / "t.parquet")
    xy, offsets = wkb_rings(read["geometry"])
    truth = rings_by_id([*batches, odd])
    assert len(truth) == 61
    for k, i in enumerate(read["nucleus_id"].to_pylist()):
        assert np.array_equal(xy[offsets[k] : offsets[k + 1]], truth[i])


def test_realistic_nuclei_take_at_most_115_bytes_each(tmp_path: Path) -> None:
    parts, batches = make_parts(tmp_path / "p", n_tiles=8, n=5000)
    summary = write_nuclei_table(parts, tmp_path / "t.parquet", slide(), 1.0, FACTS, WriteConfig())
    assert np.mean([b.columns["area_wpx"].mean() for b in batches]) > 500
    assert summary.n_bytes / summary.n_nuclei <= 115


def test_a_window_of_a_million_touches_few_row_groups(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    square = np.array([(0, 0), (9, 0), (9, 11), (0, 11), (0, 0)], np.int32)  # four corners: a million rows for little CPU
    rng = np.random.default_rng(0)
    parts = []
    base = {k: v[:1] for k, v in nuclei(0, 1, 500).columns.items()}
    for k in range(25):
        corner = np.stack(np.meshgrid(np.arange(200), np.arange(200)), -1).reshape(-1, 2) * 20 + rng.integers(0, 9, (40_000, 2))
        corner = (corner + np.array([k % 5, k // 5]) * 4000).astype(np.int32)
        columns = {name: np.repeat(v, 40_000) for name, v in base.items()}
        columns |= {"nucleus_id": corner[:, 1].astype(np.int64) * 2**31 + corner[:, 0]}
        columns |= {"cx_wpx": corner[:, 0] + 4.5, "cy_wpx": corner[:, 1] + 5.5}
        xy = (corner[:, None] + square).reshape(-1, 2)
        tile = Tile("S1", k, Box(0, 0, 4000, 4000), Box(0, 0, 4000, 4000), 1.0, 1.0)
        parts.append(folder / f"{k}.parquet")
        write_part(parts[-1], PolygonBatch(xy, np.arange(0, 200_001, 5), columns), tile, TileStats(), {}, "d")
    out = tmp_path / "t.parquet"
    assert write_nuclei_table(parts, out, slide(), 1.0, FACTS, WriteConfig()).n_nuclei == 1_000_000
    meta = pq.read_metadata(out)
    leaf = {meta.schema.column(j).path: j for j in range(meta.num_columns)}
    window = Box(8300, 7700, 1000, 1000)
    touched = 0
    for g in range(meta.num_row_groups):
        stats = {name: meta.row_group(g).column(leaf[f"bbox.{name}"]).statistics for name in ("xmin", "ymin", "xmax", "ymax")}
        touched += (
            stats["xmin"].min <= window.x1 and stats["xmax"].max >= window.x
            and stats["ymin"].min <= window.y1 and stats["ymax"].max >= window.y
        )  # fmt: skip
    assert meta.num_row_groups == 62
    assert 1 <= touched <= 6
    found = read_nuclei(out, window, ["nucleus_id", "bbox"])
    x = pc.struct_field(found["bbox"], "xmin").to_numpy()
    assert len(found) == pytest.approx(1050**2 / 400, rel=0.1)
    assert x.max() <= window.x1


def test_table_is_whole_or_absent_when_the_writer_is_killed(tmp_path: Path) -> None:
    parts, _ = make_parts(tmp_path / "p", n_tiles=4, n=2000)
    out = tmp_path / "t.parquet"
    code = (
        "import sys; from pathlib import Path; from tests.write.test_write_nuclei import FACTS, slide\n"
        "from wsiseg.config import WriteConfig; from wsiseg.write import write_nuclei_table\n"
        "while True:\n"
        "    parts = [Path(p) for p in sys.argv[2:]]\n"
        "    write_nuclei_table(parts, Path(sys.argv[1]), slide(), 1.0, FACTS, WriteConfig(row_group_rows=50))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(out), *map(str, parts)], cwd=ROOT)
    while not out.exists():
        assert writer.poll() is None
        time.sleep(0.01)
    time.sleep(0.25)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert pq.read_table(out).num_rows == 8000
    sweep_partials(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "t.parquet"]


def test_full_disk_keeps_the_old_table(tmp_path: Path) -> None:
    """The kernel refuses bytes half-way through the table (EFBIG stands for ENOSPC); the error is the system's own."""
    parts, _ = make_parts(tmp_path / "p", n_tiles=2, n=1500)
    out = tmp_path / "t.parquet"
    out.write_bytes(b"old")
    code = (
        "import sys; from pathlib import Path; from tests.write.test_write_nuclei import FACTS, slide\n"
        "from wsiseg.config import WriteConfig; from wsiseg.write import write_nuclei_table\n"
        "try:\n"
        "    parts = [Path(p) for p in sys.argv[2:]]\n"
        "    write_nuclei_table(parts, Path(sys.argv[1]), slide(), 1.0, FACTS, WriteConfig(row_group_rows=500))\n"
        "except OSError as err:\n    sys.exit(err.errno or 1)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run([sys.executable, "-c", code, str(out), *map(str, parts)], cwd=ROOT, preexec_fn=limit, check=False)
    assert done.returncode not in (0, 1), os.strerror(done.returncode)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "t.parquet"]


def test_shoelace_of_the_synthetic_rings_is_their_count() -> None:
    batch = nuclei(5, 200, 3000)
    assert np.array_equal(shoelace(batch.xy, batch.ring_offsets), batch.columns["area_wpx"])

"""Statistics against a plain recomputation, and tables against other readers."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsiseg.decode import decode, encode
from wsiseg.errors import FormatError
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.schema import ERRORS, SLIDES
from wsiseg.summarize import (
    SlideWork,
    failed_row,
    read_errors_table,
    read_slides_table,
    summarize_slide,
    write_errors_table,
    write_slides_table,
)
from wsiseg.types import SlideMeta, TileStats

META = SlideMeta("S1", "/in/S1.svs", 40_000, 30_000, 0.5, "tiff", bounds_x=3, bounds_y=4, vendor="aperio", cohort="BRCA",
                 reader="cucim")  # fmt: skip
STATS = TileStats(core_px=5_000_000, tissue_px=4_000_000, material_px=1_000_000)


def columns(n: int = 1001) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "area_um2": rng.gamma(9, 4, n).astype(np.float32),
        "center_prob": rng.integers(100, 256, n).astype(np.uint8),
        "material_prob": rng.integers(100, 256, n).astype(np.uint8),
    }


def summarize(table: Any = None, stats: TileStats = STATS, tiles: tuple[int, int, int] = (5, 2, 0)) -> SlideRow:
    table = columns() if table is None else table
    seconds = {"read": 1.5, "predict": 20.0, "write": 0.25}
    return summarize_slide(table, stats, META, 2.0, SlideWork(*tiles, seconds, "none"), table_name="nuclei/S1.parquet")


def test_row_has_exactly_the_schema_and_is_json() -> None:
    rows = summarize(), failed_row("S9", "/in/S9.svs", "", "broken")
    for row in rows:
        plain = json.loads(json.dumps(encode(row), allow_nan=False))
        assert list(plain) == list(row.columns) == [c.name for c in SLIDES]
        assert decode(SlideRow, plain, "here") == row


def test_numbers_against_the_standard_library() -> None:
    row, values = summarize(), columns()
    area = [float(a) for a in values["area_um2"]]
    assert row.n_nuclei == 1001
    assert row.area_mean_um2 == pytest.approx(statistics.fmean(area))
    assert row.area_std_um2 == pytest.approx(statistics.pstdev(area))
    cuts = statistics.quantiles(area, n=20, method="inclusive")
    quarter = statistics.quantiles(area, n=4, method="inclusive")
    assert [getattr(row, f"area_p{p}_um2") for p in ("05", "95")] == pytest.approx([cuts[0], cuts[-1]])
    assert [getattr(row, f"area_p{p}_um2") for p in ("25", "50", "75")] == pytest.approx(quarter)
    assert row.center_prob_mean == pytest.approx(statistics.fmean(values["center_prob"].tolist()) / 255)
    # 0.5 um/px at scale 2 is 0.25 um a working px: 4 million of them are a quarter of a square millimetre
    assert row.tissue_mm2 == pytest.approx(0.25)
    assert row.nuclei_per_mm2 == pytest.approx(1001 / 0.25)
    assert row.material_frac == 0.25
    assert (row.seconds_read, row.seconds_predict, row.seconds_separate) == (1.5, 20.0, 0.0)


def test_table_file_and_arrays_agree(tmp_path: Path) -> None:
    pq.write_table(pa.table({**columns(), "other": pa.array(["x"] * 1001)}), tmp_path / "t.parquet")
    assert summarize(tmp_path / "t.parquet") == summarize()


@pytest.mark.parametrize(("tiles", "status"), [((5, 2, 0), "done"), ((4, 2, 1), "partial"), ((0, 2, 3), "failed")])
def test_status_and_reason(tiles: tuple[int, int, int], status: str) -> None:
    row = summarize(tiles=tiles)
    assert row.status == status
    assert bool(row.error) == (tiles[2] > 0)
    assert (row.tiles_done, row.tiles_empty, row.tiles_failed) == tiles


def test_a_slide_without_nuclei_is_empty_or_suspect_for_a_reason() -> None:
    stats = TileStats(core_px=9, tissue_px=4)
    blank, suspect = (
        summarize_slide(columns(0), stats, META, 2.0, SlideWork(1), table_name="", suspicion=why)
        for why in ("", "no nucleus in 2 mm2 of tissue")
    )
    assert (blank.status, blank.error) == ("empty", "")
    assert (suspect.status, suspect.error) == ("suspect", "no nucleus in 2 mm2 of tissue")
    some = summarize_slide(columns(), stats, META, 2.0, SlideWork(1), table_name="", suspicion="no")
    assert (some.status, some.error) == ("done", "")


def test_slide_without_anything_has_no_made_up_numbers() -> None:
    row = summarize(columns(0), TileStats(core_px=9), (0, 7, 0))
    assert row.status == "empty"
    assert (row.n_nuclei, row.tissue_mm2) == (0, 0.0)
    for name in ("nuclei_per_mm2", "area_mean_um2", "area_p50_um2", "material_frac", "center_prob_mean"):
        assert getattr(row, name) is None


def test_tables_round_trip_with_units_and_a_csv_twin(tmp_path: Path) -> None:
    failed = failed_row("S,9", '/in/"S9".svs', "LUAD", "line, with comma")
    rows = [summarize(), failed, summarize(columns(0), TileStats(), (0, 1, 0))]
    write_slides_table(rows, tmp_path / "slides.parquet")
    assert read_slides_table(tmp_path / "slides.parquet") == rows
    schema = pq.read_schema(tmp_path / "slides.parquet")
    assert {f.name: f.metadata[b"unit"].decode() for f in schema} == {c.name: c.unit for c in SLIDES}
    with (tmp_path / "slides.csv").open(newline="") as stream:
        twin = list(csv.DictReader(stream))
    assert [r["error"] for r in twin] == ["", "line, with comma", ""]
    assert float(twin[0]["area_mean_um2"]) == rows[0].area_mean_um2
    assert twin[2]["area_mean_um2"] == ""
    mean = duckdb.sql(f"select avg(area_mean_um2) from '{tmp_path / 'slides.parquet'}'").fetchall()
    assert mean == [(rows[0].area_mean_um2,)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["slides.csv", "slides.parquet"]


def test_no_rows_are_a_valid_table(tmp_path: Path) -> None:
    write_slides_table([], tmp_path / "slides.parquet")
    write_errors_table([], tmp_path / "errors.parquet")
    assert read_slides_table(tmp_path / "slides.parquet") == []
    assert pq.read_schema(tmp_path / "errors.parquet").names == [c.name for c in ERRORS]


def test_errors_table(tmp_path: Path) -> None:
    row = {"slide_id": "S1", "tile_id": 3, "x_px": 12_000, "y_px": 0, "error": "TileReadError: bad JPEG", "attempts": 3}
    where = {"host": "node7", "worker": "tcp://10.0.0.7:4711"}
    rows = [decode(ErrorRow, r, "here") for r in (row, {**row, "tile_id": 4, **where})]
    write_errors_table(rows, tmp_path / "errors.parquet")
    nowhere = {"host": "", "worker": ""}
    assert pq.read_table(tmp_path / "errors.parquet").to_pylist() == [{**row, **nowhere}, {**row, "tile_id": 4, **where}]
    assert read_errors_table(tmp_path / "errors.parquet") == rows


def test_columns_of_another_type_or_version(tmp_path: Path) -> None:
    row = summarize()
    path = tmp_path / "slides.parquet"
    write_slides_table([row], path)
    table = pq.read_table(path)
    pq.write_table(table.append_column("newer", pa.array([1])), path)
    assert read_slides_table(path) == [row], "a column of a newer version is left out"
    at = table.column_names.index("n_nuclei")
    pq.write_table(table.set_column(at, "n_nuclei", pa.array(["many"])), path)
    with pytest.raises(FormatError, match=r"slides\.parquet, row 0: expected field n_nuclei to be a whole number.*'many'"):
        read_slides_table(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.parquet").write_bytes(b"junk")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    for name in ("junk", "other"):
        with pytest.raises(FormatError, match=name):
            read_slides_table(tmp_path / f"{name}.parquet")
    with pytest.raises(FileNotFoundError):
        read_slides_table(tmp_path / "none.parquet")


def test_sums_of_tiles_are_the_slide() -> None:
    parts = [TileStats(1, 2, 3, 4, 5), TileStats(10, 20, 30, 40, 50), TileStats()]
    assert sum(parts, TileStats()) == TileStats(11, 22, 33, 44, 55)

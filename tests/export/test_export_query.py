"""Questions to tables: windows, columns, grades, cohorts, SQL; and the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import shapely
from click.testing import CliRunner

from wsiseg.cli.commands_convert import COMMANDS
from wsiseg.errors import InputError
from wsiseg.export.query import column_units, nuclei_dataset, query, read_nuclei, write_cohort
from wsiseg.results.folder import RunFolder
from wsiseg.results.slide_record import SlideRecord, write_slide
from wsiseg.rows import SlideRow
from wsiseg.types import Box


@pytest.fixture
def run(table_path: Path, tmp_path: Path) -> Path:
    """Two slides with the same nuclei; one graded Good, one Unacceptable."""
    root = tmp_path / "run"
    for folder in ("nuclei", "slides", "qc"):
        (root / folder).mkdir(parents=True)
    for slide_id, cohort in (("A", "LUAD"), ("B", "BRCA")):
        shutil.copyfile(table_path, root / "nuclei" / f"{slide_id}.parquet")
        write_slide(RunFolder(root), SlideRecord("d" * 16, SlideRow.blank(slide_id, "done", cohort=cohort)))
    pq.write_table(pa.table({"slide_id": ["A", "B"], "grade": ["Good", "Unacceptable"]}), root / "qc/grades.parquet")
    pq.write_table(pa.table({"slide_id": ["A", "B"], "cohort": ["LUAD", "BRCA"]}), root / "slides.parquet")
    return root


def test_windows_are_what_geos_states(table_path: Path) -> None:
    shapes = shapely.from_wkb(pq.read_table(table_path)["geometry"].to_numpy(zero_copy_only=False))
    box = shapely.box(2000, 2500, 3200, 3000)
    got = read_nuclei(table_path, (2000, 2500, 1200, 500), columns=["nucleus_id"])
    assert got.num_rows == np.count_nonzero(shapely.intersects(shapely.envelope(shapes), box))
    assert got.column_names == ["nucleus_id"]
    frame = read_nuclei(table_path, Box(2000, 2500, 1200, 500), columns=["area_um2"], as_geopandas=True)
    assert frame.index.name == "nucleus_id"
    assert list(frame.columns) == ["area_um2", "geometry"]
    assert frame.geometry.area.to_numpy() * 0.0625 == pytest.approx(frame["area_um2"].to_numpy(), rel=1e-5)
    with pytest.raises(InputError, match="above 0"):
        read_nuclei(table_path, (0, 0, 0, 5))
    with pytest.raises(InputError, match="got a file"):
        read_nuclei(table_path, grade="Good")


def test_grades_choose_slides(run: Path) -> None:
    assert set(read_nuclei(run)["slide_id"].to_pylist()) == {"A", "B"}
    assert set(read_nuclei(run, grade="Good", columns=["cx"])["slide_id"].to_pylist()) == {"A"}
    assert read_nuclei(run, grade=["Good", "Unacceptable"]).num_rows == 4000
    assert read_nuclei(run, grade="Best").num_rows == 0
    with pytest.raises(InputError, match="no table of slide"):
        read_nuclei(run, slide_id="C")
    (run / "qc/grades.parquet").unlink()
    with pytest.raises(InputError, match="wsiseg qc grade"):
        read_nuclei(run, grade="Good")


def test_a_cohort_folder_is_one_dataset_for_arrow_and_duckdb(run: Path, tmp_path: Path) -> None:
    files = write_cohort([run], tmp_path / "cohort")
    assert [f.relative_to(tmp_path / "cohort").as_posix() for f in files] == [
        "cohort=BRCA/slide_id=B/nuclei.parquet",
        "cohort=LUAD/slide_id=A/nuclei.parquet",
    ]
    dataset = nuclei_dataset(tmp_path / "cohort")
    picked = dataset.to_table(columns=["slide_id", "area_um2"], filter=pc.field("cohort") == "LUAD")
    assert set(picked["slide_id"].to_pylist()) == {"A"}
    assert picked.num_rows == 2000
    pattern = f"{tmp_path}/cohort/*/*/*.parquet"
    counts = duckdb.sql(
        f"select cohort, count(*) from read_parquet('{pattern}', hive_partitioning = true) group by 1 order by 1"
    )
    assert counts.fetchall() == [("BRCA", 2000), ("LUAD", 2000)]
    assert nuclei_dataset(run).count_rows() == 4000
    with pytest.raises(InputError, match="expected a run folder"):
        nuclei_dataset(tmp_path / "cohort" / "cohort=BRCA" / "slide_id=B")


def test_sql_joins_grades_and_gives_units(run: Path, table_path: Path) -> None:
    sql = (
        "select g.grade, avg(area_um2) area_um2, count(*) n from nuclei join grades g using (slide_id) group by all order by 1"
    )
    table, units = query(run, sql)
    assert table["grade"].to_pylist() == ["Good", "Unacceptable"]
    mean = pq.read_table(table_path)["area_um2"].to_numpy().mean(dtype=np.float64)
    assert table["area_um2"].to_pylist() == pytest.approx([mean, mean])
    assert units == {"area_um2": "um^2"}
    assert column_units()["perimeter_um"] == "um"
    for bad in ("selec 1", "select * from nothing"):
        with pytest.raises(InputError):
            query(run, bad)


@pytest.fixture
def cli() -> click.Group:
    group = click.Group()
    for command in COMMANDS:
        group.add_command(command)
    return group


def test_command_line(run: Path, cli: click.Group, tmp_path: Path) -> None:
    def call(*args: object) -> str:
        done = CliRunner().invoke(cli, [str(a) for a in args], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    reported = call("export", run, "--to", "qupath", "-o", tmp_path / "out", "--region", "2000,2000,2000,2000", "--sample", 20)
    assert reported.count("20 nuclei") == 2
    slide_file = next((tmp_path / "out").glob("*.geojson.gz"))
    reported = call("import", slide_file, "--from", "qupath", "--out", tmp_path / "run2", "--mpp", "0.25", "--slide-id", "X")
    assert "X: 20 nuclei" in reported
    reported = call("query", tmp_path / "run2", "select slide_id, count(*) n, avg(area_um2) area_um2 from nuclei group by all")
    assert "um^2" in reported
    assert "20" in reported
    call("query", tmp_path / "run2", "select * exclude (geometry, bbox) from nuclei", "-o", tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 21
    with pytest.raises(InputError, match="already exists"):
        CliRunner().invoke(cli, ["export", str(run), "--to", "qupath", "-o", str(tmp_path / "out")], catch_exceptions=False)
    for command in COMMANDS:
        assert command.help


def test_the_command_lines_formats_are_those_of_the_code() -> None:
    from wsiseg.cli.commands_convert import EXPORTS, IMPORTS
    from wsiseg.export.convert import EXPORT_FORMATS
    from wsiseg.export.imports import IMPORT_FORMATS

    assert sorted(EXPORTS) == sorted(EXPORT_FORMATS)
    assert sorted(IMPORTS) == sorted(IMPORT_FORMATS)

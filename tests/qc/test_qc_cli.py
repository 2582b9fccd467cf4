"""``wsiseg qc``: the whole way from a run folder to grades and a report, by commands."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from wsiseg.cli.commands_qc import qc
from wsiseg.errors import ConfigError, InputError
from wsiseg.qc import MarkLog


def wsiseg_qc(*args: str | Path) -> Result:
    return CliRunner().invoke(qc, [str(a) for a in args])


def test_from_a_run_to_grades_and_a_report(make_run) -> None:
    root = make_run(("a", "b", "c", "d", "e", "f"))
    done = wsiseg_qc("outliers", root)
    assert done.exit_code == 0
    assert "outliers.csv" in done.output
    done = wsiseg_qc("patches", root, "--per-slide", 2)
    assert done.exit_code == 0
    assert "12 patches of 6 slides, 12 made now" in done.output
    index = pq.read_table(root / "qc" / "patches.parquet").to_pylist()
    log = MarkLog(root / "qc" / "marks", "ann", "0123456789abcdef")
    for e in index:
        log.append("patches", e["patch_id"], "not_adequate" if e["slide_id"] == "b" else "adequate")
    log.close()
    done = wsiseg_qc("grade", root)
    assert done.exit_code == 0
    lines = (root / "qc" / "quality_control_result.csv").read_text().splitlines()
    assert [line.rpartition(",")[2] for line in lines] == ["QCResult", "Best", "Unacceptable", "Best", "Best", "Best", "Best"]
    done = wsiseg_qc("report", root, "-o", root / "report.html", "--thumbnails", 2)
    assert done.exit_code == 0
    assert (root / "report.html").stat().st_size > 20_000


def test_patches_that_cannot_be_rendered_set_the_exit_code(make_run, tmp_path: Path) -> None:
    done = wsiseg_qc("patches", make_run(("a",), path=str(tmp_path / "gone.svs")), "--per-slide", 1)
    assert done.exit_code == 1
    assert "gone.svs" in done.output


def test_what_cannot_be_understood_is_refused(make_run, tmp_path: Path) -> None:
    root = make_run(("a",))
    assert wsiseg_qc("outliers", tmp_path / "nowhere").exit_code == 2
    assert wsiseg_qc("review", root).exit_code == 2  # no reviewer
    for args, kind in (
        (("outliers", tmp_path), InputError),
        (("outliers", root, "--tail", "0.9"), ConfigError),
        (("grade", root), InputError),
    ):
        with pytest.raises(kind):
            raise wsiseg_qc(*args).exception or AssertionError("accepted")

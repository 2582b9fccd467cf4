"""Workers that die, hang and stumble over their storage: the tables are those of an undisturbed run, whatever it took."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.run.conftest import environment, run_here
from wsiseg.run.status import group_errors, run_status
from wsiseg.run.verify import verify_run

CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--engine", "eager")


def run_with(rules: list[dict[str, Any]], scratch: Path, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with workers that break as the rules say."""
    fired = scratch / "fired"
    fired.mkdir(exist_ok=True)
    faults = {
        "WSISEG_FAULTS": json.dumps(rules),
        "WSISEG_FAULTS_DIR": str(fired),
        "DASK_DISTRIBUTED__WORKER__PRELOAD": str(Path(__file__).with_name("faulty_worker.py")),
    }
    command = [sys.executable, "-m", "wsiseg", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env={**environment(), **faults}, check=False)


def log_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def clean(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("clean") / "out"
    assert run_here("segment", crop_png, *CROP, "--out", out).exit_code == 0
    return (out / "nuclei/crop.parquet").read_bytes()


def test_killed_hung_and_failing_storage_in_one_run(crop_png: Path, clean: bytes, tmp_path: Path) -> None:
    rules = [
        {"do": "crash", "at": "prepare", "times": 1},
        {"do": "kill", "at": "tile", "tile": 2, "times": 1},
        {"do": "hang", "at": "tile", "tile": 5, "times": 1},
        {"do": "EIO", "at": "tile", "tile": 7, "times": 1},
        {"do": "EIO", "at": "finish", "times": 1},
    ]
    out = tmp_path / "out"
    start = time.monotonic()
    done = run_with(
        rules, tmp_path, "segment", crop_png, *CROP, "--workers", "1", "--tile-timeout", "40", "--out", out,
        "--metrics-file", tmp_path / "wsiseg.prom",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 390
    assert len(list((tmp_path / "fired").iterdir())) == len(rules), "every fault must have happened"
    assert (out / "nuclei/crop.parquet").read_bytes() == clean
    events = log_of(out)
    assert [(e["kind"], e["tile_id"]) for e in events if e["event"] == "worker_death"] == [("prepare", -1), ("tile", 2)]
    (hang,) = [e for e in events if e["event"] == "hang"]
    assert (hang["kind"], hang["tile_id"]) == ("tile", 5)
    assert "no end within 40 s" in hang["reason"]
    metrics = (tmp_path / "wsiseg.prom").read_text()
    assert 'wsiseg_worker_deaths_total{run="' in metrics
    assert run_status(out).counts["hangs"] == 1
    assert verify_run(out).ok


def test_a_clock_that_leaps_changes_nothing(crop_png: Path, clean: bytes, tmp_path: Path) -> None:
    """A worker's wall clock goes back in one tile and ahead in another: deadlines and records do not go by it.

    Tornado's timers do: after a leap back of n seconds Dask's heartbeats pause for n seconds, so a day would be too long.
    """
    rules = [
        {"do": "clock", "at": "tile", "tile": 2, "times": 1, "seconds": -10},
        {"do": "clock", "at": "tile", "tile": 6, "times": 1, "seconds": 86_400},
    ]
    out = tmp_path / "out"
    done = run_with(rules, tmp_path, "segment", crop_png, *CROP, "--workers", "1", "--tile-timeout", "60", "--out", out)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "fired").iterdir())) == len(rules), "every leap must have happened"
    assert (out / "nuclei/crop.parquet").read_bytes() == clean
    assert run_status(out).counts == {"retries": 0, "worker_deaths": 0, "hangs": 0, "reconnects": 0}
    assert verify_run(out).ok


def test_a_poisoned_tile_is_excluded_and_only_it(crop_png: Path, clean: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    poison = [{"do": "crash", "at": "tile", "tile": 4, "times": 99}]
    args = ("--workers", "1", "--retries", "1", "--out", out)
    done = run_with(poison, tmp_path, "segment", crop_png, *CROP, *args)
    assert done.returncode == 1, done.stderr
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert (error["tile_id"], error["attempts"]) == (4, 2)
    assert error["error"].startswith("WorkerDied")
    (row,) = pq.read_table(out / "slides.parquet").to_pylist()
    assert (row["status"], row["tiles_failed"]) == ("partial", 1)
    assert verify_run(out).ok, "what is there is whole, and what is missing is recorded"
    (group,) = group_errors(out)
    assert (group.kind, group.tiles, group.slides) == ("WorkerDied", 1, ("crop",))
    assert run_here("errors", out).exit_code == 1

    mended = run_here("segment", "--retry-failed", "--out", out)
    assert mended.exit_code == 0, mended.output
    assert (out / "nuclei/crop.parquet").read_bytes() == clean
    assert run_here("errors", out).output.strip() == "nothing failed"
    assert "Nothing failed" in run_here("segment", "--retry-failed", "--out", out).output


@pytest.mark.parametrize("at", ["prepare", "finish"])
def test_an_error_that_is_unexpected_is_tried_as_often_as_any_other(
    at: str, crop_png: Path, clean: bytes, tmp_path: Path
) -> None:
    """It takes ``--retries`` tries, not the patience for workers that are lost; --retry-failed mends it."""
    out = tmp_path / "out"
    args = ("--workers", "1", "--retries", "2", "--out", out)
    done = run_with([{"do": "KeyError", "at": at, "times": 99}], tmp_path, "segment", crop_png, *CROP, *args)
    assert done.returncode == 1, done.stderr
    assert len(list((tmp_path / "fired").iterdir())) == 3
    (row,) = pq.read_table(out / "slides.parquet").to_pylist()
    assert row["status"] == "failed"
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert error["error"].startswith("KeyError: 'a slide of a kind that nobody foresaw' (unexpected error, in break_things of")
    assert run_here("segment", "--retry-failed", "--out", out).exit_code == 0
    assert (out / "nuclei/crop.parquet").read_bytes() == clean

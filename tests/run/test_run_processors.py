"""A run and its processors: one arithmetic, or a refusal that names both; the precision is reported everywhere."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.run.conftest import environment, run_here
from wsiseg.config import PredictConfig, RunConfig, ScheduleConfig
from wsiseg.errors import OutputMismatchError
from wsiseg.predict.machine import cpu_has
from wsiseg.results.arithmetic import mixed_precision_note, precision_text, with_processor
from wsiseg.results.folder import RunFolder
from wsiseg.results.run_record import RunNote, RunRecord
from wsiseg.run.context import WorkerContext
from wsiseg.run.facts import ModelFacts
from wsiseg.run.worker import RunRequirements, processor_objections
from wsiseg.separate import SeparateParams
from wsiseg.summarize import read_slides_table
from wsiseg.types import Processor

CROP = ("--mpp", "0.499", "--tile", "400", "--workers", "1", "--engine", "eager")
A = Processor("a" * 16, "Xeon (AMX)", "one")
B = Processor("b" * 16, "EPYC (BF16)", "two")
MODEL = ModelFacts("open", "0" * 64, 0.25, "none", SeparateParams(1, 1, 1, 0, 0, True, 1, 9))


def on_avx2(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line on a processor that has no more than AVX2."""
    caps = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-m", "wsiseg", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**environment(), **caps}, check=False)


@pytest.mark.skipif(not cpu_has("bf16"), reason="bf16 is emulated here too")
def test_bf16_of_another_processor_is_refused_unless_accepted(crop_png: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("segment", crop_png, *CROP, "--precision", "bf16", "--out", out)
    assert run_here(*command).exit_code == 0
    again = run_here(*command)
    assert again.exit_code == 0, again.output
    refused = on_avx2(*command)
    assert refused.returncode != 0
    own = json.loads((out / "run.json").read_text())["processors"]
    assert len(own) == 1
    reported = " ".join(refused.stderr.split())
    for part in (own[0]["processor"], "(AVX2; torch", "--precision int8", "--any-processor"):
        assert part in reported
    accepted = on_avx2(*command, "--any-processor")
    assert accepted.returncode == 0, accepted.stderr
    both = json.loads((out / "run.json").read_text())["processors"]
    assert both[0] == own[0]
    assert len(both) == 2
    assert both[1]["digest"] in accepted.stdout
    assert both[1]["digest"] in run_here("status", out).output


def test_int8_of_another_processor_is_the_same_table(crop_png: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    command = ("segment", crop_png, *CROP, "--precision", "int8", "--out")
    assert run_here(*command, here).exit_code == 0
    made = on_avx2(*command, there)
    assert made.returncode == 0, made.stderr
    assert (here / "nuclei/crop.parquet").read_bytes() == (there / "nuclei/crop.parquet").read_bytes()
    resumed = on_avx2(*command, here)  # and it may work on the other's folder
    assert resumed.returncode == 0, resumed.stderr
    assert len(json.loads((here / "run.json").read_text())["processors"]) == 1


def test_precision_and_its_choice_are_reported(crop_png: Path, tmp_path: Path) -> None:
    out, auto = tmp_path / "out", tmp_path / "auto"
    asked = run_here("segment", crop_png, *CROP, "--precision", "fp32", "--out", out)
    assert "precision  fp32, chosen\n" in asked.output
    unasked = run_here("segment", crop_png, *CROP, "--out", auto)
    with (auto / "slides.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert row["precision_choice"] == "automatic"
    assert f"precision  {row['precision']}, automatic" in unasked.output
    assert f"precision  {row['precision']}, automatic" in run_here("status", auto).output
    assert pq.read_table(out / "slides.parquet")["precision"].to_pylist() == ["fp32"]
    assert run_here("segment", crop_png, *CROP, "--out", out).exit_code == 0  # auto takes the folder's
    assert json.loads((out / "run.json").read_text())["precision_choice"] == "chosen"
    assert run_here("verify", out).exit_code == 0


def test_a_table_of_an_earlier_version_is_read_and_resumed(crop_png: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("segment", crop_png, *CROP, "--precision", "fp32", "--out", out)
    assert run_here(*command).exit_code == 0
    later = ("precision", "precision_choice")
    record = json.loads((out / "slides/crop.json").read_text())
    record["row"] = {k: v for k, v in record["row"].items() if k not in later}
    (out / "slides/crop.json").write_text(json.dumps(record))
    pq.write_table(pq.read_table(out / "slides.parquet").drop_columns(list(later)), out / "slides.parquet")
    run = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({k: v for k, v in run.items() if k not in ("processors", "precision_choice")}))
    assert read_slides_table(out / "slides.parquet")[0].precision == ""
    before = (out / "nuclei/crop.parquet").stat().st_mtime_ns
    assert run_here(*command).exit_code == 0
    assert (out / "nuclei/crop.parquet").stat().st_mtime_ns == before, "done again though nothing changed"
    assert run_here("verify", out).exit_code == 0
    assert len(json.loads((out / "run.json").read_text())["processors"]) == 1


def test_a_worker_with_other_maps_is_refused_or_recorded(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    config = RunConfig(predict=PredictConfig(weights="open", precision="fp32"))
    folder.claim(config, {}, RunNote(), A, "chosen")
    requirements = RunRequirements("", "", MODEL, "another machine")
    found = processor_objections(requirements, WorkerContext(folder, config, ""))
    assert len(found) == 1
    assert A.processor in found[0]
    before = folder.read_run()
    assert before is not None
    assert before.processors == (A,), "what was refused is not recorded"
    open_to_all = RunConfig(predict=config.predict, schedule=ScheduleConfig(any_processor=True))
    assert processor_objections(requirements, WorkerContext(folder, open_to_all, "")) == []
    record = folder.read_run()
    assert record is not None
    assert record.processors[0] == A
    assert len(record.processors) == 2
    assert processor_objections(requirements, WorkerContext(folder, config, "")) == [], "it is on record now"


def test_processors_are_distinguished_by_their_maps_only() -> None:
    assert with_processor([], A, "bf16", accept=False) == (A,)
    assert with_processor([A], replace(B, digest=A.digest), "fp32", accept=False) == (A,)
    assert with_processor([A], B, "bf16", accept=True) == (A, B)
    with pytest.raises(OutputMismatchError) as caught:
        with_processor([A], B, "bf16", accept=False)
    assert A.processor in str(caught.value)
    assert B.processor in str(caught.value)
    gpus = tuple(replace(one, device="cuda", processor="H200") for one in (A, B))
    assert with_processor(gpus[:1], gpus[1], "bf16", accept=False) == gpus[:1]


def test_runs_of_mixed_precision_are_warned_of(crop_png: Path, tmp_path: Path) -> None:
    runs = []
    for precision in ("fp32", "int8"):
        runs.append(tmp_path / precision)
        done = run_here("segment", crop_png, *CROP, "--precision", precision, "--cohort", precision, "--out", runs[-1])
        assert done.exit_code == 0
    mixed = run_here("cohort", *runs, "-o", tmp_path / "cohort")
    assert mixed.exit_code == 0
    assert "1 in fp32, 1 in int8" in mixed.output
    assert "warning: these runs were computed in fp32" in mixed.output
    alone = run_here("cohort", runs[0], "-o", tmp_path / "other")
    assert "warning" not in alone.output
    assert mixed_precision_note({"a": None, "b": RunRecord({"predict.precision": "int8"})}) == ""
    assert precision_text(None) == precision_text(RunRecord({})) == ""

"""What plan, doctor and segment say that a run computes with is one answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.run.conftest import run_here
from wsiseg.config import PredictConfig, RunConfig
from wsiseg.results.folder import RunFolder
from wsiseg.results.run_record import RunRecord
from wsiseg.run.resolve import resolve_here, with_stored_choices

OPTIONS = ("--mpp", "0.499", "--tile", "400")


@pytest.fixture(scope="module")
def ran(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    out = tmp_path_factory.mktemp("resolved") / "out"
    done = run_here("segment", crop_png, *OPTIONS, "--out", out)
    assert done.exit_code == 0, done.output
    raw = json.loads((out / "run.json").read_text())
    assert raw["resolved"]["precision"] == raw["results"]["predict.precision"] != "auto"
    assert raw["resolved"]["device"] == raw["config"]["schedule"]["device"] != "auto"
    record = RunFolder(out).read_run()
    assert record is not None
    return record


def test_plan_doctor_and_segment_agree(ran: RunRecord, crop_png: Path) -> None:
    assert ran.resolved is not None
    planned = run_here("plan", crop_png, *OPTIONS)
    assert planned.exit_code == 0, planned.output
    assert ran.resolved.words in " ".join(planned.output.split())
    examined = " ".join(run_here("doctor").output.split())
    assert ran.resolved.words.replace("tiles of 400 px", f"tiles of {RunConfig().read.tile_wpx} px") in examined


def test_the_digest_is_the_one_that_the_run_has(ran: RunRecord) -> None:
    config = RunConfig.from_dict({k: dict(v) for k, v in ran.config.items()})
    again = resolve_here(config)
    assert again.digest == ran.digest
    assert again.record == ran.resolved


def test_what_is_left_open_is_taken_from_the_folder_and_what_is_asked_is_not() -> None:
    stored = RunRecord({"predict.precision": "fp32", "predict.engine": "graph"})
    assert with_stored_choices(RunConfig(), stored).predict == PredictConfig(precision="fp32", engine="graph")
    asked = RunConfig(predict=PredictConfig(precision="bf16"))
    assert with_stored_choices(asked, stored).predict == PredictConfig(precision="bf16", engine="graph")
    assert with_stored_choices(asked, None) == asked

"""``wsiseg qc predict`` on a run folder: stored patches are enough, marks count, suspects-first reviews are unbiased."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

pytest.importorskip("starlette", reason="the review page needs the extra 'review'")
pytest.importorskip("uvicorn", reason="the review page needs the extra 'review'")

from wsiseg.cli.commands_qc import qc
from wsiseg.errors import ConfigError, FormatError, InputError
from wsiseg.qc import FEATURES, MarkLog, load_quality, read_marks
from wsiseg.qc.patch_pictures import make_patches
from wsiseg.qc.prediction import predict_run, stored_prediction, suspects_first
from wsiseg.qc.review import ReviewSession, patch_queue
from wsiseg.qc.review_run import open_review
from wsiseg.qc.runs import grade_run, load_run


def table(run, name: str) -> list[dict]:
    return pq.read_table(run.qc / f"{name}.parquet").to_pylist()


def judge(run, words: dict[str, str], order: str = "random", reviewer: str = "ann") -> None:
    log = MarkLog(run.marks, reviewer, run.digest, order)
    for item, word in words.items():
        log.append("patches", item, word)
    log.close()


def test_stored_patches_give_the_features_that_the_slide_gave(make_run, tmp_path: Path) -> None:
    run = load_run(make_run(("a", "b")))
    make_patches(run, 3)
    first = predict_run(run)
    fresh = {r["patch_id"]: r for r in table(run, "features")}
    assert len(fresh) == 6
    (run.qc / "features.parquet").unlink()
    again = predict_run(run)  # from the stored pictures
    for r in table(run, "features"):
        assert [r[k] for k in FEATURES] == pytest.approx([fresh[r["patch_id"]][k] for k in FEATURES])
    assert again.fail_prob == pytest.approx(dict(first.fail_prob))
    model = load_quality("open")
    assert model is not None
    values = np.array([[fresh[i][k] for k in FEATURES] for i in sorted(fresh)])
    assert [first.fail_prob[i] for i in sorted(fresh)] == pytest.approx(model.predict(values).tolist())


def test_features_of_an_earlier_version_are_computed_again_and_reported(make_run, caplog: pytest.LogCaptureFixture) -> None:
    run = load_run(make_run(("a",)))
    make_patches(run, 2)
    new = predict_run(run).fail_prob
    path = run.qc / "features.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["turn_f1", "mean_dice"]), path)
    assert stored_prediction(run) is None
    assert "earlier version" in caplog.text
    assert predict_run(run).fail_prob == pytest.approx(dict(new))
    assert stored_prediction(run) is not None


def test_a_missing_slide_file_does_not_matter_and_a_lost_pack_is_reported(make_run, tmp_path: Path) -> None:
    root = make_run(("a", "b"))
    run = load_run(root)
    make_patches(run, 2)
    (run.qc / "features.parquet").unlink()
    moved = load_run(make_run(("a", "b"), name="moved", path=str(tmp_path / "gone.svs")))
    shutil.copytree(run.qc, moved.qc)
    assert len(predict_run(moved).fail_prob) == 4
    (moved.qc / "features.parquet").unlink()
    (moved.qc / "patches" / "a.zip").unlink()
    found = predict_run(moved)
    assert len(found.fail_prob) == 2
    assert len(found.failed) == 2
    assert "are missing" in found.failed[0][1]


def test_the_command_writes_tables_and_states_its_evidence(make_run) -> None:
    root = make_run(("a", "b", "c"))
    runner = CliRunner()
    assert runner.invoke(qc, ["patches", str(root), "--per-slide", "4"]).exit_code == 0
    run = load_run(root)
    assert len(table(run, "predicted")) == 12  # `patches` has predicted already
    done = runner.invoke(qc, ["predict", str(root), "--worst", "2"])
    assert done.exit_code == 0
    assert "No quality model was fitted for the weights test" in done.output
    slides = table(run, "predicted_slides")
    assert [r["slide_id"] for r in slides] == ["a", "b", "c"]
    by_slide = {s: [r["fail_prob"] for r in table(run, "predicted") if r["slide_id"] == s] for s in "abc"}
    for r in slides:
        assert r["bad_frac_estimate"] == pytest.approx(np.mean(by_slide[r["slide_id"]]))
        assert 0 <= r["bad_frac_estimate_low"] < r["bad_frac_estimate"] <= r["bad_frac_estimate_high"] <= 1
    help_ = runner.invoke(qc, ["predict", "--help"]).output
    assert "wsiseg qc predict my-run" in help_


def test_marks_count_and_calibrate(make_run) -> None:
    run = load_run(make_run(("a", "b", "c", "d")))
    make_patches(run, 12)
    before = predict_run(run)
    ids = sorted(before.fail_prob)
    assert before.facts["own"] == {}
    judge(run, {i: "not_adequate" if k % 9 == 0 else "adequate" for k, i in enumerate(ids[:45])})
    after = predict_run(run)
    assert after.facts["n_judged"] == 45
    assert after.facts["own"]["offset"] < 0  # 11 % are bad, far fewer than predicted
    assert np.mean([after.fail_prob[i] for i in ids[:45]]) == pytest.approx(5 / 45, abs=0.02)
    judged = {e["patch_id"] for e in table(run, "patches")} & set(ids[:45])
    assert sum(e.n_judged for e in after.slides.values()) == len(judged) == 45
    raw = {r["patch_id"]: r["fail_prob"] for r in table(run, "predicted")}
    assert raw == pytest.approx(dict(before.fail_prob))
    assert stored_prediction(run).fail_prob == pytest.approx(dict(after.fail_prob))


def test_a_suspects_first_review_keeps_its_order_is_corrected_and_graded_once_complete(make_run) -> None:
    run = load_run(make_run(("a", "b", "c")))
    make_patches(run, 8)
    ids = [r["patch_id"] for r in table(run, "patches")]
    order = suspects_first(run, ids)
    assert sorted(order) == sorted(ids)
    server, slide_cache = open_review(run, "ann", order="predicted")
    session: ReviewSession = server._session
    assert session.items("patches") == order
    for k in range(10):
        session.mark("patches", session.state("patches")["next"][0], ("adequate", "not_adequate")[k % 3 == 0])
    server.__exit__(None, None, None)
    slide_cache.close()
    assert {m.order for m in read_marks(run.marks / "ann.jsonl", run.digest)} == {"predicted"}
    assert suspects_first(run, ids) == order  # marks change predictions, not the order that a review rests on
    grades = {g.slide_id: g for g in grade_run(run).grades}
    begun = {g.slide_id for g in grades.values() if 0 < g.n_judged < 8}
    assert begun
    assert all(grades[s].grade == "Ungraded" and "suspect patches were judged first" in grades[s].reason for s in begun)
    found = predict_run(run)
    assert found.cohorts["All"].n_judged == 10
    assert found.cohorts["All"].low < found.cohorts["All"].share < found.cohorts["All"].high
    judge(run, dict.fromkeys(order[10:], "adequate"), "predicted", "bob")
    whole = grade_run(run).grades
    assert all(g.grade != "Ungraded" and g.n_judged == 8 for g in whole)
    assert sum(g.n_bad for g in whole) == 4
    done = predict_run(run).cohorts["All"]
    assert (done.share, done.low, done.high) == pytest.approx((4 / 24,) * 3)


def test_patches_made_later_join_the_order_and_a_second_opinion_follows_it(make_run) -> None:
    run = load_run(make_run(("a", "b")))
    make_patches(run, 3)
    first = suspects_first(run, [r["patch_id"] for r in table(run, "patches")])
    make_patches(run, 3, more=2)
    more = suspects_first(run, [r["patch_id"] for r in table(run, "patches")])
    assert [i for i in more if i in first] == first
    assert len(more) == 10
    judge(run, dict.fromkeys(more[:4], "adequate"), "predicted")
    server, slide_cache = open_review(run, "bob", order="predicted", second_opinion_frac=1.0)
    session: ReviewSession = server._session
    assert session.items("patches") == patch_queue(more, (), more[:4], second_opinion_frac=1.0) == more[:4]
    session.mark("patches", more[0], "not_adequate")
    server.__exit__(None, None, None)
    slide_cache.close()
    assert json.loads((run.marks / "bob.jsonl").read_text())["order"] == "second"


def test_what_cannot_be_predicted_is_refused(make_run) -> None:
    run = load_run(make_run(("a",)))
    with pytest.raises(InputError, match="qc patches"):
        predict_run(run)
    assert stored_prediction(run) is None
    make_patches(run, 2)
    with pytest.raises(ConfigError, match="random or predicted"):
        open_review(run, "ann", order="worst")
    other = MarkLog(run.marks, "eve", "ffffffffffffffff")
    other.append("patches", "0" * 16, "adequate")
    other.close()
    with pytest.raises(FormatError, match="run ffffffffffffffff"):
        predict_run(run)
    (run.qc / "features.parquet").write_bytes(b"not a table")
    with pytest.raises(FormatError, match="expected a table of features of patches, but it cannot be read"):
        predict_run(run)

"""Kinds of failure on maps where each is drawn on purpose; the worst window; the picture of it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.errors import FormatError
from wsiseg.evaluation import Crop, draw_gallery
from wsiseg.evaluation.gallery import PRED_RGB, TRUTH_RGB
from wsiseg.metrics import FAILURE_KINDS, contingency, failures, instance_scores, worst_windows


def scene():
    truth, pred = np.zeros((100, 100), np.int32), np.zeros((100, 100), np.int32)
    truth[5:15, 5:15], pred[5:15, 6:16] = 1, 11  # matched: IoU 90 / 110
    truth[5:15, 30:40], truth[5:15, 40:50], pred[5:15, 30:50] = 2, 3, 12  # both merged into one
    truth[30:40, 5:25], pred[30:40, 5:15], pred[30:40, 15:25] = 4, 13, 14  # halves: neither above 0.5
    truth[30:40, 50:60], pred[30:34, 50:60] = 5, 15  # drawn wrong: IoU 0.4
    truth[60:70, 5:15] = 6  # missed
    pred[60:70, 50:60] = 16  # extra
    return pred, truth


def test_every_kind_is_distinguished():
    pred, truth = scene()
    got = failures(contingency(pred, truth))
    kinds = dict(zip(got.truth_ids.tolist(), (FAILURE_KINDS[k] for k in got.truth_kind), strict=True))
    assert kinds == {1: "matched", 2: "merged", 3: "merged", 4: "split", 5: "outline", 6: "missed"}
    names = [*FAILURE_KINDS[:4], "extra"]
    of_pred = dict(zip(got.pred_ids.tolist(), (names[k] for k in got.pred_kind), strict=True))
    assert of_pred == {11: "matched", 12: "merged", 13: "split", 14: "split", 15: "outline", 16: "extra"}
    assert got.counts() == {"matched": 1, "merged": 2, "split": 1, "outline": 1, "missed": 1, "extra": 1}


@given(st.integers(0, 10**6))
def test_kinds_add_up_to_the_scores(seed):
    rng = np.random.default_rng(seed)
    pred, truth = (np.kron(rng.integers(0, 6, (5, 5)), np.ones((3, 3), int)) for _ in range(2))
    got, scores = failures(contingency(pred, truth)), instance_scores(pred, truth)
    counts = got.counts()
    assert counts["matched"] == scores.matched[0] == (got.pred_kind == 0).sum()
    assert sum(counts[k] for k in FAILURE_KINDS[:5]) == scores.n_truth
    assert len(got.pred_kind) == scores.n_pred


def grid_labels(height=320, width=400):
    labels = np.zeros((height, width), np.int32)
    for k, (y, x) in enumerate(((y, x) for y in range(4, height - 12, 20) for x in range(4, width - 12, 20)), 1):
        labels[y : y + 10, x : x + 10] = k
    return labels


def test_the_worst_window_is_where_the_prediction_was_spoiled():
    truth = grid_labels()
    pred = truth.copy()
    pred[160:, 240:] = 0
    (worst,) = worst_windows(pred, truth, side=160)
    assert (worst.x, worst.y, worst.side) == (240, 160, 160)
    assert worst.pq == 0.0
    both = worst_windows(pred, truth, side=160, n=2)
    assert both[0] == worst
    assert abs(both[1].x - 240) >= 160 or abs(both[1].y - 160) >= 160
    assert worst_windows(np.zeros_like(truth), np.zeros_like(truth)) == []
    (whole,) = worst_windows(pred[:90, :120], truth[:90, :120], side=160)
    assert (whole.x, whole.y, whole.side) in {(0, 0, 90), (30, 0, 90)}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_the_picture_shows_both_outlines_and_states_the_score(tmp_path, suffix):
    pil = pytest.importorskip("PIL.Image")
    pred, truth = scene()
    rgb = np.full((100, 100, 3), (200, 160, 200), np.uint8)
    path = draw_gallery([Crop("set image x 0 y 0", rgb, truth, pred)] * 3, tmp_path / f"worst{suffix}")
    with pil.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for color in (TRUTH_RGB, PRED_RGB):
        near = np.abs(pixels - color).max(2) < (1 if suffix == ".png" else 60)
        assert near.sum() > 500
    rows, columns = np.nonzero((np.abs(pixels - TRUTH_RGB).max(2) < 1) if suffix == ".png" else near)
    assert columns.max() > pixels.shape[1] // 2 > columns.min()  # two columns of crops
    assert rows.max() > pixels.shape[0] // 2 > rows.min()
    assert not list(tmp_path.glob(".*"))


def test_a_gallery_of_nothing_or_of_another_kind_is_refused(tmp_path):
    pred, truth = scene()
    crop = Crop("t", np.zeros((100, 100, 3), np.uint8), truth, pred)
    with pytest.raises(FormatError, match=r"\.png or \.jpg"):
        draw_gallery([crop], tmp_path / "worst.gif")
    with pytest.raises(FormatError, match="at least one crop"):
        draw_gallery([], tmp_path / "worst.png")

"""Scores against slow oracles, StarDist's matching, the known traps, and invariants."""

import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wsiseg.errors import FormatError
from wsiseg.metrics import IOU_THRESHOLDS, SCORE_NAMES, Scores, contingency, instance_scores, mean_scores, pooled_scores


def _load_oracle():
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).parents[1] / "oracles" / "instance_metrics.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = _load_oracle()


def blobs(seed, n=12, side=64, jitter=3):
    """Random ellipses and a shaken copy: some lost, some invented, some merged, ids not contiguous."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:side, :side]
    truth, pred = np.zeros((side, side), np.int32), np.zeros((side, side), np.int32)
    for k in range(n):
        cy, cx = rng.uniform(0, side, 2)
        ry, rx = rng.uniform(2, 8, 2)
        if rng.random() < 0.9:
            truth[((yy - cy) / ry) ** 2 + ((xx - cx) / rx) ** 2 <= 1] = 7 * k + 3
        if rng.random() < 0.9:
            dy, dx = rng.normal(0, jitter, 2)
            ident = 1000 + 11 * (k // 2 if rng.random() < 0.2 else k)
            pred[((yy - cy - dy) / ry) ** 2 + ((xx - cx - dx) / rx) ** 2 <= 1] = ident
    return pred, truth


def squares(n=5, size=8, gap=4):
    """n x n squares, ids 1..n*n."""
    side = n * (size + gap) + gap
    labels = np.zeros((side, side), np.int32)
    for k in range(n * n):
        y, x = gap + (k // n) * (size + gap), gap + (k % n) * (size + gap)
        labels[y : y + size, x : x + size] = k + 1
    return labels


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_plain_loops(seed):
    pred, truth = blobs(seed)
    got = instance_scores(pred, truth)
    assert got.dice == pytest.approx(oracle.dice1(pred, truth), abs=1e-12)
    assert got.dice2 == pytest.approx(oracle.dice2(pred, truth), abs=1e-12)
    assert got.aji == pytest.approx(oracle.aji(pred, truth), abs=1e-12)
    assert (got.pq, got.dq, got.sq) == pytest.approx(oracle.pq(pred, truth), abs=1e-12)
    for i, threshold in enumerate(IOU_THRESHOLDS):
        tp, fp, fn, _ = oracle.detection(pred, truth, threshold)
        assert got.f1_sweep[i] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    tp, fp, fn, _ = oracle.detection(pred, truth)
    assert (got.precision, got.recall) == pytest.approx((tp / (tp + fp), tp / (tp + fn)))


@pytest.mark.parametrize("seed", range(20))
def test_aji_plus_equals_trying_every_assignment(seed):
    pred, truth = blobs(100 + seed, n=6, side=32, jitter=4)
    assert instance_scores(pred, truth).aji_plus == pytest.approx(oracle.aji_plus(pred, truth), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(arrays(np.int16, (4, 5), elements=st.integers(0, 3)), arrays(np.int16, (4, 5), elements=st.integers(0, 3)))
def test_tiny_maps_equal_plain_loops(pred, truth):
    got = instance_scores(pred, truth)
    if not pred.any() or not truth.any():
        return
    assert got.aji == pytest.approx(oracle.aji(pred, truth))
    assert got.dice2 == pytest.approx(oracle.dice2(pred, truth))
    assert got.pq == pytest.approx(oracle.pq(pred, truth)[0])


@pytest.mark.parametrize("seed", range(6))
def test_matching_agrees_with_stardist(seed):
    matching = pytest.importorskip("stardist.matching", reason="StarDist is not installed", exc_type=ImportError).matching
    pred, truth = blobs(200 + seed, n=30, side=128)
    got = instance_scores(pred, truth)
    for i, threshold in enumerate(IOU_THRESHOLDS):
        # StarDist counts float32 IoU >= threshold, the panoptic definition is >: step over the boundary (areas < 1e4 px)
        theirs = matching(truth, pred, thresh=threshold + 1e-6)
        assert got.matched[i] == theirs.tp
        assert got.f1_sweep[i] == pytest.approx(theirs.f1)
        if i == 0:
            assert got.precision == pytest.approx(theirs.precision)
            assert got.recall == pytest.approx(theirs.recall)
            assert got.sq == pytest.approx(theirs.mean_matched_score)
            assert got.pq == pytest.approx(theirs.panoptic_quality)


class TestTraps:
    """Cases in which published score code misleads or fails (values derived from areas in each test)."""

    def test_one_perfect_of_25_gets_full_dice2(self):
        truth = squares()
        got = instance_scores(np.where(truth == 13, truth, 0), truth)
        assert got.dice2 == 1.0
        assert got.dice == pytest.approx(2 / 26)
        assert got.aji == got.aji_plus == pytest.approx(1 / 25)
        assert got.pq == pytest.approx(2 / 26)

    def test_16_invented_nuclei_cost_dice2_nothing(self):
        truth = np.pad(squares(), ((0, 60), (0, 0)))
        pred = truth.copy()
        pred[64:] = np.where(squares()[:60] <= 16, squares()[:60] + 100 * (squares()[:60] > 0), 0)[: pred.shape[0] - 64]
        got = instance_scores(pred, truth)
        assert got.n_pred == 41
        assert got.dice2 == 1.0
        assert got.dice == pytest.approx(2 * 25 / (25 + 41))
        assert got.aji == got.aji_plus == pytest.approx(25 / 41)
        assert got.pq == pytest.approx(25 / (25 + 16 / 2))

    def test_touching_border_off_by_one_px_costs_dice2_a_third(self):
        truth, pred = np.zeros((42, 42), np.int32), np.zeros((42, 42), np.int32)
        truth[1:41, 1:21], truth[1:41, 21:41] = 1, 2
        pred[1:41, 1:22], pred[1:41, 22:41] = 1, 2
        got = instance_scores(pred, truth)
        a = 40 * 20
        assert got.dice == 1.0
        assert got.dice2 == pytest.approx(2 * (2 * a) / ((a + a + 40) + (a + a - 40) + (a + a + 40)))
        assert got.aji == got.aji_plus == pytest.approx((2 * a - 40) / (2 * a + 40))
        assert got.dice2 < 0.67 < 0.95 < got.pq

    def test_one_merged_id_keeps_dice_and_loses_the_rest(self):
        truth = squares()
        got = instance_scores((truth > 0).astype(np.uint8), truth)
        assert got.dice == 1.0
        assert got.dice2 == pytest.approx(50 / 650)
        assert got.aji == pytest.approx(1 / 25)
        assert got.aji_plus == pytest.approx(1 / 49)
        assert got.pq == 0.0

    @pytest.mark.parametrize("swap", [False, True])
    def test_one_side_empty_scores_zero(self, swap):
        truth = squares()
        pair = (truth, np.zeros_like(truth)) if swap else (np.zeros_like(truth), truth)
        got = instance_scores(*pair)
        assert [getattr(got, name) for name in SCORE_NAMES] == [0.0] * len(SCORE_NAMES)
        assert {got.n_truth, got.n_pred} == {0, 25}

    def test_both_empty_is_nan_and_left_out_of_means(self):
        nothing = instance_scores(np.zeros((9, 9), int), np.zeros((9, 9), int))
        assert all(math.isnan(getattr(nothing, name)) for name in SCORE_NAMES)
        full = instance_scores(squares(), squares())
        mean = mean_scores([nothing, full])
        assert mean["pq"] == mean["aji"] == 1.0
        assert mean["n_truth"] == 12.5
        assert pooled_scores([nothing, full]) == full
        assert math.isnan(mean_scores([nothing])["pq"])
        assert math.isnan(mean_scores([])["pq"])

    def test_no_background_pixel(self):
        truth = np.repeat(np.arange(5, 9), 16).reshape(8, 8)
        got = instance_scores(truth, truth)
        assert got.n_truth == 4
        assert [getattr(got, n) for n in SCORE_NAMES] == [1.0] * len(SCORE_NAMES)

    def test_half_overlap_is_no_match(self):
        truth, pred = np.zeros((4, 8), int), np.zeros((4, 8), int)
        truth[1, 0:4], pred[1, 0:2] = 1, 1
        assert instance_scores(pred, truth).matched[0] == 0  # IoU exactly 0.5
        pred[1, 2] = 1
        assert instance_scores(pred, truth).matched[0] == 1

    def test_no_pixel_at_all(self):
        assert instance_scores(np.zeros((0, 4), int), np.zeros((0, 4), int)).empty


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_ids_do_not_matter(seed, shuffle):
    pred, truth = blobs(seed, n=8, side=40)
    rng = np.random.default_rng(shuffle)
    pool = np.array([-5, 1, 2, 70, 65_535, 10**7, 2**40, 2**40 + 1, 2**62, *range(100, 130)])
    lut = dict(zip(np.unique(truth[truth > 0]), rng.permutation(pool), strict=False))
    renamed = np.array([lut.get(v, 0) for v in truth.ravel()], np.int64).reshape(truth.shape)
    a, b = instance_scores(pred, truth), instance_scores(pred, renamed)
    for name in SCORE_NAMES:
        assert getattr(a, name) == pytest.approx(getattr(b, name), nan_ok=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_perfect_is_one_and_symmetric_where_defined_so(seed):
    pred, truth = blobs(seed, n=8, side=40)
    ab, ba = instance_scores(pred, truth), instance_scores(truth, pred)
    for name in ("dice", "dice2", "pq", "sq", "dq", "f1"):
        assert getattr(ab, name) == pytest.approx(getattr(ba, name), nan_ok=True)
    assert ab.aji_plus == pytest.approx(ba.aji_plus, nan_ok=True)
    if truth.any():
        assert instance_scores(truth, truth).f1_sweep == (1.0,) * len(IOU_THRESHOLDS)


def test_pooling_is_scoring_side_by_side():
    (p1, t1), (p2, t2) = blobs(1), blobs(2)
    shift = 10_000
    joined = instance_scores(np.hstack([p1, np.where(p2 > 0, p2 + shift, 0)]), np.hstack([t1, np.where(t2 > 0, t2 + shift, 0)]))
    pooled = pooled_scores([instance_scores(p1, t1), instance_scores(p2, t2)])
    for name, value in joined.as_dict().items():
        assert pooled.as_dict()[name] == pytest.approx(value)
    assert Scores() + pooled == pooled


def test_contingency_is_the_same_by_counting_and_by_sorting():
    pred, truth = blobs(5)
    small = contingency(pred, truth)
    big = contingency(pred.astype(np.int64) * 2**33, truth)  # ids beyond any lookup table
    assert (big.pred_ids == small.pred_ids * 2**33).all()
    for name in ("truth_ids", "truth_px", "pred_px", "pair_truth", "pair_pred", "pair_px"):
        assert (getattr(small, name) == getattr(big, name)).all()
    assert small.pair_px.sum() == ((pred > 0) & (truth > 0)).sum()


def test_ignored_pixels_count_for_neither_map():
    truth = squares()
    ignore = truth == 3
    pred = np.where(ignore, 0, truth)
    assert instance_scores(pred, truth).recall == pytest.approx(24 / 25)
    assert instance_scores(pred, truth, ignore).pq == 1.0
    with pytest.raises(FormatError, match="ignore mask"):
        instance_scores(pred, truth, ignore[1:])


def test_refuses_what_is_no_label_map():
    with pytest.raises(FormatError, match="same \\(H, W\\)"):
        instance_scores(np.zeros((3, 4), int), np.zeros((4, 3), int))
    with pytest.raises(FormatError, match="float64"):
        instance_scores(np.zeros((3, 4)), np.zeros((3, 4), int))
    with pytest.raises(FormatError, match="integer label map"):
        instance_scores(np.zeros((3, 4, 3), int), np.zeros((3, 4, 3), int))


@pytest.mark.skipif("WSISEG_DATA" not in os.environ, reason="needs the given data sets")
@pytest.mark.parametrize("name", ["human_bladder_01", "human_bladder_02"])
def test_real_tiles_equal_plain_loops(name):
    tifffile = pytest.importorskip("tifffile")
    root = Path(os.environ["WSISEG_DATA"]) / "formats" / "nuc_eval_examples"
    truth = tifffile.imread(root / "GT" / f"{name}.tif").astype(np.int64)
    pred = np.load(root / "Prediction" / f"{name}.npy", allow_pickle=False).astype(np.int64)
    got = instance_scores(pred, truth)
    assert got.aji == pytest.approx(oracle.aji(pred, truth))
    assert got.dice2 == pytest.approx(oracle.dice2(pred, truth))
    assert (got.pq, got.dq, got.sq) == pytest.approx(oracle.pq(pred, truth))

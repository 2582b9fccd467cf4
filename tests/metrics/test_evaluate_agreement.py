"""Count agreement, Hou et al.'s patch protocol and the paired test, against definitions written out."""

import itertools
import math

import numpy as np
import pytest

from wsiseg.errors import FormatError
from wsiseg.metrics import count_agreement, hou_scores, instance_scores, label_patches, paired_test


def test_count_agreement_from_the_definitions():
    rng = np.random.default_rng(0)
    truth = rng.poisson(20, 40)
    pred = truth + rng.integers(-4, 6, 40)
    got = count_agreement(pred.tolist(), truth.tolist())
    mp, mt = pred.mean(), truth.mean()
    r = sum((p - mp) * (t - mt) for p, t in zip(pred, truth, strict=True)) / math.sqrt(
        sum((p - mp) ** 2 for p in pred) * sum((t - mt) ** 2 for t in truth)
    )
    assert got.pearson_r == pytest.approx(r)
    assert got.mae_percent == pytest.approx(100 * sum(abs(p - t) for p, t in zip(pred, truth, strict=True)) / truth.sum())
    assert got.n == 40


def test_counts_without_an_answer_are_nan():
    assert math.isnan(count_agreement([3], [3]).pearson_r)
    assert math.isnan(count_agreement([3, 3], [1, 2]).pearson_r)
    assert math.isnan(count_agreement([1, 2], [0, 0]).mae_percent)
    assert count_agreement([], []).n == 0
    with pytest.raises(FormatError, match="same length"):
        count_agreement([1, 2], [1])


def test_hou_protocol_scores_centers_weighted_by_nuclei():
    rng = np.random.default_rng(3)
    pairs = []
    for n in (2, 40, 0):
        truth, pred = np.zeros((256, 256), np.int32), np.zeros((256, 256), np.int32)
        for k in range(1, n + 1):
            y, x = rng.integers(0, 246, 2)
            truth[y : y + 10, x : x + 10] = k
            pred[y + 1 : y + 9, x : x + 9] = k
        pairs.append((pred, truth))
    got = hou_scores(pairs)
    parts = [(instance_scores(p[15:241, 15:241], t[15:241, 15:241])) for p, t in pairs]
    weights = [s.n_truth + s.n_pred for s in parts]
    assert got.n_patches == 3
    scored = list(zip(weights[:2], parts[:2], strict=True))
    assert got.dice == pytest.approx(sum(w * s.dice for w, s in scored) / sum(weights))
    assert got.instance_dice == pytest.approx(sum(w * s.dice2 for w, s in scored) / sum(weights))
    assert got.counts == count_agreement([s.n_pred for s in parts], [s.n_truth for s in parts])


def test_hou_leaves_the_frame_out():
    truth = np.zeros((256, 256), np.int32)
    truth[100:110, 100:110] = 1
    pred = truth.copy()
    pred[0:15, 0:15] = 9  # only in the 15 px frame
    assert hou_scores([(pred, truth)]).dice == 1.0
    pred[0:16, 0:16] = 9
    assert hou_scores([(pred, truth)]).dice < 1.0
    with pytest.raises(FormatError, match="no center"):
        hou_scores([(pred[:200], truth[:200])])


def test_patches_cover_whole_squares_row_major():
    labels = np.arange(600 * 530).reshape(600, 530)
    patches = list(label_patches(labels))
    assert [int(p[0, 0]) for p in patches] == [0, 256, 256 * 530, 256 * 530 + 256]
    assert {p.shape for p in patches} == {(256, 256)}


def test_wilcoxon_equals_counting_every_sign_pattern():
    rng = np.random.default_rng(1)
    a = rng.random(9)
    b = a + rng.normal(0.1, 0.2, 9)
    difference = a - b
    rank = np.argsort(np.argsort(np.abs(difference))) + 1
    observed = rank[difference > 0].sum()
    half = rank.sum() / 2
    totals = [sum(r for r, s in zip(rank, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=9)]
    p = np.mean([abs(t - half) >= abs(observed - half) - 1e-9 for t in totals])
    got = paired_test(a.tolist(), b.tolist())
    assert got.p_value == pytest.approx(p)
    assert got.mean_difference == pytest.approx(difference.mean())
    assert got.median_difference == pytest.approx(np.median(difference))


def test_paired_test_at_its_edges():
    assert paired_test([0.5, 0.6], [0.5, 0.6]).p_value == 1.0
    assert paired_test([math.nan, 0.6, 0.7], [0.1, 0.6, 0.8]).n == 2
    assert paired_test([], []).n == 0
    with pytest.raises(FormatError, match="same images"):
        paired_test([1.0], [1.0, 2.0])

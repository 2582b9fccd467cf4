"""Estimates hold when suspects were judged first: simulated many times against the known share, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.qc import corrected_share, odds_weight, order_key, predicted_share, reached
from wsiseg.qc.review import in_share

WORDS = np.array(["adequate", "not_adequate"])


def test_the_order_is_fixed_and_suspects_tend_to_come_first() -> None:
    assert order_key("a", 2.0) == order_key("a", 2.0) == order_key("a", 1.0) / 2
    suspects = [order_key(f"s{i}", 9.0) for i in range(2000)]
    others = [order_key(f"o{i}", 1.0) for i in range(2000)]
    # the smaller of two exponential variables is the one of rate 9 in 9 of 10 cases
    assert np.mean([a < b for a, b in zip(suspects, others, strict=True)]) == pytest.approx(0.9, abs=0.02)
    assert odds_weight([0.0, 0.5, 0.8, 1.0]) == pytest.approx([0.05, 1.0, 4.0, 20.0])


def simulate(turn: int, n: int, prob: np.ndarray, bad: np.ndarray, stop: int) -> tuple[float, float, bool]:
    """Judge the first ``stop`` patches; return the plain share, the corrected one, and whether its interval holds."""
    weight = odds_weight(prob)
    ids = [f"{turn}-{i}" for i in range(n)]
    keys = {i: order_key(i, w) for i, w in zip(ids, weight.tolist(), strict=True)}
    words = dict(zip(ids, WORDS[bad.astype(int)].tolist(), strict=True))
    judged = {i: words[i] for i in sorted(ids, key=keys.__getitem__)[:stop]}
    inside, tau = reached(keys, judged, judged, {"1/1": ids})
    assert inside == set(judged)
    reported = [judged.get(i, "") for i in ids]
    found = corrected_share(prob, weight, reported, np.array([i in inside for i in ids]), np.array([tau[i] for i in ids]))
    assert found is not None
    plain = np.mean([w == "not_adequate" for w in judged.values()])
    return float(plain), found.share, found.low <= bad.mean() <= found.high


@pytest.mark.parametrize("honest", [True, False])
def test_the_correction_is_unbiased_whatever_the_predictions_are_worth(honest: bool) -> None:
    random = np.random.default_rng(11)
    n, truth = 1500, random.beta(0.6, 2.5, 1500)
    bad = random.random(n) < truth
    prob = np.clip(truth if honest else random.permutation(truth) * 0.5, 0.01, 0.99)
    runs = [simulate(turn, n, prob, bad, 300) for turn in range(60)]
    plain, corrected = (np.array([r[k] for r in runs]) for k in (0, 1))
    error = corrected.std() / math.sqrt(len(runs))
    assert abs(corrected.mean() - bad.mean()) < 3.5 * error + 1e-3
    assert np.mean([r[2] for r in runs]) > 0.85
    if honest:
        assert plain.mean() > bad.mean() + 0.15  # counting suspects only would have misled


def test_all_judged_is_counting() -> None:
    prob, words = np.array([0.2, 0.9, 0.5, 0.5]), ["adequate", "not_adequate", "adequate", "unsure"]
    found = corrected_share(prob, odds_weight(prob), words, np.array([True] * 4), np.full(4, math.inf))
    assert found is not None
    assert (found.share, found.low, found.high) == pytest.approx((1 / 3,) * 3)
    assert (found.n_patches, found.n_judged) == (3, 3)
    assert corrected_share(prob, odds_weight(prob), [""] * 4, np.zeros(4, bool), np.zeros(4)) is None


def test_a_divided_review_and_gaps() -> None:
    ids = [f"p{i}" for i in range(400)]
    keys = {i: order_key(i, 1.0) for i in ids}
    parts = {f"{k}/2": [i for i in ids if in_share(i, (k, 2))] for k in (1, 2)}
    assert sorted(parts["1/2"] + parts["2/2"]) == sorted(ids)
    first = sorted(parts["1/2"], key=keys.__getitem__)
    judged = dict.fromkeys([*first[:50], first[60]], "adequate")  # one beyond a gap, as when another order reached it
    inside, tau = reached(keys, judged, judged, parts)
    assert inside == set(first[:50])
    assert {tau[i] for i in parts["1/2"]} == {keys[first[50]]}
    assert {tau[i] for i in parts["2/2"]} == {min(keys[i] for i in parts["2/2"])}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["", "adequate", "not_adequate", "unsure"])), min_size=1, max_size=30)
)
def test_a_slides_estimate_is_in_its_interval_and_uses_what_was_judged(patches: list[tuple[float, str]]) -> None:
    prob, words = np.array([p for p, _ in patches]), [w for _, w in patches]
    found = predicted_share(prob, words, 0.1)
    kept = [(p, w) for p, w in patches if w != "unsure"]
    assert found.n_patches == len(kept)
    if not kept:
        assert math.isnan(found.share)
        return
    known = {"adequate": 0.0, "not_adequate": 1.0}
    assert found.share == pytest.approx(np.mean([known.get(w, p) for p, w in kept]))
    assert 0 <= found.low <= found.share + 1e-12
    assert found.share <= found.high + 1e-12 <= 1 + 2e-12
    if all(w for _, w in kept):
        assert found.low == pytest.approx(found.high)

"""The estimate of nuclei outside the mask against exact intervals and simulated samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from wsiseg.summarize import estimate_outside


@pytest.mark.parametrize("weight", [2.0, 17.5])
def test_of_evenly_spread_nuclei_it_is_the_exact_poisson_interval(weight: float) -> None:
    """Garwood 1936, for one nucleus in each window and for none: upper and lower ends from the chi-square distribution."""
    for counts in ([0] * 8, [1] * 8, [1] * 5):
        total = sum(counts)
        found = estimate_outside(counts, [weight] * len(counts))
        assert found.nuclei == pytest.approx(weight * total)
        assert found.low == pytest.approx(weight * chi2.ppf(0.025, 2 * total) / 2 if total else 0.0)
        assert found.high == pytest.approx(weight * chi2.ppf(0.975, 2 * total + 2) / 2)


def test_what_every_window_represents_is_known() -> None:
    found = estimate_outside([3, 0, 4], [1.0, 1.0, 1.0])
    assert (found.nuclei, found.low, found.high, found.n_windows) == (7, 7, 7, 3)
    assert estimate_outside([], []).high == 0
    mixed = estimate_outside([3, 1], [1.0, 10.0])
    assert mixed.nuclei == 13
    assert mixed.low > 3


@pytest.mark.parametrize("n", [3, 6, 20])
@pytest.mark.parametrize("clumps", [False, True])
def test_the_interval_holds_the_truth_also_of_clustered_nuclei(n: int, clumps: bool) -> None:
    """200 cells of which some hold a clump or all a few: of 400 samples with a nucleus, 85 % of intervals hold the total."""
    random = np.random.default_rng(n)
    cells = random.poisson(np.where(random.random(200) < 0.3, 12.0, 0.0) if clumps else np.full(200, 1.5))
    held = seen = 0
    while seen < 400:
        drawn = random.choice(cells, n, replace=False)
        seen += drawn.any()
        if not drawn.any():
            continue
        found = estimate_outside(drawn.tolist(), [200 / n] * n)
        held += found.low <= cells.sum() <= found.high
    assert held >= 0.85 * 400


def test_one_window_shows_little() -> None:
    """Of an exponential distribution (as uneven as its mean), one value bounds the mean by ln 0.975 (upper end)."""
    found = estimate_outside([10], [5.0])
    assert found.high == pytest.approx(50 / -np.log(0.975))
    assert 0 < found.low < 50 / 3

"""Compute scores over several images: agreement of nucleus counts, and a paired test between two runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsiseg.errors import FormatError

__all__ = ["CountAgreement", "PairedTest", "count_agreement", "paired_test"]


@dataclass(frozen=True, slots=True)
class CountAgreement:
    """Agreement of predicted and true nucleus counts over ``n`` patches.

    ``pearson_r`` is nan if there are fewer than two patches or all counts of one side are equal; ``mae_percent`` is
    100 mean|p - t| / mean t, nan if no patch has a true nucleus.
    """

    n: int
    pearson_r: float
    mae_percent: float


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two-sided Wilcoxon signed-rank test on the per-image differences a - b of ``n`` images."""

    n: int
    mean_difference: float
    median_difference: float
    p_value: float


def count_agreement(n_pred: Sequence[int], n_truth: Sequence[int]) -> CountAgreement:
    """Return the agreement of predicted and true nucleus counts.

    Parameters
    ----------
    n_pred, n_truth : int (K,)
        Counts of the same patches.

    Returns
    -------
    CountAgreement
    """
    p, t = np.asarray(n_pred, np.float64), np.asarray(n_truth, np.float64)
    if p.shape != t.shape or p.ndim != 1:
        raise FormatError(f"evaluate: counts must be two lists of the same length, got {p.shape} and {t.shape}.")
    varies = len(p) > 1 and np.ptp(p) > 0 and np.ptp(t) > 0
    r = float(np.corrcoef(p, t)[0, 1]) if varies else math.nan
    mae = float(100 * np.abs(p - t).mean() / t.mean()) if len(t) and t.mean() > 0 else math.nan
    return CountAgreement(len(p), r, mae)


def paired_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Test whether two runs differ on the same images (Wilcoxon signed-rank, two-sided; scipy's tie handling).

    Images where either score is nan are left out. Without any difference the p-value is 1.
    """
    from scipy.stats import wilcoxon

    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise FormatError(f"evaluate: two runs must score the same images, got {first.shape} and {second.shape} values.")
    difference = (first - second)[~np.isnan(first - second)]
    if not difference.any():
        return PairedTest(len(difference), 0.0 if len(difference) else math.nan, 0.0 if len(difference) else math.nan, 1.0)
    p = float(wilcoxon(difference, alternative="two-sided").pvalue)
    return PairedTest(len(difference), float(difference.mean()), float(np.median(difference)), p)

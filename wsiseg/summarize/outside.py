"""Estimate the number of nuclei outside the tissue mask, with an interval, from counts in a sample of windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["OutsideEstimate", "estimate_outside"]


@dataclass(frozen=True, slots=True)
class OutsideEstimate:
    """An estimated number of nuclei with its 95 % interval, and the number of windows that it comes from."""

    nuclei: float
    low: float
    high: float
    n_windows: int


def estimate_outside(counts: Sequence[int], weights: Sequence[float]) -> OutsideEstimate:
    """Return the total number estimated from counts in sampled windows.

    The estimate is that of Horvitz and Thompson (1952, J. Am. Stat. Assoc. 47:663), the sum of weight times count. Its interval
    is the wider of two. The first is the gamma interval of Fay and Feuer (1997, Statistics in Medicine 16:791) for a weighted
    sum of Poisson counts, exact for equal weights, with the mean weight instead of the largest (Tiwari et al. 2006, Stat.
    Methods Med. Res. 15:547). The second is for nuclei in clusters: counts of windows are taken as gamma-distributed with the
    variance observed between them, plus one window that deviates by the whole mean, because a few windows hardly show how they
    differ. If no window has a nucleus, clusters are unknown and the upper end is that of single nuclei. The count of a window
    of weight 1 adds no uncertainty.

    Parameters
    ----------
    counts
        Nuclei outside the mask in each window.
    weights
        Number of windows that each one represents, at least 1.
    """
    from scipy.stats import chi2

    count, weight = np.asarray(counts, np.float64), np.asarray(weights, np.float64)
    sure = weight <= 1
    known = float(count[sure].sum())
    x, w = count[~sure], weight[~sure]
    n = len(x)
    if n == 0:
        return OutsideEstimate(known, known, known, len(count))
    part = w * x
    total = float(part.sum())
    between = float(((part - total / n) ** 2).sum()) + (total / n) ** 2
    poisson = float((w * w * x).sum())
    one, one2 = float(w.mean()), float((w * w).mean())
    spread, top = poisson + one2, total + one
    high = spread / (2 * top) * float(chi2.ppf(0.975, 2 * top**2 / spread))
    if total == 0:
        return OutsideEstimate(known, known, known + high, len(count))
    low = min(v / (2 * total) * float(chi2.ppf(0.025, 2 * total**2 / v)) for v in (poisson, between))
    shape = total**2 / between
    high = max(high, total * 2 * shape / float(chi2.ppf(0.025, 2 * shape)))
    return OutsideEstimate(known + total, known + low, known + high, len(count))

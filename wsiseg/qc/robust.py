"""Robust distances of values from the center of a cohort: median, MAD and Mahalanobis distance."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["MAD_LIMIT", "center_spread", "robust_distance2", "z_limit", "z_scores"]

FloatArray = npt.NDArray[np.float64]

MAD_LIMIT = 3.5
"""Modified z-score above which a value of a large cohort is an outlier (Iglewicz and Hoaglin 1993, How to Detect and Handle
Outliers)."""

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation of a normal distribution, 1 / Phi^-1(3/4)."""

CHI2_PROBABILITY = 0.975
"""Share of good slides inside the robust ellipsoid (the usual cutoff, Rousseeuw and van Zomeren 1990)."""

FREEDOM_PER_SLIDE = 0.5
"""Degrees of freedom per slide. With this times (n - 1) degrees of freedom, the tails of Student's distribution are about those
of a robust z-score among n normal values (simulated for n from 5 to 100: 0.03 to 0.07 % of values exceed the limit; 0.05 % of
a normal distribution exceed ``MAD_LIMIT``)."""


def center_spread(values: FloatArray) -> tuple[float, float, int]:
    """Return the median, 1.4826 MAD and the number of the finite values; NaN, 0 and 0 if there are none."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return math.nan, 0.0, 0
    center = float(np.median(known))
    return center, MAD_TO_SIGMA * float(np.median(np.abs(known - center))), int(known.size)


def z_scores(values: FloatArray, reference: FloatArray | None = None) -> FloatArray:
    """Return (x - median) / (1.4826 MAD), with median and MAD of the reference (``None``: of the values).

    The score is 0 if the MAD is 0 or x is not finite.
    """
    center, spread, _ = center_spread(values if reference is None else reference)
    return np.nan_to_num((values - center) / spread) if spread > 0 else np.zeros_like(values)


def z_limit(n: int) -> float:
    """Return the robust z-score above which a value among ``n`` is as improbable as one above 3.5 in a large cohort.

    In a small cohort the MAD itself is uncertain: among 12 normal values, one in 75 exceeds 3.5. The limit is the quantile of
    Student's distribution for the same probability: 46 for 5 slides, 7.4 for 12, 4.5 for 30, 3.75 for 100.
    """
    from scipy.stats import norm, t

    return float(t.ppf(norm.cdf(MAD_LIMIT), FREEDOM_PER_SLIDE * max(1, n - 1)))


def robust_distance2(z: FloatArray) -> tuple[FloatArray, float]:
    """Return squared robust Mahalanobis distances and their limit.

    Parameters
    ----------
    z : float64 (N, P)
        P statistics of N slides, centered by the median and scaled by the MAD.

    Notes
    -----
    Correlations are computed from values clipped at 2 robust standard deviations, so that outliers do not affect them, and
    shrunk towards 0 by P / N. Distances are scaled so that their median is that of chi-square with P degrees of freedom
    (Maronna and Zamar 2002, Technometrics 44:307). The limit is the larger of its quantiles 1 - 0.025 / N and 0.975: of 40
    good cohorts of any size, about one has a flagged slide.
    """
    from scipy.stats import chi2

    n, p = z.shape
    clipped = np.clip(z, -2.0, 2.0)
    spread = clipped.std(axis=0)
    unit = np.divide(clipped - clipped.mean(axis=0), spread, out=np.zeros_like(clipped), where=spread > 0)
    shrink = min(1.0, p / n)
    correlation = (1 - shrink) * (unit.T @ unit / n) + shrink * np.eye(p)
    np.fill_diagonal(correlation, 1.0)
    distance2 = np.einsum("ij,ij->i", z, np.linalg.solve(correlation, z.T).T)
    median = float(np.median(distance2))
    if median > 0:
        distance2 = distance2 * (float(chi2.ppf(0.5, p)) / median)
    return distance2, float(chi2.ppf(max(CHI2_PROBABILITY, 1 - (1 - CHI2_PROBABILITY) / n), p))

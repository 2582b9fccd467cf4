"""Marks and predictions -> estimated bad shares that hold also where a review went by suspicion and stopped half-way.

Who looks at suspects first and then counts finds a cohort worse than it is. Two things keep the count unbiased. The order
``predicted`` is not plain worst-first but a random order tilted to suspects: patch i has key -ln(u) / w with u fixed and
w the odds to fail (Efraimidis and Spirakis 2006, Inf. Process. Lett. 97:181). And the estimate weighs each judged patch by how
likely it was to be reached: with tau the smallest key not yet judged, that is 1 - exp(-w tau) (rank conditioning, Cohen and
Kaplan 2007, PODC). The difference estimator (Cassel, Saerndal and Wretman 1976, Biometrika 63:615) then corrects the mean
prediction by the weighted errors of the judged: unbiased whatever the predictions are worth, and the more precise the better
they are.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiseg.qc.grades import Z_95

__all__ = ["ShareEstimate", "corrected_share", "odds_weight", "order_key", "predicted_share", "reached"]

FloatArray = npt.NDArray[np.float64]

ODDS_RANGE = (0.05, 20.0)
"""A patch is never shown more than 400 times as readily as another: few good-looking ones must not carry huge weights."""


@dataclass(frozen=True, slots=True)
class ShareEstimate:
    """An estimated share of bad patches with its 95 % interval, of ``n_patches`` of which ``n_judged`` were judged."""

    share: float
    low: float
    high: float
    n_patches: int
    n_judged: int


def odds_weight(fail_prob: npt.ArrayLike) -> FloatArray:
    """Return the weight of patches in the tilted order, float64: their odds to fail, kept within ``ODDS_RANGE``."""
    p = np.clip(np.asarray(fail_prob, np.float64), 1e-6, 1 - 1e-6)
    return np.clip(p / (1 - p), *ODDS_RANGE)


def order_key(patch: str, weight: float) -> float:
    """Return the place of a patch in the tilted order: small comes first; the same for the same id and weight."""
    number = int.from_bytes(hashlib.sha256(f"order {patch}".encode()).digest()[:6], "big")
    return -math.log((number + 0.5) / 2**48) / weight


def predicted_share(fail_prob: FloatArray, words: Sequence[str], group_spread: float) -> ShareEstimate:
    """Return the bad share of one slide: judged patches as judged, the others as predicted.

    Parameters
    ----------
    fail_prob : float64 (N,)
        Of all its patches.
    words
        ``adequate``, ``not_adequate``, ``unsure`` or nothing, of each. Unsure patches are left out.
    group_spread
        Standard deviation of a slide's share about its prediction that more patches do not average out.
    """
    keep = np.array([w != "unsure" for w in words], np.bool_)
    known, p = _as_numbers(words)[keep], np.asarray(fail_prob, np.float64)[keep]
    n, open_ = len(p), np.isnan(known)
    if n == 0:
        return ShareEstimate(math.nan, 0.0, 1.0, 0, 0)
    share = float(np.where(open_, p, known).mean())
    variance = float((p * (1 - p))[open_].sum()) / n**2 + (group_spread * float(open_.mean())) ** 2
    return _with_interval(share, variance, n, int((~open_).sum()))


def corrected_share(
    fail_prob: FloatArray, weight: FloatArray, words: Sequence[str], by_order: npt.NDArray[np.bool_], tau: FloatArray
) -> ShareEstimate | None:
    """Return the bad share of many patches, corrected for the order in which they were judged.

    Parameters
    ----------
    fail_prob, weight : float64 (N,)
        Prediction, and weight in the tilted order, as they were when the order was fixed.
    words
        As in ``predicted_share``.
    by_order : bool (N,)
        Judged because the tilted order reached it. A patch judged for any other reason stands for itself.
    tau : float64 (N,)
        Key up to which the order has been judged without a gap, in the part of the patches that this one belongs to; infinite
        where that part is done.

    Returns
    -------
    ShareEstimate or None
        None where fewer than two patches were reached by the order (nothing to correct by), unless all are judged.
    """
    keep = np.array([w != "unsure" for w in words], np.bool_)
    known, p, ordered = _as_numbers(words)[keep], np.asarray(fail_prob, np.float64)[keep], by_order[keep]
    chance = 1 - np.exp(-np.asarray(weight, np.float64)[keep] * np.asarray(tau, np.float64)[keep])
    n, judged = len(p), ~np.isnan(known)
    certain = judged & ~ordered
    sampled = judged & ordered
    if n == 0 or (int(sampled.sum()) < 2 and not (certain | sampled).all()):
        return None
    error = np.where(sampled, known - p, 0.0)
    total = np.where(certain, known, p + error / chance.clip(1e-300)).sum()
    variance = float(((1 - chance) * (error / chance.clip(1e-300)) ** 2).sum())
    return _with_interval(float(total) / n, variance / n**2, n, int(judged.sum()))


def reached(
    keys: Mapping[str, float], judged_by_order: Mapping[str, str], judged: Mapping[str, str], parts: Mapping[str, Sequence[str]]
) -> tuple[set[str], dict[str, float]]:
    """Return which patches the order itself reached, and tau of each patch.

    Parameters
    ----------
    keys
        Key of every patch of the order.
    judged_by_order
        Word of the patches judged in a review that followed the order.
    judged
        Word of all judged patches.
    parts
        Patches of each part of a divided review; one part where it was not divided.
    """
    inside: set[str] = set()
    tau: dict[str, float] = {}
    for ids in parts.values():
        here = [i for i in ids if i in keys and i not in tau]
        limit = min((keys[i] for i in here if i not in judged), default=math.inf)
        for i in here:
            tau[i] = limit
            if i in judged_by_order and keys[i] < limit:
                inside.add(i)
    return inside, tau


def _as_numbers(words: Sequence[str]) -> FloatArray:
    """Return 0 for adequate, 1 for not adequate, NaN for what is not known."""
    return np.array([{"adequate": 0.0, "not_adequate": 1.0}.get(w, math.nan) for w in words], np.float64)


def _with_interval(share: float, variance: float, n: int, n_judged: int) -> ShareEstimate:
    half = Z_95 * math.sqrt(max(0.0, variance))
    return ShareEstimate(min(1.0, max(0.0, share)), max(0.0, share - half), min(1.0, share + half), n, n_judged)

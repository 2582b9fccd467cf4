"""Estimate the share of bad patches from marks and predictions, without bias even if only suspect patches were judged.

A reviewer who looks at suspects first and then counts would find a cohort worse than it is. Two things keep the estimate
unbiased. First, the review order ``predicted`` is not strictly worst-first but a weighted random order: patch i gets the key
-ln(u) / w, where u is a fixed random number and w are the predicted odds that the patch fails (Efraimidis and Spirakis 2006,
Inf. Process. Lett. 97:181); patches are shown by ascending key. Second, each judged patch is weighted by one over the
probability that the review reached it: if tau is the smallest key not yet judged, that probability is 1 - exp(-w tau) (rank
conditioning, Cohen and Kaplan 2007, PODC). The difference estimator (Cassel, Saerndal and Wretman 1976, Biometrika 63:615) then
corrects the mean prediction by the weighted prediction errors of the judged patches. The result is unbiased even if the
predictions are poor; good predictions make its interval narrower.
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
"""Limits of the odds used as weights. Without them, the few judged patches with a very low predicted risk would get huge
weights in the estimate. No patch gets more than 400 times the weight of another."""


@dataclass(frozen=True, slots=True)
class ShareEstimate:
    """Estimated share of bad patches, 0 to 1, with its 95 % interval; ``n_judged`` of ``n_patches`` patches were judged."""

    share: float
    low: float
    high: float
    n_patches: int
    n_judged: int


def odds_weight(fail_prob: npt.ArrayLike) -> FloatArray:
    """Return the weights of patches in the weighted random order, float64: the odds of failing, clipped to ``ODDS_RANGE``."""
    p = np.clip(np.asarray(fail_prob, np.float64), 1e-6, 1 - 1e-6)
    return np.clip(p / (1 - p), *ODDS_RANGE)


def order_key(patch: str, weight: float) -> float:
    """Return the sort key of a patch in the weighted random order (ascending); it depends on patch id and weight only."""
    number = int.from_bytes(hashlib.sha256(f"order {patch}".encode()).digest()[:6], "big")
    return -math.log((number + 0.5) / 2**48) / weight


def predicted_share(fail_prob: FloatArray, words: Sequence[str], group_spread: float) -> ShareEstimate:
    """Return the share of bad patches of one slide: judged patches count as judged, all others as predicted.

    Parameters
    ----------
    fail_prob : float64 (N,)
        Predicted probability, 0 to 1, that each patch of the slide is bad.
    words
        Mark of each patch: ``adequate``, ``not_adequate``, ``unsure``, or ``""`` if not judged. Unsure patches are left out.
    group_spread
        Standard deviation of a slide's true share around its predicted share that remains however many patches it has
        (see ``wsiseg.qc.predict_quality.group_spread``).
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
    """Return the share of bad patches of a cohort, corrected for the order in which the patches were judged.

    Parameters
    ----------
    fail_prob, weight : float64 (N,)
        Predicted probability of failing, and weight in the weighted random order, as stored when the order was fixed.
    words
        Marks, as in ``predicted_share``.
    by_order : bool (N,)
        True if the patch was judged because the weighted random order reached it. A patch judged for any other reason counts
        with weight 1 and is not used to correct others.
    tau : float64 (N,)
        Smallest key not yet judged in the part of the review that the patch belongs to; infinite if that part is finished.

    Returns
    -------
    ShareEstimate or None
        None if fewer than two patches were reached by the order, so that there is nothing to correct with, unless all patches
        are judged.
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
    """Return the ids of the patches that were judged because the order reached them, and tau for each patch id.

    Parameters
    ----------
    keys
        Sort key of every patch in the order.
    judged_by_order
        Marks of the patches judged in a review that followed the order.
    judged
        Marks of all judged patches.
    parts
        Patch ids of each part if several reviewers divided the work (``--share``), otherwise a single part.
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
    """Return 0 for adequate, 1 for not adequate, NaN for every other mark."""
    return np.array([{"adequate": 0.0, "not_adequate": 1.0}.get(w, math.nan) for w in words], np.float64)


def _with_interval(share: float, variance: float, n: int, n_judged: int) -> ShareEstimate:
    half = Z_95 * math.sqrt(max(0.0, variance))
    return ShareEstimate(min(1.0, max(0.0, share)), max(0.0, share - half), min(1.0, share + half), n, n_judged)

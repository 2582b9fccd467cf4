"""Beyond one image: count agreement over patches, Hou et al.'s patch protocol, and the test between two runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.evaluate.metrics import instance_scores

__all__ = ["CountAgreement", "HouScores", "PairedTest", "count_agreement", "hou_scores", "label_patches", "paired_test"]

HOU_PATCH_PX = 256
HOU_CENTER_PX = 226


@dataclass(frozen=True, slots=True)
class CountAgreement:
    """How well predicted counts follow true ones over ``n`` patches.

    ``pearson_r`` is nan below two patches or where a side does not vary; ``mae_percent`` is 100 mean|p - t| / mean t, nan
    where no patch holds a true nucleus.
    """

    n: int
    pearson_r: float
    mae_percent: float


@dataclass(frozen=True, slots=True)
class HouScores:
    """Scores of Hou et al. 2020 (Scientific Data 7:185, tables 3 and 4) over ``n_patches`` patch centers."""

    n_patches: int
    dice: float
    instance_dice: float
    counts: CountAgreement


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Two-sided Wilcoxon signed-rank test on the per-image differences a - b of ``n`` images."""

    n: int
    mean_difference: float
    median_difference: float
    p_value: float


def count_agreement(n_pred: Sequence[int], n_truth: Sequence[int]) -> CountAgreement:
    """Compare nucleus counts patch by patch.

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


def label_patches(labels: npt.NDArray[Any], side_px: int = HOU_PATCH_PX) -> Iterator[npt.NDArray[Any]]:
    """Yield the whole ``side_px`` squares of a label map, row-major; a rest that fills no square is left out."""
    for y in range(0, labels.shape[0] - side_px + 1, side_px):
        for x in range(0, labels.shape[1] - side_px + 1, side_px):
            yield labels[y : y + side_px, x : x + side_px]


def hou_scores(
    pairs: Iterable[tuple[npt.NDArray[Any], npt.NDArray[Any]]], center_px: int = HOU_CENTER_PX
) -> HouScores:
    """Score patches as Hou et al. 2020 do: on their centers, weighted by how many nuclei are at stake.

    Parameters
    ----------
    pairs : iterable of (pred, truth), integer (256, 256) each
        Label patches (``label_patches`` cuts them); any side of at least ``center_px`` will do.
    center_px
        Only the central square of this side is scored, so that nuclei cut by the patch border weigh less.

    Returns
    -------
    HouScores
        ``dice`` and ``instance_dice`` (DICE_2) are means over patches weighted by (true count + predicted count); counts are
        those of instances with a pixel in the center.

    Raises
    ------
    FormatError
        Where a patch is smaller than its center.
    """
    weights, dices, instance_dices, n_pred, n_truth = [], [], [], [], []
    for pred, truth in pairs:
        scores = instance_scores(_center(pred, center_px), _center(truth, center_px))
        n_pred.append(scores.n_pred)
        n_truth.append(scores.n_truth)
        if not scores.empty:
            weights.append(scores.n_truth + scores.n_pred)
            dices.append(scores.dice)
            instance_dices.append(scores.dice2)
    dice = float(np.average(dices, weights=weights)) if weights else math.nan
    instance_dice = float(np.average(instance_dices, weights=weights)) if weights else math.nan
    return HouScores(len(n_truth), dice, instance_dice, count_agreement(n_pred, n_truth))


def _center(labels: npt.NDArray[Any], side_px: int) -> npt.NDArray[Any]:
    height, width = labels.shape
    if min(height, width) < side_px:
        raise FormatError(f"evaluate: a patch of {width} x {height} px has no center of {side_px} px.")
    y, x = (height - side_px) // 2, (width - side_px) // 2
    return labels[y : y + side_px, x : x + side_px]


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

"""Agreement of two reviewers on the items that both judged: Cohen's kappa with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError

__all__ = ["Agreement", "cohen_kappa", "reviewer_agreement"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two reviewers.

    Attributes
    ----------
    first, second
        Names of the reviewers.
    n
        Items that both judged.
    agree_frac
        Share of those items on which they gave the same mark, 0 to 1.
    kappa, kappa_low, kappa_high
        Cohen's kappa and its 95 % confidence interval, -1 to 1; NaN if both gave every item the same single mark.
    """

    first: str
    second: str
    n: int
    agree_frac: float
    kappa: float
    kappa_low: float
    kappa_high: float


def cohen_kappa(confusion: npt.ArrayLike) -> tuple[float, float]:
    """Return Cohen's kappa and its standard error for a square table of counts (rows: first reviewer, columns: second).

    kappa = (p_o - p_e) / (1 - p_e) (Cohen 1960, Educ. Psychol. Meas. 20:37); the standard error is the large-sample one of
    Fleiss, Cohen and Everitt (1969, Psychol. Bull. 72:323, eq. 13). Both are NaN where p_e is 1.

    Raises
    ------
    InputError
        The table is not square, holds negative counts, or is empty.
    """
    counts = np.asarray(confusion, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or (counts < 0).any() or counts.sum() <= 0:
        raise InputError(f"Expected a square table of counts that are not all zero, got shape {counts.shape}.")
    n = counts.sum()
    p = counts / n
    row, column = p.sum(axis=1), p.sum(axis=0)
    observed, expected = float(np.trace(p)), float(row @ column)
    if expected >= 1 - 1e-12:
        return math.nan, math.nan
    kappa = (observed - expected) / (1 - expected)
    cross = (column[:, None] + row[None, :]) ** 2 * p
    diagonal = np.diag(p) * ((1 - expected) - (row + column) * (1 - observed)) ** 2
    off = (1 - observed) ** 2 * (cross.sum() - np.trace(cross))
    variance = diagonal.sum() + off - (observed * expected - 2 * expected + observed) ** 2
    return kappa, math.sqrt(max(0.0, float(variance))) / ((1 - expected) ** 2 * math.sqrt(n))


def reviewer_agreement(marks: Mapping[str, Mapping[str, str]], words: Sequence[str]) -> list[Agreement]:
    """Return the agreement of every pair of reviewers who judged at least one common item.

    Parameters
    ----------
    marks
        ``{reviewer: {item: mark}}``.
    words
        The marks to compare. Items to which either reviewer gave another mark (such as ``unsure``) are left out.
    """
    place = {word: i for i, word in enumerate(words)}
    names = sorted(marks)
    out = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            table = np.zeros((len(words), len(words)), np.int64)
            for item, word in marks[first].items():
                other = marks[second].get(item)
                if word in place and other in place:
                    table[place[word], place[other]] += 1
            n = int(table.sum())
            if n:
                kappa, error = cohen_kappa(table)
                low, high = np.clip([kappa - 1.96 * error, kappa + 1.96 * error], -1.0, 1.0).tolist()
                out.append(Agreement(first, second, n, float(np.trace(table)) / n, kappa, low, high))
    return out

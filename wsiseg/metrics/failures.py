"""Classify the failures of a prediction nucleus by nucleus, and find the windows with most of them.

Kinds of a true nucleus (those of a predicted nucleus have the same names, with ``extra`` instead of ``missed``):

* *matched*: a pair of IoU > 0.5 (the pairs of PQ);
* *merged*: not matched, and more than half of it is in a prediction that also covers more than half of another true nucleus;
* *split*: not matched, and two predictions or more have more than half of their area in it;
* *outline*: not matched, but some pair reaches IoU > 0.1: found with a wrong outline;
* *missed*: none of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.metrics.contingency import Contingency, contingency
from wsiseg.metrics.scores import scores_of

__all__ = ["FAILURE_KINDS", "Failures", "WorstWindow", "failures", "worst_windows"]

MATCHED, MERGED, SPLIT, OUTLINE, ABSENT = range(5)
FAILURE_KINDS: tuple[str, ...] = ("matched", "merged", "split", "outline", "missed", "extra")
"""Keys of ``Failures.counts``: true nuclei by kind (the first five), and predictions without a true nucleus."""

_OUTLINE_IOU = 0.1
_MIN_NUCLEI = 12  # windows with fewer whole nuclei, true and predicted together, are skipped: their scores are too noisy


@dataclass(frozen=True, slots=True, eq=False)
class Failures:
    """Kind (0 matched, 1 merged, 2 split, 3 outline, 4 missed or extra) of each instance of both maps, by ascending id."""

    truth_ids: npt.NDArray[np.int64]
    truth_kind: npt.NDArray[np.uint8]
    pred_ids: npt.NDArray[np.int64]
    pred_kind: npt.NDArray[np.uint8]

    def counts(self) -> dict[str, int]:
        """Return the numbers of ``FAILURE_KINDS``."""
        n = np.bincount(self.truth_kind, minlength=5)
        return {**{k: int(n[i]) for i, k in enumerate(FAILURE_KINDS[:5])}, "extra": int((self.pred_kind == ABSENT).sum())}


@dataclass(frozen=True, slots=True)
class WorstWindow:
    """A square of an image, [x, x + side) x [y, y + side), and the scores within it."""

    x: int
    y: int
    side: int
    pq: float
    n_truth: int
    n_pred: int


def failures(table: Contingency) -> Failures:
    """Return the kind of every true and predicted nucleus (see the module docstring)."""
    iou, shared = table.iou, table.pair_px
    of_truth, of_pred = shared / table.truth_px[table.pair_truth], shared / table.pred_px[table.pair_pred]
    n_truth, n_pred = len(table.truth_ids), len(table.pred_ids)
    swallows = np.bincount(table.pair_pred[of_truth > 0.5], minlength=n_pred)  # true nuclei mostly inside each prediction
    pieces = np.bincount(table.pair_truth[of_pred > 0.5], minlength=n_truth)  # predictions mostly inside each true nucleus
    merges = (of_truth > 0.5) & (swallows[table.pair_pred] > 1)
    splits = (of_pred > 0.5) & (pieces[table.pair_truth] > 1)
    found = []
    for side, n in ((table.pair_truth, n_truth), (table.pair_pred, n_pred)):
        kind = np.full(n, ABSENT, np.uint8)
        for value, hit in ((OUTLINE, iou > _OUTLINE_IOU), (SPLIT, splits), (MERGED, merges), (MATCHED, iou > 0.5)):
            kind[side[hit]] = value
        found.append(kind)
    return Failures(table.truth_ids, found[0], table.pred_ids, found[1])


def worst_windows(pred: npt.NDArray[Any], truth: npt.NDArray[Any], side: int = 160, n: int = 1) -> list[WorstWindow]:
    """Return the ``n`` windows of lowest PQ that do not overlap, among those on a grid of half their side.

    Windows with fewer than 12 complete nuclei in both maps together are skipped; an image smaller than a window is one window.
    If scores are equal, the first window in raster order is taken, so that the result is reproducible.
    """
    side = min(side, *truth.shape)
    step = max(1, side // 2)
    found = []
    for y in _starts(truth.shape[0], side, step):
        for x in _starts(truth.shape[1], side, step):
            window = (slice(y, y + side), slice(x, x + side))
            scores = scores_of(contingency(pred[window], truth[window]))
            if _whole_nuclei(pred[window]) + _whole_nuclei(truth[window]) >= _MIN_NUCLEI:
                found.append(WorstWindow(x, y, side, scores.pq, scores.n_truth, scores.n_pred))
    chosen: list[WorstWindow] = []
    for window_found in sorted(found, key=lambda w: w.pq):
        if len(chosen) == n:
            break
        if all(abs(window_found.x - c.x) >= side or abs(window_found.y - c.y) >= side for c in chosen):
            chosen.append(window_found)
    return chosen


def _whole_nuclei(labels: npt.NDArray[Any]) -> int:
    """Return how many instances do not touch the window's border."""
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    return len(np.setdiff1d(labels, np.append(border, 0)))


def _starts(length: int, side: int, step: int) -> list[int]:
    """Return window starts every ``step``, the last window ending at the image's edge."""
    return sorted({*range(0, length - side + 1, step), length - side})

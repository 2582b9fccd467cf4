"""Compute the scores of one label map against another, all from the same contingency table.

Empty maps
----------
*Both maps empty*: every overlap score is ``nan`` and the image is left out of means, so that blank images do not raise a mean.
*One map empty*: every score is 0. Counts and pooled scores are always defined. hover_net raises or divides by zero in these
cases; StarDist returns 0 for both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiseg.metrics.contingency import Contingency, contingency

__all__ = ["IOU_THRESHOLDS", "SCORE_NAMES", "Scores", "instance_scores", "mean_scores", "pooled_scores", "scores_of"]

IOU_THRESHOLDS: tuple[float, ...] = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""A pair matches if its IoU is **greater** than the threshold: at 0.5 or more such matches are unique without an assignment."""

SCORE_NAMES: tuple[str, ...] = (
    "dice", "dice2", "aji", "aji_plus", "pq", "sq", "dq", "precision", "recall", "f1", "f1_sweep_mean",
)  # fmt: skip
"""Names of the overlap scores, all in [0, 1] or nan, in the order of tables."""


_DENSE_GAINS = 1 << 20
"""Maximum elements of a matrix of true against predicted nuclei of a connected part; larger parts use sparse matching."""


def _ratio(numerator: float, denominator: float, empty: bool) -> float:
    if empty:
        return math.nan
    return numerator / denominator if denominator else 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """Sums of a comparison, from which the scores are computed. Adding two of them pools the comparisons.

    Attributes
    ----------
    n_truth, n_pred
        Instances.
    truth_px, pred_px, both_px
        Nuclear pixels in the truth, in the prediction, in both.
    dice2_shared_px, dice2_total_px
        Sums of |Q and P| and of |Q| + |P| over the pairs that share a pixel.
    aji_shared_px, aji_union_px, aji_plus_shared_px, aji_plus_union_px
        Numerators and denominators of AJI and AJI+.
    matched, matched_iou
        Matches and the sum of their IoU at each of ``IOU_THRESHOLDS``.
    """

    n_truth: int = 0
    n_pred: int = 0
    truth_px: int = 0
    pred_px: int = 0
    both_px: int = 0
    dice2_shared_px: int = 0
    dice2_total_px: int = 0
    aji_shared_px: int = 0
    aji_union_px: int = 0
    aji_plus_shared_px: int = 0
    aji_plus_union_px: int = 0
    matched: tuple[int, ...] = (0,) * len(IOU_THRESHOLDS)
    matched_iou: tuple[float, ...] = (0.0,) * len(IOU_THRESHOLDS)

    def __add__(self, other: Scores) -> Scores:
        """Return the pooled comparison of both."""
        if not isinstance(other, Scores):
            return NotImplemented
        total: dict[str, object] = {}
        for field in dataclasses.fields(self):
            a, b = getattr(self, field.name), getattr(other, field.name)
            total[field.name] = tuple(x + y for x, y in zip(a, b, strict=True)) if isinstance(a, tuple) else a + b
        return Scores(**total)  # type: ignore[arg-type]

    @property
    def empty(self) -> bool:
        """Whether neither map has an instance; the overlap scores are then nan."""
        return self.n_truth == 0 and self.n_pred == 0

    @property
    def dice(self) -> float:
        """Pixel Dice (Dice1): 2 |T and P| / (|T| + |P|) of nuclear pixels, however they are divided into nuclei."""
        return _ratio(2 * self.both_px, self.truth_px + self.pred_px, self.empty)

    @property
    def dice2(self) -> float:
        """DICE_2, also called Instance-Dice or Ensemble Dice (CPM challenges; Vu et al. 2019), in [0, 1].

        2 sum |Q and P| / sum (|Q| + |P|) over all pairs (Q, P) that share at least one pixel. **Weakness:** missed and false
        nuclei share no pixel with anything and do not lower it (one perfect nucleus out of 25 scores 1.0), while one shared
        pixel
        between neighbors counts the whole areas of both again (0.66 for a border that is 1 px off). The
        "Dice" columns of several published tables are this score. Report it together with ``pq``, never alone.
        """
        return _ratio(2 * self.dice2_shared_px, self.dice2_total_px, self.empty)

    @property
    def aji(self) -> float:
        """Aggregated Jaccard Index (Kumar et al. 2017, Algorithm 1): a prediction may be paired with several true nuclei."""
        return _ratio(self.aji_shared_px, self.aji_union_px, self.empty)

    @property
    def aji_plus(self) -> float:
        """AJI+ (Graham et al. 2019): as AJI over the one-to-one assignment of greatest summed IoU."""
        return _ratio(self.aji_plus_shared_px, self.aji_plus_union_px, self.empty)

    @property
    def dq(self) -> float:
        """Detection quality: F1 at IoU > 0.5 (Kirillov et al. 2019)."""
        return self.f1_at(0)

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matches at IoU > 0.5; 0 without a match."""
        return _ratio(self.matched_iou[0], self.matched[0], self.empty)

    @property
    def pq(self) -> float:
        """Panoptic quality: sum of matched IoU / (TP + FP/2 + FN/2) at IoU > 0.5 (Kirillov et al. 2019)."""
        return _ratio(2 * self.matched_iou[0], self.n_truth + self.n_pred, self.empty)

    @property
    def precision(self) -> float:
        """Share of predictions that match at IoU > 0.5."""
        return _ratio(self.matched[0], self.n_pred, self.empty)

    @property
    def recall(self) -> float:
        """Share of true nuclei that are matched at IoU > 0.5."""
        return _ratio(self.matched[0], self.n_truth, self.empty)

    @property
    def f1(self) -> float:
        """F1 at IoU > 0.5 (equal to ``dq``)."""
        return self.f1_at(0)

    def f1_at(self, index: int) -> float:
        """Return F1 at IoU > ``IOU_THRESHOLDS[index]``."""
        return _ratio(2 * self.matched[index], self.n_truth + self.n_pred, self.empty)

    @property
    def f1_sweep(self) -> tuple[float, ...]:
        """F1 at each of ``IOU_THRESHOLDS``."""
        return tuple(self.f1_at(i) for i in range(len(IOU_THRESHOLDS)))

    @property
    def f1_sweep_mean(self) -> float:
        """Mean of ``f1_sweep``."""
        return sum(self.f1_sweep) / len(IOU_THRESHOLDS)

    def as_dict(self) -> dict[str, float]:
        """Return counts, all scores and the sweep (``f1_50`` ... ``f1_95``) as one flat row."""
        row: dict[str, float] = {"n_truth": self.n_truth, "n_pred": self.n_pred}
        row.update({name: getattr(self, name) for name in SCORE_NAMES})
        row.update({f"f1_{round(100 * t)}": f1 for t, f1 in zip(IOU_THRESHOLDS, self.f1_sweep, strict=True)})
        return row


def instance_scores(
    pred: npt.ArrayLike, truth: npt.ArrayLike, ignore: npt.ArrayLike | None = None, *, layered: bool = False
) -> Scores:
    """Score predicted instances against true ones.

    Parameters
    ----------
    pred, truth : integer (H, W), with ``layered`` also (L, H, W)
        Label maps, 0 background; any ids. Layers are for instances that overlap within a map (see ``contingency``).
    ignore : bool (H, W), optional
        Pixels that are not counted in either map.

    Returns
    -------
    Scores

    Raises
    ------
    FormatError
        A map is not a 2-D integer array, or the shapes differ.
    """
    return scores_of(contingency(pred, truth, ignore, layered=layered))


def scores_of(table: Contingency) -> Scores:
    """Return the scores from a contingency table (see ``instance_scores``)."""
    shared, union, iou = table.pair_px, table.union_px, table.iou
    reused = _best_per_truth(table.pair_truth, iou)
    assigned = _assignment(table, iou)
    over = [_matches(table, iou, t) for t in IOU_THRESHOLDS]
    both = int(shared.sum())
    truth_total, pred_total, both_total = table.cover_px or (int(table.truth_px.sum()), int(table.pred_px.sum()), both)
    aji_shared, aji_union = _jaccard_sums(table, reused, shared, union)
    plus_shared, plus_union = _jaccard_sums(table, assigned, shared, union)
    return Scores(
        n_truth=len(table.truth_ids),
        n_pred=len(table.pred_ids),
        truth_px=truth_total,
        pred_px=pred_total,
        both_px=both_total,
        dice2_shared_px=both,
        dice2_total_px=int((shared + union).sum()),
        aji_shared_px=aji_shared,
        aji_union_px=aji_union,
        aji_plus_shared_px=plus_shared,
        aji_plus_union_px=plus_union,
        matched=tuple(int(hit.sum()) for hit in over),
        matched_iou=tuple(float(iou[hit].sum()) for hit in over),
    )


def _matches(table: Contingency, iou: npt.NDArray[np.float64], threshold: float) -> npt.NDArray[np.bool_]:
    """Return which pairs match: those above the threshold, one to one if instances overlap within a map."""
    over = iou > threshold
    if table.cover_px is None or not over.any():
        return over
    rows = np.flatnonzero(over)
    pairs = (table.pair_truth[rows], table.pair_pred[rows], table.pair_px[rows])
    part = dataclasses.replace(table, pair_truth=pairs[0], pair_pred=pairs[1], pair_px=pairs[2])
    chosen = np.zeros(len(iou), np.bool_)
    chosen[rows[_assignment(part, iou[rows])]] = True
    return chosen


def _jaccard_sums(
    table: Contingency, rows: npt.NDArray[np.int64], shared: npt.NDArray[np.int64], union: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Return numerator and denominator of AJI for the chosen pairs; unpaired instances are added to the denominator."""
    alone_truth, alone_pred = np.ones(len(table.truth_px), bool), np.ones(len(table.pred_px), bool)
    alone_truth[table.pair_truth[rows]] = False
    alone_pred[table.pair_pred[rows]] = False
    rest = int(table.truth_px[alone_truth].sum()) + int(table.pred_px[alone_pred].sum())
    return int(shared[rows].sum()), int(union[rows].sum()) + rest


def _best_per_truth(pair_truth: npt.NDArray[np.int64], iou: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return for each overlapped true nucleus the row of its pair of greatest IoU (ties: the smaller prediction id)."""
    order = np.lexsort((-iou, pair_truth))
    first = np.r_[True, pair_truth[order][1:] != pair_truth[order][:-1]] if order.size else np.zeros(0, bool)
    return order[first]


def _assignment(table: Contingency, iou: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return the pair rows of the one-to-one assignment of greatest summed IoU.

    Pairs that do not overlap add nothing, so the assignment splits into the connected parts of the overlap graph. Most parts
    are a single pair; the Hungarian method runs only on the others.
    """
    n_truth, n_pred, n_pairs = len(table.truth_ids), len(table.pred_ids), len(iou)
    if n_pairs == 0:
        return np.zeros(0, np.int64)
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = (table.pair_truth, n_truth + table.pair_pred)
    graph = coo_array((np.ones(n_pairs, np.int8), ends), shape=(n_truth + n_pred,) * 2)
    part = connected_components(graph, directed=False)[1][table.pair_truth]
    order = np.argsort(part, kind="stable")
    alone = np.bincount(part)[part] == 1
    chosen: list[npt.NDArray[np.int64]] = [np.flatnonzero(alone)]
    order = order[~alone[order]]
    groups = np.split(order, np.flatnonzero(np.diff(part[order])) + 1) if order.size else []
    for rows in groups:
        truths, i = np.unique(table.pair_truth[rows], return_inverse=True)
        preds, j = np.unique(table.pair_pred[rows], return_inverse=True)
        if len(truths) * len(preds) > _DENSE_GAINS:
            chosen.append(rows[_sparse_assignment(i, j, iou[rows])])
            continue
        gain, where = np.zeros((len(truths), len(preds))), np.full((len(truths), len(preds)), -1, np.int64)
        gain[i, j], where[i, j] = iou[rows], rows
        picked = where[linear_sum_assignment(gain, maximize=True)]
        chosen.append(picked[picked >= 0])
    return np.concatenate(chosen)


def _sparse_assignment(
    i: npt.NDArray[np.int64], j: npt.NDArray[np.int64], iou: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """Return the pairs of the assignment of greatest summed IoU by sparse matching.

    Every true nucleus may also stay unmatched, at an IoU of 0, so a full matching exists.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, m = int(i.max()) + 1, int(j.max()) + 1
    cost = np.r_[2.0 - iou, np.full(n, 2.0)]
    ends = (np.r_[i, np.arange(n)], np.r_[j, m + np.arange(n)])
    truth, pred = min_weight_full_bipartite_matching(coo_array((cost, ends), shape=(n, m + n)).tocsr())
    kept = pred < m
    place = np.searchsorted(i * m + j, truth[kept] * m + pred[kept])  # rows are ordered by truth, then by prediction
    return np.asarray(place, np.int64)


def pooled_scores(scores: Iterable[Scores]) -> Scores:
    """Return the pooled scores of images: every nucleus has the same weight (as in CoNIC)."""
    return sum(scores, Scores())


def mean_scores(scores: Sequence[Scores]) -> dict[str, float]:
    """Return the mean of each score over images: every image has the same weight; empty images (nan) are left out.

    Keys are those of ``Scores.as_dict``; ``n_truth`` and ``n_pred`` are means too. If all images are empty, scores are nan.
    """
    rows = [s.as_dict() for s in scores]
    out: dict[str, float] = {}
    for name in Scores().as_dict():
        values = [row[name] for row in rows if not math.isnan(row[name])]
        out[name] = sum(values) / len(values) if values else math.nan
    return out

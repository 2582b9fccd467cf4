"""Rank data sets by how well a network trained on each performs, as NucFuseRank does (Torbati et al. 2026, arXiv 2601.20104).

One network is trained on each set alone, all are scored on one unified test set, sets are ordered by PQ, and the best 1, 2, ...
k sets are fused. The metrics are those of the paper:

- *PQ*: matches at IoU > 0.5.
- *AJI*: Kumar et al. 2017, a prediction may be paired with several true nuclei.
- *"Dice"* is Ensemble Dice (``Scores.dice2``), not the Dice of pixels.
- All are taken per tile and then averaged over tiles; AJI and Dice are 0 in a tile without any match (where DQ is 0).

Their published order of sets is by **mean PQ over networks**. Ordering by mean rank would change the middle of their table
(CoNSeP before NuInsSeg, CryoNuSeg before DSB); ``RankedSet`` has both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.metrics.scores import instance_scores

__all__ = [
    "PAPER_SCORES",
    "RankedSet",
    "TileScore",
    "TileWindow",
    "choose_windows",
    "cross_matrix",
    "drop_small",
    "held_out_groups",
    "mean_of",
    "paper_scores",
    "rank_sets",
    "tile_windows",
]

PAPER_SCORES: tuple[str, ...] = ("pq", "aji", "dice")
"""Names of the three scores; ``dice`` is Ensemble Dice (DICE_2)."""


@dataclass(frozen=True, slots=True)
class TileWindow:
    """A window of an image of a group: origin and size in the image's px."""

    image: str
    group: str
    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True, slots=True)
class TileScore:
    """Scores (0..1 or nan) of one tile of ``dataset``, segmented by ``predictor`` after training on ``trained_on``."""

    predictor: str
    trained_on: str
    dataset: str
    tile: str
    pq: float
    aji: float
    dice: float


@dataclass(frozen=True, slots=True)
class RankedSet:
    """A set in the ranking: mean PQ over networks, by which sets are ordered, mean rank, and PQ and rank by network."""

    name: str
    mean_pq: float
    mean_rank: float
    pq: dict[str, float]
    rank: dict[str, float]


def paper_scores(pred: npt.NDArray[Any], truth: npt.NDArray[Any], least_px: int = 0) -> dict[str, float]:
    """Return PQ, AJI and Ensemble Dice of one tile, 0..1; nan if both maps are empty.

    Parameters
    ----------
    pred, truth : integer (H, W)
    least_px
        Smaller objects are ignored in both maps, such as parts of nuclei cut by the border of a tile.
    """
    found = instance_scores(drop_small(pred, least_px), drop_small(truth, least_px))
    matched = found.dq > 0 or math.isnan(found.dq)
    return {"pq": found.pq, "aji": found.aji if matched else 0.0, "dice": found.dice2 if matched else 0.0}


def drop_small(labels: npt.NDArray[Any], least_px: int) -> npt.NDArray[Any]:
    """Return labels without objects of fewer than ``least_px`` px."""
    if least_px <= 1 or not labels.any():
        return labels
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(counts[place].reshape(labels.shape) >= least_px, labels, 0).astype(labels.dtype)


def held_out_groups(tiles_of_group: Mapping[str, int], n_tiles: int) -> frozenset[str]:
    """Return the groups of a set that supply its test tiles: enough for ``n_tiles``, never more than half of the groups.

    Groups are taken in the order of their names spread over the list, so that neighbors (sites, stains) are not all taken.

    Raises
    ------
    FormatError
        The set is a single group, so that no group can be held out for testing.
    """
    if len(tiles_of_group) < 2:
        raise FormatError(f"Expected a set of at least two groups (patients), to hold one out, got {sorted(tiles_of_group)}.")
    names = sorted(tiles_of_group)
    # van der Corput order: 0, 1/2, 1/4, 3/4, ... of the list
    order = sorted(range(len(names)), key=lambda i: _reversed_bits(i))
    chosen: list[str] = []
    for i in order:
        if sum(tiles_of_group[g] for g in chosen) >= n_tiles or 2 * (len(chosen) + 1) > len(names):
            break
        chosen.append(names[i])
    return frozenset(chosen)


def tile_windows(image: str, group: str, shape: tuple[int, int], side: int) -> list[TileWindow]:
    """Cut an image (height, width) into whole squares from its upper left corner; a smaller image is one window of its size."""
    h, w = min(side, shape[0]), min(side, shape[1])
    return [TileWindow(image, group, x, y, w, h) for y in range(0, shape[0] - h + 1, h) for x in range(0, shape[1] - w + 1, w)]


def choose_windows(windows: Sequence[TileWindow], n: int) -> list[TileWindow]:
    """Return up to ``n`` windows (0: all), taking turns between groups and between the images of a group; in a fixed order."""
    if n == 0 or n >= len(windows):
        return list(windows)
    queues: dict[str, dict[str, list[TileWindow]]] = {}
    for window in windows:
        queues.setdefault(window.group, {}).setdefault(window.image, []).append(window)
    turns = [_interleaved([_spread(own) for own in images.values()]) for images in queues.values()]
    return sorted(_interleaved(turns)[:n], key=lambda t: (t.image, t.y, t.x))


def mean_of(scores: Sequence[TileScore], name: str) -> float:
    """Return the mean of a score over the tiles where it is not nan; nan if there are none."""
    values = [v for v in (getattr(s, name) for s in scores) if not math.isnan(v)]
    return sum(values) / len(values) if values else math.nan


def rank_sets(pq: Mapping[str, Mapping[str, float]]) -> list[RankedSet]:
    """Order sets by the PQ of the networks trained on each of them.

    Parameters
    ----------
    pq
        By network and set: mean PQ on the unified test set. Every network must have every set.

    Returns
    -------
    list of RankedSet
        Best mean PQ over networks first (the published order), then the better mean rank, then the name. Rank 1 is the
        highest PQ of a network; equals share the mean of their ranks.

    Raises
    ------
    FormatError
        Networks with different sets, or a PQ that is nan.
    """
    sets = sorted(next(iter(pq.values()), {}))
    for network, row in pq.items():
        if sorted(row) != sets or any(math.isnan(v) for v in row.values()):
            raise FormatError(f"ranking: expected a PQ of {network} for each of {sets}, got {dict(row)}.")
    if not sets:
        return []
    from scipy.stats import rankdata

    ranks = {network: dict(zip(sets, rankdata([-row[s] for s in sets]), strict=True)) for network, row in pq.items()}
    ranked = [
        RankedSet(
            s,
            float(np.mean([row[s] for row in pq.values()])),
            float(np.mean([row[s] for row in ranks.values()])),
            {network: float(row[s]) for network, row in pq.items()},
            {network: float(row[s]) for network, row in ranks.items()},
        )
        for s in sets
    ]
    return sorted(ranked, key=lambda r: (-r.mean_pq, r.mean_rank, r.name))


def cross_matrix(scores: Sequence[TileScore], rows: Sequence[str], columns: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return mean PQ of networks trained on a row's set over the tiles of a column's set: (rows, columns); nan: no tile."""
    out = np.full((len(rows), len(columns)), np.nan)
    for i, trained in enumerate(rows):
        for j, tested in enumerate(columns):
            out[i, j] = mean_of([s for s in scores if s.trained_on == trained and s.dataset == tested], "pq")
    return out


def _reversed_bits(i: int) -> float:
    value, step = 0.0, 0.5
    while i:
        value, i, step = value + step * (i & 1), i >> 1, step / 2
    return value


def _spread(items: list[TileWindow]) -> list[TileWindow]:
    return [items[i] for i in sorted(range(len(items)), key=lambda i: _reversed_bits(i))]


def _interleaved(queues: Sequence[Sequence[TileWindow]]) -> list[TileWindow]:
    longest = max((len(q) for q in queues), default=0)
    return [q[k] for k in range(longest) for q in queues if k < len(q)]

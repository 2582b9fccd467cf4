"""Reproduce published experiments: data sets ranked (NucFuseRank), unified training and test sets, their figures.

Only this package may combine tasks: it trains, segments and evaluates.
"""

from __future__ import annotations

from wsiseg.papers.rank_figure import draw_ranking
from wsiseg.papers.rank_scores import (
    PAPER_SCORES,
    RankedSet,
    TileScore,
    TileWindow,
    choose_windows,
    cross_matrix,
    held_out_groups,
    mean_of,
    paper_scores,
    rank_sets,
    tile_windows,
)

__all__ = [
    "PAPER_SCORES",
    "RankedSet",
    "TileScore",
    "TileWindow",
    "choose_windows",
    "cross_matrix",
    "draw_ranking",
    "held_out_groups",
    "mean_of",
    "paper_scores",
    "rank_sets",
    "tile_windows",
]

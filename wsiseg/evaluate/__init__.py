"""Predicted instances + true instances -> scores: Dice, DICE_2, AJI, AJI+, PQ, F1 sweep, count agreement, tests between runs.

Comes in: two label maps, or two files or folders of label images, polygon tables, GeoJSON or QuIP CSV; or several readings.
Goes out: ``Scores`` an image, their mean and pooled summary, tables of them, the tables of published protocols (Hou et al.
2020, observers of CryoNuSeg, data sets ranked as NucFuseRank ranks them), and the worst windows as a picture.
"""

from __future__ import annotations

from wsiseg.evaluate.agreement import CountAgreement, PairedTest, count_agreement, paired_test
from wsiseg.evaluate.contingency import Contingency, contingency
from wsiseg.evaluate.failures import FAILURE_KINDS, Failures, WorstWindow, failures, worst_windows
from wsiseg.evaluate.gallery import Crop, draw_gallery
from wsiseg.evaluate.hou2020 import (
    WSI_GROUPS,
    HouPatch,
    HouScores,
    hou_cells,
    hou_patches,
    hou_rows,
    hou_scores,
    hou_summary,
    label_patches,
)
from wsiseg.evaluate.inputs import INSTANCE_SUFFIXES, load_instances
from wsiseg.evaluate.metrics import (
    IOU_THRESHOLDS,
    SCORE_NAMES,
    Scores,
    instance_scores,
    mean_scores,
    pooled_scores,
    scores_of,
)
from wsiseg.evaluate.observers import (
    ObserverPair,
    Reading,
    compare_observers,
    observer_cells,
    observer_rows,
    observer_tests,
)
from wsiseg.evaluate.paths import (
    Evaluation,
    compare_runs,
    evaluate_paths,
    evaluation_table,
    instance_files,
    null_for_nan,
    write_evaluation,
)
from wsiseg.evaluate.rank_figure import draw_ranking
from wsiseg.evaluate.ranking import (
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
    "Contingency",
    "CountAgreement",
    "Crop",
    "Evaluation",
    "FAILURE_KINDS",
    "Failures",
    "HouPatch",
    "HouScores",
    "INSTANCE_SUFFIXES",
    "IOU_THRESHOLDS",
    "ObserverPair",
    "PAPER_SCORES",
    "PairedTest",
    "RankedSet",
    "Reading",
    "SCORE_NAMES",
    "Scores",
    "TileScore",
    "TileWindow",
    "WSI_GROUPS",
    "WorstWindow",
    "choose_windows",
    "compare_observers",
    "compare_runs",
    "contingency",
    "count_agreement",
    "cross_matrix",
    "draw_gallery",
    "draw_ranking",
    "evaluate_paths",
    "evaluation_table",
    "failures",
    "held_out_groups",
    "hou_cells",
    "hou_patches",
    "hou_rows",
    "hou_scores",
    "hou_summary",
    "instance_files",
    "instance_scores",
    "label_patches",
    "load_instances",
    "mean_of",
    "mean_scores",
    "null_for_nan",
    "observer_cells",
    "observer_rows",
    "observer_tests",
    "paired_test",
    "paper_scores",
    "pooled_scores",
    "rank_sets",
    "scores_of",
    "tile_windows",
    "worst_windows",
    "write_evaluation",
]

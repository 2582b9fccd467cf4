"""Predicted instances + true instances -> scores: Dice, DICE_2, AJI, AJI+, PQ, F1 sweep, count agreement, tests between runs.

Comes in: two label maps, or two files or folders of label images, polygon tables, GeoJSON or QuIP CSV; or several readings.
Goes out: ``Scores`` an image, their mean and pooled summary, tables of them, the tables of published protocols (Hou et al.
2020, observers of CryoNuSeg), and the worst windows as a picture.
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
    "PairedTest",
    "Reading",
    "SCORE_NAMES",
    "Scores",
    "WSI_GROUPS",
    "WorstWindow",
    "compare_observers",
    "compare_runs",
    "contingency",
    "count_agreement",
    "draw_gallery",
    "evaluate_paths",
    "evaluation_table",
    "failures",
    "hou_cells",
    "hou_patches",
    "hou_rows",
    "hou_scores",
    "hou_summary",
    "instance_files",
    "instance_scores",
    "label_patches",
    "load_instances",
    "mean_scores",
    "null_for_nan",
    "observer_cells",
    "observer_rows",
    "observer_tests",
    "paired_test",
    "pooled_scores",
    "scores_of",
    "worst_windows",
    "write_evaluation",
]

"""Predicted instances + true instances -> scores: Dice, DICE_2, AJI, AJI+, PQ, F1 sweep, count agreement, tests between runs.

Comes in: two label maps, or two files or folders of label images, polygon tables, GeoJSON or QuIP CSV.
Goes out: ``Scores`` an image, their mean and pooled summary, and tables of them.
"""

from __future__ import annotations

from wsiseg.evaluate.agreement import (
    CountAgreement,
    HouScores,
    PairedTest,
    count_agreement,
    hou_scores,
    label_patches,
    paired_test,
)
from wsiseg.evaluate.contingency import Contingency, contingency
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
from wsiseg.evaluate.paths import Evaluation, compare_runs, evaluate_paths, evaluation_table, write_evaluation

__all__ = [
    "Contingency",
    "CountAgreement",
    "Evaluation",
    "HouScores",
    "INSTANCE_SUFFIXES",
    "IOU_THRESHOLDS",
    "PairedTest",
    "SCORE_NAMES",
    "Scores",
    "compare_runs",
    "contingency",
    "count_agreement",
    "evaluate_paths",
    "evaluation_table",
    "hou_scores",
    "instance_scores",
    "label_patches",
    "load_instances",
    "mean_scores",
    "paired_test",
    "pooled_scores",
    "scores_of",
    "write_evaluation",
]

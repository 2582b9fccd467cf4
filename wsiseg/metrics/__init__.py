"""Scores of two label images: Dice, DICE_2, AJI, AJI+, PQ, F1 at thresholds, counts, failures by kind, paired tests.

Input: NumPy arrays. Output: frozen dataclasses. No file is read. Evaluation, training and the published experiments use it.
"""

from __future__ import annotations

from wsiseg.metrics.agreement import CountAgreement, PairedTest, count_agreement, paired_test
from wsiseg.metrics.contingency import Contingency, contingency
from wsiseg.metrics.failures import FAILURE_KINDS, Failures, WorstWindow, failures, worst_windows
from wsiseg.metrics.hou2020 import (
    WSI_GROUPS,
    HouPatch,
    HouRow,
    HouScores,
    hou_cells,
    hou_patches,
    hou_rows,
    hou_scores,
    hou_summary,
    label_patches,
)
from wsiseg.metrics.scores import IOU_THRESHOLDS, SCORE_NAMES, Scores, instance_scores, mean_scores, pooled_scores, scores_of

__all__ = [
    "Contingency",
    "CountAgreement",
    "FAILURE_KINDS",
    "Failures",
    "HouPatch",
    "HouRow",
    "HouScores",
    "IOU_THRESHOLDS",
    "PairedTest",
    "SCORE_NAMES",
    "Scores",
    "WSI_GROUPS",
    "WorstWindow",
    "contingency",
    "count_agreement",
    "failures",
    "hou_cells",
    "hou_patches",
    "hou_rows",
    "hou_scores",
    "hou_summary",
    "instance_scores",
    "label_patches",
    "mean_scores",
    "paired_test",
    "pooled_scores",
    "scores_of",
    "worst_windows",
]

"""Predicted instances + true instances -> scores: Dice, DICE_2, AJI, AJI+, PQ, F1 sweep, count agreement, tests between runs.

Comes in: two label maps, or two files or folders of label images, polygon tables, GeoJSON or QuIP CSV; or several readings.
Goes out: ``Scores`` of each image, their mean and pooled summary, tables of them, the tables of published protocols (Hou et al.
2020, observers of CryoNuSeg, data sets ranked as NucFuseRank ranks them), and the worst windows as a picture.
"""

from __future__ import annotations

from wsiseg.evaluation.gallery import Crop, draw_gallery
from wsiseg.evaluation.inputs import INSTANCE_SUFFIXES, load_instances
from wsiseg.evaluation.observers import (
    ObserverPair,
    Reading,
    compare_observers,
    observer_cells,
    observer_rows,
    observer_tests,
)
from wsiseg.evaluation.paths import (
    Evaluation,
    compare_runs,
    evaluate_paths,
    evaluation_table,
    instance_files,
    null_for_nan,
    write_evaluation,
)

__all__ = [
    "Crop",
    "Evaluation",
    "INSTANCE_SUFFIXES",
    "ObserverPair",
    "Reading",
    "compare_observers",
    "compare_runs",
    "draw_gallery",
    "evaluate_paths",
    "evaluation_table",
    "instance_files",
    "load_instances",
    "null_for_nan",
    "observer_cells",
    "observer_rows",
    "observer_tests",
    "write_evaluation",
]

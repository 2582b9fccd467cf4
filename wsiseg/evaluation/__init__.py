"""Score predicted against true instances: Dice, DICE_2, AJI, AJI+, PQ, F1 sweep, count agreement, tests between runs.

Input: two label maps, two files or folders of label images, polygon tables, GeoJSON or QuIP CSV, or the annotations of several
observers. Output: ``Scores`` of each image, their mean and pooled summary, the tables of published protocols (Hou et al. 2020,
observers of CryoNuSeg, ranking of NucFuseRank), and the worst windows as a picture.
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

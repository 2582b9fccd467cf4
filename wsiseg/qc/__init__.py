"""Slide statistics, patches and reviewers' marks -> flagged slides, graded slides and a report.

The order of work: ``find_outliers`` (slides that stand out in their cohort), ``sample_patches`` (random places for a person to
judge), ``review`` (the page on which they are judged), ``grade_slides`` and ``write_release`` (groups of Hou et al. 2020),
``render_report`` (one HTML file that shows it all). Nothing here opens a slide: ``run/qc*.py`` hands in pixels and polygons.
"""

from wsiseg.qc.agreement import Agreement, cohen_kappa, reviewer_agreement
from wsiseg.qc.grades import GRADES, SlideGrade, cohort_summary, grade_of, grade_slides, wilson_interval
from wsiseg.qc.marks import PATCH_MARKS, SLIDE_MARKS, Mark, MarkLog, decide, read_all_marks, read_marks
from wsiseg.qc.outliers import OUTLIERS, OutlierRow, Statistic, TailRule, find_outliers, tail_size
from wsiseg.qc.patches import (
    LAYER_ZOOM,
    PATCH_MPP,
    PATCH_PX,
    PATCHES,
    PATCHES_PER_SLIDE,
    Patch,
    contour_png,
    inner_mask,
    pack_names,
    patch_id,
    read_picture,
    rgb_png,
    sample_patches,
    write_pack,
)
from wsiseg.qc.release import csv_bytes, read_rows, write_release, write_rows

__all__ = [
    "Agreement",
    "GRADES",
    "LAYER_ZOOM",
    "Mark",
    "MarkLog",
    "OUTLIERS",
    "OutlierRow",
    "PATCHES",
    "PATCHES_PER_SLIDE",
    "PATCH_MARKS",
    "PATCH_MPP",
    "PATCH_PX",
    "Patch",
    "SLIDE_MARKS",
    "SlideGrade",
    "Statistic",
    "TailRule",
    "cohen_kappa",
    "cohort_summary",
    "contour_png",
    "csv_bytes",
    "decide",
    "find_outliers",
    "grade_of",
    "grade_slides",
    "inner_mask",
    "pack_names",
    "patch_id",
    "read_all_marks",
    "read_marks",
    "read_picture",
    "read_rows",
    "reviewer_agreement",
    "rgb_png",
    "sample_patches",
    "tail_size",
    "wilson_interval",
    "write_pack",
    "write_release",
    "write_rows",
]

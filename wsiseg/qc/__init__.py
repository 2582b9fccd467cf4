"""Quality control: flag and grade the slides of a run from statistics, patches and reviewers' marks, and report on them.

The steps in order: ``find_outliers`` flags the outlier slides of each cohort; ``sample_patches`` draws random patches for a
person to judge; ``patch_features`` and ``QualityModel`` predict which of them a reviewer will find bad; ``review`` serves the
page on which they are judged; ``grade_slides`` and ``write_release`` sort slides into the groups of Hou et al. (2020);
``render_report`` writes everything into one HTML file. ``wsiseg.qc.runs`` and the modules that import it apply these steps to a
run folder.
"""

from wsiseg.qc.agreement import Agreement, cohen_kappa, reviewer_agreement
from wsiseg.qc.estimate import ShareEstimate, corrected_share, odds_weight, order_key, predicted_share, reached
from wsiseg.qc.grades import GRADES, SlideGrade, cohort_summary, grade_of, grade_slides, wilson_interval
from wsiseg.qc.marks import PATCH_MARKS, SLIDE_MARKS, Mark, MarkLog, decide, read_all_marks, read_marks
from wsiseg.qc.outliers import OutlierRow, Statistic, TailRule, find_outliers, tail_size
from wsiseg.qc.patch_features import FEATURES, NUCLEUS_COLUMNS, patch_features
from wsiseg.qc.patches import (
    LAYER_ZOOM,
    PATCH_MPP,
    PATCH_PX,
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
from wsiseg.qc.predict_quality import (
    MIN_JUDGED,
    QualityModel,
    apply_calibration,
    auc,
    brier,
    calibration,
    calibration_error,
    load_quality,
    recalibrate,
)
from wsiseg.qc.release import csv_bytes, write_release

__all__ = [
    "Agreement",
    "FEATURES",
    "GRADES",
    "LAYER_ZOOM",
    "MIN_JUDGED",
    "Mark",
    "MarkLog",
    "NUCLEUS_COLUMNS",
    "OutlierRow",
    "PATCHES_PER_SLIDE",
    "PATCH_MARKS",
    "PATCH_MPP",
    "PATCH_PX",
    "Patch",
    "QualityModel",
    "SLIDE_MARKS",
    "ShareEstimate",
    "SlideGrade",
    "Statistic",
    "TailRule",
    "apply_calibration",
    "auc",
    "brier",
    "calibration",
    "calibration_error",
    "cohen_kappa",
    "cohort_summary",
    "contour_png",
    "corrected_share",
    "csv_bytes",
    "decide",
    "find_outliers",
    "grade_of",
    "grade_slides",
    "inner_mask",
    "load_quality",
    "odds_weight",
    "order_key",
    "pack_names",
    "patch_features",
    "patch_id",
    "predicted_share",
    "reached",
    "read_all_marks",
    "read_marks",
    "read_picture",
    "recalibrate",
    "reviewer_agreement",
    "rgb_png",
    "sample_patches",
    "tail_size",
    "wilson_interval",
    "write_pack",
    "write_release",
]

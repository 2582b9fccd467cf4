"""Tables of quality control, ``RUN/qc``: outliers, sampled patches, their features, predictions, grades and decisions."""

from __future__ import annotations

from wsiseg.schema.column import Column

__all__ = [
    "DECISIONS",
    "GRADED",
    "OF_NUCLEI",
    "OF_ORIENTATIONS",
    "OF_OUTLINES",
    "OF_PIXELS",
    "OUTLIERS",
    "PATCHES",
    "PATCH_FEATURES",
    "PREDICTED",
    "PREDICTED_SLIDES",
    "REVIEW_ORDER",
]

OUTLIERS: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort in which it was ranked"),
    Column("status", "string", "", "done, empty, suspect, partial or failed"),
    Column("round", "int32", "", "0 not flagged; 1: first tails, or status not done; 2: only in the wider tails"),
    Column("tails", "string", "", "statistic:side of every tail that the slide is in, separated by spaces"),
    Column("reasons", "string", "", "the flags as text, separated by semicolons"),
    Column("note", "string", "", "why it was not ranked"),
    Column("rank", "int32", "", "1: the most unusual of its cohort; empty: not ranked"),
    Column("z", "float64", "1", "its most unusual statistic, in robust standard deviations of the logarithm; below 0: low"),
    Column("z_of", "string", "", "the statistic to which z belongs"),
    Column("compared", "string", "", "the slides with which it was compared"),
    Column("n_nuclei", "int64", "", "nuclei"),
    Column("nuclei_per_mm2", "float64", "1/mm^2", "nuclei per tissue area"),
    Column("area_mean_um2", "float64", "um^2", "mean nuclear area"),
    Column("area_std_um2", "float64", "um^2", "standard deviation of nuclear area"),
)
"""``RUN/qc/outliers.parquet``: one row per slide of the run."""

PATCHES: tuple[Column, ...] = (
    Column("patch_id", "string", "", "blinded name; the review order is the order of these names"),
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort of the slide"),
    Column("number", "int32", "", "number in the slide's random sequence of patches, from 0"),
    Column("x_px", "int32", "level-0 px", "left of the patch"),
    Column("y_px", "int32", "level-0 px", "top of the patch"),
    Column("side_px", "int32", "level-0 px", "side of the patch"),
    Column("zoom", "float64", "1", "picture px per level-0 px"),
    Column("n_nuclei", "int32", "", "nuclei whose polygon intersects the patch"),
    Column("file", "string", "", "ZIP of its pictures, relative to the run's qc folder; empty: could not be rendered"),
    Column("error", "string", "", "why it could not be rendered"),
)
"""The patch index, ``RUN/qc/patches.parquet``."""

OF_NUCLEI = (
    "log_count",
    "center_mean",
    "center_p25",
    "material_mean",
    "material_p25",
    "center_minus_material",
    "disagreement",
    "roundness_mean",
    "fill_mean",
    "elongation_mean",
    "log_area_sd",
    "small_frac",
)
OF_OUTLINES = ("contrast", "dark_outside_frac", "dark_outside_share", "pale_inside_frac", "pale_nuclei_frac", "edge")
OF_PIXELS = ("sharpness", "od_mean", "hue_x", "hue_y")
OF_ORIENTATIONS = (
    "turn_f1",
    "turn_f1_low",
    "turn_dice",
    "turn_sd_center",
    "turn_sd_material",
    "turn_sd_share",
    "turn_count_sd",
    "weak_share",
    "doubt_center",
    "doubt_material",
    "mean_precision",
    "mean_recall",
    "mean_worse",
    "mean_f1",
    "mean_dice",
    "loose_recall",
    "strict_precision",
)
"""Names of the features of a patch: of nuclei, outlines, pixels, and the segmentation of its eight orientations."""

PATCH_FEATURES: tuple[Column, ...] = (
    Column("patch_id", "string", "", "patch"),
    *(
        Column(name, "float64", "", "see wsiseg.qc.patch_features")
        for name in (*OF_NUCLEI, *OF_OUTLINES, *OF_PIXELS, *OF_ORIENTATIONS)
    ),
)
"""``RUN/qc/features.parquet``."""

PREDICTED: tuple[Column, ...] = (
    Column("patch_id", "string", "", "patch"),
    Column("slide_id", "string", "", "slide"),
    Column("fail_prob", "float64", "1", "probability that the patch is not adequate, by the installed model"),
    Column(
        "fail_prob_run",
        "float64",
        "1",
        "the same after calibration to this run's reviewers; equal if they judged too few patches",
    ),
)
"""``RUN/qc/predicted.parquet``."""

PREDICTED_SLIDES: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort of the slide"),
    Column("n_patches", "int32", "", "patches with a prediction, without those marked unsure"),
    Column("n_judged", "int32", "", "patches of these judged adequate or not adequate"),
    Column("bad_frac_estimate", "float64", "1", "bad share: judged patches as judged, the others as predicted"),
    Column("bad_frac_estimate_low", "float64", "1", "lower end of its 95 % interval"),
    Column("bad_frac_estimate_high", "float64", "1", "upper end of its 95 % interval"),
)
"""``RUN/qc/predicted_slides.parquet`` and ``.csv``."""

REVIEW_ORDER: tuple[Column, ...] = (
    Column("patch_id", "string", "", "patch"),
    Column("fail_prob", "float64", "1", "prediction when the order was fixed"),
    Column("key", "float64", "", "sort key of the review order, ascending"),
)
"""``RUN/qc/order.parquet``: written when a suspects-first review begins and then kept, because the estimates depend on it."""

GRADED: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort of the slide"),
    Column("grade", "string", "", "Best, Good, Adequate, Problematic, Unacceptable; Ungraded if no patch was judged"),
    Column("n_bad", "int32", "", "patches judged not adequate"),
    Column("n_judged", "int32", "", "patches judged adequate or not"),
    Column("n_unsure", "int32", "", "patches on which all reviewers were unsure; not in n_bad or n_judged"),
    Column("n_patches", "int32", "", "patches sampled"),
    Column("bad_frac", "float64", "1", "n_bad / n_judged"),
    Column("bad_frac_low", "float64", "1", "lower end of the 95 % Wilson interval"),
    Column("bad_frac_high", "float64", "1", "upper end of the 95 % Wilson interval"),
    Column("slide_verdict", "string", "", "acceptable, unacceptable or unsure; empty: not judged"),
    Column("flagged_round", "int32", "", "0 not an outlier, 1 or 2: round in which it was flagged"),
    Column("reason", "string", "", "why the slide was flagged, and why it failed"),
)
"""``RUN/qc/grades.parquet``."""

DECISIONS: tuple[Column, ...] = (
    Column("kind", "string", "", "slide or patch; columns that do not apply to it are empty"),
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort of the slide"),
    Column("status", "string", "", "done, empty, suspect, partial or failed"),
    Column("error", "string", "", "why it failed or is suspect"),
    Column("grade", "string", "", "Best, Good, Adequate, Problematic, Unacceptable or Ungraded"),
    Column("grade_reason", "string", "", "why the slide got this grade"),
    Column("n_patches", "int64", "", "patches sampled"),
    Column("n_judged", "int64", "", "patches of these judged adequate or not adequate"),
    Column("n_bad", "int64", "", "patches judged not adequate"),
    Column("bad_frac", "float64", "1", "n_bad / n_judged"),
    Column("bad_frac_low", "float64", "1", "lower end of its 95 % interval"),
    Column("bad_frac_high", "float64", "1", "upper end of its 95 % interval"),
    Column("flag_round", "int64", "", "0 not flagged; 1 or 2: round of the flag; empty: wsiseg qc outliers was not run"),
    Column("flags", "string", "", "codes of the flags, separated by spaces"),
    Column("flag_reasons", "string", "", "the flags as text, separated by semicolons"),
    Column("rank", "int64", "", "1: the most unusual of its cohort; empty: not ranked"),
    Column("z", "float64", "1", "its most unusual statistic, in robust standard deviations; below 0: low"),
    Column("z_of", "string", "", "the statistic to which z belongs"),
    Column("flag_note", "string", "", "why it was not ranked"),
    Column("foreign_score", "float64", "1", "distance from the training images; flagged above 1; empty: not measured"),
    Column("foreign_reasons", "string", "", "what differs from the training images, largest first, separated by semicolons"),
    Column("outside_frac", "float64", "1", "share of nuclei outside the tissue mask, estimated; empty: not measured"),
    Column("outside_nuclei_low", "float64", "", "nuclei outside the mask: lower end of the 95 % interval"),
    Column("outside_nuclei_high", "float64", "", "upper end"),
    Column("bad_frac_estimate", "float64", "1", "bad share: judged patches as judged, the others as predicted"),
    Column("bad_frac_estimate_low", "float64", "1", "lower end of its 95 % interval"),
    Column("bad_frac_estimate_high", "float64", "1", "upper end of its 95 % interval"),
    Column("patch_id", "string", "", "patch"),
    Column("x_px", "int64", "level-0 px", "left of the patch"),
    Column("y_px", "int64", "level-0 px", "top of the patch"),
    Column("side_px", "int64", "level-0 px", "side of the patch"),
    Column("fail_prob", "float64", "1", "predicted probability that the patch is not adequate"),
    Column(
        "decision", "string", "", "of all reviewers: acceptable, unacceptable; adequate, not_adequate; unsure; empty: not seen"
    ),
    Column("reviews", "string", "", "mark of each reviewer, as name: mark, separated by semicolons"),
    Column("comments", "string", "", "comment of each reviewer, as name: text, separated by semicolons"),
)
"""Columns of ``report.decisions.csv``: one line per slide, then one per sampled patch."""

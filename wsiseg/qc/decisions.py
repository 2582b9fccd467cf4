"""All grades, flags, predictions and reviewers' marks of a run's slides and patches as one CSV file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from wsiseg.qc.estimate import ShareEstimate
from wsiseg.qc.grades import SlideGrade
from wsiseg.qc.marks import PATCH_MARKS, SLIDE_MARKS, Mark, decide
from wsiseg.qc.release import csv_bytes
from wsiseg.qc.rows import FlagRow, PatchRow
from wsiseg.rows import SlideRow
from wsiseg.schema import DECISIONS

__all__ = ["decisions_csv"]

Marks = Mapping[str, Mapping[str, Mark]]
Line = dict[str, str | int | float | None]

_OF_ROW = (
    "slide_id", "cohort", "status", "error", "foreign_score", "foreign_reasons", "outside_frac", "outside_nuclei_low",
    "outside_nuclei_high",
)  # fmt: skip
_OF_FLAG = {
    "flag_round": "round", "flags": "tails", "flag_reasons": "reasons", "flag_note": "note", "rank": "rank", "z": "z",
    "z_of": "z_of",
}  # fmt: skip
_OF_PATCH = ("slide_id", "cohort", "patch_id", "x_px", "y_px", "side_px")
_OF_GRADE = ("grade", "n_patches", "n_judged", "n_bad", "bad_frac", "bad_frac_low", "bad_frac_high")


def decisions_csv(
    rows: Sequence[SlideRow],
    outliers: Sequence[FlagRow],
    grades: Sequence[SlideGrade],
    patches: Sequence[PatchRow],
    predicted: tuple[Mapping[str, ShareEstimate], Mapping[str, float]],
    marks: tuple[Marks, Marks],
) -> bytes:
    """Return the table ``DECISIONS`` as CSV (UTF-8).

    Parameters
    ----------
    rows
        The slide table.
    outliers, grades
        As in ``ReportData``; empty if that step was not run.
    patches
        The patch index.
    predicted
        Estimated share of bad patches by slide id, and probability by patch id that the patch is not adequate; both empty if
        nothing was predicted.
    marks
        Marks of slides and marks of patches, each as ``{reviewer: {item: latest mark}}``.
    """
    (estimates, fail_prob), (slide_marks, patch_marks) = predicted, marks
    flags = {r.slide_id: r for r in outliers}
    graded = {g.slide_id: g for g in grades}
    decided_slides = decide(slide_marks, SLIDE_MARKS[0], SLIDE_MARKS[1])
    decided_patches = decide(patch_marks, PATCH_MARKS[0], PATCH_MARKS[1])
    lines: list[Line] = []
    for row in rows:
        name = row.slide_id
        line: Line = {"kind": "slide", **{k: getattr(row, k) for k in _OF_ROW}}
        flag, grade, estimate = flags.get(name), graded.get(name), estimates.get(name)
        if flag is not None:
            line |= {k: getattr(flag, of_flag) for k, of_flag in _OF_FLAG.items()}
        if grade is not None:
            line |= {k: getattr(grade, k) for k in _OF_GRADE} | {"grade_reason": grade.reason}
        if estimate is not None:
            ends = {"": estimate.share, "_low": estimate.low, "_high": estimate.high}
            line |= {f"bad_frac_estimate{k}": v for k, v in ends.items()}
        lines.append(line | _marks_of_item(name, decided_slides, slide_marks))
    known = {r.slide_id: r for r in rows}
    for e in sorted(patches, key=lambda e: (e.slide_id, e.number)):
        of_slide = known.get(e.slide_id)
        line = {"kind": "patch", "status": of_slide.status if of_slide is not None else None, "error": e.error}
        line |= {"fail_prob": fail_prob.get(e.patch_id), **{k: getattr(e, k) for k in _OF_PATCH}}
        lines.append(line | _marks_of_item(e.patch_id, decided_patches, patch_marks))
    names = [c.name for c in DECISIONS]
    return csv_bytes(names, [[_short(line.get(k)) for k in names] for line in lines])


def _marks_of_item(item: str, decided: Mapping[str, str], marks: Marks) -> Line:
    """Return the columns ``decision``, ``reviews`` and ``comments`` of one slide or patch."""
    here = [(who, by_item[item]) for who, by_item in sorted(marks.items()) if item in by_item]
    comments = "; ".join(f"{who}: {' '.join(m.comment.split())}" for who, m in here if m.comment)
    reviews = "; ".join(f"{who}: {m.mark}" for who, m in here)
    return {"decision": decided.get(item, ""), "reviews": reviews, "comments": comments}


def _short(value: str | int | float | None) -> str | int | float | None:
    """Return a float rounded to six digits (None if not finite), any other value unchanged."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

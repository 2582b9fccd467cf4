"""Everything that was decided about a run's slides and patches -> one CSV file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wsiseg.qc.estimate import ShareEstimate
from wsiseg.qc.grades import SlideGrade
from wsiseg.qc.marks import PATCH_MARKS, SLIDE_MARKS, Mark, decide
from wsiseg.qc.release import csv_bytes
from wsiseg.schema import Column

__all__ = ["DECISIONS", "decisions_csv"]

Marks = Mapping[str, Mapping[str, Mark]]

DECISIONS: tuple[Column, ...] = (
    Column("kind", "string", "", "slide or patch: what the line is about; columns that do not concern it are empty"),
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort of the slide"),
    Column("status", "string", "", "done, empty, suspect, partial or failed"),
    Column("error", "string", "", "why it failed or is suspect"),
    Column("grade", "string", "", "Best, Good, Adequate, Problematic, Unacceptable or Ungraded"),
    Column("grade_reason", "string", "", "what the grade rests on"),
    Column("n_patches", "int64", "", "patches sampled"),
    Column("n_judged", "int64", "", "of them judged adequate or not"),
    Column("n_bad", "int64", "", "of them judged not adequate"),
    Column("bad_frac", "float64", "1", "n_bad / n_judged"),
    Column("bad_frac_low", "float64", "1", "lower end of its 95 % interval"),
    Column("bad_frac_high", "float64", "1", "upper end of its 95 % interval"),
    Column("flag_round", "int64", "", "0 not flagged, 1 or 2 in that round; empty: outliers were not sought"),
    Column("flags", "string", "", "machine words of the flags, separated by spaces"),
    Column("flag_reasons", "string", "", "the same in words, separated by semicolons"),
    Column("rank", "int64", "", "1: the most unusual of its cohort; empty: not ranked"),
    Column("z", "float64", "1", "its most unusual statistic, in robust standard deviations; below 0: low"),
    Column("z_of", "string", "", "which statistic that is"),
    Column("flag_note", "string", "", "why it was not ranked"),
    Column("foreign_score", "float64", "1", "how unlike the training images; flagged above 1; empty: not measured"),
    Column("foreign_reasons", "string", "", "why, the strongest first, separated by semicolons"),
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
    Column("fail_prob", "float64", "1", "predicted probability that the patch is found not adequate"),
    Column(
        "decision", "string", "", "of all reviewers: acceptable, unacceptable; adequate, not_adequate; unsure; empty: not seen"
    ),
    Column("reviews", "string", "", "what each reviewer said, as name: word, separated by semicolons"),
    Column("comments", "string", "", "what each reviewer wrote, as name: text, separated by semicolons"),
)
"""Columns of ``report.decisions.csv``: one line a slide, then one a sampled patch."""

_OF_ROW = (
    "slide_id", "cohort", "status", "error", "foreign_score", "foreign_reasons", "outside_frac", "outside_nuclei_low",
    "outside_nuclei_high",
)  # fmt: skip
_OF_GRADE = ("grade", "n_patches", "n_judged", "n_bad", "bad_frac", "bad_frac_low", "bad_frac_high")


def decisions_csv(
    rows: Sequence[Mapping[str, Any]],
    outliers: Sequence[Mapping[str, Any]],
    grades: Sequence[SlideGrade],
    patches: Sequence[Mapping[str, Any]],
    predicted: tuple[Mapping[str, ShareEstimate], Mapping[str, float]],
    marks: tuple[Marks, Marks],
) -> bytes:
    """Return the table ``DECISIONS`` as CSV (UTF-8).

    Parameters
    ----------
    rows
        The slide table.
    outliers, grades
        As in ``ReportData``; empty where that step was not done.
    patches
        The patch index.
    predicted
        Estimated bad share of slides, and probability of patches to be found not adequate; empty: nothing predicted.
    marks
        Of slides and of patches: ``{reviewer: {item: mark that counts}}``.
    """
    (estimates, fail_prob), (slide_marks, patch_marks) = predicted, marks
    flags = {r["slide_id"]: r for r in outliers}
    graded = {g.slide_id: g for g in grades}
    said_of_slides = decide(slide_marks, SLIDE_MARKS[0], SLIDE_MARKS[1])
    said_of_patches = decide(patch_marks, PATCH_MARKS[0], PATCH_MARKS[1])
    lines: list[dict[str, Any]] = []
    for row in rows:
        name = row["slide_id"]
        line: dict[str, Any] = {"kind": "slide", **{k: row.get(k) for k in _OF_ROW}}
        flag, grade, guess = flags.get(name), graded.get(name), estimates.get(name)
        if flag is not None:
            line |= {"flag_round": flag["round"], "flags": flag["tails"]}
            line |= {"flag_reasons": flag["reasons"], "flag_note": flag["note"]} | {
                k: flag.get(k) for k in ("rank", "z", "z_of")
            }
        if grade is not None:
            line |= {k: getattr(grade, k) for k in _OF_GRADE} | {"grade_reason": grade.reason}
        if guess is not None:
            ends = {"": guess.share, "_low": guess.low, "_high": guess.high}
            line |= {f"bad_frac_estimate{k}": v for k, v in ends.items()}
        lines.append(line | _said(name, said_of_slides, slide_marks))
    known = {r["slide_id"]: r for r in rows}
    for e in sorted(patches, key=lambda e: (e["slide_id"], e["number"])):
        row = known.get(e["slide_id"], {})
        line = {
            "kind": "patch",
            "status": row.get("status"),
            "error": e.get("error"),
            "fail_prob": fail_prob.get(e["patch_id"]),
        }
        line |= {k: e[k] for k in ("slide_id", "cohort", "patch_id", "x_px", "y_px", "side_px")}
        lines.append(line | _said(e["patch_id"], said_of_patches, patch_marks))
    names = [c.name for c in DECISIONS]
    return csv_bytes(names, [[_short(line.get(k)) for k in names] for line in lines])


def _said(item: str, decided: Mapping[str, str], marks: Marks) -> dict[str, str]:
    here = [(who, by_item[item]) for who, by_item in sorted(marks.items()) if item in by_item]
    comments = "; ".join(f"{who}: {' '.join(m.comment.split())}" for who, m in here if m.comment)
    reviews = "; ".join(f"{who}: {m.mark}" for who, m in here)
    return {"decision": decided.get(item, ""), "reviews": reviews, "comments": comments}


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value

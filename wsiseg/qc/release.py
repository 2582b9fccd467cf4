"""Write the grades as the tables of a release: Parquet, and three CSV files with the exact column names of Hou et al. (2020).

As in their release, the CSV files name a slide by its file (``WSI-ID`` ends in ``.svs``) and give nuclear size in pixels at 40x
(0.25 um per px); the Parquet tables have um2.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from wsiseg.qc.grades import SlideGrade, cohort_summary
from wsiseg.rows import SlideRow
from wsiseg.schema import GRADED
from wsiseg.tables import atomic_write_bytes
from wsiseg.tables.records import write_rows

__all__ = ["csv_bytes", "csv_of", "write_release"]

AREA_40X_UM2 = 0.25 * 0.25

GROUP_HEADER = ("CancerType", "WSI-ID", "QCResult")
SLIDE_QC_HEADER = (
    "CancerType",
    "WSI-ID",
    "NumNucleiSample",
    "SizeOfNuclei-Average",
    "SizeOfNuclei-Stddev",
    "Note",
    "SegmentationUnacceptableOrNot",
    "VisualAssessmentComment",
)
PATCH_QC_HEADER = ("CancerType", "WSI-ID", "NumOfUnacceptableSegRegions", "NumOfSampledRegions")

_VERDICT = {"acceptable": "0", "unsure": "?", "unacceptable": "1", "": ""}


def write_release(
    folder: Path, grades: Sequence[SlideGrade], rows: Mapping[str, SlideRow], comments: Mapping[str, str]
) -> list[Path]:
    """Write all tables of a graded run into ``folder``; return their paths.

    Parameters
    ----------
    rows
        Row of the slide table for each slide id.
    comments
        Reviewers' comments on slides, by slide id.

    Notes
    -----
    As in the published release, the slide-level file holds only slides that were flagged or judged;
    ``SegmentationUnacceptableOrNot`` is 0, ? (unsure) or 1, and empty if nobody has judged the slide yet. The patch-level file
    counts judged patches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = {g.slide_id: PureWindowsPath(rows[g.slide_id].path).name or g.slide_id for g in grades}
    groups = [(g.cohort, name[g.slide_id], g.grade) for g in grades]
    slides = [
        (
            g.cohort,
            name[g.slide_id],
            *_size_40x(rows[g.slide_id]),
            g.reason,
            _VERDICT[g.slide_verdict],
            comments.get(g.slide_id, ""),
        )
        for g in grades
        if g.flagged_round or g.slide_verdict
    ]
    patches = [(g.cohort, name[g.slide_id], g.n_bad, g.n_judged) for g in grades if g.n_patches]
    slide_table, group_table = cohort_summary(grades)
    files = {
        "quality_control_result.csv": csv_bytes(GROUP_HEADER, groups),
        "wsi_quality_control_result.csv": csv_bytes(SLIDE_QC_HEADER, slides),
        "patch_quality_control_result.csv": csv_bytes(PATCH_QC_HEADER, patches),
        "summary_slide_qc.csv": csv_of(slide_table),
        "summary_groups.csv": csv_of(group_table),
    }
    written = []
    for file, data in files.items():
        atomic_write_bytes(folder / file, data)
        written.append(folder / file)
    table = folder / "grades.parquet"
    write_rows(table, GRADED, grades)
    return [table, *written]


def _size_40x(row: SlideRow) -> tuple[object, object, object]:
    sizes = ["" if v is None or math.isnan(v) else f"{v / AREA_40X_UM2:.2f}" for v in (row.area_mean_um2, row.area_std_um2)]
    return row.n_nuclei or 0, sizes[0], sizes[1]


def csv_of(rows: Sequence[Any]) -> bytes:
    """Return dataclasses of one kind as a CSV file, a column a field; there is at least one."""
    return csv_bytes([f.name for f in dataclasses.fields(rows[0])], [dataclasses.astuple(row) for row in rows])


def csv_bytes(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Return a CSV file (RFC 4180 quoting, UTF-8, one header line, lines ended by a line feed)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in row] for row in rows])
    return text.getvalue().encode()

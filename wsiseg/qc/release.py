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
from wsiseg.schema import GRADED, Column
from wsiseg.tables import arrow, atomic_write_bytes

__all__ = ["csv_bytes", "read_rows", "write_release", "write_rows"]

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
    folder: Path, grades: Sequence[SlideGrade], rows: Mapping[str, Mapping[str, Any]], comments: Mapping[str, str]
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
    name = {g.slide_id: _file_name(rows.get(g.slide_id, {}), g.slide_id) for g in grades}
    groups = [(g.cohort, name[g.slide_id], g.grade) for g in grades]
    slides = [
        (
            g.cohort,
            name[g.slide_id],
            *_size_40x(rows.get(g.slide_id, {})),
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
        "summary_slide_qc.csv": csv_bytes(tuple(slide_table[0]), [tuple(r.values()) for r in slide_table]),
        "summary_groups.csv": csv_bytes(tuple(group_table[0]), [tuple(r.values()) for r in group_table]),
    }
    written = []
    for file, data in files.items():
        atomic_write_bytes(folder / file, data)
        written.append(folder / file)
    table = folder / "grades.parquet"
    write_rows(table, GRADED, [dataclasses.asdict(g) for g in grades])
    return [table, *written]


def _file_name(row: Mapping[str, Any], slide_id: str) -> str:
    return PureWindowsPath(str(row.get("path") or "")).name or slide_id


def _size_40x(row: Mapping[str, Any]) -> tuple[object, object, object]:
    mean, std = row.get("area_mean_um2"), row.get("area_std_um2")
    sizes = ["" if v is None or math.isnan(v) else f"{v / AREA_40X_UM2:.2f}" for v in (mean, std)]
    return row.get("n_nuclei") or 0, sizes[0], sizes[1]


def csv_bytes(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Return a CSV file (RFC 4180 quoting, UTF-8, one header line, lines ended by a line feed)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if v is None or (isinstance(v, float) and math.isnan(v)) else v for v in row] for row in rows])
    return text.getvalue().encode()


def write_rows(path: Path, columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write dicts as a Parquet table with the given columns, complete or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.write_rows(path, columns, rows)


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the rows of a Parquet table as dicts (only ``columns``, if given); an empty list if there is no such file.

    Raises
    ------
    FormatError
        The file is not Parquet, or lacks a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from wsiseg.errors import FormatError

    if not path.is_file():
        return []
    try:
        return pq.read_table(path, columns=None if columns is None else list(columns)).to_pylist()
    except (OSError, pa.ArrowException) as err:
        raise FormatError(
            f"{path}: expected a readable Parquet table ({err}). Remove the file and run again the command that writes it."
        ) from err

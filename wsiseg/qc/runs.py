"""Apply quality control to a run folder: read its statistics, flag outliers, grade slides. QC writes these files.

::

    RUN/qc/outliers.parquet, .csv      result of the outlier rule for every slide
    RUN/qc/patches.parquet             index of the random patches
    RUN/qc/patches/<slide_id>.zip      their pictures
    RUN/qc/features.parquet            features of the patches, from which their quality is predicted
    RUN/qc/predicted.parquet           probability that each patch is not adequate
    RUN/qc/predicted_slides.parquet    estimated share of bad patches of each slide
    RUN/qc/order.parquet               order of the suspects-first review, if one was started
    RUN/qc/marks/<reviewer>.jsonl      marks of a reviewer
    RUN/qc/marks/<reviewer>.place.json where the reviewer stopped on the review page
    RUN/qc/grades.parquet, *.csv       grades, the release's three CSV files, summaries, agreement
    RUN/qc/thumbs/<slide_id>.jpg       thumbnails for the report
    RUN/qc/report.html                 the report
    RUN/qc/report.decisions.csv        all decisions, one line per slide and one per patch
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiseg.errors import FormatError, InputError
from wsiseg.qc.agreement import Agreement, reviewer_agreement
from wsiseg.qc.grades import SlideGrade, cohort_summary, grade_slides
from wsiseg.qc.marks import PATCH_MARKS, SLIDE_MARKS, Mark, decide, read_all_marks
from wsiseg.qc.outliers import OutlierRow, TailRule, find_outliers
from wsiseg.qc.release import csv_of, write_release
from wsiseg.qc.rows import FlagRow, PatchRow, stored_rows
from wsiseg.read import Slide
from wsiseg.results.folder import RunFolder
from wsiseg.results.reopen import reopen_slide
from wsiseg.results.run_record import RunRecord
from wsiseg.results.slide_record import SlideRecord, slide_record
from wsiseg.rows import SlideRow
from wsiseg.schema import OUTLIERS
from wsiseg.tables import atomic_write_bytes
from wsiseg.tables.records import write_rows

__all__ = [
    "GradeSummary",
    "QcRun",
    "TailRule",
    "cohort_summary",
    "find_run_outliers",
    "grade_run",
    "load_run",
    "open_row_slide",
    "size_and_mpp",
]


@dataclass(frozen=True, slots=True)
class QcRun:
    """What QC needs of a run: its folder, digest and record, and one row of statistics per slide."""

    folder: RunFolder
    digest: str
    record: RunRecord
    rows: list[SlideRow]
    path_map: tuple[str, ...] = ()

    @property
    def qc(self) -> Path:
        """Folder of all files that QC writes, ``RUN/qc``."""
        return self.folder.root / "qc"

    @property
    def marks(self) -> Path:
        """Folder of the reviewers' marks files."""
        return self.qc / "marks"

    @property
    def review_port(self) -> int:
        """TCP port that this run's review page uses if it is free; the report links to it."""
        return 20_000 + int.from_bytes(hashlib.sha256(f"review {self.digest}".encode()).digest()[:4], "big") % 10_000

    def row(self, slide_id: str) -> SlideRow:
        """Return the row of one slide. Raises ``InputError`` if the run has no such slide."""
        for row in self.rows:
            if row.slide_id == slide_id:
                return row
        raise InputError(f"Run {self.folder.root} has no slide {slide_id!r}.")


def load_run(run: Path, path_map: Sequence[str] = ()) -> QcRun:
    """Read what QC needs of a run folder.

    Parameters
    ----------
    path_map
        ``OLD=NEW`` pairs for slide files that were moved since the run, as in ``schedule.path_map``.

    Raises
    ------
    InputError
        ``run`` is not a run folder, or the run has no slide statistics or no polygon table yet.
    FormatError
        A file of the run is damaged.
    """
    folder = RunFolder(run)
    record = folder.read_run()
    if record is None:
        raise InputError(f"{run} is not a run folder: it has no run.json. Expected a folder that `wsiseg segment --out` wrote.")
    rows = stored_rows(SlideRow, run / "slides.parquet", "slide statistics")
    if not rows:
        raise InputError(f"Run {run} has no slide statistics (slides.parquet) yet. Let `wsiseg segment` finish first.")
    _check_names(rows, run)
    if not any(folder.table(r.slide_id).is_file() for r in rows):
        raise InputError(
            f"Run {run} has no polygon table in {run / 'nuclei'}, so there is nothing to review. Run `wsiseg segment` again."
        )
    return QcRun(folder, record.digest, record, rows, tuple(path_map))


def _check_names(rows: Sequence[SlideRow], run: Path) -> None:
    for slide_id in (r.slide_id for r in rows):
        if not slide_id or Path(slide_id).name != slide_id or slide_id in (".", ".."):
            raise FormatError(
                f"{run / 'slides.parquet'}: {slide_id!r} is not a valid slide id: its files would be outside the run folder."
            )
    twice = [name for name, n in Counter(r.slide_id for r in rows).items() if n > 1]
    if twice:
        raise FormatError(f"{run / 'slides.parquet'} holds slide {twice[0]!r} more than once. Run `wsiseg segment` again.")


def open_row_slide(run: QcRun, row: SlideRow) -> Slide:
    """Open the slide file of a row.

    Raises
    ------
    SlideOpenError
        The file is missing, or is not the file that was segmented.
    InputError
        The run could not open the slide either, so its path is not known.
    FormatError
        The slide's record is damaged.
    """
    known = run.folder.slide_json(row.slide_id).is_file()
    stored = slide_record(run.folder, row.slide_id) if known else SlideRecord(run.digest, row)
    return reopen_slide(run.folder, stored, run.path_map)


def size_and_mpp(row: SlideRow) -> tuple[tuple[int, int], float]:
    """Return the size of a slide that was segmented (width, height; level-0 px) and its microns per level-0 px.

    Raises
    ------
    FormatError
        The row does not state them.
    """
    if row.width_px is None or row.height_px is None or row.mpp is None:
        raise FormatError(f"slides.parquet: slide {row.slide_id} is {row.status}, but has no size or microns per pixel.")
    return (row.width_px, row.height_px), row.mpp


# --- outliers -----------------------------------------------------------------------------------------------------------------


def slide_verdicts(run: QcRun) -> dict[str, str]:
    """Return the mark of each judged slide id, decided from the marks of all reviewers."""
    return decide(read_all_marks(run.marks, run.digest, "slides"), SLIDE_MARKS[0], SLIDE_MARKS[1])


def find_run_outliers(run: QcRun, rule: TailRule | None = None, reference: QcRun | None = None) -> list[OutlierRow]:
    """Apply the outlier rule to a run and write ``qc/outliers.parquet`` and ``.csv``; return a row for every slide.

    Parameters
    ----------
    reference
        A run of slides that are known to be good, with which the slides are compared (see ``find_outliers``).

    Raises
    ------
    InputError
        The reference was segmented with other settings that affect the nuclei.
    """
    if reference is not None:
        _check_comparable(run, reference)
    found = find_outliers(run.rows, rule, slide_verdicts(run), reference.rows if reference is not None else ())
    rows = [_flag_row(row, o) for row, o in zip(run.rows, found, strict=True)]
    write_rows(run.qc / "outliers.parquet", OUTLIERS, rows)
    atomic_write_bytes(run.qc / "outliers.csv", csv_of(rows))
    return found


def _flag_row(row: SlideRow, found: OutlierRow) -> FlagRow:
    return FlagRow(
        row.slide_id,
        row.cohort,
        row.status,
        found.round,
        " ".join(found.tails),
        "; ".join(found.reasons),
        found.note,
        found.rank,
        found.z,
        found.z_of,
        found.compared,
        row.n_nuclei,
        row.nuclei_per_mm2,
        row.area_mean_um2,
        row.area_std_um2,
    )


NOT_COMPARED = ("read.mpp", "read.reader", "read.tile_wpx", "predict.precision", "predict.engine", "quantization")
"""Settings in which a run and its reference may differ, because they do not change the statistics of nuclei."""


def _check_comparable(run: QcRun, reference: QcRun) -> None:
    both = [{k: v for k, v in r.record.results.items() if k not in NOT_COMPARED} for r in (run, reference)]
    differ = sorted(k for k in set(both[0]) | set(both[1]) if both[0].get(k) != both[1].get(k))
    if differ:
        listed = ", ".join(f"{k}: {both[0].get(k)!r} here, {both[1].get(k)!r} there" for k in differ[:5])
        raise InputError(
            f"Run {reference.folder.root} cannot be the reference of {run.folder.root}: it was segmented with other settings "
            f"({listed}). Segment the reference slides with the same settings."
        )


# --- grades -------------------------------------------------------------------------------------------------------------------


def _partly_judged_suspects_first(patches: Mapping[str, Sequence[str]], marks: Mapping[str, Mapping[str, Mark]]) -> set[str]:
    """Return slides with some but not all patches judged in a suspects-first review (order ``predicted``)."""
    shown = [(item, mark.order) for by_item in marks.values() for item, mark in by_item.items()]
    random = {item for item, order in shown if order == "random"}
    suspects_first = {item for item, order in shown if order.startswith("predicted")} - random
    judged = random | suspects_first
    return {s for s, ids in patches.items() if not suspects_first.isdisjoint(ids) and not judged.issuperset(ids)}


@dataclass(frozen=True, slots=True)
class GradeSummary:
    """Result of ``grade_run``: grades, agreement of reviewers, and the files written."""

    grades: list[SlideGrade]
    agreement: list[Agreement]
    files: list[Path]


def grade_run(run: QcRun, *, write: bool = True) -> GradeSummary:
    """Compute grades from all reviewers' marks and write the release tables.

    Raises
    ------
    InputError
        The run has no patches.
    FormatError
        A marks file is damaged or of another run.
    """
    index = stored_rows(PatchRow, run.qc / "patches.parquet")
    if not index:
        raise InputError(f"Run {run.folder.root} has no patches to grade. Run `wsiseg qc patches`, then `wsiseg qc review`.")
    patches: dict[str, list[str]] = {}
    for e in index:
        patches.setdefault(e.slide_id, []).append(e.patch_id)
    marks = read_all_marks(run.marks, run.digest, "patches")
    known = {e.patch_id for e in index}
    for reviewer, by_item in marks.items():
        unknown = next((i for i in by_item if i not in known), None)
        if unknown is not None:
            raise FormatError(
                f"{run.marks / reviewer}.jsonl marks patch {unknown}, which is not in {run.qc / 'patches.parquet'}. Move the "
                "marks file away."
            )
    slide_marks = read_all_marks(run.marks, run.digest, "slides")
    verdicts = decide(slide_marks, SLIDE_MARKS[0], SLIDE_MARKS[1])
    flags = {r.slide_id: (r.round, r.reasons) for r in stored_rows(FlagRow, run.qc / "outliers.parquet")}
    slides = [(r.slide_id, r.cohort, r.status) for r in run.rows]
    biased = _partly_judged_suspects_first(patches, marks)
    grades = grade_slides(slides, patches, decide(marks, PATCH_MARKS[0], PATCH_MARKS[1]), verdicts, flags, biased)
    words = {who: {i: m.mark for i, m in by_item.items()} for who, by_item in marks.items()}
    agreement = reviewer_agreement(words, PATCH_MARKS[:2])
    if not write:
        return GradeSummary(grades, agreement, [])
    comments: dict[str, str] = {}
    for by_item in slide_marks.values():
        for item, mark in by_item.items():
            if mark.comment:
                comments[item] = f"{comments[item]} | {mark.comment}" if item in comments else mark.comment
    files = write_release(run.qc, grades, {r.slide_id: r for r in run.rows}, comments)
    if agreement:
        atomic_write_bytes(run.qc / "agreement.csv", csv_of(agreement))
        files.append(run.qc / "agreement.csv")
    return GradeSummary(grades, agreement, files)

"""Quality control of a finished run: outliers, patch pictures, grades. What needs slides and tables together is composed here.

::

    RUN/qc/outliers.parquet, .csv      what the outlier rule says of every slide
    RUN/qc/patches.parquet             index of the random patches
    RUN/qc/patches/<slide_id>.zip      their pictures
    RUN/qc/marks/<reviewer>.jsonl      what reviewers said
    RUN/qc/grades.parquet, *.csv       grades, the release's three CSV files, summaries, agreement
    RUN/qc/thumbs/<slide_id>.jpg       thumbnails for the report
    RUN/qc/report.html                 the report
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError, FormatError, InputError, WsisegError
from wsiseg.qc import (
    LAYER_ZOOM,
    OUTLIERS,
    PATCH_MARKS,
    PATCH_MPP,
    PATCH_PX,
    PATCHES,
    PATCHES_PER_SLIDE,
    SLIDE_MARKS,
    Agreement,
    OutlierRow,
    Patch,
    SlideGrade,
    TailRule,
    cohort_summary,
    contour_png,
    csv_bytes,
    decide,
    find_outliers,
    grade_slides,
    inner_mask,
    pack_names,
    patch_id,
    read_all_marks,
    read_rows,
    reviewer_agreement,
    rgb_png,
    sample_patches,
    write_pack,
    write_release,
    write_rows,
)
from wsiseg.read import Slide, TissueMask, open_slide, read_working, scale_for
from wsiseg.read.tissue import MARGIN_UM as TISSUE_MARGIN_UM
from wsiseg.run.folder import RunFolder
from wsiseg.tables import atomic_write_bytes, read_nuclei, wkb_rings
from wsiseg.types import Box

__all__ = [
    "GradeSummary",
    "PatchSummary",
    "QcRun",
    "TailRule",
    "cohort_summary",
    "find_run_outliers",
    "grade_run",
    "load_run",
    "make_patches",
    "open_row_slide",
]

MPP_TOLERANCE_FRAC = 0.10
"""A slide within this of 0.25 um is shown in its own pixels, as the run segmented it."""


@dataclass(frozen=True, slots=True)
class QcRun:
    """A finished run, as QC sees it: one row of statistics a slide."""

    folder: RunFolder
    digest: str
    record: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def qc(self) -> Path:
        """Return the folder of everything that QC makes."""
        return self.folder.root / "qc"

    @property
    def marks(self) -> Path:
        """Return the folder of reviewers' marks."""
        return self.qc / "marks"

    def row(self, slide_id: str) -> dict[str, Any]:
        """Return one slide's row. Raises ``InputError`` where the run has no such slide."""
        for row in self.rows:
            if row["slide_id"] == slide_id:
                return row
        raise InputError(f"Run {self.folder.root} has no slide {slide_id!r}.")


def load_run(run: Path) -> QcRun:
    """Read what QC needs of a run folder.

    Raises
    ------
    InputError
        Not a run folder, or a run without statistics or without a single polygon table.
    FormatError
        A file of it is damaged.
    """
    folder = RunFolder(run)
    record = folder.read_run()
    if record is None:
        raise InputError(f"{run} is not a run folder (it has no run.json). Expected what `wsiseg segment --out` made.")
    rows = read_rows(run / "slides.parquet")
    if not rows:
        raise InputError(f"Run {run} has no slide statistics (slides.parquet) yet. Let `wsiseg segment` finish first.")
    _check_names(rows, run)
    if not any(folder.table(r["slide_id"]).is_file() for r in rows):
        raise InputError(
            f"Run {run} has no polygon table in {run / 'nuclei'}, so there is nothing to judge. Run `wsiseg segment` again."
        )
    return QcRun(folder, str(record.get("digest", "")), record, rows)


def _check_names(rows: Sequence[dict[str, Any]], run: Path) -> None:
    for row in rows:
        slide_id = row.get("slide_id")
        if not isinstance(slide_id, str) or not slide_id or Path(slide_id).name != slide_id or slide_id in (".", ".."):
            raise FormatError(
                f"{run / 'slides.parquet'}: {slide_id!r} cannot be a slide id: it would lie outside the run folder."
            )
    twice = [name for name, n in Counter(r["slide_id"] for r in rows).items() if n > 1]
    if twice:
        raise FormatError(f"{run / 'slides.parquet'} holds slide {twice[0]!r} more than once. Run `wsiseg segment` again.")


def open_row_slide(row: dict[str, Any]) -> Slide:
    """Open the slide file of a row. Raises ``SlideOpenError`` where it is gone, ``InputError`` where it never opened."""
    if row.get("mpp") is None:
        raise InputError(f"Slide {row['slide_id']} could not be used by the run: {row.get('error') or 'no reason recorded'}.")
    return open_slide(row["path"], mpp=row["mpp"], cohort=row.get("cohort") or "")


# --- outliers -----------------------------------------------------------------------------------------------------------------


def slide_verdicts(run: QcRun) -> dict[str, str]:
    """Return what reviewers, taken together, said of slides."""
    return decide(read_all_marks(run.marks, run.digest, "slides"), SLIDE_MARKS[0], SLIDE_MARKS[1])


def find_run_outliers(run: QcRun, rule: TailRule | None = None) -> list[OutlierRow]:
    """Apply the outlier rule to a run and write ``qc/outliers.parquet`` and ``.csv``; return a row for every slide."""
    found = find_outliers(run.rows, rule, slide_verdicts(run))
    rows = [
        {**row, "round": o.round, "tails": " ".join(o.tails), "reasons": "; ".join(o.reasons), "note": o.note}
        for row, o in zip(run.rows, found, strict=True)
    ]
    write_rows(run.qc / "outliers.parquet", OUTLIERS, rows)
    names = [c.name for c in OUTLIERS]
    atomic_write_bytes(run.qc / "outliers.csv", csv_bytes(names, [[r.get(n) for n in names] for r in rows]))
    return found


# --- patches ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PatchSummary:
    """What ``make_patches`` did: slides with patches, patches in the index, those made now, and what failed (slide, reason)."""

    slides: int
    patches: int
    made: int
    failed: list[tuple[str, str]]


def make_patches(
    run: QcRun,
    per_slide: int = PATCHES_PER_SLIDE,
    *,
    more: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PatchSummary:
    """Draw and render random patches of every segmented slide; patches that are there already are left alone.

    Parameters
    ----------
    per_slide
        Patches a slide, unless it has more already.
    more
        Patches to add to every slide beyond what it has.
    seed
        Another seed gives another sample; only for a run without patches.
    progress
        Called with (slides done, slides).

    Raises
    ------
    ConfigError
        The numbers are impossible, or the seed differs from that of the patches there.
    """
    if per_slide < 1 or more < 0:
        raise ConfigError(f"Expected at least one patch a slide and none less, got {per_slide} and {more} more.")
    _same_seed(run, seed)
    old: dict[str, list[dict[str, Any]]] = {}
    for entry in read_rows(run.qc / "patches.parquet"):
        old.setdefault(entry["slide_id"], []).append(entry)
    slides = [r for r in run.rows if r["status"] != "failed" and r.get("n_nuclei")]
    from wsiseg.run.cluster import usable_cores  # loads Dask, which the other QC commands do not need

    made, failed, index, done = 0, [], [], 0
    with ThreadPoolExecutor(max_workers=max(1, min(8, usable_cores()))) as pool:
        jobs = {
            r["slide_id"]: pool.submit(
                _slide_patches, run, r, max(per_slide, len(old.get(r["slide_id"], ()))) + more, seed, old.get(r["slide_id"], [])
            )
            for r in slides
        }
        for slide_id, job in jobs.items():
            entries, n_made, error = job.result()
            index += entries
            made += n_made
            if error:
                failed.append((slide_id, error))
            done += 1
            if progress is not None:
                progress(done, len(slides))
    index.sort(key=lambda e: e["patch_id"])
    write_rows(run.qc / "patches.parquet", PATCHES, index)
    return PatchSummary(len({e["slide_id"] for e in index}), len(index), made, failed)


def _same_seed(run: QcRun, seed: int) -> None:
    path = run.qc / "patches.json"
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            same = (stored["seed"], stored["run"]) == (seed, run.digest)
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise FormatError(f"{path} is unreadable ({err}). Remove {run.qc} to start QC anew.") from err
        if not same:
            raise ConfigError(
                f"{run.qc} holds patches of seed {stored['seed']} of run {stored['run']}, asked for seed {seed} of run "
                f"{run.digest}. "
                "Marks belong to those patches: use that seed, or move the qc folder away."
            )
        return
    run.qc.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, json.dumps({"seed": seed, "run": run.digest}).encode())


def _slide_patches(
    run: QcRun, row: dict[str, Any], n: int, seed: int, old: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], int, str]:
    """Return the index rows of a slide, how many patches were rendered now, and what went wrong."""
    slide_id = row["slide_id"]
    file = f"patches/{slide_id}.zip"
    zoom = scale_for(row["mpp"], PATCH_MPP, MPP_TOLERANCE_FRAC)
    side = max(1, round(PATCH_PX / zoom))
    entries: list[dict[str, Any]] = []
    have = {e["patch_id"]: e for e in old if e["file"]}
    try:
        drawn = _draw_patches(run, row, side, n, seed)
        names = [patch_id(run.digest, slide_id, p.number) for p in drawn]
        if drawn and all(name in have for name in names) and {f"{name}.png" for name in names} <= pack_names(run.qc / file):
            return [have[name] for name in names], 0, ""
        base = {"slide_id": slide_id, "cohort": row.get("cohort") or "", "side_px": side, "zoom": zoom}
        entries = [
            {**base, "patch_id": name, "number": p.number, "x_px": p.box.x, "y_px": p.box.y, "file": file, "error": ""}
            for name, p in zip(names, drawn, strict=True)
        ]
        if entries:
            write_pack(run.qc / file, _render_slide(run, row, entries))
    except (WsisegError, OSError, ValueError, KeyError) as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        stored = [have.get(e["patch_id"], {**e, "file": "", "error": reason}) for e in entries]
        return stored or old, 0, reason
    return entries, len(entries), "" if entries else "no segmented tissue to draw patches from"


def _draw_patches(run: QcRun, row: dict[str, Any], side_px: int, n: int, seed: int) -> list[Patch]:
    tissue = TissueMask.load(run.folder.tissue_png(row["slide_id"]))
    frame = (tissue.px_w, tissue.px_h, tissue.x0, tissue.y0)
    size = (row["width_px"], row["height_px"])
    mask = inner_mask(tissue.mask, tissue.px_w, tissue.px_h, TISSUE_MARGIN_UM / row["mpp"])
    return sample_patches(row["slide_id"], mask, frame, size, side_px, n, seed=seed, excluded=_failed_tiles(run, row))


def _failed_tiles(run: QcRun, row: dict[str, Any]) -> list[Box]:
    """Return the level-0 boxes of tiles that were not segmented."""
    if not row.get("tiles_failed"):
        return []
    record = json.loads(run.folder.slide_json(row["slide_id"]).read_text(encoding="utf-8"))
    side = round(run.record["config"]["read"]["tile_wpx"] / row["scale"])
    return [Box(e["x_px"], e["y_px"], side, side) for e in record["errors"] if e["tile_id"] >= 0]


def _render_slide(run: QcRun, row: dict[str, Any], entries: list[dict[str, Any]]) -> list[tuple[str, bytes]]:
    """Return the pictures of a slide's patches and fill ``n_nuclei`` of their rows."""
    table = run.folder.table(row["slide_id"])
    pictures: list[tuple[str, bytes]] = []
    slide = open_row_slide(row)
    try:
        for e in entries:
            zoom = e["zoom"]
            window = Box(round(e["x_px"] * zoom), round(e["y_px"] * zoom), PATCH_PX, PATCH_PX)
            xy, offsets = rings_in(table, Box(e["x_px"], e["y_px"], e["side_px"], e["side_px"]))
            e["n_nuclei"] = len(offsets) - 1
            origin = (window.x / zoom, window.y / zoom)
            pictures.append((f"{e['patch_id']}.png", rgb_png(read_working(slide, window, zoom))))
            layer = contour_png(xy, offsets, origin, zoom * LAYER_ZOOM, PATCH_PX * LAYER_ZOOM)
            pictures.append((f"{e['patch_id']}.contours.png", layer))
    finally:
        slide.close()
    return pictures


def rings_in(table: Path, region: Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the rings of a polygon table that meet a level-0 box, as ``wkb_rings`` gives them."""
    xy, offsets = wkb_rings(read_nuclei(table, region, ["geometry"])["geometry"])
    return xy, offsets


# --- grades -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GradeSummary:
    """A graded run: grades, agreement of reviewers, and the files written."""

    grades: list[SlideGrade]
    agreement: list[Agreement]
    files: list[Path]


def grade_run(run: QcRun, *, write: bool = True) -> GradeSummary:
    """Turn all reviewers' marks into grades and write the release tables.

    Raises
    ------
    InputError
        The run has no patches.
    FormatError
        A marks file is damaged or of another run.
    """
    index = read_rows(run.qc / "patches.parquet")
    if not index:
        raise InputError(
            f"Run {run.folder.root} has no patches to grade. Run `wsiseg qc patches` and `wsiseg qc review` first."
        )
    patches: dict[str, list[str]] = {}
    for e in index:
        patches.setdefault(e["slide_id"], []).append(e["patch_id"])
    marks = read_all_marks(run.marks, run.digest, "patches")
    known = {e["patch_id"] for e in index}
    for reviewer, by_item in marks.items():
        foreign = next((i for i in by_item if i not in known), None)
        if foreign is not None:
            raise FormatError(
                f"{run.marks / reviewer}.jsonl marks patch {foreign}, which this run does not have. Move the file away."
            )
    slide_marks = read_all_marks(run.marks, run.digest, "slides")
    verdicts = decide(slide_marks, SLIDE_MARKS[0], SLIDE_MARKS[1])
    flags = {r["slide_id"]: (r["round"], r["reasons"]) for r in read_rows(run.qc / "outliers.parquet")}
    slides = [(r["slide_id"], r.get("cohort") or "", r["status"]) for r in run.rows]
    grades = grade_slides(slides, patches, decide(marks, PATCH_MARKS[0], PATCH_MARKS[1]), verdicts, flags)
    words = {who: {i: m.mark for i, m in by_item.items()} for who, by_item in marks.items()}
    agreement = reviewer_agreement(words, PATCH_MARKS[:2])
    if not write:
        return GradeSummary(grades, agreement, [])
    comments: dict[str, str] = {}
    for by_item in slide_marks.values():
        for item, mark in by_item.items():
            if mark.comment:
                comments[item] = f"{comments[item]} | {mark.comment}" if item in comments else mark.comment
    files = write_release(run.qc, grades, {r["slide_id"]: r for r in run.rows}, comments)
    if agreement:
        names = [f.name for f in dataclasses.fields(Agreement)]
        atomic_write_bytes(run.qc / "agreement.csv", csv_bytes(names, [dataclasses.astuple(a) for a in agreement]))
        files.append(run.qc / "agreement.csv")
    return GradeSummary(grades, agreement, files)

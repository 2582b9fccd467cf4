"""Decide whether a slide on which no nucleus was found is blank glass, or suspect, so that a person should check it."""

from __future__ import annotations

from collections.abc import Sequence

from wsiseg.config import RunConfig
from wsiseg.read import survey_slide, tissue_frac
from wsiseg.rows import SlideRow
from wsiseg.run.job import SlideJob, open_job_slide
from wsiseg.schema import GOOD_STATUSES, SLIDE_STATUSES
from wsiseg.types import Box

__all__ = ["all_good", "count_by_status", "nothing_found", "suspicion"]

MAX_NAMED = 20

Rows = Sequence[SlideRow]


def suspicion(job: SlideJob, config: RunConfig) -> str:
    """Return in one line why a slide without nuclei is suspect; empty if it is blank glass.

    Raises
    ------
    SlideOpenError, TileReadError
        The slide cannot be read.
    """
    meta = job.meta
    frac = tissue_frac(job.tissue, Box(0, 0, meta.width_px, meta.height_px))
    mm2 = frac * meta.width_px * meta.height_px * meta.mpp**2 * 1e-6
    given = job.mask_origin == "given"
    if frac > 0:
        where = "the tissue mask given" if given else "tissue"
        least = config.read.tissue_min_frac
        skipped = f"; tiles with {100 * least:g} % of it or less were left out" if least else ""
        return f"no nucleus in {mm2:.3g} mm2 of {where} ({_percent(frac)} of the slide at {meta.mpp:.4g} um/px){skipped}"
    if given:
        return "the given tissue mask does not cover any part of the slide"
    slide = open_job_slide(job, config)
    try:
        found = survey_slide(slide)
    finally:
        slide.close()
    if found.is_blank:
        return ""
    shares = [(found.glass_frac, "plain glass"), (found.ink_frac, "pen marks"), (found.unscanned_frac, "black")]
    other = max(0.0, 1.0 - sum(share for share, _ in shares))
    listed = ", ".join(f"{_percent(share)} {name}" for share, name in (*shares, (other, "unlike tissue or glass")) if share > 0)
    return f"no tissue was found, but the slide is not blank: {listed}"


def all_good(rows: Rows) -> bool:
    """Return whether every slide is done or is blank glass."""
    return all(r.status in GOOD_STATUSES for r in rows)


def count_by_status(rows: Rows) -> str:
    """Return the number of slides by status as text, such as ``3 done, 1 suspect``."""
    count = {s: sum(r.status == s for r in rows) for s in SLIDE_STATUSES}
    return ", ".join(f"{n} {s}" for s, n in count.items() if n or s == "done")


def nothing_found(rows: Rows) -> list[str]:
    """Return a line with the reason for each slide without nuclei: suspect slides first, then blank ones."""
    lines: list[str] = []
    for status in ("suspect", "empty"):
        found = [r for r in rows if r.status == status]
        lines += [f"{status:10} slide {r.slide_id}: {r.error or _blank(r)}" for r in found[:MAX_NAMED]]
        if len(found) > MAX_NAMED:
            lines.append(f"{status:10} ... and {len(found) - MAX_NAMED} more: see slides.csv, columns status and error")
    return lines


def _blank(row: SlideRow) -> str:
    slide_mm2 = (row.width_px or 0) * (row.height_px or 0) * (row.mpp or 0.0) ** 2 * 1e-6
    if not slide_mm2:  # imported: its size is not known
        return "no nucleus in it"
    return f"blank glass: tissue on {_percent((row.tissue_mm2 or 0.0) / slide_mm2)} of {slide_mm2:.3g} mm2"


def _percent(frac: float) -> str:
    return f"{100 * frac:.3g} %"

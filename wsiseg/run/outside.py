"""Estimate from windows sampled outside a slide's tissue mask how many nuclei it leaves out, and draw the mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from wsiseg.errors import FormatError
from wsiseg.log import log
from wsiseg.read import tissue_window
from wsiseg.results.folder import RunFolder
from wsiseg.results.mask_picture import mask_picture
from wsiseg.rows import SlideRow
from wsiseg.run.job import SlideJob, part_path
from wsiseg.summarize import estimate_outside
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Box, Tile
from wsiseg.write import PartHeader, read_part

__all__ = ["with_outside", "write_mask_picture"]


def with_outside(
    row: SlideRow, job: SlideJob, windows: Sequence[tuple[Tile, float, PartHeader | None]], folder: RunFolder
) -> tuple[SlideRow, list[int | None]]:
    """Return a slide's row with its columns about the mask, and the nuclei off the mask by window.

    Windows that failed (header ``None``) are left out, and the weights of the others are scaled up accordingly.
    """
    row = dataclasses.replace(row, tissue_mask=job.mask_origin)
    if job.mask_origin == "all":
        return dataclasses.replace(_estimated(row, 0.0, 0.0, 0.0), outside_windows=0), []
    if job.outside is None:
        return row, []
    counts = [None if header is None else _count_off(job, tile, folder) for tile, _, header in windows]
    known = [(count, weight) for count, (_, weight, _) in zip(counts, windows, strict=True) if count is not None]
    seconds = math.fsum(sum(header.seconds.values()) for _, _, header in windows if header is not None)
    row = dataclasses.replace(row, outside_windows=len(known), seconds_outside=seconds)
    if len(known) < len(windows):
        log.warning("slide %s: %d of %d windows sampled outside the mask failed", job.meta.slide_id,
                    len(windows) - len(known), len(windows))  # fmt: skip
        if not known:
            return row, counts
    lost = sum(weight for _, weight, _ in windows) / sum(weight for _, weight in known) if known else 1.0
    found = estimate_outside([c for c, _ in known], [w * lost for _, w in known])
    return _estimated(row, found.nuclei, found.low, found.high), counts


def _estimated(row: SlideRow, nuclei: float, low: float, high: float) -> SlideRow:
    total = (row.n_nuclei or 0) + nuclei
    return dataclasses.replace(
        row,
        outside_nuclei=nuclei,
        outside_nuclei_low=low,
        outside_nuclei_high=high,
        outside_frac=nuclei / total if total else None,
    )


def _count_off(job: SlideJob, tile: Tile, folder: RunFolder) -> int:
    """Return the number of nuclei of a window whose marker is outside the mask."""
    _, batch = read_part(part_path(folder, tile))
    y, x = np.divmod(np.asarray(batch.columns["nucleus_id"], np.int64), 1 << 31)  # the marker: see wsiseg.schema.NUCLEI
    off = ~tissue_window(job.tissue, tile.core, job.scale)
    return int(np.count_nonzero(off[y - tile.core.y, x - tile.core.x]))


def write_mask_picture(job: SlideJob, tiles: Sequence[Tile], counts: Sequence[int | None], folder: RunFolder) -> str:
    """Draw the mask on the slide; return the picture's path relative to the run folder (empty: there is no thumbnail)."""
    try:
        base = folder.thumbnail_png(job.meta.slide_id).read_bytes()
    except OSError:  # missing if an earlier version started the slide, or if parts of it are unreadable
        return ""
    boxes = [_level0(tile.core, job.scale) for tile in tiles]
    try:
        drawn = mask_picture(base, job.tissue, job.meta, list(zip(boxes, counts, strict=True)))
    except (OSError, SyntaxError, ValueError) as err:
        raise FormatError(f"Slide {job.meta.slide_id}: its stored thumbnail cannot be read: {err}") from err
    path = folder.mask_jpg(job.meta.slide_id)
    atomic_write_bytes(path, drawn)
    return str(path.relative_to(folder.root))


def _level0(box: Box, scale: float) -> Box:
    return Box(round(box.x / scale), round(box.y / scale), round(box.w / scale), round(box.h / scale))

"""Choose a few windows outside the tissue mask to segment, to estimate how many nuclei the mask leaves out.

The slide is cut into squares of ``CELL_WPX`` working px. A square partly outside the mask is skipped if it is plain: no px of
the thumbnail outside the mask is darker than its surroundings or colored. From the others a sample is drawn with probability
proportional to the number and depth of such px (systematic sampling, Madow 1949, Annals of Mathematical Statistics 20:333), so
that squares that look most like nuclei are nearly always drawn. The draw is a hash of slide, scale and mask: it does not depend
on tiles, workers or attempts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiseg.read.mask_window import tissue_cells
from wsiseg.read.tissue import SlideSurvey, TissueMask, grown
from wsiseg.read.working import working_size
from wsiseg.types import Box, SlideMeta

__all__ = ["CELL_WPX", "OutsideWindow", "outside_windows"]

CELL_WPX = 256
"""Side of a window, working px: 64 um at 0.25 um/px."""

WINDOW_COST_WPX2 = (CELL_WPX + 2 * 64 + 2 * 112) ** 2
"""Pixels that the network processes for one window, with the halos."""

COST_FRAC = 0.02
"""Maximum cost of the sample, as a fraction of the network's work on tissue; at least one window is drawn if there is any."""

MAX_WINDOWS = 64

PLAIN_DEPTH, PLAIN_CHROMA = 6.0, 6.0
"""A px of at most this depth (how much darker than its surroundings) is glass or noise. Above it is dust unless it is colored,
but dust is sampled too."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OutsideWindow:
    """One sampled window: its box in working px, and how many windows it represents (at least 1)."""

    box: Box
    weight: float


def outside_windows(meta: SlideMeta, scale: float, tissue: TissueMask, survey: SlideSurvey, seed: str) -> list[OutsideWindow]:
    """Return the windows to segment, row by row; none if everything outside the mask is plain.

    Parameters
    ----------
    meta, scale
        The slide, and working px per level-0 px.
    tissue
        The mask in use: found by the survey, or given.
    survey
        Survey of the same slide.
    seed
        Text that is hashed for the draw, such as the slide's content digest.
    """
    strength = _strengths(meta, scale, tissue, survey)
    rows, columns = np.nonzero(strength)
    if not len(rows):
        return []
    width, height = working_size(meta, scale)
    whole = Box(0, 0, meta.width_px, meta.height_px)
    tissue_wpx2 = float(tissue_cells(tissue, whole, max(meta.width_px, meta.height_px)).sum()) * scale * scale
    n = int(np.clip(COST_FRAC * tissue_wpx2 / WINDOW_COST_WPX2, 1, MAX_WINDOWS))
    chance = _chances(strength[rows, columns], n)
    digest = hashlib.sha256(f"{seed} {scale!r} {CELL_WPX}".encode() + np.packbits(tissue.mask > 0).tobytes()).digest()
    start = int.from_bytes(digest[:8], "big") / 2**64
    ends = np.cumsum(chance)
    drawn = np.floor(ends - start) > np.floor(ends - chance - start)
    drawn |= chance >= 1
    return [
        OutsideWindow(Box(x, y, min(CELL_WPX, width - x), min(CELL_WPX, height - y)), 1.0 / float(p))
        for y, x, p in zip(
            (rows[drawn] * CELL_WPX).tolist(), (columns[drawn] * CELL_WPX).tolist(), chance[drawn].tolist(), strict=True
        )
    ]


def _strengths(meta: SlideMeta, scale: float, tissue: TissueMask, survey: SlideSurvey) -> FloatArray:
    """Return for each cell the sum of depths of its px outside the mask, float64 (rows, columns); 0: plain, ink, unscanned.

    Cells that touch pen marks are left out, because ink hides the tissue under it.
    """
    view, found = survey.view, survey.tissue
    width, height = working_size(meta, scale)
    out = np.zeros((-(-height // CELL_WPX), -(-width // CELL_WPX)))
    h, w = found.mask.shape
    off = ~_on(tissue, found) & ~grown(view.unscanned, 2)
    seen = off & (view.spot > PLAIN_DEPTH) & ((view.chroma > PLAIN_CHROMA) | (view.spot > 2 * PLAIN_DEPTH))
    # a thumbnail px counts for every cell that it touches
    y, x = _cells_of(h, found.px_h * scale, out.shape[0]), _cells_of(w, found.px_w * scale, out.shape[1])
    at = np.nonzero(seen)
    inked = np.nonzero(view.ink)
    for rows in y:
        for columns in x:
            np.add.at(out, (rows[at[0]], columns[at[1]]), view.spot[at] / 4)
    for rows in y:
        for columns in x:
            out[rows[inked[0]], columns[inked[1]]] = 0.0
    return out


def _cells_of(n_px: int, px_wpx: float, n_cells: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the cells of the first and the last point of each px of an axis."""
    first, last = (((np.arange(n_px) + d) * px_wpx // CELL_WPX).astype(np.int64) for d in (0.0, 1 - 1e-9))
    return first.clip(0, n_cells - 1), last.clip(0, n_cells - 1)


def _on(tissue: TissueMask, found: TissueMask) -> npt.NDArray[np.bool_]:
    """Return which px of the found mask's grid have their center on another mask."""
    if tissue is found:
        return found.mask > 0
    h, w = found.mask.shape
    y = np.floor(((np.arange(h) + 0.5) * found.px_h - tissue.y0) / tissue.px_h).astype(np.int64)
    x = np.floor(((np.arange(w) + 0.5) * found.px_w - tissue.x0) / tissue.px_w).astype(np.int64)
    rows, columns = tissue.mask.shape
    inside = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))[None, :]
    on: npt.NDArray[np.bool_] = (tissue.mask[y.clip(0, rows - 1)][:, x.clip(0, columns - 1)] > 0) & inside
    return on


def _chances(strength: FloatArray, n: int) -> FloatArray:
    """Return probabilities of at most 1, proportional to strength where below 1, that sum to ``n`` (all 1: fewer cells)."""
    if len(strength) <= n:
        return np.ones(len(strength))
    chance = n * strength / strength.sum()
    while (chance > 1).any():
        sure = chance >= 1
        rest = strength[~sure].sum()
        chance = np.where(sure, 1.0, (n - sure.sum()) * strength / rest)
    return np.minimum(chance, 1.0)

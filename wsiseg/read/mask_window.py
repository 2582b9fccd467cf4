"""Compute the tissue in a window of a slide from its tissue mask: fraction, area and px."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.read.tissue import TissueMask, grown
from wsiseg.types import Box

__all__ = ["scanned_part", "tissue_cells", "tissue_frac", "tissue_px_in", "tissue_window", "unscanned_window"]

RIM_MASK_PX = 2


def tissue_frac(tissue: TissueMask, box: Box, scale: float = 1.0) -> float:
    """Return the exact fraction of a box that is tissue (mask px that the box cuts count by area).

    Parameters
    ----------
    tissue
        The slide's mask.
    box
        In working px at ``scale`` working px per level-0 px; at the default 1.0, level-0 px. Outside the mask: no tissue.
    """
    area = box.w * box.h / (scale * scale)
    if area <= 0:
        return 0.0
    y = _cover(box.y / scale, box.y1 / scale, tissue.y0, tissue.px_h, tissue.mask.shape[0])
    x = _cover(box.x / scale, box.x1 / scale, tissue.x0, tissue.px_w, tissue.mask.shape[1])
    covered = float(y[1] @ tissue.mask[y[0]][:, x[0]].astype(np.float64) @ x[1])
    return min(1.0, covered / area)


def tissue_px_in(tissue: TissueMask, box: Box, scale: float = 1.0) -> int:
    """Return how many px of a box (working px at ``scale``) are tissue: its exact tissue area, rounded to whole px."""
    return round(tissue_frac(tissue, box, scale) * box.w * box.h)


def tissue_cells(tissue: TissueMask, region: Box, cell_px: int) -> npt.NDArray[np.float64]:
    """Return the exact tissue area of each square cell of a grid over ``region``, level-0 px^2, float64 (H, W).

    Cells begin at the region's corner; those at its right and lower end are cut there. Cells of twice the side have the sum.
    """
    ends = []
    axes = ((region.y, region.h, tissue.y0, tissue.px_h), (region.x, region.w, tissue.x0, tissue.px_w))
    for (start, length, origin, px), n in zip(axes, tissue.mask.shape, strict=True):
        borders = start + np.minimum(np.arange(-(-length // cell_px) + 1) * cell_px, length)
        ends.append(np.clip((borders - origin) / px, 0, n))
    strip = 256  # rows: a mask has up to 4096 px per side, and its sums are held in memory for one strip only
    width = tissue.mask.shape[1]
    rows = np.concatenate([_between(tissue.mask[:, k : k + strip], ends[0]) for k in range(0, width, strip)], axis=1)
    cells = np.concatenate([_between(rows[k : k + strip].T, ends[1]).T for k in range(0, len(rows), strip)])
    return cells * (tissue.px_w * tissue.px_h)


def _between(values: npt.NDArray[Any], at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Integrate ``values`` (h, w) over rows between successive positions ``at`` (px): float64 (len(at) - 1, w)."""
    total = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0, dtype=np.float64)])
    whole = np.minimum(at.astype(np.int64), len(values) - 1)
    integral = total[whole] + (at - whole)[:, None] * values[whole]  # linear between whole px
    return np.diff(integral, axis=0)


def tissue_window(tissue: TissueMask, box: Box, scale: float = 1.0) -> npt.NDArray[np.bool_]:
    """Return bool (box.h, box.w): whether the center of each px of a box (working px at ``scale``) is on tissue."""
    y = np.floor(((np.arange(box.y, box.y1) + 0.5) / scale - tissue.y0) / tissue.px_h).astype(np.int64)
    x = np.floor(((np.arange(box.x, box.x1) + 0.5) / scale - tissue.x0) / tissue.px_w).astype(np.int64)
    h, w = tissue.mask.shape
    if tissue.mask.size == 0:
        return np.zeros((box.h, box.w), np.bool_)
    inside_y, inside_x = (y >= 0) & (y < h), (x >= 0) & (x < w)
    rows = tissue.mask[np.clip(y, 0, h - 1)][:, np.clip(x, 0, w - 1)] > 0
    window: npt.NDArray[np.bool_] = rows & inside_y[:, None] & inside_x[None, :]
    return window


def unscanned_window(tissue: TissueMask, box: Box, scale: float = 1.0) -> npt.NDArray[np.bool_] | None:
    """Return bool (box.h, box.w): True if the px of a box (working px), when plain black, was not scanned; ``None``: all False.

    True outside the tissue, and up to ``RIM_MASK_PX`` into it: mask px at its rim are half black.
    """
    scanned = scanned_part(tissue, box, scale)
    return None if scanned is None else ~tissue_window(scanned, box, scale)


def scanned_part(tissue: TissueMask, box: Box, scale: float = 1.0) -> TissueMask | None:
    """Return the mask around a box without its rim, where plain black px were scanned; ``None``: everywhere."""
    if not tissue.has_unscanned:
        return None
    (y, near_y), (x, near_x) = (
        _near(start, size, origin, px, n)
        for start, size, origin, px, n in zip(
            (box.y / scale, box.x / scale), (box.h / scale, box.w / scale), (tissue.y0, tissue.x0), (tissue.px_h, tissue.px_w),
            tissue.mask.shape, strict=True,
        )
    )  # fmt: skip
    inner = ~grown(tissue.mask[y, x] == 0, RIM_MASK_PX)
    return TissueMask(inner.astype(np.uint8), tissue.px_w, tissue.px_h, near_x, near_y)


def _near(start: float, size: float, origin: float, px: float, n: int) -> tuple[slice, float]:
    """Return the mask px within ``RIM_MASK_PX`` of an interval of level-0 px, and where they begin (level-0 px)."""
    first = min(max(math.floor((start - origin) / px) - RIM_MASK_PX, 0), n)
    last = min(max(math.ceil((start + size - origin) / px) + RIM_MASK_PX, first), n)
    return slice(first, last), origin + px * first


def _cover(lo: float, hi: float, origin: float, px: float, n: int) -> tuple[slice, npt.NDArray[np.float64]]:
    """Return the mask px that an interval of level-0 px touches, and the length in each (level-0 px)."""
    first = min(max(math.floor((lo - origin) / px), 0), n)
    last = min(max(math.ceil((hi - origin) / px), first), n)
    edges = origin + px * np.arange(first, last + 1)
    return slice(first, last), np.maximum(np.minimum(edges[1:], hi) - np.maximum(edges[:-1], lo), 0.0)

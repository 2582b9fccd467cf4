"""Compute the exact area of a geometry that is tissue, from its area in each px of a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.read import TissueMask

__all__ = ["tissue_area"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

STRIP_ROWS = 512
"""Number of rows of the mask that are processed at a time."""


def tissue_area(geometry: Any, tissue: TissueMask) -> float:
    """Return the area of a valid geometry on tissue, level-0 px^2, exactly.

    Every edge is cut at the borders of mask px. A piece adds its trapezium to its px and its height to all px to the right, as
    in rasterizers of fonts. Outside the mask there is no tissue.
    """
    h, w = tissue.mask.shape
    u0, v0, u1, v1 = _edges(geometry, tissue)
    keep = (np.maximum(v0, v1) > 0) & (np.minimum(v0, v1) < h) & (v0 != v1)
    pieces = _pieces(u0[keep], v0[keep], u1[keep], v1[keep], (h, w))
    order = np.argsort(pieces[0], kind="stable")
    row, column = pieces[0][order], pieces[1][order]
    cover, right = pieces[2][order], pieces[3][order]
    total = 0.0
    for first in range(0, h, STRIP_ROWS):
        a, b = np.searchsorted(row, [first, first + STRIP_ROWS])
        if a == b:
            continue
        strip = tissue.mask[first : first + STRIP_ROWS] > 0
        at = (row[a:b] - first) * (w + 2) + column[a:b]
        size = len(strip) * (w + 2)
        sums = np.bincount(at, cover[a:b] * right[a:b], size) + np.bincount(at + 1, cover[a:b] * (1 - right[a:b]), size)
        total += float((sums.reshape(len(strip), w + 2).cumsum(axis=1)[:, :w] * strip).sum())
    return abs(total) * tissue.px_w * tissue.px_h


def _edges(geometry: Any, tissue: TissueMask) -> tuple[Float, Float, Float, Float]:
    """Return the edges of all rings in mask px, with outer rings and holes in opposite directions."""
    import shapely

    starts, ends = [np.empty((0, 2))], [np.empty((0, 2))]
    for polygon in shapely.get_parts(geometry):
        for k, ring in enumerate((polygon.exterior, *polygon.interiors)):
            xy = shapely.get_coordinates(ring)
            if bool(shapely.is_ccw(ring)) == bool(k):
                xy = xy[::-1]
            starts.append(xy[:-1])
            ends.append(xy[1:])
    corner, px = np.array([tissue.x0, tissue.y0]), np.array([tissue.px_w, tissue.px_h])
    a, b = ((np.concatenate(p) - corner) / px for p in (starts, ends))
    return a[:, 0], a[:, 1], b[:, 0], b[:, 1]


def _pieces(u0: Float, v0: Float, u1: Float, v1: Float, shape: tuple[int, int]) -> tuple[Int, Int, Float, Float]:
    """Cut edges at the grid lines; return row, column, height, and the share of the px to the right of each piece."""
    h, w = shape
    n = len(u0)
    edge, at = [np.arange(n), np.arange(n)], [np.zeros(n), np.ones(n)]
    for a, b, last in ((u0, u1, w), (v0, v1, h)):
        low = np.clip(np.ceil(np.minimum(a, b)), 0, last + 1).astype(np.int64)
        high = np.clip(np.floor(np.maximum(a, b)), -1, last).astype(np.int64)
        count = np.maximum(high - low + 1, 0)
        owner = np.repeat(np.arange(n), count)
        line = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count) + low[owner]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (line - a[owner]) / (b - a)[owner]
        good = (t > 0) & (t < 1)
        edge.append(owner[good])
        at.append(t[good])
    owner, t = np.concatenate(edge), np.concatenate(at)
    order = np.lexsort((t, owner))
    owner, t = owner[order], t[order]
    same = owner[1:] == owner[:-1]
    owner, t0, t1 = owner[1:][same], t[:-1][same], t[1:][same]
    u, v = ((a[owner] + (t0 + t1) / 2 * (b - a)[owner]) for a, b in ((u0, u1), (v0, v1)))
    cover = (t1 - t0) * (v1 - v0)[owner]
    inside = (v > 0) & (v < h)
    u, v, cover = np.clip(u[inside], 0, w), v[inside], cover[inside]
    column = np.minimum(np.floor(u), w).astype(np.int64)
    return np.floor(v).astype(np.int64), column, cover, 1 - (u - column)

"""Compiled assignment of points to nuclei: point in polygon (border included), and nearest outline, on a grid of cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wsiseg.backend._cpu_jit import jit

__all__ = ["Index", "assign_points", "cell_counts", "fill_cells"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

OUTSIDE, INSIDE, UNCERTAIN = 0, 1, 2
ORIENTATION_BOUND = (3.0 + 16.0 * 2.0**-53) * 2.0**-53
"""Bound of the relative error of a 2 x 2 determinant of differences in float64: J. R. Shewchuk, "Adaptive precision
floating-point arithmetic and fast robust geometric predicates", Discrete and Computational Geometry 18, 1997."""


class Index(NamedTuple):
    """Outlines of a slide's nuclei, and a grid of cells over them; level-0 px.

    Attributes
    ----------
    base, step : (N, 2), (V, 2)
        Vertex k of nucleus i is exactly ``base[i] + step[k]``.
    offset : (N + 1,)
        Vertices of nucleus i are ``step[offset[i]:offset[i + 1]]``.
    box : (N, 4)
        xmin, ymin, xmax, ymax of each nucleus.
    rank : (N,)
        Of several nuclei that contain a point, or at equal distance, the one of the lowest rank is chosen.
    grid
        x and y of the grid's top-left corner, and the side of a cell.
    shape
        Number of rows and columns of cells.
    start, member
        Nuclei whose box intersects cell c are ``member[start[c]:start[c + 1]]``.
    """

    base: Float
    step: npt.NDArray[np.float32] | Float
    offset: Int
    box: Float
    rank: Int
    grid: Float
    shape: Int
    start: Int
    member: npt.NDArray[np.int32]


@jit
def cell_counts(box: Float, grid: Float, shape: Int) -> Int:
    """Return the number of boxes that intersect each cell, int64 (cells + 1,), shifted by one for a cumulative sum."""
    count = np.zeros(shape[0] * shape[1] + 1, np.int64)
    for i in range(len(box)):
        x0, x1 = int((box[i, 0] - grid[0]) / grid[2]), int((box[i, 2] - grid[0]) / grid[2])
        y0, y1 = int((box[i, 1] - grid[1]) / grid[2]), int((box[i, 3] - grid[1]) / grid[2])
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                count[y * shape[1] + x + 1] += 1
    return count


@jit
def fill_cells(box: Float, grid: Float, shape: Int, start: Int, member: npt.NDArray[np.int32]) -> None:
    """Fill ``member`` with the boxes that intersect each cell."""
    at = start[:-1].copy()
    for i in range(len(box)):
        x0, x1 = int((box[i, 0] - grid[0]) / grid[2]), int((box[i, 2] - grid[0]) / grid[2])
        y0, y1 = int((box[i, 1] - grid[1]) / grid[2]), int((box[i, 3] - grid[1]) / grid[2])
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                cell = y * shape[1] + x
                member[at[cell]] = i
                at[cell] += 1


@jit
def _place(index: Index, i: int, x: float, y: float) -> int:
    """Return ``INSIDE`` for a point in a nucleus or on its border, else ``OUTSIDE``; ``UNCERTAIN`` if rounding decides."""
    bx, by = index.base[i, 0], index.base[i, 1]
    first, last = index.offset[i], index.offset[i + 1]
    x1, y1 = bx + index.step[first, 0], by + index.step[first, 1]
    odd = False
    for k in range(first + 1, last):
        x2, y2 = bx + index.step[k, 0], by + index.step[k, 1]
        if y1 == y2:
            if y == y1 and min(x1, x2) <= x <= max(x1, x2):
                return INSIDE
        elif min(y1, y2) <= y <= max(y1, y2):
            if x1 == x2:
                if x == x1:
                    return INSIDE
                crosses = x < x1
            elif x < min(x1, x2):
                crosses = True
            elif x > max(x1, x2):
                crosses = False
            else:
                left, right = (x1 - x) * (y2 - y), (y1 - y) * (x2 - x)
                turn = left - right
                if abs(turn) <= ORIENTATION_BOUND * (abs(left) + abs(right)):
                    return UNCERTAIN
                crosses = (turn > 0) == (y2 > y1)
            if crosses and (y1 > y) != (y2 > y):
                odd = not odd
        x1, y1 = x2, y2
    return INSIDE if odd else OUTSIDE


@jit
def _squared_distance(index: Index, i: int, x: float, y: float) -> float:
    """Return the squared distance of a point to the outline of a nucleus."""
    bx, by = index.base[i, 0] - x, index.base[i, 1] - y
    best = np.inf
    first, last = index.offset[i], index.offset[i + 1]
    x1, y1 = bx + index.step[first, 0], by + index.step[first, 1]
    for k in range(first + 1, last):
        x2, y2 = bx + index.step[k, 0], by + index.step[k, 1]
        dx, dy = x2 - x1, y2 - y1
        if dx == 0.0:  # along a pixel edge, as nearly all edges are: no division needed
            px, py = x1, min(max(0.0, min(y1, y2)), max(y1, y2))
        elif dy == 0.0:
            px, py = min(max(0.0, min(x1, x2)), max(x1, x2)), y1
        else:
            t = min(1.0, max(0.0, -(x1 * dx + y1 * dy) / (dx * dx + dy * dy)))
            px, py = x1 + t * dx, y1 + t * dy
        best = min(best, px * px + py * py)
        x1, y1 = x2, y2
    return best


@jit
def _nearest(index: Index, x: float, y: float, reach: float) -> tuple[int, float]:
    """Return the nucleus with the nearest outline within ``reach`` (-1: none) and the squared distance."""
    ny, nx = index.shape[0], index.shape[1]
    side = index.grid[2]
    x0 = max(0, int(np.floor((x - reach - index.grid[0]) / side)))
    y0 = max(0, int(np.floor((y - reach - index.grid[1]) / side)))
    x1 = min(nx - 1, int(np.floor((x + reach - index.grid[0]) / side)))
    y1 = min(ny - 1, int(np.floor((y + reach - index.grid[1]) / side)))
    found, best = -1, reach * reach
    for cy in range(y0, y1 + 1):
        for cx in range(x0, x1 + 1):
            cell = cy * nx + cx
            for k in range(index.start[cell], index.start[cell + 1]):
                i = index.member[k]
                # a nucleus may be in several cells; it is tested only in the first of them in the window
                if cx != max(x0, int((index.box[i, 0] - index.grid[0]) / side)):
                    continue
                if cy != max(y0, int((index.box[i, 1] - index.grid[1]) / side)):
                    continue
                dx = max(index.box[i, 0] - x, 0.0, x - index.box[i, 2])
                dy = max(index.box[i, 1] - y, 0.0, y - index.box[i, 3])
                if dx * dx + dy * dy > best:
                    continue
                d = _squared_distance(index, i, x, y)
                if d < best or (d == best and (found < 0 or index.rank[i] < index.rank[found])):
                    found, best = i, d
    return found, best


@jit
def assign_points(xy: Float, index: Index, reach: float, row: npt.NDArray[np.int32], distance: Float) -> int:
    """Fill ``row`` (nucleus of each point; -1: none, -2: needs exact arithmetic) and ``distance`` (px; NaN: none).

    Points with ``row`` -3 on entry are known to be in no nucleus; only the nearest one is searched. Returns the number of -2.
    """
    undecided = 0
    for p in range(len(xy)):
        x, y = xy[p, 0], xy[p, 1]
        known = row[p] == -3
        row[p], distance[p] = -1, np.nan
        if not (np.isfinite(x) and np.isfinite(y)):
            continue
        cx, cy = np.floor((x - index.grid[0]) / index.grid[2]), np.floor((y - index.grid[1]) / index.grid[2])
        found, unsure = -1, False
        if not known and 0 <= cx < index.shape[1] and 0 <= cy < index.shape[0]:
            cell = int(cy) * index.shape[1] + int(cx)
            for k in range(index.start[cell], index.start[cell + 1]):
                i = index.member[k]
                if x < index.box[i, 0] or x > index.box[i, 2] or y < index.box[i, 1] or y > index.box[i, 3]:
                    continue
                if found >= 0 and index.rank[found] < index.rank[i]:
                    continue
                place = _place(index, i, x, y)
                if place == INSIDE:
                    found = i
                unsure = unsure or place == UNCERTAIN
        if unsure:
            row[p] = -2
            undecided += 1
        elif found >= 0:
            row[p], distance[p] = found, 0.0
        elif reach > 0:
            near, squared = _nearest(index, x, y, reach)
            if near >= 0:
                row[p], distance[p] = near, np.sqrt(squared)
    return undecided

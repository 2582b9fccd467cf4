"""CPU kernels: sums of optical density per label, areas of rings and of their convex hulls."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend._cpu_jit import jit

__all__ = ["add_densities", "add_ring_densities", "count_near", "ring_and_hull_areas"]

Int = Any  # an integer whose width numba chooses
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

CHUNK = 32
"""Pixels tested together for background."""


@jit
def add_densities(sums: I64, rows: I64, labels: I32, rgb: U8, ox: Int, oy: Int, table: I32) -> None:
    """Add each labelled pixel's densities and their squares to row ``rows[label - 1]``; label (0, 0) is at rgb (oy, ox)."""
    H, W = labels.shape
    for y in range(H):
        row = labels[y]
        colors = rgb[y + oy]
        x = 0
        while x < W:
            k = row[x]
            if k == 0:
                if x + CHUNK <= W:
                    bits = np.int32(0)
                    for q in range(x, x + CHUNK):
                        bits |= row[q]
                    if bits == 0:
                        x += CHUNK
                        continue
                x += 1
                continue
            begin = x
            first, first_squared, second, second_squared = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
            while x < W and row[x] == k:
                r, g, b = colors[x + ox, 0], colors[x + ox, 1], colors[x + ox, 2]
                a = np.int64(table[0, 0, r] + table[0, 1, g] + table[0, 2, b])
                c = np.int64(table[1, 0, r] + table[1, 1, g] + table[1, 2, b])
                first += a
                first_squared += a * a
                second += c
                second_squared += c * c
                x += 1
            own = sums[rows[k - 1]]
            own[0] += x - begin
            own[1] += first
            own[2] += first_squared
            own[3] += second
            own[4] += second_squared


@jit
def sort_points(x: F64, y: F64, n: Int) -> None:
    """Sort the first ``n`` points by x, then y (Shell's sort: a ring has few points)."""
    gap = 1
    while gap < n // 3:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, n):
            px, py = x[i], y[i]
            j = i
            while j >= gap and (x[j - gap] > px or (x[j - gap] == px and y[j - gap] > py)):
                x[j], y[j] = x[j - gap], y[j - gap]
                j -= gap
            x[j], y[j] = px, py
        gap //= 3


@jit
def hull_area(x: F64, y: F64, n: Int, hx: F64, hy: F64) -> float:
    """Return the area of the convex hull of ``n`` sorted points (Andrew's monotone chain); ``hx``, ``hy`` are scratch."""
    m = 0
    for turn in range(2):
        base = m
        for step in range(n):
            i = step if turn == 0 else n - 1 - step
            while m - base >= 2 and (
                (hx[m - 1] - hx[m - 2]) * (y[i] - hy[m - 2]) - (hy[m - 1] - hy[m - 2]) * (x[i] - hx[m - 2]) <= 0
            ):
                m -= 1
            hx[m], hy[m] = x[i], y[i]
            m += 1
        m -= 1  # the last point begins the other chain
    twice = 0.0
    for k in range(1, m - 1):
        twice += (hx[k] - hx[0]) * (hy[k + 1] - hy[0]) - (hx[k + 1] - hx[0]) * (hy[k] - hy[0])
    return twice / 2


@jit
def ring_and_hull_areas(xy: F64, offsets: I64, areas: F64, hulls: F64) -> None:
    """Write the area of each closed ring and of its convex hull."""
    most = 0
    for k in range(offsets.size - 1):
        most = max(most, offsets[k + 1] - offsets[k])
    x, y = np.empty(most), np.empty(most)
    hx, hy = np.empty(2 * most + 1), np.empty(2 * most + 1)
    for k in range(offsets.size - 1):
        begin, end = offsets[k], offsets[k + 1]
        n = end - begin
        x0, y0 = xy[begin, 0], xy[begin, 1]  # all relative to the first vertex: products stay small
        twice = 0.0
        for v in range(n):
            x[v], y[v] = xy[begin + v, 0] - x0, xy[begin + v, 1] - y0
            if v:
                twice += x[v - 1] * y[v] - x[v] * y[v - 1]
        areas[k] = abs(twice) / 2
        sort_points(x, y, n)
        hulls[k] = hull_area(x, y, n, hx, hy)


@jit
def add_ring_densities(
    sums: I64, rows: I64, xy: I32, offsets: I64, rank: I64, rgb: U8, ox: Int, oy: Int, w: Int, h: Int, table: I32
) -> None:
    """Add the densities of the pixels that rings on pixel edges enclose; a pixel of several rings is that of the least rank.

    The window has ``w`` x ``h`` px and begins at pixel (0, 0) of the frame of ``xy``, which is pixel (oy, ox) of ``rgb``.
    """
    owner = np.zeros((h, w), np.int32)
    odd = np.zeros(1 << 14, np.uint8)
    for k in range(offsets.size - 1):  # neighbors follow each other: their pixels stay in the cache
        begin, end = offsets[k], offsets[k + 1]
        x0, x1, y0, y1 = w, 0, h, 0
        for v in range(begin, end):
            x0, x1 = min(x0, xy[v, 0]), max(x1, xy[v, 0])
            y0, y1 = min(y0, xy[v, 1]), max(y1, xy[v, 1])
        x0, x1, y0, y1 = max(x0, 0), min(x1, w), max(y0, 0), min(y1, h)
        if x0 >= x1 or y0 >= y1:
            continue
        pitch = x1 - x0 + 1
        if pitch * (y1 - y0) > odd.size:
            odd = np.zeros(2 * pitch * (y1 - y0), np.uint8)
        for v in range(begin, end - 1):
            if xy[v, 0] == xy[v + 1, 0]:
                column = min(max(xy[v, 0], x0), x1) - x0
                low, high = min(xy[v, 1], xy[v + 1, 1]), max(xy[v, 1], xy[v + 1, 1])
                for y in range(max(low, y0), min(high, y1)):
                    odd[(y - y0) * pitch + column] ^= 1
        n, first, first_squared, second, second_squared = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for y in range(y0, y1):
            mark = (y - y0) * pitch
            inside = np.uint8(0)
            for x in range(x0, x1):
                inside ^= odd[mark]
                odd[mark] = 0
                mark += 1
                if inside:
                    other = owner[y, x] - 1
                    if other >= 0 and rank[other] < rank[k]:
                        continue
                    owner[y, x] = k + 1
                    r, g, b = rgb[y + oy, x + ox, 0], rgb[y + oy, x + ox, 1], rgb[y + oy, x + ox, 2]
                    p = np.int64(table[0, 0, r] + table[0, 1, g] + table[0, 2, b])
                    q = np.int64(table[1, 0, r] + table[1, 1, g] + table[1, 2, b])
                    n += 1
                    first += p
                    first_squared += p * p
                    second += q
                    second_squared += q * q
                    if other >= 0:
                        loser = sums[rows[other]]
                        loser[0] -= 1
                        loser[1] -= p
                        loser[2] -= p * p
                        loser[3] -= q
                        loser[4] -= q * q
            odd[mark] = 0
        own = sums[rows[k]]
        own[0] += n
        own[1] += first
        own[2] += first_squared
        own[3] += second
        own[4] += second_squared


@jit
def count_near(x: F64, y: F64, first: I64, columns: Int, lines: Int, radius: float, counts: I64, nearest: F64) -> None:
    """Count for each point the others within ``radius``, and find the smallest squared distance among these (else inf).

    Points are sorted by cell of a grid of ``columns`` x ``lines`` squares larger than that; cell k has
    ``first[k]:first[k + 1]``.
    """
    limit = radius * radius
    for cy in range(lines):
        for cx in range(columns):
            cell = cy * columns + cx
            for i in range(first[cell], first[cell + 1]):
                n, best = np.int64(0), np.inf
                for line in range(max(cy - 1, 0), min(cy + 2, lines)):
                    # cells of a line follow each other, so three of them are one stretch of points
                    begin, end = first[line * columns + max(cx - 1, 0)], first[line * columns + min(cx + 2, columns)]
                    for j in range(begin, end):
                        dx, dy = x[j] - x[i], y[j] - y[i]
                        squared = dx * dx + dy * dy
                        if squared <= limit and j != i:
                            n += 1
                            best = min(best, squared)
                counts[i] = n
                nearest[i] = best

"""CPU kernels: sums of optical density per label, areas of rings and of their convex hulls."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend._cpu_jit import jit

__all__ = ["add_densities", "ring_and_hull_areas"]

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

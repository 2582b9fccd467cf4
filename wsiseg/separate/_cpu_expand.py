"""CPU kernels of ``expand``: the nearest label of every pixel, and removal of parts not connected with their nucleus."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend._cpu_jit import jit

__all__ = ["keep_joined", "nearest"]

I32 = npt.NDArray[np.int32]


@jit
def nearest(labels: I32, reach_squared: Any) -> I32:
    """Return the label of the nearest labelled pixel at a squared distance of ``reach_squared`` or less; ties: the smallest."""
    H, W = labels.shape
    far = np.int32(1 << 29)
    away = np.full((H, W), -1, np.int32)  # rows to the nearest label in the column, -1: none
    which = np.zeros((H, W), np.int32)
    for y in range(H):
        for x in range(W):
            if labels[y, x] != 0:
                away[y, x], which[y, x] = 0, labels[y, x]
            elif y > 0 and away[y - 1, x] >= 0:
                away[y, x], which[y, x] = away[y - 1, x] + 1, which[y - 1, x]
    below = np.full(W, -1, np.int64)
    label = np.zeros(W, np.int32)
    out = np.zeros((H, W), np.int32)
    reach = np.int32(reach_squared)
    sides = np.int64(np.sqrt(reach)) + 2
    # one row with a margin, so that no column is outside it: squared rows to the nearest label of the column, and that label
    squared = np.full(W + 2 * sides, far, np.int32)
    owner = np.zeros(W + 2 * sides, np.int32)
    first = np.zeros(W, np.int32)  # columns to the nearest column that has a label near
    for y in range(H - 1, -1, -1):
        some = False
        for x in range(W):
            if labels[y, x] != 0:
                below[x], label[x] = 0, labels[y, x]
            elif below[x] >= 0:
                below[x] += 1
                if away[y, x] < 0 or below[x] < away[y, x] or (below[x] == away[y, x] and label[x] < which[y, x]):
                    away[y, x], which[y, x] = below[x], label[x]
            rows = np.int64(away[y, x])
            near = rows >= 0 and rows * rows <= reach
            squared[sides + x] = rows * rows if near else far
            owner[sides + x] = which[y, x]
            if near:
                some = True
        if not some:
            continue
        gap = np.int32(sides)
        for x in range(W):
            gap = np.int32(0) if squared[sides + x] < far else min(gap + np.int32(1), np.int32(sides))
            first[x] = gap
        gap = np.int32(sides)
        for x in range(W - 1, -1, -1):
            gap = np.int32(0) if squared[sides + x] < far else min(gap + np.int32(1), np.int32(sides))
            first[x] = min(first[x], gap)
        for x in range(W):
            at = sides + x
            best, found = squared[at], owner[at]
            side = max(first[x], np.int32(1))
            while side * side <= min(best, reach):
                for column in (at - side, at + side):
                    d = side * side + squared[column]
                    if d < best or (d == best and owner[column] < found):
                        best, found = d, owner[column]
                side += np.int32(1)
            if best <= reach:
                out[y, x] = found
    return out


@jit
def keep_joined(cells: I32, nuclei: I32, n: Any) -> None:
    """Erase all 4-connected parts of a cell except the one with most pixels of its nucleus; ties: the first in raster order."""
    H, W = cells.shape
    part = np.zeros(H * W, np.int32)
    stack = np.empty(H * W, np.int64)
    best = np.zeros(n + 1, np.int64)
    chosen = np.zeros(n + 1, np.int32)
    flat, seeds = cells.ravel(), nuclei.ravel()
    count = np.int32(0)
    for start in range(H * W):
        if flat[start] == 0 or part[start] != 0:
            continue
        count += 1
        value = flat[start]
        stack[0] = start
        size = 1
        part[start] = count
        own = np.int64(0)
        while size > 0:
            size -= 1
            p = stack[size]
            own += seeds[p] == value
            x = p % W
            for k in range(4):
                if (k == 0 and x == 0) or (k == 1 and x == W - 1):
                    continue
                q = p - 1 if k == 0 else p + 1 if k == 1 else p - W if k == 2 else p + W
                if 0 <= q < H * W and flat[q] == value and part[q] == 0:
                    part[q] = count
                    stack[size] = q
                    size += 1
        if own > best[value]:
            best[value], chosen[value] = own, count
    for p in range(H * W):
        if flat[p] != 0 and part[p] != chosen[flat[p]]:
            flat[p] = 0

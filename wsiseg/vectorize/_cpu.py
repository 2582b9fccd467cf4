"""CPU kernels: label sums, ring tracing with exact moments, ring painting."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend._cpu_jit import jit
from wsiseg.types import Box
from wsiseg.vectorize.traced import Traced

__all__ = ["core_sums", "paint_rings", "scan_labels", "trace_owned", "trace_rings"]

Int = Any  # an integer whose width numba chooses
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

CHUNK = 32
"""Number of pixels that are tested together for background."""


@jit
def scan_labels(labels: I32, material: U8, n: Int) -> tuple[I64, I64, I64]:
    """Return per label 0..n its first pixel in raster order (-1: none), its pixels and its material sum (0: nothing)."""
    H, W = labels.shape
    first = np.full(n + 1, -1, np.int64)
    area = np.zeros(n + 1, np.int64)
    total = np.zeros(n + 1, np.int64)
    for y in range(H):
        row = labels[y]
        mat = material[y]
        x = 0
        while x < W:
            if row[x] == 0:
                if x + CHUNK <= W:
                    bits = np.int32(0)
                    for q in range(x, x + CHUNK):
                        bits |= row[q]
                    if bits == 0:
                        x += CHUNK
                        continue
                while x < W and row[x] == 0:
                    x += 1
                continue
            k = row[x]
            begin = x
            part = np.int64(0)
            while x < W and row[x] == k:
                part += mat[x]
                x += 1
            if first[k] < 0:
                first[k] = y * W + begin
            area[k] += x - begin
            total[k] += part
    return first, area, total


@jit
def trace_ring(labels: I32, k: Int, y0: Int, x0: Int, xy: I32, n: Int, ox: Int, oy: Int, sums: I64) -> tuple[Any, Int]:
    """Append the ring of label ``k`` (first pixel y0, x0) to the ``n`` rows of ``xy``, write its sums; return ``xy``, new n."""
    H, W = labels.shape
    y, x, heading = y0, x0, 0  # east, south, west, north
    begin = n
    previous = -1
    edges = 0
    si, sj, sii, sij, sjj, area = 0, 0, 0, 0, 0, 0
    while True:
        if heading != previous:
            if n + 2 > xy.shape[0]:
                wider = np.empty((2 * xy.shape[0], 2), np.int32)
                wider[:n] = xy[:n]
                xy = wider
            xy[n, 0] = x + ox
            xy[n, 1] = y + oy
            n += 1
            previous = heading
        edges += 1
        if heading == 0:
            x += 1
        elif heading == 2:
            x -= 1
        else:
            # a vertical edge adds (south) or takes away (north) its row's pixels from column x0 up to the edge
            j = y - y0 if heading == 1 else y - 1 - y0
            c = x - x0
            c1 = c * (c - 1) // 2
            c2 = c1 * (2 * c - 1) // 3
            if heading == 3:
                c, c1, c2 = -c, -c1, -c2
                y -= 1
            else:
                y += 1
            area += c
            si += c1
            sii += c2
            sj += j * c
            sij += j * c1
            sjj += j * j * c
        right_y, right_x = y - (heading >= 2), x - (heading == 1 or heading == 2)
        left_y, left_x = y - (heading == 0 or heading == 3), x - (heading >= 2)
        if 0 <= left_y < H and 0 <= left_x < W and labels[left_y, left_x] == k:
            heading = (heading + 3) & 3
        elif not (0 <= right_y < H and 0 <= right_x < W and labels[right_y, right_x] == k):
            heading = (heading + 1) & 3
        if y == y0 and x == x0 and heading == 0:
            break
    sums[0], sums[1], sums[2], sums[3] = area, si, sj, sii
    sums[4], sums[5], sums[6], sums[7] = sij, sjj, edges, n - begin
    xy[n] = xy[begin]
    return xy, n + 1


@jit
def trace_rings(labels: I32, first: I64, owned: I64, ox: Int, oy: Int) -> tuple[I32, I64, I64]:
    """Return vertices (V, 2) shifted by (ox, oy), ring offsets and ring sums (N, 8) of the labels ``owned + 1``."""
    W = labels.shape[1]
    xy = np.empty((max(1 << 10, 64 * owned.size), 2), np.int32)
    offsets = np.zeros(owned.size + 1, np.int64)
    sums = np.zeros((owned.size, 8), np.int64)
    n = 0
    for m in range(owned.size):
        k = owned[m] + 1
        xy, n = trace_ring(labels, k, first[k] // W, first[k] % W, xy, n, ox, oy, sums[m])
        offsets[m + 1] = n
    return xy[:n].copy(), offsets, sums


def trace_owned(labels: I32, anchors: I32, center: U8, material: U8, read: Box, core: Box) -> Traced:
    """Return rings and sums of the labels whose marker is in ``core``."""
    marker_xy = anchors.astype(np.int64) + np.array([read.x, read.y], np.int64)
    inside = (marker_xy >= (core.x, core.y)) & (marker_xy < (core.x1, core.y1))
    owned = np.flatnonzero(inside.all(axis=1))
    first, label_px, total = scan_labels(labels, material, len(anchors))
    missing = np.flatnonzero(first[1:] < 0)
    if len(missing):
        owned = owned[:0]
    xy, offsets, ring_sums = trace_rings(labels, first, owned, read.x, read.y)
    sums = np.column_stack([ring_sums, label_px[owned + 1], total[owned + 1]])
    of_owned = anchors[owned].astype(np.int64)
    at_marker = center[of_owned[:, 1], of_owned[:, 0]]
    return Traced(xy, offsets, sums, first[owned + 1], of_owned, at_marker, int(missing[0]) + 1 if len(missing) else 0)


@jit
def core_sums(center: U8, material: U8, labels: I32) -> tuple[Int, Int, Int]:
    """Return the sums of both maps and the number of labelled pixels."""
    total_center, total_material, labelled = np.int64(0), np.int64(0), np.int64(0)
    for y in range(labels.shape[0]):
        a, b, c = np.uint32(0), np.uint32(0), np.uint32(0)  # a row fits: 255 * 2^24
        row_a, row_b, row_l = center[y], material[y], labels[y]
        for x in range(row_l.size):
            a += np.uint32(row_a[x])
            b += np.uint32(row_b[x])
            c += np.uint32(row_l[x] != 0)
        total_center += a
        total_material += b
        labelled += c
    return total_center, total_material, labelled


@jit
def paint_ring(labels: I32, ring: I32, value: Int, ox: Int, oy: Int, odd: U8) -> Any:
    """Fill one ring with ``value``; ``odd`` is a scratch array of zeros, returned (possibly enlarged) as zeros."""
    H, W = labels.shape
    x0, x1 = max(ring[:, 0].min() - ox, 0), min(ring[:, 0].max() - ox, W)
    y0, y1 = max(ring[:, 1].min() - oy, 0), min(ring[:, 1].max() - oy, H)
    if x0 >= x1 or y0 >= y1:
        return odd
    pitch = x1 - x0 + 1
    if pitch * (y1 - y0) > odd.size:
        odd = np.zeros(2 * pitch * (y1 - y0), np.uint8)
    for v in range(ring.shape[0] - 1):
        if ring[v, 0] == ring[v + 1, 0]:
            column = min(max(ring[v, 0] - ox, x0), x1) - x0
            a, b = ring[v, 1] - oy, ring[v + 1, 1] - oy
            for y in range(max(min(a, b), y0), min(max(a, b), y1)):
                odd[(y - y0) * pitch + column] ^= 1
    for y in range(y0, y1):
        marks = odd[(y - y0) * pitch : (y - y0 + 1) * pitch]
        row = labels[y]
        inside = np.uint8(0)
        for c in range(pitch - 1):
            inside ^= marks[c]
            if inside:
                row[x0 + c] = value
        marks[:] = 0
    return odd


@jit
def paint_rings(labels: I32, xy: I32, offsets: I64, order: I64, ox: Int, oy: Int) -> None:
    """Fill rings in ``order`` with their number + 1."""
    odd = np.zeros(1 << 14, np.uint8)
    for k in order:
        odd = paint_ring(labels, xy[offsets[k] : offsets[k + 1]], k + 1, ox, oy, odd)

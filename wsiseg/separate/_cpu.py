"""CPU kernels, first half: smoothing, mask runs, components, markers (steps 1 to 6) and the order of the steps.

The mask is stored as horizontal runs, a few hundred thousand numbers instead of millions of pixels: components are joined run
by run, and components with one marker are painted run by run without a flood.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend._cpu_jit import jit
from wsiseg.separate import _cpu_flood as flood
from wsiseg.separate.params import MERGE_REACH_PX, SeparateParams, distance_table

__all__ = ["find_markers", "separate"]

Int = Any  # an integer whose width numba chooses
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]


@jit
def smooth_center(src: U8, out: U16) -> None:
    """Write the 5x5 binomial sum of ``src`` (256 times its mean) to ``out``; border pixels are repeated."""
    H, W = src.shape
    line = np.empty(W + 4, np.uint16)
    for y in range(H):
        a, b, c = src[max(y - 2, 0)], src[max(y - 1, 0)], src[y]
        d, e = src[min(y + 1, H - 1)], src[min(y + 2, H - 1)]
        for x in range(W):
            line[x + 2] = np.uint16(a[x] + e[x] + 4 * (b[x] + d[x]) + 6 * c[x])
        line[:2] = line[2]
        line[W + 2 :] = line[W + 1]
        row = out[y]
        for x in range(W):
            row[x] = np.uint16(line[x] + line[x + 4] + 4 * (line[x + 1] + line[x + 3]) + 6 * line[x + 2])


@jit
def smooth_material(src: U8, out: U16) -> None:
    """Write the 3x3 binomial sum of ``src`` (16 times its mean) to ``out``; border pixels are repeated."""
    H, W = src.shape
    line = np.empty(W + 2, np.uint16)
    for y in range(H):
        a, b, c = src[max(y - 1, 0)], src[y], src[min(y + 1, H - 1)]
        for x in range(W):
            line[x + 1] = np.uint16(a[x] + c[x] + 2 * b[x])
        line[0] = line[1]
        line[W + 1] = line[W]
        row = out[y]
        for x in range(W):
            row[x] = np.uint16(line[x] + line[x + 2] + 2 * line[x + 1])


@jit
def flagged(flags: U8, out: I64) -> Int:
    """Write the indices of nonzero ``flags`` (uint8 (8 k,)) to ``out``, return their number; zeros are skipped 8 at a time."""
    words = flags.view(np.uint64)
    n = 0
    for w in range(words.size):
        if words[w] != 0:
            for x in range(8 * w, 8 * w + 8):
                if flags[x]:
                    out[n] = x
                    n += 1
    return n


@jit
def grown(array: Any) -> Any:
    """Return a copy of a 1-D array with twice its length."""
    out = np.empty(2 * array.size, array.dtype)
    out[: array.size] = array
    return out


@jit
def mask_runs(m16: U16, threshold: Int) -> tuple[I64, I32, I32, I32]:
    """Return the runs of a mask: ``row_start`` (H + 1,), and per run its row ``ry`` and its columns ``rx0 <= x < rx1``."""
    H, W = m16.shape
    row_start = np.zeros(H + 1, np.int64)
    rx0 = np.empty(1 << 16, np.int32)
    rx1 = np.empty(1 << 16, np.int32)
    flags = np.zeros((W + 7) // 8 * 8, np.uint8)
    ends = np.empty(W + 1, np.int64)
    level = np.uint16(threshold)
    n = 0
    for y in range(H):
        row = m16[y]
        flags[0] = row[0] >= level
        for x in range(1, W):
            flags[x] = (row[x] >= level) != (row[x - 1] >= level)
        m = flagged(flags, ends)
        if m % 2:
            ends[m] = W
            m += 1
        while n + m // 2 > rx0.size:
            rx0 = grown(rx0)
            rx1 = grown(rx1)
        for k in range(0, m, 2):
            rx0[n] = ends[k]
            rx1[n] = ends[k + 1]
            n += 1
        row_start[y + 1] = n
    ry = np.empty(n, np.int32)
    for y in range(H):
        ry[row_start[y] : row_start[y + 1]] = y
    return row_start, ry, rx0[:n].copy(), rx1[:n].copy()


@jit
def find_root(parent: I32, i: Int) -> Int:
    """Return the smallest run of ``i``'s tree, halving the path on the way."""
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@jit
def join_runs(row_start: I64, rx0: I32, rx1: I32) -> I32:
    """Return for each run the smallest run of its 4-connected component."""
    parent = np.arange(rx0.size).astype(np.int32)
    for y in range(1, row_start.size - 1):
        a = row_start[y - 1]
        b = row_start[y]
        a_end = b
        b_end = row_start[y + 1]
        while a < a_end and b < b_end:
            if rx0[a] < rx1[b] and rx0[b] < rx1[a]:
                i = find_root(parent, a)
                j = find_root(parent, b)
                if i < j:
                    parent[j] = i
                else:
                    parent[i] = j
            if rx1[a] < rx1[b]:
                a += 1
            else:
                b += 1
    for i in range(parent.size):  # parents come before their children, so one pass flattens all trees
        parent[i] = parent[parent[i]]
    return parent


@jit
def is_peak(c16: U16, y: Int, x: Int, radius: Int) -> bool:
    """Return whether (y, x) is the largest pixel of its square, the first in raster order among equals."""
    H, W = c16.shape
    v = c16[y, x]
    for yy in range(max(0, y - radius), min(H, y + radius + 1)):
        row = c16[yy]
        for xx in range(max(0, x - radius), min(W, x + radius + 1)):
            u = row[xx]
            if u > v or (u == v and (yy < y or (yy == y and xx < x))):
                return False
    return True


@jit
def find_peaks(c16: U16, m16: U16, center_threshold: Int, material_threshold: Int, radius: Int) -> I64:
    """Return the raster indices of all peaks (step 3), ascending."""
    H, W = c16.shape
    out = np.empty(1 << 14, np.int64)
    flags = np.zeros((W + 7) // 8 * 8, np.uint8)
    at = np.empty(W, np.int64)
    nothing = np.zeros(W, np.uint16)
    level = np.uint16(center_threshold)
    n = 0
    for y in range(H):
        row = c16[y]
        above = c16[y - 1] if y > 0 else nothing
        below = c16[y + 1] if y + 1 < H else nothing
        # the four neighbours exclude nearly all pixels before any square is searched
        for x in range(W):
            flags[x] = (row[x] >= level) & (above[x] < row[x]) & (below[x] <= row[x])
        for x in range(1, W):
            flags[x] &= row[x - 1] < row[x]
        for x in range(W - 1):
            flags[x] &= row[x + 1] <= row[x]
        for k in range(flagged(flags, at)):
            x = at[k]
            if m16[y, x] >= material_threshold and is_peak(c16, y, x, radius):
                if n == out.size:
                    out = grown(out)
                out[n] = y * W + x
                n += 1
    return out[:n].copy()


@jit
def saddle_is_shallow(c16: U16, p: Int, q: Int, level: Int) -> bool:
    """Return whether the smallest smoothed center value on the line from ``p`` to ``q`` is > ``level``."""
    W = c16.shape[1]
    py, px = p // W, p % W
    dy, dx = q // W - py, q % W - px
    n = max(abs(dy), abs(dx))
    for k in range(1, n + 1):  # noqa: SIM110 (compiled)
        if c16[py + (2 * k * dy + n) // (2 * n), px + (2 * k * dx + n) // (2 * n)] <= level:
            return False
    return True


@jit
def merge_peaks(c16: U16, peaks: I64, depth: Int, share_q256: Int, reach: Int) -> I64:
    """Return the peaks that are not merged into a greater neighbour (step 4)."""
    W = c16.shape[1]
    value = c16.ravel()
    keep = np.ones(peaks.size, np.bool_)
    first = 0
    for i in range(peaks.size):
        p = peaks[i]
        top = int(value[p])
        level = top - max(depth, top * share_q256 // 256)
        while peaks[first] // W < p // W - reach:
            first += 1
        for j in range(first, peaks.size):
            q = peaks[j]
            if q // W > p // W + reach:
                break
            if i == j or abs(q % W - p % W) > reach:
                continue
            if (value[q] > value[p] or (value[q] == value[p] and q < p)) and saddle_is_shallow(c16, p, q, level):
                keep[i] = False
                break
    return peaks[keep]


@jit
def run_of(row_start: I64, rx0: I32, y: Int, x: Int) -> Int:
    """Return the index of the run that contains mask pixel (y, x)."""
    low, high = row_start[y], row_start[y + 1] - 1
    while low < high:
        mid = (low + high + 1) // 2
        if rx0[mid] <= x:
            low = mid
        else:
            high = mid - 1
    return low


@jit
def recall_seeds(m16: U16, ry: I32, rx0: I32, rx1: I32, root: I32, has_peak: npt.NDArray[np.bool_], min_area: Int) -> I64:
    """Return the raster index of one seed for every component without a peak (step 5), by component."""
    W = m16.shape[1]
    area = np.zeros(root.size, np.int64)
    for r in range(root.size):
        area[root[r]] += rx1[r] - rx0[r]
    best = np.full(root.size, -1, np.int64)
    top = np.zeros(root.size, np.uint16)
    n = 0
    for r in range(root.size):
        k = root[r]
        if has_peak[k] or area[k] < min_area:
            continue
        n += k == r
        row = m16[ry[r]]
        for x in range(rx0[r], rx1[r]):
            if row[x] > top[k]:
                top[k] = row[x]
                best[k] = ry[r] * W + x
    out = np.empty(n, np.int64)
    n = 0
    for r in range(root.size):
        if best[r] >= 0:
            out[n] = best[r]
            n += 1
    return out


@jit
def runs_of(markers: I64, W: Int, row_start: I64, rx0: I32) -> I64:
    """Return the index of each marker's run."""
    out = np.empty(markers.size, np.int64)
    for k in range(markers.size):
        out[k] = run_of(row_start, rx0, markers[k] // W, markers[k] % W)
    return out


def prepare(center: U8, material: U8, params: SeparateParams) -> tuple[U16, I64, flood.Runs]:
    """Run steps 1 to 6: smoothed material, markers (raster indices, ascending) and the mask's runs with their components."""
    c16 = np.empty(center.shape, np.uint16)
    m16 = np.empty(center.shape, np.uint16)
    smooth_center(center, c16)
    smooth_material(material, m16)
    row_start, ry, rx0, rx1 = mask_runs(m16, params.material_threshold)
    root = join_runs(row_start, rx0, rx1)
    markers = find_peaks(c16, m16, params.center_threshold, params.material_threshold, params.marker_radius_px)
    if params.merges:
        markers = merge_peaks(c16, markers, params.merge_depth, params.merge_share_q256, MERGE_REACH_PX)
    if params.seed_recall:
        has_peak = np.zeros(root.size, np.bool_)
        has_peak[root[runs_of(markers, center.shape[1], row_start, rx0)]] = True
        seeds = recall_seeds(m16, ry, rx0, rx1, root, has_peak, params.min_area_px)
        markers = np.sort(np.concatenate([markers, seeds]))
    component = root[runs_of(markers, center.shape[1], row_start, rx0)]
    return m16, markers, flood.Runs(ry, rx0, rx1, root, component)


def as_anchors(markers: I64, width: Int) -> I32:
    """Return the pixels (x, y) of raster indices, int32 (N, 2)."""
    return np.stack([markers % width, markers // width], axis=1).astype(np.int32)


def find_markers(center: U8, material: U8, params: SeparateParams) -> I32:
    """Return marker pixels (x, y) before any size limit."""
    _, markers, _ = prepare(np.ascontiguousarray(center), np.ascontiguousarray(material), params)
    return as_anchors(markers, center.shape[1])


def separate(center: U8, material: U8, params: SeparateParams) -> tuple[I32, I32]:
    """Return labels int32 (H, W) and anchors int32 (N, 2)."""
    m16, markers, runs = prepare(np.ascontiguousarray(center), np.ascontiguousarray(material), params)
    labels = np.zeros(center.shape, np.int32)
    flood.paint_single(labels, runs)
    flood.flood_shared(labels, m16, markers, runs, distance_table(params.compactness_q256))
    limits = (params.min_area_px, params.max_area_px, params.min_material)
    kept = flood.limit_sizes(labels, np.ascontiguousarray(material), markers.size, runs, *limits)
    return labels, as_anchors(markers[kept], center.shape[1])

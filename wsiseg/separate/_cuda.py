"""Separate on a GPU by calling the kernels of the ten steps in order. Only three small numbers are copied to the host.

Pixels of components with a single marker get its label without a flood, as on the CPU. The flood's lists of blocks stay on the
device: ``ROUNDS`` rounds are launched before the host checks whether any block is left.

The CPU's flood and this one reach the same fixed point if no step count overflows (2^18 - 1 steps on one level: a corridor a
quarter of a million px long). If one does, borders may differ, but only of regions larger than any area limit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend import BLOCK, BLOCK_2D, Backend, backend_of, blocks_for, blocks_over
from wsiseg.separate.params import DISTANCE_REACH_PX, MERGE_REACH_PX, SeparateParams, distance_table

__all__ = ["find_markers", "separate"]

Array = Any

SIDE = 32
"""Side of the flood's blocks in px, as in ``watershed.cu``."""
ROUNDS = 4
"""Rounds of the flood between two checks of the number of blocks left; a tile takes four to six rounds."""
NO_PIXEL = 2**31 - 1
STRIDE_THREADS = 2**18
"""Maximum threads of a kernel whose list length is only known on the device: the number that a large GPU runs at once."""


def find_markers(center: Array, material: Array, params: SeparateParams) -> Array:
    """Return marker pixels (x, y) before any size limit."""
    device = _device(center)
    _, _, markers = _prepare(device, center, material, params)
    keep = device.full(markers.size + 1, 1, "int32")
    keep[0] = 0
    return _anchors(device, markers, keep, device.running_sum(keep), markers.size, center.shape[1])


def separate(center: Array, material: Array, params: SeparateParams) -> tuple[Array, Array]:
    """Return labels int32 (H, W) and anchors int32 (N, 2) on the maps' device."""
    device = _device(center)
    m16, root, markers = _prepare(device, center, material, params)
    H, W = center.shape
    if markers.size == 0:
        return device.full((H, W), 0, "int32"), device.empty((0, 2), "int32")
    labels = _flood(device, m16, root, markers, distance_table(params.compactness_q256))
    keep, number = _limit_sizes(device, labels, device.contiguous(material), markers.size, params)
    n_kept = int(device.to_host(number[-1:])[0])
    if n_kept < markers.size:
        device.launch("renumber", blocks_for(labels.size), BLOCK, (labels, labels.size, keep, number))
    return labels, _anchors(device, markers, keep, number, n_kept, W)


def _device(array: Array) -> Backend:
    device = backend_of(array)
    if device is None:
        raise TypeError("separate: expected arrays on a device.")
    return device


def _prepare(device: Backend, center: Array, material: Array, params: SeparateParams) -> tuple[Array, Array, Array]:
    """Run steps 1 to 6: smoothed material, least pixel of each pixel's component (-1 outside), markers (raster indices)."""
    shape = H, W = center.shape
    grid, n = blocks_over(shape), H * W
    c16, m16 = device.empty(shape, "uint16"), device.empty(shape, "uint16")
    device.launch("smooth", grid, BLOCK_2D, (device.contiguous(center), device.contiguous(material), W, H, c16, m16))
    root = device.empty(shape, "int32")
    device.launch("label_start", blocks_for(n), BLOCK, (m16, params.material_threshold, n, root))
    device.launch("label_join", grid, BLOCK_2D, (W, H, root))
    device.launch("label_flatten", blocks_for(n), BLOCK, (n, root))
    marker = _peaks(device, c16, m16, params)
    if params.seed_recall:
        facts, best = device.full(shape, 0, "uint32"), device.full(shape, 0, "uint64")
        device.launch("component_facts", grid, BLOCK_2D, (root, marker, W, H, facts))
        device.launch("best_seed", grid, BLOCK_2D, (root, m16, facts, params.min_area_px, W, H, best))
        device.launch("place_seeds", blocks_for(n), BLOCK, (best, n, marker))
    return m16, root, device.nonzero(marker)


def _peaks(device: Backend, c16: Array, m16: Array, params: SeparateParams) -> Array:
    """Return the peaks that are not merged into a neighbour (steps 3 and 4), uint8 (H, W)."""
    shape = H, W = c16.shape
    apart = params.marker_radius_px + 1  # a square of this side never contains two peaks
    most = -(-H // apart) * -(-W // apart)
    marker, peaks, length = device.empty(shape, "uint8"), device.empty(most, "int32"), device.full(1, 0, "int32")
    limits = (params.center_threshold, params.material_threshold, params.marker_radius_px)
    device.launch("find_peaks", blocks_over(shape), BLOCK_2D, (c16, m16, W, H, *limits, marker, peaks, length))
    if params.merges:
        dropped = device.full(most, 0, "int32")
        at_once = blocks_for(min(most * (2 * MERGE_REACH_PX + 1), STRIDE_THREADS))
        args = (c16, marker, peaks, length, W, H, params.merge_depth, params.merge_share_q256, MERGE_REACH_PX, dropped)
        device.launch("merge_peaks", at_once, BLOCK, args)
        device.launch("drop_peaks", blocks_for(min(most, STRIDE_THREADS)), BLOCK, (peaks, length, dropped, marker))
    return marker


def _flood(device: Backend, m16: Array, root: Array, markers: Array, table: npt.NDArray[np.uint16]) -> Array:
    """Return labels int32 (H, W) of all markers (steps 7 to 9)."""
    shape = H, W = m16.shape
    grid, n = blocks_over(shape), markers.size
    owner = device.full(shape, 0, "int32")
    device.launch("component_owner", blocks_for(n), BLOCK, (markers, n, root, owner))
    rows = device.full(shape, DISTANCE_REACH_PX, "int32")
    if table[-1]:
        near = 2 * DISTANCE_REACH_PX - 1
        device.launch("marker_rows", blocks_for(n * near), BLOCK, (markers, n, W, H, rows))
    f, state, labels = device.empty(shape, "uint16"), device.empty(shape, "uint32"), device.empty(shape, "int32")
    device.launch("landscape", grid, BLOCK_2D, (m16, root, owner, rows, device.upload(table), W, H, f, state, labels))
    n_blocks = -(-H // SIDE) * -(-W // SIDE)
    queued = device.full(n_blocks, 0, "int32")
    now, later = device.empty(n_blocks, "int32"), device.empty(n_blocks, "int32")
    lengths = device.full(ROUNDS + 1, 0, "int32")
    device.launch("flood_start", blocks_for(n), BLOCK, (markers, n, f, W, H, state, labels, queued, now, lengths))
    stamp, waiting = 2, -1
    while waiting:
        for k in range(ROUNDS):
            args = (f, W, H, state, now, later, lengths, k, queued, stamp)
            device.launch("flood_round", (n_blocks,), (SIDE, SIDE), args)
            now, later, stamp = later, now, stamp + 1
        waiting = int(device.to_host(lengths[-1:])[0])
        lengths = device.full(ROUNDS + 1, 0, "int32")
        lengths[0] = waiting
    device.launch("descend", grid, BLOCK_2D, (state, W, H, labels))
    return labels


def _limit_sizes(device: Backend, labels: Array, material: Array, n: int, params: SeparateParams) -> tuple[Array, Array]:
    """Return for labels 0..n whether they are kept (step 10) and the running count of kept ones, both int32."""
    H, W = labels.shape
    first, area = device.full(n + 1, NO_PIXEL, "int32"), device.full(n + 1, 0, "int32")
    total, wanted = device.full(n + 1, 0, "uint64"), int(params.min_material > 0)
    device.launch("label_sums", blocks_over(labels.shape), BLOCK_2D, (labels, material, wanted, W, H, first, area, total))
    keep = device.empty(n + 1, "int32")
    limits = (params.min_area_px, params.max_area_px, params.min_material)
    device.launch("within_limits", blocks_for(n + 1), BLOCK, (labels, W, H, first, area, total, n, *limits, keep))
    return keep, device.running_sum(keep)


def _anchors(device: Backend, markers: Array, keep: Array, number: Array, n_kept: int, W: int) -> Array:
    """Return (x, y) of the kept markers, int32 (n_kept, 2)."""
    anchors = device.empty((n_kept, 2), "int32")
    if n_kept:
        device.launch("kept_anchors", blocks_for(markers.size), BLOCK, (markers, markers.size, W, keep, number, anchors))
    return anchors

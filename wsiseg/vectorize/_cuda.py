"""Vectorization on a GPU: label sums, then one thread per ring, which follows it twice: to count, then to write.

The host waits twice. It receives rings and integer sums, a few megabytes per tile, through pinned memory. Columns are computed
from them on the host by the same NumPy function as on the CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wsiseg.backend import BLOCK, BLOCK_2D, Backend, backend_of, blocks_for, blocks_over
from wsiseg.types import Box
from wsiseg.vectorize.columns import SUMS
from wsiseg.vectorize.traced import Traced

__all__ = ["core_sums", "trace_owned"]

Array = Any

NO_PIXEL = 2**31 - 1
FIRST, CENTER, OWNED, ANCHOR, ROW = 10, 11, 12, 13, 15
"""Indices in a label's row after its ten ``SUMS``: first pixel (-1: none), center map, ownership, marker x and y."""
SEGMENT = 32
"""Pixels that one thread of ``row_sums`` adds."""


def trace_owned(labels: Array, anchors: Array, center: Array, material: Array, read: Box, core: Box) -> Traced:
    """Return rings and sums of the labels whose marker is in ``core``, on the host."""
    device = _device(labels)
    H, W = labels.shape
    n = len(anchors)
    if n == 0:
        nothing = np.zeros((0, ROW), np.int64)
        return _traced(nothing, np.zeros((0, 2), np.int32))
    labels, anchors = device.contiguous(labels), device.contiguous(anchors)
    first, area = device.full(n + 1, NO_PIXEL, "int32"), device.full(n + 1, 0, "int32")
    total = device.full(n + 1, 0, "uint64")
    sums_of = (labels, device.contiguous(material), 1, W, H, first, area, total)
    device.launch("label_sums", blocks_over(labels.shape), BLOCK_2D, sums_of)
    rows, vertices = device.empty((n, ROW), "int64"), device.empty(n, "int64")
    ends_of = ((core.x - read.x, W), (core.y - read.y, H), (core.x1 - read.x, W), (core.y1 - read.y, H))
    inside = [_within(value, size) for value, size in ends_of]
    args = (labels, device.contiguous(center), W, H, first, area, total, anchors, n, *inside, rows, vertices)
    device.launch("ring_sums", blocks_for(n), BLOCK, args)
    on_host = device.to_host(rows)
    ends = device.running_sum(vertices)
    owned = on_host[:, OWNED] != 0
    xy = device.empty((int((on_host[owned, SUMS.index("corners")] + 1).sum()), 2), "int32")
    if (on_host[:, FIRST] >= 0).all() and len(xy):
        device.launch("ring_corners", blocks_for(n), BLOCK, (labels, W, H, first, vertices, ends, n, read.x, read.y, xy))
    return _traced(on_host, device.to_host(xy))


def core_sums(center: Array, material: Array, labels: Array) -> tuple[int, int, int]:
    """Return the sums of both maps and the number of labelled pixels."""
    device = _device(labels)
    H, W = labels.shape
    if H * W == 0:
        return 0, 0, 0
    sums = device.full((H, 3), 0, "uint64")
    grid = blocks_over((H, -(-W // SEGMENT)))
    arrays = [device.contiguous(a) for a in (center, material, labels)]
    device.launch("row_sums", grid, BLOCK_2D, (*arrays, W, H, sums))
    center_sum, material_sum, labelled = device.to_host(sums).sum(axis=0)
    return int(center_sum), int(material_sum), int(labelled)


def _traced(rows: np.ndarray[Any, np.dtype[np.int64]], xy: np.ndarray[Any, np.dtype[np.int32]]) -> Traced:
    missing = np.flatnonzero(rows[:, FIRST] < 0)
    rows_owned = rows[rows[:, OWNED] != 0]
    offsets = np.zeros(len(rows_owned) + 1, np.int64)
    np.cumsum(rows_owned[:, SUMS.index("corners")] + 1, out=offsets[1:])
    return Traced(
        xy=xy,
        offsets=offsets,
        sums=rows_owned[:, : len(SUMS)],
        first=rows_owned[:, FIRST],
        anchors=rows_owned[:, ANCHOR : ANCHOR + 2],
        center=rows_owned[:, CENTER].astype(np.uint8),
        missing=int(missing[0]) + 1 if len(missing) else 0,
    )


def _within(value: int, size: int) -> int:
    """Return ``value`` clipped to 0..size: markers are in the window, and the kernel's numbers are 32 bits wide."""
    return min(max(value, 0), size)


def _device(array: Array) -> Backend:
    device = backend_of(array)
    if device is None:
        raise TypeError("vectorize: expected arrays on a device.")
    return device

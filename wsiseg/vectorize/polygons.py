"""Public functions: check the arguments, call the kernels for the type of array, and name the results."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from wsiseg.backend import backend_of
from wsiseg.errors import BackendUnavailableError, InputError
from wsiseg.types import Box, Instances, PolygonBatch, TileStats
from wsiseg.vectorize.columns import columns_of

__all__ = ["area_of_rings", "rasterize", "tile_stats", "vectorize"]

Array = Any


def vectorize(instances: Instances, prob: Array, read: Box, core: Box) -> PolygonBatch:
    """Return polygons and columns of a window's nuclei whose marker is in ``core``.

    Parameters
    ----------
    instances
        The result of ``wsiseg.separate.separate`` for ``prob``.
    prob : uint8 (2, H, W)
        Center (0) and material (1) maps of the window.
    read, core
        The window and the owned part, working px; ``read`` has the shape of ``prob``.

    Returns
    -------
    PolygonBatch
        Rings in working px of the slide, nuclei in raster order of their markers; columns as ``wsiseg.schema.BATCH_COLUMNS``.
        The arrays are NumPy on every device.

    Raises
    ------
    InputError
        Shapes do not fit ``read``, or a label has no pixel.
    BackendUnavailableError
        The arrays are on a device for which this installation has no kernels.
    """
    kernels = _kernels(instances.labels)
    _check_window("vectorize", instances, prob, read)
    found = kernels.trace_owned(instances.labels, instances.anchors, prob[0], prob[1], read, core)
    if found.missing:
        n = len(instances.anchors)
        raise InputError(f"vectorize: expected every label 1..{n} to have pixels, label {found.missing} has none.")
    first_xy = np.column_stack([found.first % max(1, read.w) + read.x, found.first // max(1, read.w) + read.y])
    marker_xy = found.anchors + np.array([read.x, read.y], np.int64)
    columns = columns_of(found.sums, first_xy, marker_xy, found.center)
    return PolygonBatch(xy=found.xy, ring_offsets=found.offsets, columns=columns)


def tile_stats(prob: Array, instances: Instances, read: Box, core: Box, tissue: Array | None = None) -> TileStats:
    """Sum the maps, labels and tissue of a window over its core; the sums can be added over tiles.

    Parameters
    ----------
    prob : uint8 (2, H, W)
        Center and material maps of the window.
    instances
        Labels of the window.
    read, core
        The window and the part to sum over, working px; ``core`` is inside ``read``.
    tissue : uint8 or bool (H, W), optional
        Nonzero where the window shows tissue; without it all of the core counts as tissue.

    Returns
    -------
    TileStats
        ``core_px``; ``tissue_px``; ``material_px``: labelled pixels (of any owner); sums of both raw maps.

    Raises
    ------
    InputError
        Shapes do not fit ``read``, or ``core`` reaches outside it.
    BackendUnavailableError
        See ``vectorize``.
    """
    kernels = _kernels(instances.labels)
    _check_window("tile_stats", instances, prob, read)
    if core.x < read.x or core.y < read.y or core.x1 > read.x1 or core.y1 > read.y1:
        raise InputError(f"tile_stats: expected the core inside the window {read}, got {core}.")
    ys = slice(core.y - read.y, core.y1 - read.y)
    xs = slice(core.x - read.x, core.x1 - read.x)
    center, material, labelled = kernels.core_sums(prob[0][ys, xs], prob[1][ys, xs], instances.labels[ys, xs])
    core_px = core.w * core.h
    tissue_px = core_px
    if tissue is not None:
        if tuple(tissue.shape) != (read.h, read.w):
            raise InputError(f"tile_stats: expected a tissue mask of shape ({read.h}, {read.w}), got {tuple(tissue.shape)}.")
        tissue_px = int(np.count_nonzero(tissue[ys, xs]))
    return TileStats(core_px, tissue_px, int(labelled), int(center), int(material))


def rasterize(batch: PolygonBatch, box: Box) -> Array:
    """Paint rings into a label image: the inverse of ``vectorize``, holes filled.

    Parameters
    ----------
    batch
        Polygons on the pixel-edge lattice (only ``xy`` and ``ring_offsets`` are used).
    box
        Window to paint, in the polygons' frame; polygons may reach outside it.

    Returns
    -------
    labels : int32 (box.h, box.w)
        k + 1 inside ring k, 0 elsewhere; of overlapping rings the smallest wins, ties: the first.

    Raises
    ------
    BackendUnavailableError
        See ``vectorize``.
    """
    if backend_of(batch.xy) is not None:
        raise BackendUnavailableError("rasterize: expected polygons in NumPy arrays, got CuPy. Copy them: cupy.asnumpy(xy).")
    from wsiseg.vectorize import _cpu

    area = area_of_rings(batch.xy, batch.ring_offsets)
    order = np.lexsort((-np.arange(len(area)), -area))
    labels = np.zeros((box.h, box.w), np.int32)
    _cpu.paint_rings(labels, np.ascontiguousarray(batch.xy), batch.ring_offsets, order, box.x, box.y)
    return labels


def area_of_rings(xy: Array, ring_offsets: Array) -> Array:
    """Return the shoelace areas of closed rings on integer coordinates.

    Parameters
    ----------
    xy : int32 (V, 2)
        Vertices; each ring's last equals its first.
    ring_offsets : int64 (N + 1,)
        Ring k is ``xy[ring_offsets[k]:ring_offsets[k + 1]]``, not empty.

    Returns
    -------
    area : int64 (N,)
        Signed area, positive for rings as ``vectorize`` makes them; exact for lattice rings (turns at right angles).
    """
    n = len(ring_offsets) - 1
    if n < 1:
        return np.zeros(0, np.int64)
    start = np.asarray(ring_offsets[:-1])
    origin = np.repeat(xy[start].astype(np.int64), np.diff(ring_offsets), axis=0)
    x, y = (xy - origin).T  # each ring from its own first vertex: products stay small
    cross = x[:-1] * y[1:] - x[1:] * y[:-1]
    cross = np.append(cross, 0)
    cross[np.asarray(ring_offsets[1:]) - 1] = 0  # the step from one ring to the next is no edge
    return np.add.reduceat(cross, start) // 2


def _check_window(who: str, instances: Instances, prob: Array, read: Box) -> None:
    expected = (read.h, read.w)
    if tuple(instances.labels.shape) != expected or tuple(prob.shape) != (2, *expected):
        raise InputError(
            f"{who}: expected labels {expected} and maps {(2, *expected)} for the window {read}, "
            f"got {tuple(instances.labels.shape)} and {tuple(prob.shape)}."
        )


def _kernels(array: Array) -> ModuleType:
    if backend_of(array) is not None:
        from wsiseg.vectorize import _cuda

        return _cuda
    from wsiseg.vectorize import _cpu

    return _cpu

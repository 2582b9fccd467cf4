"""Optical densities of a window's nuclei, summed while its pixels are in memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.summarize import sum_ring_od
from wsiseg.types import Box, PolygonBatch
from wsiseg.write import DENSITY_COLUMNS

__all__ = ["with_densities"]


def with_densities(
    batch: PolygonBatch, rgb: npt.NDArray[np.uint8], at: Box, inside: Box, table: npt.NDArray[np.int32]
) -> PolygonBatch:
    """Return a batch with the sums of its nuclei's optical densities (``wsiseg.write.DENSITY_COLUMNS``).

    Where two nuclei overlap, the smaller has the pixel; equal ones cannot overlap, as nuclei of one window have no pixel in
    common and overlap only if one is in the filled hole of another.

    Parameters
    ----------
    rgb : uint8 (at.h, at.w, 3)
        Pixels of the slide, as read.
    at
        Position of ``rgb`` in the frame of the batch.
    inside
        The slide; what rings enclose outside of it is not counted.
    table
        Of ``wsiseg.summarize.od_tables``.
    """
    sums = np.zeros((len(batch), len(DENSITY_COLUMNS)), np.int64)
    if len(batch):
        x, y = batch.xy[:, 0], batch.xy[:, 1]  # one axis at a time: numpy reduces (V, 2) ten times slower
        x0, y0 = max(int(x.min()), at.x, inside.x), max(int(y.min()), at.y, inside.y)
        x1, y1 = min(int(x.max()), at.x1, inside.x1), min(int(y.max()), at.y1, inside.y1)
        box = Box(x0, y0, max(0, x1 - x0), max(0, y1 - y0))
        order = np.argsort(batch.columns["area_wpx"], kind="stable")
        sum_ring_od(sums, np.arange(len(batch)), (batch.xy, batch.ring_offsets), order, (rgb, at), box, table)
    columns: dict[str, Any] = dict(zip(DENSITY_COLUMNS, np.ascontiguousarray(sums.T), strict=True))
    return dataclasses.replace(batch, columns={**batch.columns, **columns})

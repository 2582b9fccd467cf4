"""Draw a region of a polygon table as a label image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsiseg.labels import rasterize_rings
from wsiseg.tables.geo import wkb_rings
from wsiseg.tables.nuclei import read_nuclei
from wsiseg.tables.source import NucleiFile
from wsiseg.types import Box

__all__ = ["rasterize_region"]


def rasterize_region(
    source: NucleiFile, region: Box, ids: npt.NDArray[np.int64] | None = None, downsample: float = 1.0
) -> npt.NDArray[np.int32]:
    """Return the label image of a region: the pixels whose center is inside a nucleus, the exact inverse of tracing.

    Parameters
    ----------
    region
        Level-0 px; all nuclei that intersect it are drawn.
    ids
        Sorted nucleus ids of the slide: a label is the position of its id, plus 1. Default: the nuclei drawn, in table order.
    downsample
        Level-0 px per image px.

    Returns
    -------
    int32 (H, W)
        0 background. Where nuclei overlap (one in the filled hole of another) the smaller one is drawn on top.
    """
    table = read_nuclei(source.path, region, ["nucleus_id", "geometry", "area_px"])
    shape = (round(region.h / downsample), round(region.w / downsample))
    if table.num_rows == 0:
        return np.zeros(shape, np.int32)
    xy, offsets = wkb_rings(table["geometry"])
    own = table["nucleus_id"].to_numpy()
    labels = np.arange(1, len(own) + 1) if ids is None else np.searchsorted(ids, own) + 1
    order = np.argsort(-table["area_px"].to_numpy(), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    moved = (xy - np.array([region.x, region.y])) / downsample
    return rasterize_rings(moved, offsets, shape, ids=labels[order], ring_polygons=rank)

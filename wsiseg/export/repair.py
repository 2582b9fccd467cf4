"""Find and repair rings that touch or cross themselves after rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsiseg.tables.source import Chunk

__all__ = ["invalid_rings", "repaired"]


def invalid_rings(xy: npt.NDArray[np.float64], ring_offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which closed rings are not valid polygons, bool (N,): they cross or touch themselves, or have no area."""
    import shapely

    n = len(ring_offsets) - 1
    if n == 0:
        return np.zeros(0, np.bool_)
    owner = np.repeat(np.arange(n), np.diff(ring_offsets))
    return ~np.asarray(shapely.is_valid(shapely.polygons(shapely.linearrings(xy, indices=owner))))


def repaired(chunk: Chunk, decimals: int) -> tuple[Chunk, int]:
    """Return the chunk with rounded coordinates and valid rings, and the number of rings that were repaired.

    A ring that is invalid after rounding is replaced by the outer ring of the largest part that it encloses (GEOS
    ``make_valid`` on the rounded grid). The row of a ring that encloses no area is dropped.
    """
    import shapely

    xy = np.round(chunk.xy, decimals)
    bad = np.flatnonzero(invalid_rings(xy, chunk.ring_offsets))
    if len(bad) == 0:
        return Chunk(xy, chunk.ring_offsets, chunk.table), 0
    lengths = np.diff(chunk.ring_offsets)
    rings = {}
    for k in bad.tolist():  # a loop is fast enough: invalid rings are rare
        ring = xy[chunk.ring_offsets[k] : chunk.ring_offsets[k + 1]]
        whole = shapely.set_precision(shapely.make_valid(shapely.Polygon(ring)), 10.0**-decimals)
        parts = [p for p in shapely.get_parts(shapely.get_parts(whole)) if p.geom_type == "Polygon" and p.area > 0]
        best = max(parts, key=lambda p: p.area, default=None)
        rings[k] = (
            np.empty((0, 2)) if best is None else np.asarray(shapely.Polygon(best.exterior).normalize().exterior.coords)[::-1]
        )
    pieces, first = [], 0
    for k, ring in rings.items():
        pieces += [xy[first : chunk.ring_offsets[k]], ring]
        first = int(chunk.ring_offsets[k + 1])
        lengths[k] = len(ring)
    pieces.append(xy[first:])
    keep = lengths > 0
    offsets = np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64)
    table = chunk.table if keep.all() else chunk.table.filter(keep)
    return Chunk(np.concatenate(pieces), offsets, table), int(keep[bad].sum())

"""GeoParquet 1.1: encode rings as WKB polygons in Arrow buffers, decode them, and make the ``geo`` metadata entry.

Specification: https://geoparquet.org/releases/v1.1.0/; WKB: OGC Simple Feature Access 06-103r4, section 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.tables.arrow import BBOX_FIELDS

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["geo_metadata", "wkb_polygons", "wkb_rings"]

WKB_HEADER = np.dtype([("little_endian", "u1"), ("kind", "<u4"), ("n_rings", "<u4"), ("n_points", "<u4")])
"""The bytes before the points of a WKB polygon with one ring: 13 bytes."""

WKB_POLYGON = 3

MAX_BINARY_BYTES = 2**31 - 1
"""Largest size that the int32 offsets of an Arrow binary array can address."""


def geo_metadata(bbox: Sequence[float] | None) -> dict[str, Any]:
    """Return the ``geo`` entry of GeoParquet 1.1 for a ``geometry`` column of polygons in slide pixels.

    Parameters
    ----------
    bbox
        xmin, ymin, xmax, ymax over all polygons; None: the table is empty.

    Returns
    -------
    dict
        ``crs`` is an explicit null (an absent one means longitude and latitude); ``orientation`` is counter-clockwise in the
        coordinate plane as written, i.e. the shoelace sum over (x, y) is positive.
    """
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": [] if bbox is None else ["Polygon"],
        "crs": None,
        "orientation": "counterclockwise",
        "edges": "planar",
        "covering": {"bbox": {name: ["bbox", name] for name in BBOX_FIELDS}},
    }
    if bbox is not None:
        column["bbox"] = [float(v) for v in bbox]
    return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


def wkb_polygons(xy: npt.NDArray[np.float64], ring_offsets: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """Return each ring as a little-endian WKB polygon, with the same bytes as ``shapely.to_wkb``.

    Parameters
    ----------
    xy : float64 (V, 2)
        Closed rings, one after the other.
    ring_offsets : int64 (N + 1,)
        Ring k is ``xy[ring_offsets[k]:ring_offsets[k + 1]]``; starts at 0 and ends at V.

    Raises
    ------
    ValueError
        The WKB is larger than 2 GiB: pass fewer rings at a time.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    n = len(ring_offsets) - 1
    if n == 0:
        return pa.array([], pa.binary())
    n_bytes = n * WKB_HEADER.itemsize + int(ring_offsets[-1]) * 16
    if n_bytes > MAX_BINARY_BYTES:
        raise ValueError(f"Expected at most {MAX_BINARY_BYTES} bytes of WKB in one array, got {n_bytes}: pass fewer rings.")
    headers = np.empty(n, WKB_HEADER)
    headers["little_endian"], headers["kind"], headers["n_rings"] = 1, WKB_POLYGON, 1
    headers["n_points"] = np.diff(ring_offsets)
    head_offsets = np.arange(n + 1, dtype=np.int32) * np.int32(WKB_HEADER.itemsize)
    points = np.ascontiguousarray(xy, dtype="<f8")
    head = pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(head_offsets), pa.py_buffer(headers)])
    body_offsets = (ring_offsets * 16).astype(np.int32)
    body = pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(body_offsets), pa.py_buffer(points)])
    return pc.binary_join_element_wise(head, body, b"")


def wkb_rings(wkb: pa.BinaryArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return ``(xy float64 (V, 2), ring_offsets int64 (N + 1,))`` of WKB polygons with one ring: inverse of ``wkb_polygons``.

    Parameters
    ----------
    wkb
        Binary array or chunked array without nulls.

    Raises
    ------
    FormatError
        A value is not a little-endian WKB polygon of exactly one ring.
    """
    import pyarrow as pa

    if isinstance(wkb, pa.ChunkedArray):
        pieces = [wkb_rings(chunk) for chunk in wkb.chunks]
        if not pieces:
            return np.empty((0, 2)), np.zeros(1, np.int64)
        lengths = np.concatenate([np.diff(offsets) for _, offsets in pieces])
        return np.concatenate([xy for xy, _ in pieces]), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    n = len(wkb)
    if n == 0:
        return np.empty((0, 2)), np.zeros(1, np.int64)
    ends = np.frombuffer(wkb.buffers()[1], np.int32)[wkb.offset : wkb.offset + n + 1].astype(np.int64)
    sizes = np.diff(ends)
    if wkb.null_count or sizes.min() < WKB_HEADER.itemsize:
        raise FormatError("Expected WKB polygons of one ring, got a missing or shorter value.")
    data = np.frombuffer(wkb.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    head_bytes = (ends[:-1] - ends[0])[:, None] + np.arange(WKB_HEADER.itemsize)
    heads = data[head_bytes].view(WKB_HEADER)[:, 0]
    n_points = heads["n_points"].astype(np.int64)
    good = (heads["little_endian"] == 1) & (heads["kind"] == WKB_POLYGON) & (heads["n_rings"] == 1)
    good &= sizes == WKB_HEADER.itemsize + 16 * n_points
    if not good.all():
        raise FormatError(f"Expected WKB polygons of one ring, got something else at row {int(np.argmin(good))}.")
    points = np.ones(len(data), np.bool_)
    points[head_bytes] = False
    xy = data[points].view("<f8").reshape(-1, 2)
    return xy, np.concatenate([[0], np.cumsum(n_points)]).astype(np.int64)

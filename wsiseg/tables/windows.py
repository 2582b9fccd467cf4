"""Read a polygon table window by window, with a cache of decoded row groups, because the next window is usually close.

``read_nuclei`` opens the file and decodes whole row groups for every window, which is slow for all windows of a slide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.labels import rasterize_rings
from wsiseg.tables.arrow import BBOX_PATHS, column_limits
from wsiseg.tables.geo import wkb_rings
from wsiseg.tables.hilbert import hilbert_key
from wsiseg.types import Box

__all__ = ["RingWindows", "WindowRings", "occupied_windows", "ring_areas"]

CACHE_BYTES = 192 << 20
"""Maximum bytes of decoded row groups that are kept."""

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class WindowRings:
    """The nuclei that intersect a window, in table order: their rows in the table, closed rings, and boxes (4, n).

    Boxes are xmin, ymin, xmax, ymax of the rings, level-0 px.
    """

    rows: Int
    xy: Float
    offsets: Int
    bounds: Float

    def __len__(self) -> int:
        """Return the number of nuclei."""
        return len(self.rows)

    def taken(self, keep: npt.NDArray[Any]) -> WindowRings:
        """Return some of them, by a mask (n,)."""
        if keep.all():
            return self
        lengths = np.diff(self.offsets)
        return WindowRings(
            self.rows[keep],
            self.xy[np.repeat(keep, lengths)],
            np.r_[0, np.cumsum(lengths[keep])].astype(np.int64),
            self.bounds[:, keep],
        )

    def drawn(self, box: Box, order: Int | None = None, scale: float = 1.0) -> npt.NDArray[np.int32]:
        """Return the window's labels, int32 (H, W): k + 1 where nucleus k is, the smallest on top.

        Parameters
        ----------
        box
            The window, at ``scale`` px per level-0 px. Overlapping windows are equal in the pixels that they share.
        order : int64 (n,), optional
            Order of drawing, the last one on top. Default: larger ones first, and equal ones by row.
        """
        if not len(self):
            return np.zeros((box.h, box.w), np.int32)
        if order is None:
            order = np.argsort(-ring_areas(self.xy, self.offsets), kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        xy = self.xy if scale == 1.0 else self.xy * scale
        return rasterize_rings(xy, self.offsets, (box.h, box.w), ids=order + 1, ring_polygons=place, origin=(box.x, box.y))


class RingWindows:
    """An open polygon table, used as a context manager.

    Parameters
    ----------
    path
        A slide's polygon table.

    Raises
    ------
    FormatError
        The file is not Parquet with WKB polygons of one ring.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            self._file = pq.ParquetFile(str(path))
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as err:
            raise FormatError(f"{path}: expected a nuclei table: {err}") from err
        meta = self._file.metadata
        counts = [meta.row_group(k).num_rows for k in range(meta.num_row_groups)]
        self._first = np.r_[0, np.cumsum(counts)].astype(np.int64)
        self._limits = [column_limits(meta.row_group(k), BBOX_PATHS) for k in range(meta.num_row_groups)]
        self._kept: OrderedDict[int, WindowRings] = OrderedDict()

    def __enter__(self) -> RingWindows:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Close the file."""
        self._file.close()

    def __len__(self) -> int:
        """Return the number of nuclei."""
        return int(self._first[-1])

    def groups(self) -> Iterator[WindowRings]:
        """Yield all row groups, one after the other."""
        for k in range(len(self._first) - 1):
            yield self._group(k)

    def near(self, x0: float, y0: float, x1: float, y1: float) -> WindowRings:
        """Return the nuclei whose box intersects a window (level-0 px; a common edge alone does not count)."""
        parts = []
        for k, limits in enumerate(self._limits):
            if limits is not None:
                (left, _), (top, _), (_, right), (_, bottom) = limits
                # limits are the stored boxes' float32: one px of tolerance
                if right + 1 < x0 or left - 1 > x1 or bottom + 1 < y0 or top - 1 > y1:
                    continue
            group = self._group(k)
            low_x, low_y, high_x, high_y = group.bounds
            part = group.taken((high_x > x0) & (low_x < x1) & (high_y > y0) & (low_y < y1))
            if len(part):
                parts.append(part)
        return _joined(parts)

    def _group(self, k: int) -> WindowRings:
        import pyarrow as pa

        if k in self._kept:
            self._kept.move_to_end(k)
            return self._kept[k]
        try:
            xy, offsets = wkb_rings(self._file.read_row_group(k, columns=["geometry"])["geometry"])
        except (OSError, pa.ArrowException, KeyError) as err:
            raise FormatError(f"{self.path}: row group {k} cannot be read ({err}).") from err
        rows = np.arange(self._first[k], self._first[k + 1])
        starts = offsets[:-1]
        bounds = (
            np.concatenate([np.minimum.reduceat(xy, starts), np.maximum.reduceat(xy, starts)], axis=1).T
            if len(starts)
            else np.empty((4, 0))
        )
        self._kept[k] = group = WindowRings(rows, xy, offsets, bounds)
        while len(self._kept) > 1 and sum(g.xy.nbytes for g in self._kept.values()) > CACHE_BYTES:
            self._kept.popitem(last=False)
        return group


def ring_areas(xy: Float, offsets: Int) -> Float:
    """Return the area of each closed ring (shoelace, relative to its first vertex), float64 (n,)."""
    if not len(xy):
        return np.zeros(len(offsets) - 1)
    ring = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    x, y = (xy - xy[offsets[ring]]).T
    same = ring[1:] == ring[:-1]
    twice = np.where(same, x[:-1] * y[1:] - x[1:] * y[:-1], 0.0)
    areas: Float = np.abs(np.bincount(ring[1:], twice, minlength=len(offsets) - 1)) / 2
    return areas


def occupied_windows(bounds: Sequence[Float], size: tuple[int, int], side: int) -> list[Box]:
    """Return the windows of a grid that intersect a box, in Hilbert order, so that consecutive ones are close.

    Parameters
    ----------
    bounds : float64 (4, N) each
        xmin, ymin, xmax, ymax of boxes, in the px of the grid.
    size
        Width and height of the gridded area, which begins at (0, 0); boxes are clipped to it.
    side
        Side of a window, px; windows at the right and lower edge are smaller.
    """
    columns, rows = -(-size[0] // side), -(-size[1] // side)
    if not columns or not rows:
        return []
    corners = np.zeros((rows + 1, columns + 1), np.int64)
    for found in bounds:
        ends = []
        for axis, n in ((1, rows), (0, columns)):
            first = np.clip(np.floor(found[axis] / side), 0, n - 1).astype(np.int64)
            ends.append((first, np.clip(np.floor(found[axis + 2] / side), first, n - 1).astype(np.int64) + 1))
        (y0, y1), (x0, x1) = ends
        for y, x, step in ((y0, x0, 1), (y1, x0, -1), (y0, x1, -1), (y1, x1, 1)):
            np.add.at(corners, (y, x), step)
    met = np.argwhere(corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)
    along = np.argsort(hilbert_key(met[:, 1].astype(np.uint32), met[:, 0].astype(np.uint32)))
    return [
        Box(x * side, y * side, min(side, size[0] - x * side), min(side, size[1] - y * side)) for y, x in met[along].tolist()
    ]


def _joined(parts: list[WindowRings]) -> WindowRings:
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return WindowRings(np.empty(0, np.int64), np.empty((0, 2)), np.zeros(1, np.int64), np.empty((4, 0)))
    lengths = np.concatenate([np.diff(p.offsets) for p in parts])
    return WindowRings(
        np.concatenate([p.rows for p in parts]),
        np.concatenate([p.xy for p in parts]),
        np.r_[0, np.cumsum(lengths)].astype(np.int64),
        np.concatenate([p.bounds for p in parts], axis=1),
    )

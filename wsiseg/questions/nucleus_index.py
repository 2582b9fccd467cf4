"""Index the outlines of a polygon table in memory, to find the nucleus that contains a point or is nearest to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.questions._cpu_assign import Index, assign_points, cell_counts, fill_cells
from wsiseg.tables.geo import wkb_rings
from wsiseg.tables.source import NucleiFile
from wsiseg.tables.within import iter_groups

__all__ = ["NucleusIndex", "index_nuclei"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

MIN_CELL_PX = 8.0
MAX_CELLS = 1 << 26
MAX_TILES = 1 << 15

_TYPES: dict[str, Any] = {
    "nucleus_id": np.int64, "area_um2": np.float64, "area_px": np.float64, "cx": np.float64, "cy": np.float64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class NucleusIndex:
    """Outlines of a slide's nuclei in the order of its table; about 500 bytes per nucleus.

    Attributes
    ----------
    nucleus_id, area_um2, cx, cy
        (N,) columns of the table.
    """

    nucleus_id: Int
    area_um2: Float
    cx: Float
    cy: Float
    index: Index

    def find(self, xy: Float, reach_px: float, threads: int = 1) -> tuple[npt.NDArray[np.int32], Float]:
        """Return the row of each point's nucleus (-1: none) and the distance to it.

        A point belongs to a nucleus if it is inside or on the border (``shapely.covers``); if several contain it, to the one
        with the smallest area, then with the lowest id. A point in no nucleus belongs to the nucleus with the nearest outline
        within ``reach_px``; of several at the same distance, to the one chosen as above.

        Parameters
        ----------
        xy : float64 (P, 2)
            Level-0 px. Points that are not finite belong to none.
        reach_px
            Maximum distance to the outline of a nucleus, level-0 px; 0: only points inside are assigned.
        threads
            Number of threads.

        Returns
        -------
        int32 (P,), float64 (P,)
            Row, and distance in level-0 px: 0 inside, NaN for none.
        """
        xy = np.ascontiguousarray(xy, np.float64)
        row, distance = np.full(len(xy), -1, np.int32), np.full(len(xy), np.nan)
        if not len(self.nucleus_id) or not len(xy):
            return row, distance
        ends = np.linspace(0, len(xy), max(1, threads) + 1).astype(np.int64)
        parts = [slice(a, b) for a, b in pairwise(ends.tolist())]

        def work(part: slice) -> int:
            order = self._near_together(xy[part])
            found, far = np.empty(len(order), np.int32), np.empty(len(order))
            found[:] = -1
            undecided = int(assign_points(xy[part][order], self.index, reach_px, found, far))
            row[part][order], distance[part][order] = found, far
            return undecided

        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                undecided = sum(pool.map(work, parts))
        else:
            undecided = sum(map(work, parts))
        if undecided:
            self._decide(xy, reach_px, row, distance)
        return row, distance

    def _near_together(self, xy: Float) -> Int:
        """Return an order in which points of one tile follow each other, so that outlines stay in the processor's cache."""
        grid, shape = self.index.grid, self.index.shape
        step = grid[2] * max(1.0, float(np.sqrt(shape[0] * shape[1] / MAX_TILES)))
        across = int(shape[1] * grid[2] / step) + 1
        with np.errstate(invalid="ignore"):
            at = np.nan_to_num((xy - grid[:2]) / step, nan=0.0, posinf=0.0, neginf=0.0)
            column, line = (np.clip(at[:, k], 0, n).astype(np.int64) for k, n in ((0, across - 1), (1, MAX_TILES // across)))
        tile = np.minimum(line * across + column, np.iinfo(np.uint16).max).astype(np.uint16)
        return np.argsort(tile, kind="stable")  # 16-bit integers: NumPy uses radix sort

    def _decide(self, xy: Float, reach_px: float, row: npt.NDArray[np.int32], distance: Float) -> None:
        """Decide with GEOS the points that are too near to a slanted edge for float64 arithmetic."""
        import shapely

        at = np.flatnonzero(row == -2)
        grid, shape = self.index.grid, self.index.shape
        for p in at.tolist():
            x, y = xy[p]
            cell = int((y - grid[1]) // grid[2]) * int(shape[1]) + int((x - grid[0]) // grid[2])
            near = self.index.member[self.index.start[cell] : self.index.start[cell + 1]]
            holds = [i for i in near.tolist() if bool(shapely.intersects_xy(self._polygon(i), x, y))]
            row[p] = min(holds, key=lambda i: int(self.index.rank[i])) if holds else -3
            distance[p] = 0.0 if holds else np.nan
        left = at[row[at] == -3]
        if left.size:
            again, far = np.full(len(left), -3, np.int32), np.full(len(left), np.nan)
            assign_points(xy[left], self.index, reach_px, again, far)
            row[left], distance[left] = again, far

    def _polygon(self, i: int) -> Any:
        import shapely

        first, last = self.index.offset[i], self.index.offset[i + 1]
        return shapely.Polygon(self.index.base[i] + self.index.step[first:last].astype(np.float64))


def index_nuclei(source: NucleiFile) -> NucleusIndex:
    """Read the outlines of a table, one row group at a time, and index them.

    Vertices are stored as float32 differences to the first one if that is exact (as for all tables of ``wsiseg segment``), else
    as float64.
    """
    names = tuple(_TYPES)
    columns: dict[str, list[npt.NDArray[Any]]] = {n: [] for n in names}
    base, step, lengths = [np.empty((0, 2))], list[npt.NDArray[Any]](), [np.empty(0, np.int64)]
    step.append(np.empty((0, 2), np.float32))
    box = [np.empty((0, 4))]
    for table in iter_groups(source, [*names, "geometry"]):
        xy, offsets = wkb_rings(table["geometry"])
        if not len(offsets) - 1:
            continue
        first = offsets[:-1]
        start = np.repeat(xy[first], np.diff(offsets), axis=0)
        small = (xy - start).astype(np.float32)
        exact = bool((start + small == xy).all())
        base.append(xy[first] if exact else np.zeros((len(first), 2)))
        step.append(small if exact else xy)
        lengths.append(np.diff(offsets))
        ends = [f.reduceat(xy[:, k], first) for f in (np.minimum, np.maximum) for k in (0, 1)]
        box.append(np.stack(ends, axis=1))
        for name in names:
            columns[name].append(table[name].to_numpy().astype(_TYPES[name]))
    kept = {n: np.concatenate([np.empty(0, _TYPES[n]), *columns[n]]) for n in names}
    rank = np.empty(len(kept["nucleus_id"]), np.int64)
    rank[np.lexsort((kept["nucleus_id"], kept["area_px"]))] = np.arange(len(rank))
    offset = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    boxes = np.concatenate(box)
    index = _with_grid(Index(np.concatenate(base), np.concatenate(step), offset, boxes, rank, *_no_grid()))
    return NucleusIndex(kept["nucleus_id"], kept["area_um2"], kept["cx"], kept["cy"], index)


def _no_grid() -> tuple[Float, Int, Int, npt.NDArray[np.int32]]:
    return np.array([0.0, 0.0, 1.0]), np.array([1, 1]), np.zeros(2, np.int64), np.empty(0, np.int32)


def _with_grid(index: Index) -> Index:
    """Return the index with a grid of cells of about the size of a nucleus."""
    box = index.box
    if not len(box):
        return index
    low, high = box[:, :2].min(axis=0), box[:, 2:].max(axis=0)
    side = max(MIN_CELL_PX, float(np.sqrt(((box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])).mean())))
    side = max(side, float(np.sqrt(np.prod(high - low) / min(MAX_CELLS, 8 * len(box) + 1024))))
    shape = np.array([int((high[1] - low[1]) / side) + 1, int((high[0] - low[0]) / side) + 1])
    grid = np.array([low[0], low[1], side])
    start = np.cumsum(cell_counts(box, grid, shape))
    member = np.empty(start[-1], np.int32)
    fill_cells(box, grid, shape, start, member)
    return index._replace(grid=grid, shape=shape, start=start, member=member)

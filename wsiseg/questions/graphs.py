"""Find pairs of neighboring nuclei: within a radius, or joined by an edge of the Delaunay triangulation of the centroids.

The graphs equal those of squidpy's ``spatial_neighbors(coord_type="generic")``: radius graph of scikit-learn, ``Delaunay`` of
SciPy.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["delaunay_edges", "density_grid", "iter_pairs"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

PIECE_PAIRS = 1 << 20
"""Maximum number of pairs in one piece; a nucleus with more neighbors is a separate piece."""

CHUNK_ROWS = 1 << 14


def iter_pairs(xy: Float, radius: float) -> Iterator[tuple[Int, Int, Float]]:
    """Yield pairs (i, j, squared distance) of points at most ``radius`` apart, in both directions, sorted by i and then j.

    A pair counts if ``dx**2 + dy**2 <= radius**2`` in double precision. All pairs of a point are in one piece, and pieces are
    in the order of the points, so that the order of sums does not depend on the size of the pieces.

    Parameters
    ----------
    xy : float64 (N, 2)
        Points.
    radius
        Maximum distance, in the unit of ``xy``.
    """
    from scipy.spatial import cKDTree

    n = len(xy)
    if n < 2:
        return
    tree = cKDTree(xy)
    reach = radius * (1 + 1e-9)  # the tree finds candidates, the exact test follows
    for first in range(0, n, CHUNK_ROWS):
        rows = np.arange(first, min(n, first + CHUNK_ROWS))
        counts = np.asarray(tree.query_ball_point(xy[rows], reach, return_length=True), np.int64)
        for begin, end in _pieces(counts):
            part = cKDTree(xy[rows[begin:end]])
            found = part.sparse_distance_matrix(tree, reach, output_type="ndarray")
            i, j = found["i"].astype(np.int64) + rows[begin], found["j"].astype(np.int64)
            apart = i != j
            i, j = i[apart], j[apart]
            step = xy[i] - xy[j]
            squared = step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1]
            near = np.flatnonzero(squared <= radius * radius)
            order = near[np.argsort(i[near] * n + j[near], kind="stable")]
            yield i[order], j[order], squared[order]


def _pieces(counts: Int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows with at most ``PIECE_PAIRS`` pairs each."""
    ends = np.cumsum(counts)
    begin = 0
    while begin < len(counts):
        before = int(ends[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(ends, before + PIECE_PAIRS, side="right")))
        yield begin, end
        begin = end


def delaunay_edges(xy: Float) -> tuple[Int, Int, Float]:
    """Return the edges (i, j, length) of the Delaunay triangulation, i < j, sorted; empty if there is no triangle.

    Of several points at the same position one has edges and the others have none. Memory: about 1 KB per point. Blocks of
    points would not give the same result: of four points on one circle, which are common among centroids on a lattice, the
    diagonal that Qhull chooses depends on all the other points.
    """
    from scipy.spatial import Delaunay, QhullError

    none = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    if len(xy) < 3:
        return none
    try:
        triangles = Delaunay(xy).simplices.astype(np.int64)
    except QhullError:  # all points are on one line
        return none
    sides = np.concatenate([triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [0, 2]]])
    del triangles
    sides.sort(axis=1)
    keys = np.unique(sides[:, 0] * len(xy) + sides[:, 1])
    i, j = np.divmod(keys, len(xy))
    step = xy[i] - xy[j]
    return i, j, np.sqrt(step[:, 0] * step[:, 0] + step[:, 1] * step[:, 1])


def density_grid(xy: Float, size: tuple[float, float], step: float, radius: float) -> Float:
    """Return the density of points in the disc around the center of each cell of a grid, float64 (rows, columns).

    Parameters
    ----------
    xy : float64 (N, 2)
        Points.
    size
        Width and height of the grid, from (0, 0); the last cells may extend further.
    step
        Side of a cell.
    radius
        Radius of the disc. All lengths are in the unit of ``xy``; the density is in points per unit squared.
    """
    from scipy.spatial import cKDTree

    columns, rows = (max(1, int(np.ceil(side / step))) for side in size)
    out = np.zeros((rows, columns))
    if not len(xy):
        return out
    tree = cKDTree(xy)
    across = (np.arange(columns) + 0.5) * step
    for row in range(rows):
        middles = np.stack([across, np.full(columns, (row + 0.5) * step)], axis=1)
        out[row] = tree.query_ball_point(middles, radius, return_length=True)
    density: Float = out / (np.pi * radius**2)
    return density

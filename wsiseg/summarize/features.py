"""Measure the features of nuclei that the main run does not measure (``wsiseg.schema.FEATURES``).

Optical density is summed per label in integers, so the result does not depend on how the slide is cut into windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.tables.geo import wkb_rings
from wsiseg.types import Box

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RUIFROK_JOHNSTON", "neighbors", "od_features", "od_tables", "solidity", "sum_od", "sum_ring_od"]

RUIFROK_JOHNSTON = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
"""Optical densities (r, g, b) of hematoxylin and eosin: A. C. Ruifrok and D. A. Johnston, "Quantification of histochemical
staining by color deconvolution", Analytical and Quantitative Cytology and Histology 23, 2001."""

OD_STEPS = 4096
"""Steps per unit of optical density in which pixels are summed."""

NEIGHBOR_UM = 50.0
MAX_CELLS = 2048
"""Cells of the grid of neighbors along an axis: bounds its memory where a few nuclei lie far apart."""

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


def od_tables(stains: Sequence[Sequence[float]]) -> npt.NDArray[np.int32]:
    """Return the contribution of each channel value to the stain densities, int32 (2, 3, 256), in 1/``OD_STEPS``.

    Axes are (stain, channel, value). The density of hematoxylin or eosin at a pixel is the sum of its three entries: least
    squares of its optical densities ``-log10((v + 1) / 256)`` on the two stain vectors of length 1 (equal to Ruifrok and
    Johnston's deconvolution with the cross product as third vector). It is linear and not clipped: a pixel bluer than
    hematoxylin has slightly negative eosin.

    Parameters
    ----------
    stains
        Hematoxylin and eosin as (r, g, b) optical densities.
    """
    vectors = np.array(stains, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    unmix = np.linalg.pinv(vectors.T)
    od = -np.log10((np.arange(256) + 1) / 256)
    return np.floor(unmix[:, :, None] * od * OD_STEPS + 0.5).astype(np.int32)


def sum_od(
    sums: Int,
    rows: Int,
    labels: npt.NDArray[np.int32],
    rgb: npt.NDArray[np.uint8],
    table: npt.NDArray[np.int32],
    at: tuple[int, int] = (0, 0),
) -> None:
    """Add the pixels of one window to ``sums``; windows that partition the slide give the sums of whole nuclei.

    Parameters
    ----------
    sums : int64 (N, 5)
        Pixels, sum and sum of squares of hematoxylin, then of eosin, in ``OD_STEPS``. Changed in place.
    rows : int64 (n,)
        Row of ``sums`` for label k at k - 1.
    labels : int32 (H, W)
        0 background, 1..n.
    rgb : uint8 (>= H, >= W, 3)
        Pixels of the labels, or of a larger window.
    table
        See ``od_tables``.
    at
        (x, y) of the first label in ``rgb``.
    """
    from wsiseg.summarize._cpu_features import add_densities

    add_densities(sums, np.asarray(rows, np.int64), labels, np.ascontiguousarray(rgb), *at, table)


def sum_ring_od(
    sums: Int,
    rows: Int,
    rings: tuple[npt.NDArray[np.int32], Int],
    order: Int,
    pixels: tuple[npt.NDArray[np.uint8], Box],
    window: Box,
    table: npt.NDArray[np.int32],
) -> None:
    """Do the work of ``sum_od`` for rings on pixel edges, without a label image.

    Parameters
    ----------
    sums, rows, table
        As ``sum_od``; ring k is of ``rows[k]``.
    rings
        Vertices int32 (V, 2), closed, and ring offsets int64 (n + 1,).
    order : int64 (n,)
        The first ring that encloses a pixel has it.
    pixels
        uint8 (h, w, 3) and where they lie, in the frame of the rings.
    window
        Only its pixels count; inside of ``pixels``.
    """
    from wsiseg.summarize._cpu_features import add_ring_densities

    xy, offsets = rings
    rgb, at = pixels
    moved = (xy - np.array([window.x, window.y], np.int32)).astype(np.int32)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    place = (window.x - at.x, window.y - at.y, window.w, window.h)
    add_ring_densities(sums, np.asarray(rows, np.int64), moved, offsets, rank, np.ascontiguousarray(rgb), *place, table)


def od_features(sums: Int) -> dict[str, npt.NDArray[np.float32]]:
    """Return mean and population standard deviation of each stain's density, float32 (N,); nan for a nucleus without pixels."""
    with np.errstate(divide="ignore", invalid="ignore"):
        n = np.where(sums[:, 0] > 0, sums[:, 0], np.nan)
        out = {}
        for k, stain in ((1, "hematoxylin"), (3, "eosin")):
            mean = sums[:, k] / n
            out[f"{stain}_od_mean"] = _rounded(mean / OD_STEPS, OD_STEPS)
            out[f"{stain}_od_std"] = _rounded(np.sqrt(np.maximum(sums[:, k + 1] / n - mean**2, 0)) / OD_STEPS, OD_STEPS)
    return out


def solidity(wkb: pa.BinaryArray | pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return the area of WKB polygons of one ring / that of their convex hulls, float32 (N,), (0, 1]; nan if there is no area.

    Both are measured on the outline along pixel edges; scikit-image counts the hull's pixels, which for nuclei of 200 px or
    more differs by a few percent at most.
    """
    from wsiseg.summarize._cpu_features import ring_and_hull_areas

    xy, offsets = wkb_rings(wkb)
    area, hull = np.zeros(len(offsets) - 1), np.zeros(len(offsets) - 1)
    ring_and_hull_areas(np.ascontiguousarray(xy, np.float64), offsets, area, hull)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _rounded(np.where(hull > 0, area / hull, np.nan), 1024)


def neighbors(xy_um: Float, radius_um: float = NEIGHBOR_UM) -> dict[str, npt.NDArray[np.float32]]:
    """Return ``nearest_um`` and ``local_density_per_mm2`` of each centroid, exactly.

    Parameters
    ----------
    xy_um : float64 (N, 2)
    radius_um
        Radius of the disc in which other nuclei are counted. It is not cut at the border of the slide or the tissue.

    Returns
    -------
    dict of str to float32 (N,)
        ``nearest_um`` is nan if a slide has only one nucleus.
    """
    n = len(xy_um)
    nearest, counts = np.full(n, np.nan), np.zeros(n, np.int64)
    if n > 1:
        squared = _count_near(xy_um, radius_um, counts)
        nearest = np.sqrt(squared)
        alone = np.flatnonzero(np.isinf(squared))
        if len(alone):
            from scipy.spatial import KDTree

            nearest[alone] = KDTree(xy_um).query(xy_um[alone], k=2)[0][:, 1]
    disc_mm2 = np.pi * (radius_um * 1e-3) ** 2
    return {"nearest_um": _rounded(nearest, 32), "local_density_per_mm2": (counts / disc_mm2).astype(np.float32)}


def _count_near(xy_um: Float, radius_um: float, counts: Int) -> Float:
    """Write how many others lie within a radius of each point; return the least squared distance to one of these, else inf."""
    from wsiseg.summarize._cpu_features import count_near

    low, high = xy_um.min(axis=0), xy_um.max(axis=0)
    # a little larger than the radius, so that rounding takes no neighbor out of the cells around; not too many of them
    side = max(radius_um * 1.001, float((high - low).max()) / MAX_CELLS)
    cell = np.floor((xy_um - low) / side).astype(np.int64)
    columns, lines = (cell.max(axis=0) + 1).tolist()
    key = cell[:, 1] * columns + cell[:, 0]
    order = np.argsort(key, kind="stable")
    first = np.searchsorted(key[order], np.arange(columns * lines + 1))
    x, y = np.ascontiguousarray(xy_um[order].T)
    found, squared = np.zeros(len(x), np.int64), np.zeros(len(x))
    count_near(x, y, first, columns, lines, float(radius_um), found, squared)
    counts[order] = found
    out = np.empty(len(x))
    out[order] = squared
    return out


def _rounded(values: npt.NDArray[Any], steps: int) -> npt.NDArray[np.float32]:
    """Return values rounded to 1/``steps``: finer digits are noise that costs bytes."""
    return (np.rint(values * steps) / steps).astype(np.float32)

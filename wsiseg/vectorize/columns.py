"""Compute the columns of ``wsiseg.schema.BATCH_COLUMNS`` from integer sums per nucleus."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["SUMS", "columns_of"]

SUMS = ("area", "i", "j", "ii", "ij", "jj", "edges", "corners", "label_px", "material")
"""Integer sums that a kernel returns for each nucleus, in this order, int64: over the filled region relative to the first
pixel, the ring's unit edges and corners, the label's own pixels and their material sum."""


def columns_of(
    sums: npt.NDArray[np.int64],
    first_xy: npt.NDArray[np.int64],
    marker_xy: npt.NDArray[np.int64],
    center_u8: npt.NDArray[np.uint8],
) -> dict[str, npt.NDArray[np.generic]]:
    """Return the columns of nuclei that are computed from integer sums over their pixels.

    Parameters
    ----------
    sums : int64 (N, 10)
        One column per name in ``SUMS``; areas are at least 1.
    first_xy : int64 (N, 2)
        (x, y) of each label's first pixel in raster order, working px.
    marker_xy : int64 (N, 2)
        (x, y) of each marker pixel, working px.
    center_u8 : uint8 (N,)
        Center map at the markers.

    Returns
    -------
    dict of str to array (N,)
        Names and types as in ``wsiseg.schema.BATCH_COLUMNS``. Second moments about the centroid are computed from integers
        relative to it, without cancellation, then in float64 in a fixed order, and cast to the column type.
    """
    n, si, sj, sii, sij, sjj, edges, corners, label_px, material = sums.T
    mi, mj = si // n, sj // n  # shift by whole pixels: the remaining numbers are small and exact
    ri, rj = si - n * mi, sj - n * mj
    vii = (sii - 2 * mi * si + n * mi * mi - ri * ri / n) / n
    vij = (sij - mi * sj - mj * si + n * mi * mj - ri * rj / n) / n
    vjj = (sjj - 2 * mj * sj + n * mj * mj - rj * rj / n) / n
    mean = (vii + vjj) / 2
    spread = np.sqrt(((vii - vjj) / 2) ** 2 + vij * vij)
    perimeter = math.pi / 8 * ((1 + math.sqrt(2)) * edges - corners / math.sqrt(2))
    return {
        "nucleus_id": marker_xy[:, 1] * 2**31 + marker_xy[:, 0],
        "area_wpx": n.astype(np.int32),
        "cx_wpx": first_xy[:, 0] + 0.5 + si / n,
        "cy_wpx": first_xy[:, 1] + 0.5 + sj / n,
        "perimeter_wpx": perimeter.astype(np.float32),
        "major_wpx": (4 * np.sqrt(mean + spread)).astype(np.float32),
        "minor_wpx": (4 * np.sqrt(np.maximum(mean - spread, 0))).astype(np.float32),
        # + 0.0 turns -0.0 into 0.0: the half-open end of (-pi/2, pi/2] is then always the positive one
        "orientation_rad": (0.5 * np.arctan2(2 * vij + 0.0, vii - vjj + 0.0)).astype(np.float32),
        "center_prob": center_u8.astype(np.uint8),
        "material_prob": ((2 * material + label_px) // (2 * label_px)).astype(np.uint8),
    }

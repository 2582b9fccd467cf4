"""Compute labels of cells from labels of nuclei: each pixel near a nucleus belongs to the nearest one.

The computation is in integers, and its result does not depend on the order or the tiling:

1. **Nearest.** A pixel whose least squared distance (of pixel centers) to a nucleus's pixel is at most r^2 belongs to that
   nucleus; ties: the smallest label. Pixels of a nucleus keep its label.
2. **Joined.** Of a cell's 4-connected parts the one with most pixels of its nucleus is kept; ties: the first in raster order.
   (Digital sectors between two nuclei can end in pixels that touch their cell by a corner only.)

A pixel's label depends on pixels at most r away, so a window is correct for every nucleus that is 2 r or more inside it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError

__all__ = ["expand"]


def expand(labels: npt.NDArray[np.int32], reach_squared: int) -> npt.NDArray[np.int32]:
    """Return labels of cells, int32 (H, W): those of nuclei grown by up to ``sqrt(reach_squared)`` px without overlap.

    It runs on the CPU. Of a nucleus with several parts, the cell with most pixels of the nucleus is kept.

    Parameters
    ----------
    labels : int32 (H, W)
        0 background.
    reach_squared
        Greatest squared distance, px^2.

    Raises
    ------
    InputError
        ``labels`` is not int32 (H, W), or the reach is negative.
    """
    if labels.ndim != 2 or labels.dtype != np.int32 or reach_squared < 0:
        raise InputError(
            f"expand: expected int32 labels (H, W) and a reach of 0 or more, got {labels.dtype} {labels.shape}, "
            f"{reach_squared}."
        )
    from wsiseg.separate import _cpu_expand

    plain = np.ascontiguousarray(labels)
    cells = _cpu_expand.nearest(plain, np.int64(reach_squared))
    if cells.size:
        _cpu_expand.keep_joined(cells, plain, int(cells.max()))
    return cells

"""Labels of cells from labels of nuclei: each pixel near a nucleus belongs to the nearest one.

Integer arithmetic with a unique result, whatever the order or the tiling:

1. **Nearest.** A pixel whose least squared distance (of pixel centers) to a nucleus's pixel is at most r^2 belongs to that
   nucleus; of several at the same distance to the one of the smallest label. Pixels of nuclei belong to themselves.
2. **Joined.** Of a cell's 4-connected parts the one with most pixels of its nucleus is kept; ties: the first in raster order.
   (Digital sectors between two nuclei can end in pixels that touch their cell by a corner only.)

A pixel's label depends on pixels at most r away, so a window is correct for every nucleus that lies 2 r or more inside it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError

__all__ = ["expand"]


def expand(labels: npt.NDArray[np.int32], reach_squared: int) -> npt.NDArray[np.int32]:
    """Return labels of cells, int32 (H, W): those of nuclei grown by up to ``sqrt(reach_squared)`` px without overlap.

    Runs on the CPU. A nucleus of several parts keeps the part that ends up with most pixels.

    Parameters
    ----------
    labels : int32 (H, W)
        0 background.
    reach_squared
        Greatest squared distance, px^2.

    Raises
    ------
    InputError
        Not int32 (H, W), or a negative reach.
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

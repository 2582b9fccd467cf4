"""The result type of the CPU and CUDA kernels: rings and integer sums of the owned nuclei, on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Traced"]


class Traced(NamedTuple):
    """Owned nuclei in raster order of their markers.

    ``xy`` int32 (V, 2) in working px of the slide, ``offsets`` int64 (N + 1,), ``sums`` int64 (N, 10) as named by
    ``wsiseg.vectorize.columns.SUMS``; ``first`` int64 (N,) raster index of the label's first pixel, ``anchors`` int64 (N, 2)
    and ``center`` uint8 (N,) of the marker, all in the window. ``missing`` is the smallest label without a pixel (0: all have
    some); if there is one, the other values are not valid.
    """

    xy: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    sums: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    anchors: npt.NDArray[np.int64]
    center: npt.NDArray[np.uint8]
    missing: int = 0

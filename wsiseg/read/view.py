"""The tissue mask of a window, kept as mask px and, for each row and column, which mask px it shows; expanded on the device.

A window of 4128 px shows about 130 px of the mask. Expanded on the host it would be 17 MB to copy to a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend import array_namespace, to_device
from wsiseg.read.mask_window import scanned_part
from wsiseg.read.tissue import TissueMask
from wsiseg.types import Box

__all__ = ["TissueView", "tissue_view", "unscanned_view"]


@dataclass(frozen=True, slots=True, eq=False)
class TissueView:
    """The part of a tissue mask that a window shows.

    Attributes
    ----------
    mask : bool (h, w)
        The mask px that the window touches, with a border of False for px outside the mask.
    rows, columns : int32 (H,), (W,)
        For each row and column of the window: the index of the mask px that it shows.
    """

    mask: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.int32]
    columns: npt.NDArray[np.int32]

    def on(self, device: str) -> Any:
        """Return bool (H, W), expanded on a device (``cpu``, or a GPU by PyTorch's name); equal on all devices."""
        mask, rows, columns = (to_device(a, device) for a in (self.mask, self.rows, self.columns))
        xp = array_namespace(mask)
        return xp.take(xp.take(mask, rows, axis=0), columns, axis=1)

    def count(self, part: Box) -> int:
        """Return how many px of a part of the window (relative to its corner) show tissue."""
        rows = np.bincount(self.rows[part.y : part.y1], minlength=self.mask.shape[0])
        columns = np.bincount(self.columns[part.x : part.x1], minlength=self.mask.shape[1])
        return int(rows @ self.mask.astype(np.int64) @ columns)


def tissue_view(tissue: TissueMask, box: Box, scale: float = 1.0) -> TissueView:
    """Return the view of a mask for a box (working px at ``scale``): each px shows the mask px that contains its center."""
    n_rows, n_columns = tissue.mask.shape
    height, rows = _shown(box.y, box.y1, scale, tissue.y0, tissue.px_h, n_rows)
    width, columns = _shown(box.x, box.x1, scale, tissue.x0, tissue.px_w, n_columns)
    return TissueView(np.pad(tissue.mask[height, width] > 0, 1), rows, columns)


def unscanned_view(tissue: TissueMask, box: Box, scale: float = 1.0) -> TissueView | None:
    """Return ``unscanned_window`` in mask px: True where plain black was not scanned; ``None``: nowhere."""
    scanned = scanned_part(tissue, box, scale)
    if scanned is None:
        return None
    view = tissue_view(scanned, box, scale)
    return TissueView(~view.mask, view.rows, view.columns)


def _shown(start: int, stop: int, scale: float, origin: float, px: float, n: int) -> tuple[slice, npt.NDArray[np.int32]]:
    """Return the mask px shown along an axis, and for each px the index of its mask px among them, from 1; 0: outside."""
    shown = np.floor(((np.arange(start, stop) + 0.5) / scale - origin) / px).astype(np.int64)
    inside = (shown >= 0) & (shown < n)
    first, end = (int(shown[inside].min()), int(shown[inside].max()) + 1) if inside.any() else (0, 0)
    return slice(first, end), np.where(inside, shown - first + 1, 0).astype(np.int32)

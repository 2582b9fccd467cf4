"""Count nuclei and matches of two segmentations in the cells of a grid over the slide, and score each cell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.metrics import Contingency
from wsiseg.tables import read_nuclei

__all__ = ["Cells", "Centers", "centers_of", "grid_cells"]

Int = npt.NDArray[np.int64]
Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Centers:
    """Centroids of all nuclei of a table, float32 (N,) level-0 px, and the sum of their areas in um2."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.float32]
    area_um2: float

    def __len__(self) -> int:
        """Return the number of nuclei."""
        return len(self.x)


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cells with a nucleus of A or B: columns of ``wsiseg.schema.COMPARED_CELLS``, (n,) each, in raster order."""

    side_px: int
    column: Int
    row: Int
    n_a: Int
    n_b: Int
    matched: Int
    matched_iou: Float

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.column)

    @property
    def unmatched(self) -> Int:
        """Return the number of unmatched nuclei of A and B in each cell."""
        return self.n_a + self.n_b - 2 * self.matched

    @property
    def pq(self) -> Float:
        """Return the panoptic quality of each cell, [0, 1]."""
        return np.asarray(2 * self.matched_iou / (self.n_a + self.n_b))

    @property
    def f1(self) -> Float:
        """Return F1 at IoU > 0.5 of each cell, [0, 1]."""
        return np.asarray(2 * self.matched / (self.n_a + self.n_b))

    def columns(self, slide_id: str) -> dict[str, list[str] | npt.NDArray[Any]]:
        """Return the rows of ``wsiseg.schema.COMPARED_CELLS``."""
        return {
            "slide_id": [slide_id] * len(self),
            "x_px": self.column * self.side_px,
            "y_px": self.row * self.side_px,
            "side_px": np.full(len(self), self.side_px, np.int32),
            "n_a": self.n_a,
            "n_b": self.n_b,
            "matched": self.matched,
            "pq": self.pq,
            "f1": self.f1,
        }


def centers_of(table: Path) -> Centers:
    """Return the centroids and the total area of a table's nuclei."""
    found = read_nuclei(table, columns=["cx", "cy", "area_um2"])
    area = float(found["area_um2"].to_numpy().sum(dtype=np.float64))
    return Centers(found["cx"].to_numpy(), found["cy"].to_numpy(), area)


def grid_cells(overlaps: Contingency, a: Centers, b: Centers, side_px: int) -> Cells:
    """Return the counts by cell. A nucleus is in the cell of its centroid, a matched pair in that of its nucleus of B.

    Parameters
    ----------
    overlaps
        Contingency of the slide, with A as prediction, B as truth, and table rows as ids. Nuclei without a pixel are left out.
    a, b
        Centroids of A and B.
    side_px
        Side of a cell, level-0 px.
    """
    hit = overlaps.iou > 0.5
    pair_a, pair_b = overlaps.pred_ids[overlaps.pair_pred[hit]], overlaps.truth_ids[overlaps.pair_truth[hit]]
    key_a, key_b = _keys(a, side_px), _keys(b, side_px)
    # both nuclei of a pair count in the cell of B
    alone_a = np.setdiff1d(overlaps.pred_ids, pair_a)
    place_a = np.concatenate([key_a[alone_a], key_b[pair_b]])
    place_b = key_b[overlaps.truth_ids]
    keys = np.unique(np.concatenate([place_a, place_b]))
    count = [np.bincount(np.searchsorted(keys, k), minlength=len(keys)) for k in (place_a, place_b, key_b[pair_b])]
    iou: Float = np.bincount(np.searchsorted(keys, key_b[pair_b]), overlaps.iou[hit], minlength=len(keys)).astype(np.float64)
    return Cells(side_px, keys & 0xFFFFFFFF, keys >> 32, count[0], count[1], count[2], iou)


def _keys(centers: Centers, side_px: int) -> Int:
    column = np.maximum(np.floor(centers.x.astype(np.float64) / side_px), 0).astype(np.int64)
    row = np.maximum(np.floor(centers.y.astype(np.float64) / side_px), 0).astype(np.int64)
    return (row << 32) | column

"""Count the overlaps of the instances of two label maps in a sparse table, from which all scores are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError

__all__ = ["Contingency", "contingency"]

Int64 = npt.NDArray[np.int64]
_LUT_IDS = 1 << 26  # above this largest id (or with negative ids) instances are found by sorting instead of counting
_DENSE_CODES = 1 << 22  # pair codes up to this many are counted in a dense histogram


@dataclass(frozen=True, slots=True, eq=False)
class Contingency:
    """Areas of the instances of two label maps, and of the overlap of every pair that shares a pixel.

    Attributes
    ----------
    truth_ids, pred_ids : int64 (N,), (M,)
        Instance ids, ascending, 0 (background) excluded.
    truth_px, pred_px : int64 (N,), (M,)
        Area of each instance.
    pair_truth, pair_pred : int64 (K,)
        Rows of ``truth_ids`` and ``pred_ids`` of each overlapping pair, ordered by truth, then by prediction.
    pair_px : int64 (K,)
        Shared pixels of each pair, at least 1.
    cover_px
        Only if instances overlap within a map (layers): pixels in any true instance, in any predicted one, and in both.
    """

    truth_ids: Int64
    pred_ids: Int64
    truth_px: Int64
    pred_px: Int64
    pair_truth: Int64
    pair_pred: Int64
    pair_px: Int64
    cover_px: tuple[int, int, int] | None = None

    @property
    def union_px(self) -> Int64:
        """Area of the union of each pair, px, int64 (K,)."""
        return self.truth_px[self.pair_truth] + self.pred_px[self.pair_pred] - self.pair_px

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each pair, float64 (K,), in (0, 1]."""
        return self.pair_px / self.union_px


def contingency(
    pred: npt.ArrayLike, truth: npt.ArrayLike, ignore: npt.ArrayLike | None = None, *, layered: bool = False
) -> Contingency:
    """Count the overlaps of two label maps.

    Parameters
    ----------
    pred, truth : integer or bool (H, W), with ``layered`` also (L, H, W)
        0 background, every other value one instance; ids need not be contiguous, and an instance need not be connected. The
        first layer has all pixels that any instance covers, further layers the parts hidden by it; ids differ between layers.
    ignore : bool (H, W), optional
        Pixels that are not counted in either map (ambiguous areas).

    Returns
    -------
    Contingency

    Raises
    ------
    FormatError
        A map is not a 2-D integer array, or the shapes differ.
    """
    pred_map, truth_map = _as_labels(pred, "pred", layered), _as_labels(truth, "truth", layered)
    if pred_map.shape[-2:] != truth_map.shape[-2:]:
        raise FormatError(
            f"evaluate: pred has shape {pred_map.shape}, truth {truth_map.shape}. Expected the same (H, W). "
            "Were they made at different resolutions?"
        )
    if ignore is not None:
        keep = ~np.asarray(ignore, dtype=bool)
        if keep.shape != truth_map.shape[-2:]:
            raise FormatError(f"evaluate: the ignore mask has shape {keep.shape}, the label maps {truth_map.shape[-2:]}.")
        pred_map, truth_map = pred_map * keep, truth_map * keep
    truth_ids, truth_px, truth_index = _compact(truth_map)
    pred_ids, pred_px, pred_index = _compact(pred_map)
    n_pred = max(len(pred_ids), 1)
    n_px = truth_map.shape[-2] * truth_map.shape[-1]
    layers = [(t, p) for t in _layers(truth_index, n_px) for p in _layers(pred_index, n_px)]
    codes = np.concatenate([_codes(t, p, n_pred) for t, p in layers])
    cover = None
    if len(layers) > 1:
        shown = [index[:n_px] > 0 for index in (truth_index, pred_index)]
        cover = (int(shown[0].sum()), int(shown[1].sum()), int((shown[0] & shown[1]).sum()))
    if len(truth_ids) * n_pred <= max(_DENSE_CODES, codes.size):
        counts = np.bincount(codes, minlength=0).astype(np.int64)
        code = np.flatnonzero(counts).astype(np.int64)
        pair_px = counts[code]
    else:
        code, pair_px = (a.astype(np.int64) for a in np.unique(codes, return_counts=True))
    return Contingency(truth_ids, pred_ids, truth_px, pred_px, code // n_pred, code % n_pred, pair_px, cover)


def _layers(index: Int64, n_px: int) -> list[Int64]:
    return [index[k : k + n_px] for k in range(0, len(index), n_px)] if n_px else [index]


def _codes(truth_index: Int64, pred_index: Int64, n_pred: int) -> Int64:
    both = (truth_index > 0) & (pred_index > 0)
    return (truth_index[both] - 1) * n_pred + (pred_index[both] - 1)


def _as_labels(labels: npt.ArrayLike, name: str, layered: bool) -> npt.NDArray[Any]:
    array = np.asarray(labels)
    if array.ndim not in ((2, 3) if layered else (2,)) or array.dtype.kind not in "iub":
        raise FormatError(f"evaluate: {name} must be an integer label map (H, W), got {array.dtype} {array.shape}.")
    return array.astype(np.uint8) if array.dtype.kind == "b" else array


def _compact(labels: npt.NDArray[Any]) -> tuple[Int64, Int64, Int64]:
    """Return the ids, their areas, and the map with ids replaced by 1..N in ascending order of id (flat)."""
    flat = labels.ravel()
    if flat.size == 0:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    if int(flat.min()) >= 0 and int(flat.max()) < _LUT_IDS:
        counts = np.bincount(flat)
        ids = np.flatnonzero(counts).astype(np.int64)
        ids = ids[ids != 0]
        lut = np.zeros(len(counts), np.int64)
        lut[ids] = np.arange(1, len(ids) + 1)
        return ids, counts[ids].astype(np.int64), lut[flat]
    values, inverse, areas = np.unique(flat, return_inverse=True, return_counts=True)
    instance = values != 0
    rank = np.where(instance, np.cumsum(instance), 0)
    return values[instance].astype(np.int64), areas[instance].astype(np.int64), rank[inverse]

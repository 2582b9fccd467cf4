"""A patch picture in its eight orientations -> how much the segmentation depends on the orientation.

If the network finds the same nuclei in the turned and mirrored picture, they are probably right; if not, one of its answers
is wrong. The mean of the eight answers, separated again, is also a better estimate of the truth than the one answer that was
stored. Precision and recall of the stored outlines against it are therefore features, and so are those with lower and higher
thresholds.
"""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.errors import BackendUnavailableError, InputError
from wsiseg.metrics import contingency
from wsiseg.predict import Model, load_model, predict_picture
from wsiseg.schema.quality import OF_TURNS
from wsiseg.separate import SeparateParams, resolve_params, separate

__all__ = ["Turner", "agreement", "load_turner", "turn_features"]

FloatArray = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

MARGIN_PX = 15
"""A nucleus counts in precision and recall where its center lies this far inside the patch."""

SAME_IOU = 0.5
"""Overlap from which two outlines are the same nucleus in two orientations of one picture."""

FOUND_IOU = 0.3
"""Overlap from which a nucleus counts as outlined, as in the truth that the model is fitted to."""

LOOSE, STRICT = 0.5, 1.6
"""Factors on both thresholds: what would also, or would still, have been outlined."""

_ONE_AT_A_TIME = threading.Lock()
"""The network uses all cores by itself."""

_LEAST_PX = 200.0
"""Shares of the nuclear area are of at least this many px, so that patches without nuclei have finite ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Turner:
    """A network and how its maps are separated: as it is, with lower and with higher thresholds."""

    model: Model
    params: SeparateParams
    loose: SeparateParams
    strict: SeparateParams


@lru_cache(maxsize=2)
def load_turner(weights: str) -> Turner:
    """Return the network of these weights, on the CPU, ready for ``turn_features``. Raises as ``load_model`` does.

    It computes in int8 where it can, whatever pays on this machine: int8 gives the same maps on every processor that has it.
    """
    try:
        model = load_model(PredictConfig(weights=weights, precision="int8", engine="eager"))
    except BackendUnavailableError:  # another processor, or weights without int8
        model = load_model(PredictConfig(weights=weights, engine="eager"))
    params = resolve_params(SeparateConfig(), model.separate_defaults, model.mpp)
    loose, strict = (
        dataclasses.replace(
            params,
            center_threshold=min(round(params.center_threshold * k), 65_280),
            material_threshold=min(round(params.material_threshold * k), 4_080),
        )
        for k in (LOOSE, STRICT)
    )
    return Turner(model, params, loose, strict)


def turn_features(rgb: Pixels, stored: Labels, turner: Turner) -> FloatArray:
    """Return the features of one patch, float64 (17,) in the order of ``OF_TURNS``, all finite.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        The patch at 0.25 um; both sides multiples of 16 px, 112 px or more.
    stored : int32 (H, W)
        The outlines of the table, drawn; 0 where there is no nucleus.

    Raises
    ------
    InputError
        Pixels and labels are not of one window, or of a size that the network does not take.
    """
    if rgb.shape[:2] != stored.shape:
        raise InputError(f"Expected pixels and labels of one window, got {rgb.shape[:2]} and {stored.shape}.")
    with _ONE_AT_A_TIME:
        maps = np.stack([_turned(rgb, k, turner) for k in range(8)])
    mean = np.rint(maps.astype(np.float32).mean(axis=0)).astype(np.uint8)
    values = _steadiness(maps, turner) | _doubt(mean, turner) | _against(stored, mean, turner)
    return np.array([values[name] for name in OF_TURNS], np.float64)


def _turned(rgb: Pixels, k: int, turner: Turner) -> Pixels:
    """Return the maps of the picture in its k-th orientation, turned back."""
    quarter, mirror = k // 2, bool(k % 2)
    seen = np.ascontiguousarray(np.rot90(rgb[:, ::-1] if mirror else rgb, quarter))
    maps = np.rot90(predict_picture(turner.model, seen), -quarter, (1, 2))
    return np.ascontiguousarray(maps[:, :, ::-1] if mirror else maps)


def _labels(maps: Pixels, params: SeparateParams) -> Labels:
    return np.asarray(separate(np.ascontiguousarray(maps), params).labels)


def _steadiness(maps: Pixels, turner: Turner) -> dict[str, float]:
    """How equal the eight answers are: nuclei, area, values, numbers."""
    found = [_labels(m, turner.params) for m in maps]
    scores = [_f1(agreement(found[0], labels, SAME_IOU)) for labels in found[1:]]
    solid = maps[:, 1] >= turner.params.material_threshold / 16
    spread = maps.astype(np.float32).std(axis=0) / 255
    counts = np.array([labels.max() + 1 for labels in found], np.float64)
    return {
        "turn_f1": float(np.mean(scores)),
        "turn_f1_low": float(np.min(scores)),
        "turn_dice": float(np.mean([_dice(solid[0], s) for s in solid[1:]])),
        "turn_sd_center": float(spread[0].mean()),
        "turn_sd_material": float(spread[1].mean()),
        "turn_sd_share": float(spread[1].sum()) / max(_LEAST_PX, float(maps[0, 1].sum(dtype=np.float64)) / 255),
        "turn_count_sd": float(np.log(counts).std()),
    }


def _doubt(mean: Pixels, turner: Turner) -> dict[str, float]:
    """How much of the mean maps is neither yes nor no, as a share of the nuclear area."""
    center, material = mean.astype(np.float64) / 255
    limit = turner.params.material_threshold / 4_080
    solid = max(_LEAST_PX, float((material > limit).sum()))
    return {
        "weak_share": float(((material > limit / 3) & (material <= limit)).sum()) / solid,
        "doubt_center": float((center * (1 - center)).sum()) / solid,
        "doubt_material": float((material * (1 - material)).sum()) / solid,
    }


def _against(stored: Labels, mean: Pixels, turner: Turner) -> dict[str, float]:
    """Return the stored outlines as scored by the mean of all orientations, at the usual and at other thresholds."""
    labels = _labels(mean, turner.params)
    precision, recall = agreement(stored, labels, FOUND_IOU)
    return {
        "mean_precision": precision,
        "mean_recall": recall,
        "mean_worse": min(precision, recall),
        "mean_f1": _f1(agreement(stored, labels, 0.6)),
        "mean_dice": _dice(stored > 0, labels > 0),
        "loose_recall": agreement(stored, _labels(mean, turner.loose), FOUND_IOU)[1],
        "strict_precision": agreement(stored, _labels(mean, turner.strict), FOUND_IOU)[0],
    }


def agreement(a: Labels, b: Labels, least_iou: float) -> tuple[float, float]:
    """Return the share of nuclei of ``a`` that ``b`` has, and of ``b`` that ``a`` has; of none it is 1 where both have none.

    Counted are nuclei whose center lies at least ``MARGIN_PX`` inside; they are the same where their IoU is above
    ``least_iou`` with a nucleus anywhere.
    """
    table = contingency(a, b)  # prediction, truth
    of_a, of_b = np.zeros(len(table.pred_ids)), np.zeros(len(table.truth_ids))
    np.maximum.at(of_a, table.pair_pred, table.iou)
    np.maximum.at(of_b, table.pair_truth, table.iou)
    of_a, of_b = of_a[_central(a)], of_b[_central(b)]

    def share(iou: FloatArray, others: int) -> float:
        return float((iou > least_iou).mean()) if iou.size else float(others == 0)

    return share(of_a, of_b.size), share(of_b, of_a.size)


def _central(labels: Labels) -> npt.NDArray[np.bool_]:
    """Return which nuclei, in order of their labels, have their center at least ``MARGIN_PX`` inside."""
    flat = labels.ravel()
    count = np.bincount(flat)
    y, x = np.indices(labels.shape)
    cy, cx = (np.bincount(flat, v.ravel()) / np.maximum(count, 1) for v in (y, x))
    h, w = labels.shape
    inside = (cx >= MARGIN_PX) & (cx < w - MARGIN_PX) & (cy >= MARGIN_PX) & (cy < h - MARGIN_PX)
    return np.asarray(inside[1:][count[1:] > 0], np.bool_)


def _f1(shares: tuple[float, float]) -> float:
    """Return the harmonic mean of precision and recall, 0 where both are."""
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) > 0 else 0.0


def _dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return twice the shared area over the sum of both; 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0

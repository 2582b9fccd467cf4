"""Segment a patch in its eight orientations and measure how much the result depends on the orientation.

If the network finds the same nuclei in the rotated and mirrored picture, they are probably right; if not, at least one result
is wrong. Separating the mean of the eight probability maps also gives a better estimate of the truth than the stored outlines,
so their precision and recall against it are features, at the usual thresholds and at lower and higher ones.
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
from wsiseg.schema.quality import OF_ORIENTATIONS
from wsiseg.separate import SeparateParams, resolve_params, separate

__all__ = ["PatchSegmenter", "agreement", "load_patch_segmenter", "orientation_features"]

FloatArray = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]

MARGIN_PX = 15
"""A nucleus counts in precision and recall if its center is at least this far inside the patch."""

SAME_IOU = 0.5
"""Outlines in two orientations of a picture are the same nucleus above this IoU."""

FOUND_IOU = 0.3
"""A nucleus counts as outlined above this IoU, as in the targets to which the quality model is fitted."""

LOOSE_FACTOR, STRICT_FACTOR = 0.5, 1.6
"""Factors on both thresholds for the loose and the strict segmentation."""

_NETWORK_LOCK = threading.Lock()
"""One thread at a time runs the network, because it uses all cores."""

_MIN_AREA_PX = 200.0
"""Minimum nuclear area, px, by which features are divided, so that patches without nuclei have finite features."""


@dataclass(frozen=True, slots=True, eq=False)
class PatchSegmenter:
    """A network and the parameters that separate its maps: the usual ones, and with lower and higher thresholds."""

    model: Model
    params: SeparateParams
    loose: SeparateParams
    strict: SeparateParams


@lru_cache(maxsize=2)
def load_patch_segmenter(weights: str) -> PatchSegmenter:
    """Return the segmenter with these weights, on the CPU. Raises as ``load_model`` does.

    It computes in int8 wherever possible, even where float is faster, because int8 gives the same maps on every processor that
    supports it.
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
        for k in (LOOSE_FACTOR, STRICT_FACTOR)
    )
    return PatchSegmenter(model, params, loose, strict)


def orientation_features(rgb: Pixels, stored: Labels, segmenter: PatchSegmenter) -> FloatArray:
    """Return the features of one patch, float64 (17,) in the order of ``OF_ORIENTATIONS``, all finite.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        The patch at 0.25 um per px; H and W are multiples of 16, at least 112.
    stored : int32 (H, W)
        The outlines of the polygon table as labels, 0 outside nuclei.

    Raises
    ------
    InputError
        ``rgb`` and ``stored`` differ in height or width, or the network does not accept this size.
    """
    if rgb.shape[:2] != stored.shape:
        raise InputError(f"Expected pixels and labels of equal height and width, got {rgb.shape[:2]} and {stored.shape}.")
    with _NETWORK_LOCK:
        maps = np.stack([_maps_at_orientation(rgb, k, segmenter) for k in range(8)])
    mean = np.rint(maps.astype(np.float32).mean(axis=0)).astype(np.uint8)
    values = (
        _consistency_features(maps, segmenter)
        | _uncertainty_features(mean, segmenter)
        | _stored_outline_features(stored, mean, segmenter)
    )
    return np.array([values[name] for name in OF_ORIENTATIONS], np.float64)


def _maps_at_orientation(rgb: Pixels, k: int, segmenter: PatchSegmenter) -> Pixels:
    """Return the maps predicted from the picture in its k-th orientation, rotated and mirrored back."""
    quarter, mirror = k // 2, bool(k % 2)
    seen = np.ascontiguousarray(np.rot90(rgb[:, ::-1] if mirror else rgb, quarter))
    maps = np.rot90(predict_picture(segmenter.model, seen), -quarter, (1, 2))
    return np.ascontiguousarray(maps[:, :, ::-1] if mirror else maps)


def _labels(maps: Pixels, params: SeparateParams) -> Labels:
    return np.asarray(separate(np.ascontiguousarray(maps), params).labels)


def _consistency_features(maps: Pixels, segmenter: PatchSegmenter) -> dict[str, float]:
    """Return how well the eight segmentations agree in nuclei, area, map values and number of nuclei."""
    found = [_labels(m, segmenter.params) for m in maps]
    scores = [_f1(agreement(found[0], labels, SAME_IOU)) for labels in found[1:]]
    solid = maps[:, 1] >= segmenter.params.material_threshold / 16
    spread = maps.astype(np.float32).std(axis=0) / 255
    counts = np.array([labels.max() + 1 for labels in found], np.float64)
    return {
        "turn_f1": float(np.mean(scores)),
        "turn_f1_low": float(np.min(scores)),
        "turn_dice": float(np.mean([_dice(solid[0], s) for s in solid[1:]])),
        "turn_sd_center": float(spread[0].mean()),
        "turn_sd_material": float(spread[1].mean()),
        "turn_sd_share": float(spread[1].sum()) / max(_MIN_AREA_PX, float(maps[0, 1].sum(dtype=np.float64)) / 255),
        "turn_count_sd": float(np.log(counts).std()),
    }


def _uncertainty_features(mean: Pixels, segmenter: PatchSegmenter) -> dict[str, float]:
    """Return the amount of intermediate values in the mean maps, divided by the nuclear area."""
    center, material = mean.astype(np.float64) / 255
    limit = segmenter.params.material_threshold / 4_080
    solid = max(_MIN_AREA_PX, float((material > limit).sum()))
    return {
        "weak_share": float(((material > limit / 3) & (material <= limit)).sum()) / solid,
        "doubt_center": float((center * (1 - center)).sum()) / solid,
        "doubt_material": float((material * (1 - material)).sum()) / solid,
    }


def _stored_outline_features(stored: Labels, mean: Pixels, segmenter: PatchSegmenter) -> dict[str, float]:
    """Return scores of the stored outlines against the separated mean maps, at the usual, loose and strict thresholds."""
    labels = _labels(mean, segmenter.params)
    precision, recall = agreement(stored, labels, FOUND_IOU)
    return {
        "mean_precision": precision,
        "mean_recall": recall,
        "mean_worse": min(precision, recall),
        "mean_f1": _f1(agreement(stored, labels, 0.6)),
        "mean_dice": _dice(stored > 0, labels > 0),
        "loose_recall": agreement(stored, _labels(mean, segmenter.loose), FOUND_IOU)[1],
        "strict_precision": agreement(stored, _labels(mean, segmenter.strict), FOUND_IOU)[0],
    }


def agreement(a: Labels, b: Labels, min_iou: float) -> tuple[float, float]:
    """Return the share of nuclei of ``a`` that ``b`` has, and the share of nuclei of ``b`` that ``a`` has.

    Only nuclei whose center is at least ``MARGIN_PX`` inside are counted. The other image has a nucleus if one of its nuclei,
    anywhere, overlaps it with an IoU above ``min_iou``. Both shares are 1 if neither image has nuclei.
    """
    table = contingency(a, b)  # prediction, truth
    of_a, of_b = np.zeros(len(table.pred_ids)), np.zeros(len(table.truth_ids))
    np.maximum.at(of_a, table.pair_pred, table.iou)
    np.maximum.at(of_b, table.pair_truth, table.iou)
    of_a, of_b = of_a[_central(a)], of_b[_central(b)]

    def share(iou: FloatArray, others: int) -> float:
        return float((iou > min_iou).mean()) if iou.size else float(others == 0)

    return share(of_a, of_b.size), share(of_b, of_a.size)


def _central(labels: Labels) -> npt.NDArray[np.bool_]:
    """Return for each nucleus, in order of labels, whether its center is at least ``MARGIN_PX`` inside."""
    flat = labels.ravel()
    count = np.bincount(flat)
    y, x = np.indices(labels.shape)
    cy, cx = (np.bincount(flat, v.ravel()) / np.maximum(count, 1) for v in (y, x))
    h, w = labels.shape
    inside = (cx >= MARGIN_PX) & (cx < w - MARGIN_PX) & (cy >= MARGIN_PX) & (cy < h - MARGIN_PX)
    return np.asarray(inside[1:][count[1:] > 0], np.bool_)


def _f1(shares: tuple[float, float]) -> float:
    """Return the harmonic mean of precision and recall; 0 if both are 0."""
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) > 0 else 0.0


def _dice(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """Return the Dice coefficient of two masks; 1 if both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0

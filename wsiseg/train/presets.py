"""``wsiseg train --model``: published training recipes as options of a config, with their separation thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.errors import ConfigError
from wsiseg.train.validation import Judged, Thresholds

__all__ = ["HOU_SEPARATION", "MODELS", "separation_by_size", "with_model"]

MODELS: dict[str, dict[str, Any]] = {
    # Mahbod et al. 2019: material by 0.5 cross-entropy + Dice with touching borders taken out, distance map by squared error
    "two-stage": {
        "net": "two_stage",
        "center": "distance",
        "touching": 0.0,
        "border_weight": 1.0,
        "stain": "macenko",
        "stain_reference": "automatic",
        "separation": "nucleus-size",
        "loss": {"center_loss": "mse", "entropy": 0.5, "dice": 1.0},
    },
    # Hou et al. 2020: both heads by cross-entropy alone, centers as 3x3 px, touching nuclei without a border between them
    "hou43": {
        "net": "hou43",
        "center": "point",
        "touching": 1.0,
        "border_weight": 1.0,
        "separation": "hou43",
        "loss": {"entropy": 1.0, "dice": 0.0},
    },
}
"""Options of each recipe, under the names of a training TOML."""

_MIN_PX = 20  # Hou et al. 2020 and Mahbod et al. 2019 drop smaller objects

HOU_SEPARATION: Thresholds = {
    "center_threshold_frac": 0.07,
    "material_threshold_frac": 0.33,
    "marker_radius_wpx": 1,
    "compactness": 1.0,
    "merge_depth_frac": 0.07,
    "min_area_um2": _MIN_PX * 0.25**2,
}
"""Thresholds that approximate the separation of Hou et al. 2020 (``benchmarks/papers/hou43.md`` compares the two)."""


def with_model(tree: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return a training config's tree with the options of a published model. Raises ``ConfigError`` if it is unknown."""
    if model not in MODELS:
        raise ConfigError(f"No model named {model!r}. Expected one of {sorted(MODELS)}.")
    return {**tree, **MODELS[model]}


def separation_by_size(judged: Sequence[Judged], mpp: float) -> tuple[Thresholds, float]:
    """Return separation thresholds that scale with the mean nucleus of stage one, and the diameter of that nucleus.

    Mahbod et al. 2019 smooth the distance map by a Gaussian whose width depends on the mean nucleus of the image, and take its
    local maxima. Here the mean is taken once, over training images, because a width that varied between tiles would make
    results depend on tiles. Instead of smoothing, markers are merged: those nearer than 1/4 of the mean diameter (in x and y),
    and those with a saddle less deep than a tenth of the map's range between them.

    Parameters
    ----------
    judged
        Predicted training images.
    mpp
        Microns per px.

    Returns
    -------
    (dict, float)
        Values under the names of ``SeparateConfig``, and the diameter of the mean nucleus of the thresholded material, px; 0
        where nothing was found.
    """
    areas = [_object_areas(j.maps.inner[1] >= 128) for j in judged]
    kept = np.concatenate([a[a >= _MIN_PX] for a in areas]) if areas else np.zeros(0)
    diameter = float(2 * np.sqrt(kept.mean() / np.pi)) if len(kept) else 0.0
    return {
        "center_threshold_frac": 0.25,  # after the sigmoid; 0.22 of the distance before
        "material_threshold_frac": 0.5,
        "marker_radius_wpx": int(np.clip(round(diameter / 4), 1, 32)),
        "compactness": 0.0,
        "merge_depth_frac": 0.1,
        "min_area_um2": _MIN_PX * mpp**2,
    }, diameter


def _object_areas(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    labels, _ = ndimage.label(mask)
    return np.bincount(np.ravel(labels))[1:]

"""Maps, pixels and nuclei of a patch -> numbers that foretell whether its segmentation fails, and a model over them.

What a run already has is enough to be suspicious: a network that is unsure of many pixels, centers without material or
material without centers, nuclei of odd shape, a blurred picture, a stain far from the usual. ``patch_features`` measures these;
``fit_quality`` is a ridge-penalized logistic regression over five of them (few annotated patches, so few degrees of freedom),
to be trained on patches whose truth is known (fails: precision or recall below 75 %). ``auc`` and ``reviews_saved`` say what it
is worth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError

__all__ = ["FEATURES", "USED", "QualityModel", "auc", "calibration", "fit_quality", "patch_features", "reviews_saved"]

FloatArray = npt.NDArray[np.float64]

FEATURES = (
    "unsure_frac",
    "material_entropy",
    "material_frac",
    "center_orphan_frac",
    "material_orphan_frac",
    "log_count",
    "area_median_um2",
    "area_cv",
    "small_frac",
    "elongation_mean",
    "roundness_mean",
    "center_prob_mean",
    "material_prob_mean",
    "sharpness",
    "od_mean",
    "od_spread",
    "hue_x",
    "hue_y",
)
"""Order of the feature vector."""

USED = ("center_prob_mean", "material_prob_mean", "roundness_mean", "unsure_frac", "area_cv")
"""What the model looks at: the network's own doubt and the shapes it drew.

With few annotated images, color and texture tell the model which set an image is from rather than whether it failed: on
held-out images all features gave AUC 0.79, and 0.74 with their squares, these five 0.82 (benchmarks/predicted_quality.py). The
other features are measured for cohorts with enough judged patches of their own.
"""

_COLUMNS = [FEATURES.index(name) for name in USED]

SMALL_UM2 = 12.0
"""Below a disc of 4 um across nothing but debris, or a nucleus cut by the section, is expected."""


def patch_features(
    rgb: npt.NDArray[np.uint8],
    prob: npt.NDArray[np.uint8],
    nuclei: Mapping[str, npt.NDArray[Any]],
    labels: npt.NDArray[np.int32] | None = None,
) -> FloatArray:
    """Return the features of one patch, in the order of ``FEATURES``; all finite.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        Pixels, working px.
    prob : uint8 (2, H, W)
        Center and material maps of the same window.
    nuclei
        Columns ``area_um2, perimeter_um, major_um, minor_um, center_prob, material_prob`` (see ``wsiseg.schema.NUCLEI``) of the
        nuclei in the patch.
    labels : int32 (H, W)
        Instances of the window, for the share of material that no nucleus took. ``None``: 0.
    """
    if rgb.shape[:2] != prob.shape[1:]:
        raise InputError(f"Expected pixels and maps of one window, got {rgb.shape[:2]} and {prob.shape[1:]}.")
    values = {**_map_features(prob, labels), **_nucleus_features(nuclei, prob.shape[1] * prob.shape[2]), **_pixel_features(rgb)}
    return np.array([values[name] for name in FEATURES], np.float64)


def _map_features(prob: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32] | None) -> dict[str, float]:
    center, material = prob[0].astype(np.float64) / 255, prob[1].astype(np.float64) / 255
    p = np.clip(material, 1e-3, 1 - 1e-3)
    entropy = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    found = material > 0.5
    n_material, n_center = int(found.sum()), int((center > 0.5).sum())
    orphan_material = 0.0 if labels is None or not n_material else float((found & (labels == 0)).sum()) / n_material
    return {
        "unsure_frac": float(((material > 0.2) & (material < 0.8)).sum()) / max(1, n_material),
        "material_entropy": float(entropy.mean()),
        "material_frac": float(found.mean()),
        "center_orphan_frac": float(((center > 0.5) & ~found).sum()) / max(1, n_center),
        "material_orphan_frac": orphan_material,
    }


def _nucleus_features(nuclei: Mapping[str, npt.NDArray[Any]], n_px: int) -> dict[str, float]:
    area = np.asarray(nuclei["area_um2"], np.float64)
    names = (
        "log_count",
        "area_median_um2",
        "area_cv",
        "small_frac",
        "elongation_mean",
        "roundness_mean",
        "center_prob_mean",
        "material_prob_mean",
    )
    if area.size == 0:
        return dict.fromkeys(names, 0.0)
    perimeter, major, minor = (np.asarray(nuclei[k], np.float64) for k in ("perimeter_um", "major_um", "minor_um"))
    round_ = 4 * math.pi * area / np.maximum(perimeter, 1e-6) ** 2
    values = (
        math.log1p(area.size * 65_536 / n_px),
        float(np.median(area)),
        float(area.std() / area.mean()) if area.mean() > 0 else 0.0,
        float((area < SMALL_UM2).mean()),
        float((major / np.maximum(minor, 1e-6)).clip(1, 20).mean()),
        float(round_.clip(0, 2).mean()),
        float(np.asarray(nuclei["center_prob"], np.float64).mean()) / 255,
        float(np.asarray(nuclei["material_prob"], np.float64).mean()) / 255,
    )
    return dict(zip(names, values, strict=True))


def _pixel_features(rgb: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Blur, density and hue of the stain.

    Sharpness is the log of the variance of the Laplacian (Pech-Pacheco et al. 2000) over that of the picture, so that it does
    not follow contrast. Hue is the optical-density plane of van der Laak et al. (2000, Cytometry 39:275): (x, y) say which
    dyes, not how much.
    """
    gray = rgb.astype(np.float64).mean(axis=2)
    inner = gray[1:-1, 1:-1]
    laplace = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * inner
    density = -np.log10((rgb.astype(np.float64) + 1) / 256)
    mean = density.mean(axis=2)
    stained = mean > 0.08
    by_channel = density[stained].mean(axis=0) if stained.any() else np.zeros(3)
    total = max(float(by_channel.mean()), 1e-6)
    return {
        "sharpness": math.log10((float(laplace.var()) + 1e-3) / (float(inner.var()) + 1.0)),
        "od_mean": float(mean.mean()),
        "od_spread": float(mean.std()),
        "hue_x": float(by_channel[0]) / total - 1 if stained.any() else 0.0,
        "hue_y": float(by_channel[1] - by_channel[2]) / (math.sqrt(3) * total) if stained.any() else 0.0,
    }


@dataclass(frozen=True, slots=True, eq=False)
class QualityModel:
    """Logistic regression over the standardized features ``USED``.

    Attributes
    ----------
    mean, scale : float64 (5,)
        Of the patches it was trained on.
    weights : float64 (6,)
        Of the standardized features, and the constant.
    """

    mean: FloatArray
    scale: FloatArray
    weights: FloatArray

    def predict(self, features: FloatArray) -> FloatArray:
        """Return the probability that each patch fails, float64 (N,), of all features (N, 18)."""
        return _sigmoid(_design(features, self.mean, self.scale) @ self.weights)

    def to_json(self) -> str:
        """Return the model as JSON, with the names of its features."""
        facts = {
            "features": USED,
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "weights": self.weights.tolist(),
        }
        return json.dumps(facts)

    @classmethod
    def from_json(cls, text: str) -> QualityModel:
        """Read what ``to_json`` wrote. Raises ``FormatError`` for anything else, or a model of other features."""
        try:
            raw = json.loads(text)
            arrays = [np.array(raw[k], np.float64) for k in ("mean", "scale", "weights")]
            names = tuple(raw["features"])
        except (ValueError, KeyError, TypeError) as err:
            raise FormatError(f"Not a quality model: {err}") from err
        if names != USED or [a.shape for a in arrays] != [(len(USED),), (len(USED),), (len(USED) + 1,)]:
            raise FormatError(f"Expected a quality model of the features {USED}, got {names}. Train it again.")
        return cls(*arrays)


def fit_quality(features: FloatArray, fails: npt.NDArray[np.bool_], *, ridge: float = 5.0, steps: int = 50) -> QualityModel:
    """Fit the model by Newton's method on the penalized likelihood (unique optimum; no random numbers).

    Parameters
    ----------
    features : float64 (N, 18)
        From ``patch_features``.
    fails : bool (N,)
        Precision or recall below 75 % against truth.
    ridge
        Penalty on squared weights (the constant is free).

    Raises
    ------
    InputError
        Shapes differ, numbers are not finite, or all patches are of one kind.
    """
    y = np.asarray(fails, np.float64)
    if features.shape != (len(y), len(FEATURES)) or not np.isfinite(features).all():
        raise InputError(
            f"Expected finite features (N, {len(FEATURES)}) and one truth each, got {features.shape} and {y.shape}."
        )
    if y.min() == y.max():
        raise InputError("Expected patches that fail and patches that do not; all are of one kind.")
    used = features[:, _COLUMNS]
    mean, scale = used.mean(axis=0), used.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = _design(features, mean, scale)
    penalty = np.full(x.shape[1], ridge)
    penalty[-1] = 1e-9
    weights = np.zeros(x.shape[1])
    weights[-1] = math.log(y.mean() / (1 - y.mean()))
    for _ in range(steps):
        p = _sigmoid(x @ weights)
        gradient = x.T @ (p - y) + penalty * weights
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step / max(1.0, float(np.abs(step).max()))  # damped far from the optimum, Newton near it
        if np.abs(step).max() < 1e-9:
            break
    return QualityModel(mean, scale, weights)


def _design(features: FloatArray, mean: FloatArray, scale: FloatArray) -> FloatArray:
    z = np.clip((features[:, _COLUMNS] - mean) / scale, -4, 4)  # one wild feature must not decide alone
    return np.column_stack([z, np.ones(len(z))])


def _sigmoid(x: FloatArray) -> FloatArray:
    return 0.5 * (1 + np.tanh(x / 2))


def auc(score: FloatArray, fails: npt.NDArray[np.bool_]) -> float:
    """Return the chance that a failing patch scores above a good one, ties half (Mann and Whitney 1947); NaN without both."""
    bad = np.asarray(fails, np.bool_)
    n_bad, n_good = int(bad.sum()), int((~bad).sum())
    if not n_bad or not n_good:
        return math.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2
    return float((rank[place][bad].sum() - n_bad * (n_bad + 1) / 2) / (n_bad * n_good))


def reviews_saved(score: FloatArray, fails: npt.NDArray[np.bool_], recall: float = 0.9) -> float:
    """Return the share of reviews that ordering by score saves, against any order, at an equal recall of failing patches.

    To see a share ``recall`` of the failing ones in random order takes that share of all reviews; the result is 1 - (reviews in
    order of score) / (reviews in random order), at most 1, below 0 where the score misleads.
    """
    bad = np.asarray(fails, np.bool_)
    if not bad.any() or not 0 < recall <= 1:
        raise InputError(f"Expected failing patches and a recall in (0, 1], got {int(bad.sum())} and {recall}.")
    order = np.argsort(-np.asarray(score), kind="stable")
    wanted = math.ceil(recall * int(bad.sum()) - 1e-9)
    needed = int(np.searchsorted(np.cumsum(bad[order]), wanted)) + 1
    return 1 - needed / (recall * len(bad))


def calibration(score: FloatArray, fails: npt.NDArray[np.bool_], bins: int = 10) -> list[tuple[float, float, int]]:
    """Return (mean predicted, observed share, patches) of equally filled bins, from the surest to the most suspect."""
    order = np.argsort(score, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    return [(float(score[part].mean()), float(np.asarray(fails, np.float64)[part].mean()), int(part.size)) for part in parts]

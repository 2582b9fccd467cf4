"""Score a network on annotated images, and fit separation thresholds to images that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.config import RunConfig, SeparateConfig
from wsiseg.datasets import Sample, load_sample
from wsiseg.metrics import Scores, hou_scores, instance_scores, label_patches, mean_scores
from wsiseg.normalize import fit_stain, normalize
from wsiseg.pipeline import ImageMaps, map_image, mpp_to_segment_at, separate_maps
from wsiseg.predict import Model
from wsiseg.separate import resolve_params
from wsiseg.types import Stain

__all__ = [
    "OPERATING_POINT",
    "Judged",
    "Thresholds",
    "fit_separation",
    "in_reference_stain",
    "predict_samples",
    "score_separation",
    "score_table",
    "separated",
    "set_means",
]

Thresholds = dict[str, float]
"""Numbers under the names of ``SeparateConfig``."""

OPERATING_POINT: Mapping[str, float] = MappingProxyType(
    {
        "center_threshold_frac": 0.15,
        "material_threshold_frac": 0.34,
        "marker_radius_wpx": 1,
        "compactness": 0.5,
        "merge_depth_frac": 0.0,
        "merge_share_frac": 0.35,
        "min_area_um2": 3.0,
        "min_material_frac": 0.6,
    }
)
"""Thresholds for tissue that the network has not seen, measured by ``benchmarks/operating_point.py``; the default of weights
trained without ``fit_sets``."""

# in the order of the descent: options that change the score most come first
_GRID: dict[str, tuple[Any, ...]] = {
    "material_threshold_frac": (0.22, 0.24, 0.26, 0.28, 0.3, 0.32, 0.34, 0.36, 0.38, 0.4, 0.42, 0.44, 0.46, 0.5, 0.54, 0.58),
    "min_material_frac": (0.0, 0.5, 0.52, 0.54, 0.56, 0.58, 0.6, 0.62, 0.64, 0.66, 0.68, 0.7, 0.72, 0.75),
    "merge_share_frac": (0.0, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6),
    "merge_depth_frac": (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
    "center_threshold_frac": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6),
    "min_area_um2": (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0),
    "marker_radius_wpx": (1, 2, 3, 4, 5, 6, 8, 10),
    "compactness": (0.0, 0.5, 1.0, 2.0, 4.0),
}
# markers can be separated by a saddle, or by a high threshold and a radius; coordinate descent does not get from one to the
# other, and it fails if a start has no nuclei above the material threshold
_STARTS: tuple[Thresholds, ...] = (
    {**OPERATING_POINT},
    {**OPERATING_POINT, "min_material_frac": 0.0},
    {
        **OPERATING_POINT,
        "center_threshold_frac": 0.35,
        "merge_share_frac": 0.0,
        "merge_depth_frac": 0.1,
        "marker_radius_wpx": 4,
    },
)


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One annotated image: its maps, predicted as by ``wsiseg segment``, and its true labels at its native pixels."""

    sample: Sample
    maps: ImageMaps
    truth: NDArray[np.int32]


def predict_samples(model: Model, samples: Sequence[Sample]) -> list[Judged]:
    """Predict whole images in the same way as slides; microns per px of images that state none are estimated.

    Images on which too few nuclei are found for an estimate are used at their native pixels.
    """
    config = RunConfig()
    judged = []
    for sample in samples:
        rgb, truth = load_sample(sample)
        mpp = sample.mpp or mpp_to_segment_at(rgb, model, config) or model.mpp
        judged.append(Judged(sample, map_image(rgb, mpp, model, config, sample.image_id), truth))
    return judged


def in_reference_stain(rgb: NDArray[np.uint8], aim: Stain) -> NDArray[np.uint8]:
    """Return an annotated image, taken as all tissue, normalized to the stain ``aim``; unchanged for the method ``none``."""
    return normalize(rgb, fit_stain(aim.method, rgb, np.ones(rgb.shape[:2], np.bool_), aim.params))


def score_separation(judged: Sequence[Judged], defaults: Mapping[str, float]) -> list[Scores]:
    """Return the scores of each image for one choice of separation thresholds."""
    return [instance_scores(separated(j.maps, defaults), j.truth) for j in judged]


def set_means(judged: Sequence[Judged], scores: Sequence[Scores]) -> dict[str, float]:
    """Return per set the mean over images of (PQ + AJI) / 2, without images that have no true and no predicted nucleus."""
    by_set: dict[str, list[float]] = {}
    for j, s in zip(judged, scores, strict=True):
        if not s.empty:
            by_set.setdefault(j.sample.dataset, []).append((s.pq + s.aji) / 2)
    return {name: sum(values) / len(values) for name, values in sorted(by_set.items())}


def fit_separation(judged: Sequence[Judged], rounds: int = 2) -> tuple[Thresholds, float]:
    """Fit the separation thresholds by coordinate descent on a grid.

    The score is the mean of ``set_means``, with equal weight per set. It includes AJI because PQ alone would gain a little
    precision by dropping many nuclei. Use images of sets that the network has not seen: on training sets probabilities are
    higher, so thresholds fitted there are too high for other tissue.

    Parameters
    ----------
    judged
        Predicted images that are not used for scores; maps of several networks may be combined.
    rounds
        Maximum number of passes over all thresholds; a pass without a change ends the descent.

    Returns
    -------
    (dict, float)
        Values under the names of ``SeparateConfig``, and their score.
    """
    walks = [_walk(judged, dict(start), rounds) for start in _STARTS]
    return max(walks, key=lambda walk: walk[1])


def _walk(judged: Sequence[Judged], best: Thresholds, rounds: int) -> tuple[Thresholds, float]:
    reached = _mean_score(judged, best)
    for _ in range(rounds):
        before = reached
        for name, values in _GRID.items():
            for direction in (1, -1):
                at = values.index(best[name]) + direction
                while 0 <= at < len(values):
                    trial = {**best, name: values[at]}
                    score = _mean_score(judged, trial)
                    if score <= reached:
                        break
                    best, reached, at = trial, score, at + direction
        if reached - before < 1e-4:
            break
    return best, reached


def score_table(judged: Sequence[Judged], defaults: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return per set the means over images of Dice, AJI, AJI+, PQ, SQ, DQ, and the count agreement of Hou et al. 2020."""
    table: dict[str, dict[str, float]] = {}
    for dataset in sorted({j.sample.dataset for j in judged}):
        mine = [j for j in judged if j.sample.dataset == dataset]
        found = [separated(j.maps, defaults) for j in mine]
        scores = [instance_scores(labels, j.truth) for labels, j in zip(found, mine, strict=True)]
        means = mean_scores(scores)
        patches = [
            pair
            for labels, j in zip(found, mine, strict=True)
            for pair in zip(label_patches(labels), label_patches(j.truth), strict=True)
        ]
        counts = hou_scores(patches).counts
        table[dataset] = {
            "images": len(mine),
            "nuclei": int(sum(s.n_truth for s in scores)),
            "found": int(sum(s.n_pred for s in scores)),
            **{name: round(means[name], 4) for name in ("dice", "aji", "aji_plus", "pq", "sq", "dq", "precision", "recall")},
            "count_r": round(counts.pearson_r, 4),
            "count_mae_percent": round(counts.mae_percent, 2),
        }
    return table


def separated(maps: ImageMaps, defaults: Mapping[str, float]) -> NDArray[np.int32]:
    """Return the instances of maps for one choice of separation thresholds, int32 (H, W) at the image's own pixels."""
    return separate_maps(maps, resolve_params(SeparateConfig(), defaults, maps.mpp))


def _mean_score(judged: Sequence[Judged], defaults: Mapping[str, float]) -> float:
    means = set_means(judged, score_separation(judged, defaults))
    return sum(means.values()) / len(means) if means else 0.0

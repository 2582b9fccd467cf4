"""Held-out images -> scores of a network, and the separation thresholds that suit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.config import SeparateConfig
from wsiseg.evaluate import Scores, hou_scores, instance_scores, label_patches, mean_scores
from wsiseg.normalize import fit_stain, normalize
from wsiseg.predict import Model, predict
from wsiseg.separate import resolve_params, separate
from wsiseg.train import Sample, load_sample
from wsiseg.train.augment import look_of, recolored
from wsiseg.types import Box, Stain

__all__ = [
    "Judged",
    "fit_separation",
    "in_reference_stain",
    "predict_image",
    "predict_recolored",
    "predict_samples",
    "score_separation",
    "score_table",
]

# the order is that of the descent: what moves the score most comes first
_GRID: dict[str, tuple[Any, ...]] = {
    "merge_depth_frac": (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5),
    "center_threshold_frac": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6),
    "material_threshold_frac": (0.34, 0.38, 0.42, 0.46, 0.5, 0.54, 0.58),
    "min_material_frac": (0.0, 0.5, 0.54, 0.58, 0.6, 0.62, 0.64, 0.66, 0.68, 0.7, 0.72, 0.75, 0.78),
    "min_area_um2": (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0),
    "marker_radius_wpx": (1, 2, 3, 4, 5, 6, 8, 10),
    "compactness": (0.0, 0.5, 1.0, 2.0, 4.0),
}
_START: dict[str, Any] = {
    "center_threshold_frac": 0.15,
    "material_threshold_frac": 0.46,
    "marker_radius_wpx": 2,
    "compactness": 1.0,
    "merge_depth_frac": 0.25,
    "min_area_um2": 5.0,
    "min_material_frac": 0.62,
}
# markers are told apart by a saddle, or by a high threshold and a radius: a walk does not get from one to the other
_STARTS = (_START, {**_START, "center_threshold_frac": 0.35, "merge_depth_frac": 0.1, "marker_radius_wpx": 4})


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """One held-out image: its maps as predicted and its true labels."""

    sample: Sample
    prob: NDArray[np.uint8]
    truth: NDArray[np.int32]


def predict_samples(model: Model, samples: Sequence[Sample]) -> list[Judged]:
    """Predict whole images at their own pixels, white outside them and in the stain that the network wants, as a slide is."""
    return [Judged(sample, predict_image(model, rgb), truth) for sample in samples for rgb, truth in [load_sample(sample)]]


def predict_recolored(model: Model, samples: Sequence[Sample], seed: int = 0) -> list[Judged]:
    """Predict whole images in the colors of another one each, of another set if there are several: of slides not yet seen."""
    rng = np.random.default_rng(seed)
    looks = [look_of(load_sample(sample)[0]) for sample in samples]
    judged = []
    for i, sample in enumerate(samples):
        others = [k for k, other in enumerate(samples) if other.dataset != sample.dataset] or list(range(len(samples)))
        rgb, truth = load_sample(sample)
        judged.append(Judged(sample, predict_image(model, recolored(rgb, looks[i], looks[int(rng.choice(others))])), truth))
    return judged


def in_reference_stain(rgb: NDArray[np.uint8], aim: Stain) -> NDArray[np.uint8]:
    """Return an annotated image, which is tissue throughout, in the reference's stain; method ``none``: as it is."""
    return normalize(rgb, fit_stain(aim.method, rgb, np.ones(rgb.shape[:2], np.bool_), aim.params))


def score_separation(judged: Sequence[Judged], defaults: dict[str, Any], mpp: float) -> list[Scores]:
    """Return the scores of each image for one choice of separation thresholds."""
    params = resolve_params(SeparateConfig(), defaults, mpp)
    return [instance_scores(separate(j.prob, params).labels, j.truth) for j in judged]


def fit_separation(
    judged: Sequence[Judged], set_share: dict[str, float], mpp: float, rounds: int = 2
) -> tuple[dict[str, Any], float]:
    """Fit the separation thresholds by walking one at a time over a grid, on images that will judge nothing.

    The score is the mean of PQ and AJI: PQ alone would buy a little precision with many nuclei that are then missing from
    tables and counts.

    Parameters
    ----------
    set_share
        Weight of each set's mean score.
    rounds
        Passes over all thresholds; a pass that changes nothing ends the descent.

    Returns
    -------
    (dict, float)
        Values under the names of ``SeparateConfig``, and the score that they reach.
    """
    walks = [_walk(judged, set_share, mpp, dict(start), rounds) for start in _STARTS]
    return max(walks, key=lambda walk: walk[1])


def _walk(
    judged: Sequence[Judged], set_share: dict[str, float], mpp: float, best: dict[str, Any], rounds: int
) -> tuple[dict[str, Any], float]:
    reached = _mean_score(judged, score_separation(judged, best, mpp), set_share)
    for _ in range(rounds):
        before = reached
        for name, values in _GRID.items():
            for direction in (1, -1):
                at = values.index(best[name]) + direction
                while 0 <= at < len(values):
                    trial = {**best, name: values[at]}
                    score = _mean_score(judged, score_separation(judged, trial, mpp), set_share)
                    if score <= reached:
                        break
                    best, reached, at = trial, score, at + direction
        if reached - before < 1e-4:
            break
    return best, reached


def score_table(judged: Sequence[Judged], defaults: dict[str, Any], mpp: float) -> dict[str, dict[str, float]]:
    """Return per set the means over images of Dice, AJI, AJI+, PQ, SQ, DQ, and the count agreement of Hou et al. 2020."""
    params = resolve_params(SeparateConfig(), defaults, mpp)
    table: dict[str, dict[str, float]] = {}
    for dataset in sorted({j.sample.dataset for j in judged}):
        mine = [j for j in judged if j.sample.dataset == dataset]
        found = [separate(j.prob, params).labels for j in mine]
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


def predict_image(model: Model, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Predict one annotated image, white outside it: uint8 (2, H, W)."""
    height, width = rgb.shape[:2]
    out = Box(0, 0, width, height)
    box = model.input_box(out)
    window = np.full((box.h, box.w, 3), 255, np.uint8)
    window[-box.y : -box.y + height, -box.x : -box.x + width] = in_reference_stain(rgb, model.stain_aim)
    return np.asarray(predict(model, window, box, out))


def _mean_score(judged: Sequence[Judged], scores: Sequence[Scores], set_share: dict[str, float]) -> float:
    total = weight = 0.0
    for dataset, share in set_share.items():
        mine = [(s.pq + s.aji) / 2 for j, s in zip(judged, scores, strict=True) if j.sample.dataset == dataset and not s.empty]
        if mine:
            total += share * sum(mine) / len(mine)
            weight += share
    return total / weight if weight else 0.0

"""Does what a run already knows foretell which patches fail? AUC, reviews saved and calibration on held-out, damaged images.

    WSISEG_DATA=<folder of sets> python benchmarks/predicted_quality.py [--weights research]

Images are those that the weights' card names as validation images (the network has not seen them), each also under synthetic
blur, stain shift, JPEG, fold and pen. A patch of 256 px fails where precision or recall of nuclei (centroid in the patch,
matched at IoU > 0.5) is below 75 %. The quality model is trained and tested on different images (leave one group of images
out).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _machine import save
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.predict import load_model, predict
from wsiseg.qc.predict_quality import FEATURES, auc, calibration, fit_quality, patch_features, reviews_saved
from wsiseg.separate import resolve_params, separate
from wsiseg.types import Box
from wsiseg.vectorize import vectorize

SIDE = 256
MIN_NUCLEI = 4
"""A share of fewer nuclei than these, in truth and answer together, says nothing."""


def blur(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    sigma = random.uniform(1.0, 3.0)
    return np.stack([ndimage.gaussian_filter(rgb[..., k].astype(np.float32), sigma) for k in range(3)], -1).astype(np.uint8)


def stain(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    density = -np.log((rgb.astype(np.float64) + 1) / 256)
    mixed = density * random.uniform(0.35, 1.5, 3) + random.uniform(0, 0.1, 3)
    return np.clip(256 * np.exp(-mixed) - 1, 0, 255).astype(np.uint8)


def jpeg(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=int(random.integers(5, 30)))
    return np.asarray(Image.open(buffer))


def fold(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Lay a strip of the tissue over its neighbor: densities add."""
    h, w = rgb.shape[:2]
    width, angle = random.integers(60, 160), random.uniform(0, np.pi)
    y, x = np.mgrid[:h, :w]
    across = (x - random.uniform(0.3, 0.7) * w) * np.cos(angle) + (y - random.uniform(0.3, 0.7) * h) * np.sin(angle)
    strip = np.abs(across) < width / 2
    density = -np.log((rgb.astype(np.float64) + 1) / 256)
    shifted = ndimage.shift(density, (random.integers(-90, 90), random.integers(-90, 90), 0), order=0, mode="reflect")
    return np.where(strip[..., None], np.clip(256 * np.exp(-(density + shifted)) - 1, 0, 255), rgb).astype(np.uint8)


def pen(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw a thick translucent line of marker ink."""
    h, w = rgb.shape[:2]
    y, x = np.mgrid[:h, :w]
    phase, height = random.uniform(0, 6), random.uniform(0.2, 0.8) * h
    near = np.abs(y - height - 60 * np.sin(x / 120 + phase)) < random.integers(30, 90)
    ink = np.array([(40, 90, 190), (30, 140, 80), (40, 40, 45)][random.integers(3)], np.float64)
    return np.where(near[..., None], rgb * ink / 255, rgb).astype(np.uint8)


DAMAGES = {"none": lambda rgb, random: rgb, "blur": blur, "stain": stain, "jpeg": jpeg, "fold": fold, "pen": pen}


def matched(answer: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each label of the answer and of the truth whether it has a partner of IoU > 0.5 (at most one can be)."""
    n_a, n_t = int(answer.max()), int(truth.max())
    table = np.bincount(answer.ravel().astype(np.int64) * (n_t + 1) + truth.ravel(), minlength=(n_a + 1) * (n_t + 1))
    table = table.reshape(n_a + 1, n_t + 1).astype(np.float64)
    union = table.sum(1)[1:, None] + table.sum(0)[None, 1:] - table[1:, 1:]
    hit = table[1:, 1:] > 0.5 * union
    return hit.any(axis=1), hit.any(axis=0)


def relabeled(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape) if (labels == 0).any() else labels


def centers(labels: np.ndarray) -> np.ndarray:
    n = int(labels.max())
    counts = np.maximum(np.bincount(labels.ravel(), minlength=n + 1), 1)
    y, x = np.indices(labels.shape)
    return np.column_stack([np.bincount(labels.ravel(), v.ravel(), n + 1) / counts for v in (x, y)])[1:]


class Judge:
    """Segments an image and judges its patches."""

    def __init__(self, weights: str) -> None:
        self.model = load_model(PredictConfig(weights=weights))
        self.params = resolve_params(SeparateConfig(), self.model.separate_defaults, self.model.mpp)

    def patches(self, rgb: np.ndarray, truth: np.ndarray) -> list[tuple[np.ndarray, bool]]:
        """Return (features, fails) of the patches of an image."""
        h, w = rgb.shape[:2]
        out_box = Box(0, 0, w, h)
        need = self.model.input_box(out_box)
        pad = ((-need.y, need.y1 - h), (-need.x, need.x1 - w), (0, 0))
        prob = np.asarray(predict(self.model, np.pad(rgb, pad, mode="reflect"), need, out_box))
        instances = separate(prob, self.params)
        batch = vectorize(instances, prob, out_box, out_box)
        mpp = self.model.mpp
        c = batch.columns
        columns = {
            "area_um2": c["area_wpx"] * mpp**2,
            "perimeter_um": c["perimeter_wpx"] * mpp,
            "major_um": c["major_wpx"] * mpp,
            "minor_um": c["minor_wpx"] * mpp,
            "center_prob": c["center_prob"],
            "material_prob": c["material_prob"],
        }
        right, found = matched(instances.labels, truth)
        answer_xy, truth_xy = centers(instances.labels), centers(truth)
        own_xy = np.column_stack([c["cx_wpx"], c["cy_wpx"]])
        out = []
        for top in range((h % SIDE) // 2, h - SIDE + 1, SIDE):
            for left in range((w % SIDE) // 2, w - SIDE + 1, SIDE):
                a, t, o = (inside(xy, left, top) for xy in (answer_xy, truth_xy, own_xy))
                if a.sum() + t.sum() < MIN_NUCLEI:
                    continue
                precision = right[a].mean() if a.any() else 0.0
                recall = found[t].mean() if t.any() else 0.0
                part = np.s_[top : top + SIDE, left : left + SIDE]
                nuclei = {k: v[o] for k, v in columns.items()}
                features = patch_features(rgb[part], prob[:, part[0], part[1]], nuclei, instances.labels[part])
                out.append((features, bool(precision < 0.75 or recall < 0.75)))
        return out


def inside(xy: np.ndarray, left: int, top: int) -> np.ndarray:
    return (xy[:, 0] >= left) & (xy[:, 0] < left + SIDE) & (xy[:, 1] >= top) & (xy[:, 1] < top + SIDE)


def group_of(name: str) -> str:
    return "_".join(name.split("_")[:2]) if name.startswith("tnbc") else name


def collect(data: Path, weights: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Judge]:
    judge = Judge(weights)
    random = np.random.default_rng(0)
    features, fails, groups, damages = [], [], [], []
    for name in judge.model.card["data"]["validation_images"]:
        path = next(iter(sorted(data.glob(f"*/{name}.png"))), None)
        if path is None:
            continue
        rgb = np.asarray(Image.open(path).convert("RGB"))
        truth = relabeled(np.asarray(Image.open(path.with_name(f"{name}.labels.png"))).astype(np.int64))
        if min(rgb.shape[:2]) < SIDE:
            continue
        for damage, change in DAMAGES.items():
            for f, bad in judge.patches(np.ascontiguousarray(change(rgb, random)), truth):
                features.append(f)
                fails.append(bad)
                groups.append(group_of(name))
                damages.append(damage)
    return np.array(features), np.array(fails), np.array(groups), np.array(damages), judge


def held_out_scores(features: np.ndarray, fails: np.ndarray, groups: np.ndarray, folds: int = 6) -> np.ndarray:
    """Return each patch's score from a model that has not seen its image."""
    names = sorted(set(groups.tolist()))
    fold = np.array([names.index(g) % folds for g in groups.tolist()])
    score = np.zeros(len(fails))
    for k in range(folds):
        score[fold == k] = fit_quality(features[fold != k], fails[fold != k], ridge=5.0).predict(features[fold == k])
    return score


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"))
    parser.add_argument("--weights", default="research")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    if not options.data:
        parser.error("give --data or set WSISEG_DATA")
    data = Path(options.data)
    data = data / "nuclei" if (data / "nuclei").is_dir() else data
    start = time.process_time()
    features, fails, groups, damages, judge = collect(data, options.weights)
    score = held_out_scores(features, fails, groups)

    def worth(mask: np.ndarray) -> dict[str, Any]:
        s, f = score[mask], fails[mask]
        saved = round(reviews_saved(s, f, 0.9), 3) if f.any() else None
        return {
            "patches": int(mask.sum()),
            "fail_frac": round(float(f.mean()), 3),
            "auc": round(auc(s, f), 3),
            "reviews_saved_at_90_recall": saved,
        }

    single = {n: round(auc(features[:, i], fails), 3) for i, n in enumerate(FEATURES)}
    result = {
        "weights": judge.model.name,
        "weights_sha256": judge.model.sha256,
        "images": len(set(groups.tolist())),
        "all": worth(np.ones(len(fails), bool)),
        "by_damage": {d: worth(damages == d) for d in DAMAGES},
        "calibration_predicted_observed_n": [[round(p, 3), round(o, 3), n] for p, o, n in calibration(score, fails)],
        "auc_of_single_features": dict(sorted(single.items(), key=lambda kv: -abs(kv[1] - 0.5))),
        "cpu_seconds": round(time.process_time() - start, 1),
    }
    print(json.dumps(result, indent=1))
    if not options.no_save:
        save("predicted_quality", result)


if __name__ == "__main__":
    main()

"""Does what a run already knows foretell which patches fail? Fits the quality models that ship, and says what they are worth.

    WSISEG_DATA=<folder with nuclei/> python benchmarks/predicted_quality.py [--weights open research] [--quick]

For each set of network weights: the images are those that its card names as validation images, which the network has not
seen. Each is segmented as it is and under synthetic blur, stain shift, JPEG, fold and pen. A patch of 256 px fails where
precision or recall of nuclei (centroid in the central 226 px) is below 75 %. A nucleus counts as outlined at IoU > 0.3: who
judges 64 um of tissue by eye asks whether it is outlined, not how tightly, and pixel-wise precision and recall fail about as
many patches; IoU > 0.5 fails many more and is reported beside it. Every figure is of patients held out: the model that scores a
patient was fitted without them.

Without ``--no-save`` it writes ``wsiseg/qc/quality_models/<weights>.json`` (derived numbers only), which ships, and
``results/predicted_quality.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _machine import save
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.datasets import Sample, list_samples, load_sample, sets_folder
from wsiseg.predict import load_model, predict
from wsiseg.qc.estimate import odds_weight, order_key
from wsiseg.qc.patch_features import FEATURES, NUCLEUS_COLUMNS, patch_features
from wsiseg.qc.predict_quality import (
    QualityModel,
    auc,
    brier,
    calibration,
    calibration_error,
    fit_quality,
    group_spread,
    reviews_saved,
)
from wsiseg.separate import resolve_params, separate
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Box
from wsiseg.vectorize import vectorize

ROOT = Path(__file__).resolve().parents[1]
SIDE, MARGIN, STEP = 256, 15, 124
SETS = ("monuseg", "tnbc", "consep", "dsb2018_he")
LICENCE = {
    "open": "as the open network weights: fitted on CC BY 4.0, CC0 and Apache-2.0 images; commercial use allowed",
    "research": "CC BY-NC-SA 4.0 data among those it was fitted on (monuseg): research use, as the research network weights",
}
PUBLISHED_BAD_FRAC = 0.1
"""About the share of bad patches of a usable cohort: reviews saved depend on it, so they are given for it too."""


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


class Patches(NamedTuple):
    """Features (N, F), whether each fails at IoU > 0.3 and at > 0.5, patient, image and damage, one a patch."""

    features: np.ndarray
    fails: np.ndarray
    fails_strictly: np.ndarray
    group: np.ndarray
    image: np.ndarray
    damage: np.ndarray


def best_iou(answer: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each label of the answer and of the truth its largest IoU with one of the other."""
    n_a, n_t = int(answer.max()), int(truth.max())
    table = np.bincount(answer.ravel().astype(np.int64) * (n_t + 1) + truth.ravel(), minlength=(n_a + 1) * (n_t + 1))
    table = table.reshape(n_a + 1, n_t + 1).astype(np.float64)
    union = table.sum(1)[1:, None] + table.sum(0)[None, 1:] - table[1:, 1:]
    iou = table[1:, 1:] / np.maximum(union, 1)
    return iou.max(axis=1, initial=0), iou.max(axis=0, initial=0)


def compact(labels: np.ndarray) -> np.ndarray:
    """Return labels 0..n without gaps, 0 staying background."""
    names, place = np.unique(labels, return_inverse=True)
    return (place.reshape(labels.shape) + (names[0] != 0)).astype(np.int64)


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

    def patches(self, rgb: np.ndarray, truth: np.ndarray) -> Iterator[tuple[np.ndarray, bool, bool]]:
        """Yield (features, fails, fails strictly) of the patches of an image."""
        h, w = rgb.shape[:2]
        out_box = Box(0, 0, w, h)
        need = self.model.input_box(out_box)
        pad = ((-need.y, need.y1 - h), (-need.x, need.x1 - w), (0, 0))
        prob = np.asarray(predict(self.model, np.pad(rgb, pad, mode="reflect"), need, out_box))
        instances = separate(prob, self.params)
        c = vectorize(instances, prob, out_box, out_box).columns
        mpp = self.model.mpp
        given = (c["area_wpx"] * mpp**2, *(c[f"{k}_wpx"] * mpp for k in ("perimeter", "major", "minor")))
        nuclei = dict(zip(NUCLEUS_COLUMNS, (*given, c["center_prob"], c["material_prob"]), strict=True))
        labels = np.asarray(instances.labels)
        right, found = best_iou(labels, truth)
        answer_xy, truth_xy, own_xy = centers(labels), centers(truth), np.column_stack([c["cx_wpx"], c["cy_wpx"]])
        for top in steps(h):
            for left in steps(w):
                a, t = (inside(xy, left, top, MARGIN) for xy in (answer_xy, truth_xy))
                part = np.s_[top : top + SIDE, left : left + SIDE]
                own = inside(own_xy, left, top, 0)
                features = patch_features(rgb[part], labels[part], {k: v[own] for k, v in nuclei.items()})
                yield features, *(failing(right[a], found[t], m) for m in (0.3, 0.5))


def failing(right: np.ndarray, found: np.ndarray, least: float) -> bool:
    return min(share(right > least, len(found)), share(found > least, len(right))) < 0.75


def share(hits: np.ndarray, others: int) -> float:
    """Return the share of hits; of nothing it is 1 where the other side has nothing either (an empty patch is adequate)."""
    return float(hits.mean()) if hits.size else float(others == 0)


def steps(side: int) -> list[int]:
    return sorted({*range(0, side - SIDE + 1, STEP), side - SIDE})


def inside(xy: np.ndarray, left: int, top: int, margin: int) -> np.ndarray:
    low, high = margin, SIDE - margin
    return (xy[:, 0] >= left + low) & (xy[:, 0] < left + high) & (xy[:, 1] >= top + low) & (xy[:, 1] < top + high)


def patient(sample: Sample) -> str:
    """Return the set and patient of an image; dsb2018_he names no patients and repeats fields, so it is one group."""
    return sample.dataset if sample.dataset == "dsb2018_he" else f"{sample.dataset} {sample.group}"


def collect(samples: list[Sample], weights: str, draws: int) -> tuple[Patches, Judge]:
    """Segment all images, whole and damaged, and return their patches."""
    judge = Judge(weights)
    rows: list[tuple[Any, ...]] = []
    for sample in samples:
        rgb, truth = load_sample(sample)
        if min(rgb.shape[:2]) < SIDE:
            continue
        random = np.random.default_rng(int.from_bytes(sample.image_id.encode()[-6:], "big"))
        truth = compact(truth)
        for damage, change in DAMAGES.items():
            for _ in range(1 if damage == "none" else draws):
                found = judge.patches(np.ascontiguousarray(change(rgb, random)), truth)
                rows += [(*f, patient(sample), sample.image_id, damage) for f in found]
    return Patches(*(np.array(v) for v in zip(*rows, strict=True))), judge


def importance(images: np.ndarray) -> np.ndarray:
    """Return what each patch counts: the root of its image's patches, since neighbors say the same."""
    _, place, count = np.unique(images, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(count[place])
    return weight / weight.mean()


def held_out(p: Patches, fails: np.ndarray) -> np.ndarray:
    """Return each patch's score from a model that has not seen its patient."""
    score = np.zeros(len(fails))
    for name in np.unique(p.group):
        here = p.group == name
        model = fit_quality(p.features[~here], fails[~here], importance(p.image[~here]))
        score[here] = model.predict(p.features[here])
    return score


def worth(score: np.ndarray, fails: np.ndarray) -> dict[str, Any]:
    tilted = -np.array([order_key(str(i), w) for i, w in enumerate(odds_weight(score).tolist())])
    out = {"patches": len(fails), "fail_frac": float(fails.mean()), "auc": auc(score, fails), "brier": brier(score, fails)}
    out |= {
        "brier_of_the_share_alone": float(fails.mean() * (1 - fails.mean())),
        "calibration_error": calibration_error(score, fails),
    }
    if fails.any():
        for name, prevalence in (
            ("", None),
            (f"_if_{PUBLISHED_BAD_FRAC:.0%}_fail".replace("%", "_percent"), PUBLISHED_BAD_FRAC),
        ):
            for recall in (0.5, 0.8, 0.9):
                key = f"reviews_saved_at_{100 * recall:.0f}_recall{name}"
                out[key] = {
                    "worst_first": reviews_saved(score, fails, recall, prevalence),
                    "tilted": reviews_saved(tilted, fails, recall, prevalence),
                    "most_possible": reviews_saved(fails.astype(np.float64), fails, recall, prevalence),
                }
    return rounded(out)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def judged_model(p: Patches, judge: Judge) -> tuple[QualityModel, dict[str, Any]]:
    """Return the model of all patients, with what it is worth on patients held out, and the result to save."""
    score, strict = held_out(p, p.fails), held_out(p, p.fails_strictly)
    model = fit_quality(p.features, p.fails, importance(p.image))
    single = {n: round(auc(p.features[:, i], p.fails), 3) for i, n in enumerate(FEATURES)}
    bins = [[round(a, 3), round(b, 3), n] for a, b, n in calibration(score, p.fails)]
    measured = {
        "patients": len(np.unique(p.group)),
        "images": len(np.unique(p.image)),
        "patches": len(p.fails),
        "auc": round(auc(score, p.fails), 3),
        "brier": round(brier(score, p.fails), 3),
        "calibration_error": round(calibration_error(score, p.fails), 3),
        "group_spread": round(group_spread(score, p.fails, p.group), 3),
        "calibration": bins,
    }
    name = judge.model.name
    facts = {
        "network": name,
        "network_sha256": judge.model.sha256,
        "licence": LICENCE.get(name, "as its training images"),
        "trained_on": sorted({g.split()[0] for g in p.group.tolist()}),
        "criterion": "precision or recall of nuclei below 75 % (IoU > 0.3, centroid in the central 226 of 256 px at 0.25 um)",
        "held_out": measured,
    }
    result = {
        "network_sha256": judge.model.sha256,
        "held_out": measured,
        "all": worth(score, p.fails),
        "by_damage": {d: worth(score[p.damage == d], p.fails[p.damage == d]) for d in DAMAGES},
        "by_set": {s: worth(score[m], p.fails[m]) for s, m in by_set(p).items()},
        "match_at_iou_0.5": worth(strict, p.fails_strictly),
        "auc_of_single_features": dict(sorted(single.items(), key=lambda kv: -abs(kv[1] - 0.5))),
    }
    return QualityModel(model.mean, model.scale, model.weights, model.stain, facts), result


def by_set(p: Patches) -> dict[str, np.ndarray]:
    sets = np.array([g.split()[0] for g in p.group.tolist()])
    return {s: sets == s for s in sorted(set(sets.tolist()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"))
    parser.add_argument("--weights", nargs="+", default=["open", "research"])
    parser.add_argument("--draws", type=int, default=1, help="how often each damage is drawn for an image")
    parser.add_argument("--quick", action="store_true", help="every third image only, to see that it runs; writes nothing")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder in which the patches are kept for a second look (.npz)")
    options = parser.parse_args()
    write = not (options.no_save or options.quick)
    if not options.data:
        parser.error("give --data or set WSISEG_DATA")
    data = sets_folder(options.data)
    samples = list_samples(data, tuple(s for s in SETS if (data / s).is_dir()))
    start = time.process_time()
    result: dict[str, Any] = {}
    for weights in options.weights:
        card = load_model(PredictConfig(weights=weights)).card["data"]
        unseen = set(card["validation_images"])
        chosen = [k for k in samples if k.image_id in unseen][:: 3 if options.quick else 1]
        p, judge = collect(chosen, weights, options.draws)
        if options.keep:
            np.savez_compressed(options.keep / f"{weights}.npz", **p._asdict())
        model, result[weights] = judged_model(p, judge)
        result[weights]["cpu_seconds"] = round(time.process_time() - start, 1)
        if write:
            atomic_write_bytes(ROOT / "wsiseg" / "qc" / "quality_models" / f"{weights}.json", model.to_json().encode())
    print(json.dumps(result, indent=1))
    if write:
        save("predicted_quality", result)


if __name__ == "__main__":
    main()

"""Measure how well the data of a run predict which patches fail; fit the quality models that ship.

    WSISEG_DATA=<folder with nuclei/> python benchmarks/predicted_quality.py [--weights open research] [--keep FOLDER]

For each set of network weights: the images are those of the sets below, and every figure is of those that the network has not
seen (validation images of its card, and sets it was not trained on); the others only help to fit. Each image is segmented as
it is and under synthetic blur, stain shift, JPEG, noise, fold, pen and a wrong scale. A patch of 256 px fails if precision or
recall of nuclei (centroid in the central 226 px) is below 75 %. A nucleus counts as outlined at IoU > 0.3: who judges 64 um
of tissue by eye asks whether it is outlined, not how tightly; IoU > 0.5 fails many more and is reported beside it. Every
figure is of patients held out: the model that scores a patient was fitted without them; under "damage_held_out" also without
the damage that the patch has. Intervals are of 300 draws of whole patients.

How good can it be? With few nuclei in a patch, chance decides on which side of 75 % it falls: "most_possible_auc" is the AUC
of a predictor that knows precision and recall, against the same patches with their nuclei resampled.

Without ``--no-save`` it writes ``wsiseg/qc/quality_models/<weights>.json`` (derived numbers only), which ships, and
``results/predicted_quality.json``. With ``--keep`` the features are stored, and read when it runs again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _machine import RESULTS, save
from PIL import Image
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.datasets import Sample, list_samples, load_sample, sets_folder
from wsiseg.predict import load_model, predict
from wsiseg.qc.estimate import odds_weight, order_key
from wsiseg.qc.patch_features import FEATURES, NUCLEUS_COLUMNS, PICTURE_FEATURES, patch_features
from wsiseg.qc.patch_orientations import load_patch_segmenter, orientation_features
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
from wsiseg.schema.quality import OF_NUCLEI
from wsiseg.separate import resolve_params, separate
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Box
from wsiseg.vectorize import vectorize

ROOT = Path(__file__).resolve().parents[1]
SIDE, MARGIN, STEP = 256, 15, 248
OPEN_SETS = ("tnbc", "consep", "dsb2018_he")
SETS = (*OPEN_SETS, "monuseg", "cpm16")
FITTED_TO = {"open": OPEN_SETS, "research": SETS}
"""Sets whose images a quality model may be fitted to; the others only judge it."""
LICENCE = {
    "open": "as the open network weights: fitted on CC BY 4.0, CC0 and Apache-2.0 images; commercial use allowed",
    "research": "CC BY-NC-SA 4.0 data among those it was fitted on (monuseg; cpm16 without a stated one): research use, as the "
    "research network weights",
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


def noise(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(rgb + random.normal(0, random.uniform(10, 40), rgb.shape), 0, 255).astype(np.uint8)


def as_it_is(rgb: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return rgb


def rescaled(rgb: np.ndarray, truth: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return image and truth as they are seen where a slide's microns per pixel are wrong."""
    factor = float(random.choice([0.5, 0.65, 1.5, 1.9]))
    factor = factor if min(rgb.shape[:2]) * factor >= SIDE else 1.5
    size = (round(rgb.shape[1] * factor), round(rgb.shape[0] * factor))
    labels = Image.fromarray(truth.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BILINEAR)), np.asarray(labels)


DAMAGES: dict[str, Callable[..., Any]] = {
    "none": as_it_is, "blur": blur, "stain": stain, "jpeg": jpeg, "noise": noise, "fold": fold, "pen": pen, "scale": rescaled,
}  # fmt: skip


class Patches(NamedTuple):
    """One a patch: features (N, F), the worse of precision and recall, and the nuclei that those are of, whether it fails at
    IoU > 0.3 and at > 0.5, patient, image, damage, set, and whether the network has not seen the image."""

    features: np.ndarray
    quality: np.ndarray
    nuclei: np.ndarray
    fails: np.ndarray
    fails_strictly: np.ndarray
    group: np.ndarray
    image: np.ndarray
    damage: np.ndarray
    dataset: np.ndarray
    unseen: np.ndarray

    def where(self, chosen: np.ndarray) -> Patches:
        return Patches(*(v[chosen] for v in self))


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
        self.segmenter = load_patch_segmenter(weights)
        self.turn_s, self.turned = 0.0, 0

    def patches(self, rgb: np.ndarray, truth: np.ndarray, chosen: Callable[[int], bool]) -> Iterator[tuple[Any, ...]]:
        """Yield (features, quality, nuclei, fails, fails strictly) of the chosen patches of an image."""
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
        for number, (top, left) in enumerate((t, x) for t in steps(h) for x in steps(w)):
            if not chosen(number):
                continue
            a, t = (inside(xy, left, top, MARGIN) for xy in (answer_xy, truth_xy))
            part = np.s_[top : top + SIDE, left : left + SIDE]
            own = inside(own_xy, left, top, 0)
            of_picture = patch_features(rgb[part], labels[part], {k: v[own] for k, v in nuclei.items()})
            start = time.process_time()
            turned = orientation_features(np.ascontiguousarray(rgb[part]), np.ascontiguousarray(labels[part]), self.segmenter)
            self.turn_s, self.turned = self.turn_s + time.process_time() - start, self.turned + 1
            quality = [worse(right[a], found[t], m) for m in (0.3, 0.5)]
            n = min(int(a.sum()), int(t.sum()))
            yield np.concatenate([of_picture, turned]), quality[0], n, quality[0] < 0.75, quality[1] < 0.75


def worse(right: np.ndarray, found: np.ndarray, least: float) -> float:
    """Return the lower of precision and recall at a least IoU."""
    return min(share(right > least, len(found)), share(found > least, len(right)))


def share(hits: np.ndarray, others: int) -> float:
    """Return the share of hits; of nothing it is 1 where the other side has nothing either (an empty patch is adequate)."""
    return float(hits.mean()) if hits.size else float(others == 0)


def steps(side: int) -> list[int]:
    return sorted({*range(0, side - SIDE + 1, STEP), *([side - SIDE] if side < 3 * SIDE else [])})


def inside(xy: np.ndarray, left: int, top: int, margin: int) -> np.ndarray:
    low, high = margin, SIDE - margin
    return (xy[:, 0] >= left + low) & (xy[:, 0] < left + high) & (xy[:, 1] >= top + low) & (xy[:, 1] < top + high)


def patient(sample: Sample) -> str:
    """Return the set and patient of an image; dsb2018_he names no patients and repeats fields, so it is one group."""
    return sample.dataset if sample.dataset == "dsb2018_he" else f"{sample.dataset} {sample.group}"


def collect(samples: list[Sample], weights: str) -> tuple[Patches, Judge]:
    """Segment all images, whole and damaged, and return their patches: of images that the network has seen fewer."""
    judge = Judge(weights)
    card = judge.model.card["data"]
    rows: list[tuple[Any, ...]] = []
    for place, sample in enumerate(samples):
        rgb, truth = load_sample(sample)
        if min(rgb.shape[:2]) < SIDE:
            continue
        random = np.random.default_rng(int.from_bytes(sample.image_id.encode()[-6:], "big"))
        truth = compact(truth)
        unseen = sample.dataset not in card["sets"] or sample.image_id in card["validation_images"]
        several = len(steps(rgb.shape[0])) * len(steps(rgb.shape[1])) > 1
        for kind, (damage, change) in enumerate(DAMAGES.items()):
            if not unseen and damage != "none" and (place + kind) % 3:
                continue
            thin = 1 if not several or (unseen and damage == "none") else 2 if unseen else 3
            if damage == "scale":
                image, labels = change(rgb, truth, random)
                labels = compact(labels)
            else:
                image, labels = np.ascontiguousarray(change(rgb, random)), truth
            found = judge.patches(image, labels, lambda k, thin=thin, start=place + kind: (k + start) % thin == 0)
            rows += [(*f, patient(sample), sample.image_id, damage, sample.dataset, unseen) for f in found]
        print(f"{weights}: {place + 1} of {len(samples)} images, {len(rows)} patches", file=sys.stderr, flush=True)
    return Patches(*(np.array(v) for v in zip(*rows, strict=True))), judge


def importance(images: np.ndarray) -> np.ndarray:
    """Return what each patch counts: the root of its image's patches, since neighbors say the same."""
    _, place, count = np.unique(images, return_inverse=True, return_counts=True)
    weight = 1 / np.sqrt(count[place])
    return weight / weight.mean()


def fitted(p: Patches) -> QualityModel:
    return fit_quality(p.features, p.fails, importance(p.image), quality=p.quality, groups=p.group)


def held_out(p: Patches, others: Patches, *, damage: bool = False) -> np.ndarray:
    """Return each patch's score from a model that has not seen its patient (nor its damage).

    ``others`` are patches that help to fit, and are not scored.
    """
    score = np.zeros(len(p.fails))
    for name in np.unique(p.group):
        here = p.group == name
        for kind in np.unique(p.damage[here]) if damage else [""]:
            now = here & ((p.damage == kind) | (not damage))
            parts = [q.where((q.group != name) & ((q.damage != kind) | (kind in ("", "none")))) for q in (p, others)]
            model = fitted(Patches(*(np.concatenate(v) for v in zip(*parts, strict=True))))
            score[now] = model.predict(p.features[now])
    return score


def drawn_patients(p: Patches, figure: Callable[[np.ndarray], float], draws: int = 300) -> list[float]:
    """Return the 95 % interval of a figure of the patches chosen, over draws of whole patients."""
    random = np.random.default_rng(0)
    of = [np.flatnonzero(p.group == name) for name in np.unique(p.group)]
    found = [figure(np.concatenate([of[i] for i in random.integers(0, len(of), len(of))])) for _ in range(draws)]
    return [round(float(v), 3) for v in np.nanpercentile(found, (2.5, 97.5))]


def most_possible_auc(p: Patches) -> float:
    """Return the AUC of the true quality against failures whose nuclei were resampled."""
    random = np.random.default_rng(0)
    known = p.nuclei > 0
    n, q = p.nuclei[known], p.quality[known]
    return float(np.mean([auc(-q, random.binomial(n, q) / n < 0.75) for _ in range(20)]))


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


def saved_of_15(score: np.ndarray, fails: np.ndarray) -> float:
    """Return how many of 15 reviews the order saves at 90 % recall where one patch in ten fails."""
    return 15 * reviews_saved(score, fails, 0.9, PUBLISHED_BAD_FRAC) if fails.any() else float("nan")


def judged_model(every: Patches, judge: Judge) -> tuple[QualityModel, dict[str, Any]]:
    """Return the model of all patients, with what it is worth on patients held out, and the result to save."""
    name = judge.model.name
    allowed = np.isin(every.dataset, FITTED_TO.get(name, SETS))
    p, seen, foreign = (every.where(m) for m in (allowed & every.unseen, allowed & ~every.unseen, ~allowed & every.unseen))
    score, model = held_out(p, seen), fitted(Patches(*(np.concatenate(v) for v in zip(p, seen, strict=True))))
    without = held_out(p, seen, damage=True)
    clear = np.abs(p.quality - 0.75) > 0.15
    single = {n: round(auc(p.features[:, i], p.fails), 3) for i, n in enumerate(FEATURES)}
    bins = [[round(a, 3), round(b, 3), n] for a, b, n in calibration(score, p.fails)]
    measured = {
        "patients": len(np.unique(p.group)),
        "images": len(np.unique(p.image)),
        "patches": len(p.fails),
        "auc": round(auc(score, p.fails), 3),
        "auc_interval": drawn_patients(p, lambda i: auc(score[i], p.fails[i])),
        "auc_of_clear_patches": round(auc(score[clear], p.fails[clear]), 3),
        "brier": round(brier(score, p.fails), 3),
        "calibration_error": round(calibration_error(score, p.fails), 3),
        "group_spread": round(group_spread(score, p.fails, p.group), 3),
        "reviews_saved_of_15": round(saved_of_15(score, p.fails), 1),
        "calibration": bins,
    }
    facts = {
        "network": name,
        "network_sha256": judge.model.sha256,
        "licence": LICENCE.get(name, "as its training images"),
        "trained_on": sorted(set(p.dataset.tolist()) | set(seen.dataset.tolist())),
        "criterion": "precision or recall of nuclei below 75 % (IoU > 0.3, centroid in the central 226 of 256 px at 0.25 um)",
        "held_out": measured,
    }
    before = scored_without(p, seen, PICTURE_FEATURES)
    of_nuclei = scored_without(p, seen, OF_NUCLEI)
    rough = fitted(Patches(*(np.concatenate([muted(q, OF_NUCLEI)[i] for q in (p, seen)]) for i in range(len(p)))))
    numbers = json.loads(rough.to_json())
    facts["of_nuclei"] = {k: numbers[k] for k in ("mean", "scale", "weights", "stain")} | {
        "auc": rounded(auc(of_nuclei, p.fails))
    }
    result = {
        "network_sha256": judge.model.sha256,
        "held_out": measured,
        "reviews_saved_of_15_interval": drawn_patients(p, lambda i: saved_of_15(score[i], p.fails[i])),
        "clear_frac": round(float(clear.mean()), 3),
        "most_possible_auc": round(most_possible_auc(p), 3),
        "all": worth(score, p.fails),
        "damage_held_out": worth(without, p.fails) | {"auc_interval": drawn_patients(p, lambda i: auc(without[i], p.fails[i]))},
        "by_damage": {d: worth(score[p.damage == d], p.fails[p.damage == d]) for d in DAMAGES},
        "by_damage_held_out": {d: rounded(auc(without[p.damage == d], p.fails[p.damage == d])) for d in DAMAGES},
        "by_set": {s: worth(score[m], p.fails[m]) for s, m in by_set(p).items()},
        "without_orientations": {
            "auc": rounded(auc(before, p.fails)),
            "auc_interval": drawn_patients(p, lambda i: auc(before[i], p.fails[i])),
            "gain_interval": drawn_patients(p, lambda i: auc(score[i], p.fails[i]) - auc(before[i], p.fails[i])),
            "auc_of_clear_patches": rounded(auc(before[clear], p.fails[clear])),
            "reviews_saved_of_15": round(saved_of_15(before, p.fails), 1),
        },
        "match_at_iou_0.5": rounded({"fail_frac": float(p.fails_strictly.mean()), "auc": auc(score, p.fails_strictly)}),
        "auc_of_single_features": dict(sorted(single.items(), key=lambda kv: -abs(kv[1] - 0.5))),
    }
    if len(foreign.fails):
        result["sets_never_fitted"] = {
            s: worth(model.predict(foreign.features[m]), foreign.fails[m]) for s, m in by_set(foreign).items()
        }
    return QualityModel(model.mean, model.scale, model.weights, model.stain, facts), result


def muted(p: Patches, kept: tuple[str, ...]) -> Patches:
    """Return the patches with all features but those kept at 0."""
    mute = np.array([name not in kept for name in FEATURES])
    return p._replace(features=np.where(mute, 0.0, p.features))


def scored_without(p: Patches, others: Patches, kept: tuple[str, ...]) -> np.ndarray:
    """Return the held-out scores where all features but those kept say nothing."""
    return held_out(muted(p, kept), muted(others, kept))


def by_set(p: Patches) -> dict[str, np.ndarray]:
    return {s: p.dataset == s for s in sorted(set(p.dataset.tolist()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"))
    parser.add_argument("--weights", nargs="+", default=["open", "research"])
    parser.add_argument("--quick", action="store_true", help="every third image only, to see that it runs; writes nothing")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument(
        "--keep", type=Path, help="folder in which features are kept (.npz), and from which they are read again"
    )
    options = parser.parse_args()
    write = not (options.no_save or options.quick)
    if not options.data:
        parser.error("give --data or set WSISEG_DATA")
    data = sets_folder(options.data)
    samples = list_samples(data, tuple(s for s in SETS if (data / s).is_dir()))
    start = time.process_time()
    result: dict[str, Any] = {}
    for weights in options.weights:
        kept = options.keep / f"{weights}.npz" if options.keep else None
        if kept is not None and kept.is_file():
            judge = Judge(weights)
            with np.load(kept) as stored:
                p, cost = Patches(*(stored[k] for k in Patches._fields)), float(stored["turn_ms"])
        else:
            fitted_to = FITTED_TO.get(weights, SETS)
            few = {id(s) for name in SETS for s in [k for k in samples if k.dataset == name][:: 1 if name in fitted_to else 8]}
            p, judge = collect([s for s in samples if id(s) in few][:: 3 if options.quick else 1], weights)
            cost = 1000 * judge.turn_s / max(1, judge.turned)
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                np.savez_compressed(kept, **p._asdict(), turn_ms=cost)
        model, result[weights] = judged_model(p, judge)
        result[weights]["orientations_cpu_ms_a_patch"] = round(cost, 1)
        result[weights]["cpu_seconds"] = round(time.process_time() - start, 1)
        if write:
            atomic_write_bytes(ROOT / "wsiseg" / "qc" / "quality_models" / f"{weights}.json", model.to_json().encode())
    print(json.dumps(result, indent=1))
    if write:
        stored = RESULTS / "predicted_quality.json"
        earlier = json.loads(stored.read_text()) if stored.is_file() else {}
        save("predicted_quality", {k: v for k, v in earlier.items() if k not in ("machine", *result)} | result)


if __name__ == "__main__":
    main()

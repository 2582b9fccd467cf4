"""How far microns per px are off that are estimated from the size of nuclei, and what the estimate is worth.

    python benchmarks/scale.py --data SETS --slides SLIDE [SLIDE ...] --out benchmarks/results/scale.json

Three questions, for each of the shipped weights:

- Images of known scale that the weights were not trained on, at their own px and reduced by 2 and 4: the ratio of the estimate
  to the truth.
- Slides that state their scale: the same, as ``wsiseg info --estimate-mpp`` does it.
- A set that states none (DSB2018): PQ at its native px taken as 0.25 um, and at estimates for several diameters of the median
  nucleus, where pictures of large nuclei are reduced as estimated, not at all, or half of the way (in logarithms). Diameter and
  rule of ``mpp_to_segment_at`` were chosen by the training images; the held-out ones are shown beside them.
"""

# ruff: noqa: E402 - thread limits must be set before NumPy is loaded
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._machine import machine
from wsiseg.config import PredictConfig, RunConfig
from wsiseg.datasets import Sample, load_sample
from wsiseg.evaluation.scoring import choose_samples
from wsiseg.metrics import instance_scores
from wsiseg.pipeline import estimate_mpp, segment_image
from wsiseg.pipeline.scale import NUCLEUS_DIAM_UM, UNSTATED_DIAM_UM
from wsiseg.predict import Model, load_model
from wsiseg.read import open_slide
from wsiseg.run.inspect import estimate_slide_mpp

KNOWN = ("monuseg", "tnbc", "consep", "cpm16")
UNSTATED = "dsb2018_he"
REDUCED = (1, 2, 4)
DIAMETERS_UM = (6.0, 6.5, 7.0, 7.5, 8.0)
TRAINING_STEP = 3  # every third training image


def ratios(model: Model, config: RunConfig, root: Path) -> list[dict[str, Any]]:
    """Return one row per held-out image and reduction."""
    rows = []
    for sample in choose_samples(root, KNOWN, "validation"):
        rgb, _ = load_sample(sample)
        for factor in REDUCED:
            picture = np.asarray(Image.fromarray(rgb).reduce(factor))
            found = estimate_mpp([picture], model, config)
            true = float(sample.mpp or 0.25) * factor
            ratio = found.mpp / true if found else None
            rows.append({"set": sample.dataset, "image": sample.image_id, "reduced": factor, "mpp": true, "ratio": ratio})
    return rows


def spread(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return how many estimates there are, their median ratio to the truth, and the range of the middle 80 %."""
    found = [r["ratio"] for r in rows if r["ratio"]]
    low, middle, high = np.quantile(found, (0.1, 0.5, 0.9))
    near = float(np.mean([0.7 <= r <= 1.43 for r in found]))
    return {
        "images": len(rows), "without_estimate": len(rows) - len(found), "median_ratio": float(middle),
        "ratio_10_to_90_percent": [float(low), float(high)], "within_a_factor_of_1.43": near,
    }  # fmt: skip


def of_slides(paths: Sequence[Path], config: RunConfig) -> list[dict[str, Any]]:
    """Return the estimate of each slide beside what its file states."""
    rows = []
    for path in paths:
        slide = open_slide(path)
        stated = slide.meta.mpp
        slide.close()
        start = time.process_time()
        found = estimate_slide_mpp(str(path), config)
        rows.append(
            {
                "slide": path.name, "stated_mpp": stated, "estimated_mpp": found.mpp if found else None,
                "n_nuclei": found.n_nuclei if found else 0, "cpu_s": time.process_time() - start,
            }
        )  # fmt: skip
    return rows


def mean_pq(samples: Sequence[Sample], model: Model, config: RunConfig, diameter_um: float) -> dict[str, float]:
    """Return the mean PQ at estimates for one diameter: as they are, never below the model's mpp, and halfway there."""
    scores: dict[str, list[float]] = {"as_estimated": [], "never_reduced": [], "half_reduced": []}
    for sample in samples:
        rgb, truth = load_sample(sample)
        found = estimate_mpp([rgb], model, config, diameter_um)
        mpp = found.mpp if found else model.mpp
        less = min(mpp, model.mpp)
        used = (mpp, max(mpp, model.mpp), max(mpp, model.mpp) * (less / model.mpp) ** 0.5)
        known: dict[float, float] = {}
        for values, at in zip(scores.values(), used, strict=True):
            if at not in known:
                known[at] = instance_scores(segment_image(rgb, at, model, config), truth).pq
            values.append(known[at])
    return {name: float(np.nanmean(values)) for name, values in scores.items()}


def by_diameter(model: Model, config: RunConfig, root: Path) -> list[dict[str, Any]]:
    """Return PQ of a set without scale, at native px and by the diameter that the median nucleus is given."""
    training = choose_samples(root, (UNSTATED,), "train")[::TRAINING_STEP]
    held_out = choose_samples(root, (UNSTATED,), "validation")
    rows: list[dict[str, Any]] = [
        {
            "nucleus_diam_um": None,
            "pq_training_images": {"native": native_pq(training, model, config)},
            "pq_held_out": {"native": native_pq(held_out, model, config)},
        }
    ]
    for diameter_um in DIAMETERS_UM:
        row = {
            "nucleus_diam_um": diameter_um,
            "pq_training_images": mean_pq(training, model, config, diameter_um),
            "pq_held_out": mean_pq(held_out, model, config, diameter_um),
        }
        print(model.name, row, flush=True)
        rows.append(row)
    return rows


def native_pq(samples: Sequence[Sample], model: Model, config: RunConfig) -> float:
    """Return the mean PQ at native px."""
    pairs = [load_sample(s) for s in samples]
    return float(np.nanmean([instance_scores(segment_image(rgb, model.mpp, model, config), t).pq for rgb, t in pairs]))


def main() -> None:
    """Measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the annotated sets")
    parser.add_argument("--slides", type=Path, nargs="*", default=[], help="slides that state their microns per px")
    parser.add_argument("--weights", nargs="+", default=["research", "open"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    tree: dict[str, Any] = {
        "command": f"python benchmarks/scale.py --data SETS --slides SLIDES --weights {' '.join(args.weights)}",
        "machine": machine(),
        "nucleus_diam_um": NUCLEUS_DIAM_UM,
        "unstated_diam_um": UNSTATED_DIAM_UM,
        "weights": {},
    }
    for weights in args.weights:
        config = RunConfig(predict=PredictConfig(weights=weights))
        model = load_model(config.predict)
        rows = ratios(model, config, args.data)
        tree["weights"][model.name] = {
            "sha256": model.sha256,
            "known_scale": {str(f): spread([r for r in rows if r["reduced"] == f]) for f in REDUCED},
            "images": rows,
            "slides": of_slides(args.slides, config),
            "unstated_scale": by_diameter(model, config, args.data),
        }
        print(model.name, tree["weights"][model.name]["known_scale"], tree["weights"][model.name]["slides"], flush=True)
        args.out.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

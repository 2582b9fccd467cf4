"""What each choice of the recipe is worth: short trainings that differ in one thing, scored on the held-out images.

    WSISEG_DATA=<folder with nuclei/> python benchmarks/ablation.py [--steps N] [--only NAME ...] [--list]

Two protocols, told apart by ``start`` in each row, and compared only within one: ``warm`` rows continue from shipped weights
(what does this change add to a trained network?), ``scratch`` rows start from the seed (the only fair one for another net or
center target, whose trained weights do not exist). Thresholds are fitted on ``cpm16``, which no row is trained on and which
does not judge; rows with ``pq_training_images`` are older, theirs were fitted on training images. ``pq_unseen`` is the PQ on
sets that a row has not trained on. Differences under 0.005 are noise. Rows that are not run keep the figures that the results
file holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import save, saved
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.config import PredictConfig
from wsiseg.datasets import Sample, list_samples, load_sample
from wsiseg.datasets.samples import MODEL_MPP
from wsiseg.normalize import fit_stain, normalize
from wsiseg.predict import NETS, NetSpec, as_stored, build_net, macs_per_px, model_from_net, tune_malloc
from wsiseg.predict.weights import load_weights
from wsiseg.train import AugmentConfig, ImageSteps, LoopConfig, LossConfig, PatchSource, TargetOptions, TrainingRun, fit
from wsiseg.train.training import load_teacher
from wsiseg.train.validation import fit_separation, predict_samples, score_table

NETS["lean_stem1"] = NetSpec((8, 24, 48, 96, 192), (2, 2, 2, 2, 2), (2, 2, 2, 2), stem=1)
NETS["lean_stem4"] = NetSpec((64, 128, 256), (2, 3, 3), (3, 2), stem=4)
SEED = 1
RESEARCH = {"monuseg": 0.42, "consep": 0.26, "tnbc": 0.14, "dsb2018_he": 0.18}
OPEN = {"consep": 0.45, "tnbc": 0.28, "dsb2018_he": 0.27}
FITTED_ON = ("cpm16",)
"""The set that the thresholds are fitted on: no row is trained on it, none is judged by it."""
STRONG = {"stain_gain": 0.5, "stain_offset": 0.25, "hue_mix": 0.12, "gamma": 0.35}
STRONGER = {"stain_gain": 0.7, "stain_offset": 0.4, "hue_mix": 0.2, "gamma": 0.5}
MILD = {
    "scale_min": 0.8,
    "scale_max": 1.25,
    "stain_gain": 0.25,
    "blur_p": 0.12,
    "low_resolution_p": 0.05,
    "jpeg_p": 0.2,
    "noise_p": 0.12,
}


@dataclass(frozen=True)
class Row:
    """One training: the axis that it belongs to, and what differs from the base of its protocol."""

    axis: str
    what: str
    start: str = "research"
    net: str = "lean"
    sets: dict[str, float] = field(default_factory=lambda: RESEARCH)
    center: str = "ellipse"
    touching: float = 0.65
    border_weight: float = 3.0
    augment: dict[str, float] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    stain: str = "none"
    teacher_share: float = 0.0


SCRATCH = "scratch"
ROWS: dict[str, Row] = {
    "warm": Row("base", "shipped recipe, continued"),
    "scratch": Row("base", "shipped recipe, from the seed", SCRATCH),
    "w16": Row("net width and stem", "widths 16 to 128", SCRATCH, net="lean_w16"),
    "w32": Row("net width and stem", "widths 32 to 256, one convolution fewer per coarse level", SCRATCH, net="lean_w32"),
    "shallow": Row("net width and stem", "two convolutions per level", SCRATCH, net="lean_shallow"),
    "stem1": Row("net width and stem", "no pixel-unshuffle: 8 channels at full resolution in front", SCRATCH, net="lean_stem1"),
    "stem4": Row("net width and stem", "pixel-unshuffle by 4, no level at half resolution", SCRATCH, net="lean_stem4"),
    "center_gaussian": Row("center target", "round Gaussian", SCRATCH, center="gaussian"),
    "center_disc": Row("center target", "small ellipse, 0 or 1 (eroded nucleus)", SCRATCH, center="disc"),
    "center_distance": Row("center target", "distance to the border", SCRATCH, center="distance"),
    "touching_0": Row("losses", "pixels where nuclei touch are background", touching=0.0),
    "touching_1": Row("losses", "pixels where nuclei touch are nucleus", touching=1.0),
    "border_1": Row("losses", "no extra weight where nuclei (nearly) touch", border_weight=1.0),
    "no_dice": Row("losses", "cross-entropy alone", loss={"dice": 0.0}),
    "focal": Row("losses", "focal, gamma 2", loss={"focal_gamma": 2.0}),
    "material_2": Row("losses", "material counts twice", loss={"material": 2.0}),
    "distilled": Row("losses", "half of the target is the start's own answer, averaged over 8 symmetries", teacher_share=0.5),
    "macenko": Row("stain handling", "Macenko-normalized in training and use", stain="macenko"),
    "reinhard": Row("stain handling", "Reinhard-normalized in training and use", stain="reinhard"),
    "color_strong": Row("stain handling", "stronger color augmentation", augment=STRONG),
    "restain": Row("stain handling", "half of the patches take another image's colors", augment={"restain_p": 0.5}),
    "restain_strong": Row("stain handling", "both", augment={**STRONG, "restain_p": 0.5}),
    "mild": Row("stain handling", "weaker scale, color and scanner augmentation", augment=MILD),
    "open_warm": Row("stain handling", "open sets: shipped recipe, continued", "open", sets=OPEN),
    "open_restain_strong": Row(
        "stain handling", "open sets: stronger, and others' colors", "open", sets=OPEN, augment={**STRONG, "restain_p": 0.5}
    ),
    "open_color_strong": Row("stain handling", "open sets: stronger color augmentation", "open", sets=OPEN, augment=STRONG),
    "open_restain_stronger": Row(
        "stain handling",
        "open sets: stronger still, and others' colors",
        "open",
        sets=OPEN,
        augment={**STRONGER, "restain_p": 0.5},
    ),
    "open_macenko": Row("stain handling", "open sets: Macenko-normalized", "open", sets=OPEN, stain="macenko"),
    "mixture_open": Row("data mixture", "open sets only", SCRATCH, sets=OPEN),
    "mixture_monuseg": Row("data mixture", "monuseg only", SCRATCH, sets={"monuseg": 1.0}),
    "mixture_even": Row("data mixture", "all sets in equal shares", SCRATCH, sets=dict.fromkeys(RESEARCH, 0.25)),
}


def main() -> None:
    """Run the rows that are asked for and write ``results/ablation.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", nargs="*", choices=sorted(ROWS), metavar="NAME")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:20} {row.axis}: {row.what}" for name, row in ROWS.items()))
        return
    root = os.environ.get("WSISEG_DATA")
    if not root:
        sys.exit("Set WSISEG_DATA to the folder that holds nuclei/ with the sets (monuseg, consep, tnbc, dsb2018_he).")
    tune_malloc()
    for name in options.only or ROWS:
        found = run_row(root, ROWS[name], options.steps)
        keep(name, found)
        print(name, found["mean_pq"], {k: v["pq"] for k, v in found["validation"].items()}, flush=True)


def run_row(root: str, row: Row, steps: int) -> dict[str, Any]:
    """Train, fit thresholds on training images, score on the held-out ones."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        samples = [stained(s, row.stain, Path(scratch)) for s in list_samples(root, tuple(RESEARCH))]
        seen = [s for s in samples if not s.validation and s.dataset in row.sets]
        held_out = [s for s in samples if s.validation]
        unseen = [stained(s, row.stain, Path(scratch)) for s in list_samples(root, FITTED_ON)]
        torch.manual_seed(SEED)
        net = build_net(row.net)
        sha = ""
        if row.start != SCRATCH:
            begun, card = load_weights(row.start)
            net.load_state_dict(begun.state_dict())
            sha = card["sha256"]
        steps_of_image = ImageSteps(
            teacher=load_teacher(row.start) if row.teacher_share else None,
            teacher_share=row.teacher_share,
        )
        targets = TargetOptions(row.center, row.border_weight, row.touching)
        source = PatchSource(seen, row.sets, targets, AugmentConfig(**row.augment), 256, steps=steps_of_image)
        warm = row.start != SCRATCH
        config = LoopConfig(
            steps=steps,
            learning_rate=1e-3 if warm else 2e-3,
            warmup_steps=min(50, steps // 2),
            ema_decay=0.998 if warm else 0.995,
            seed=SEED,
            loss=LossConfig(**row.loss),
        )
        net = fit(net, lambda step: source.batch(config.batch, SEED, step), config, TrainingRun(Path(scratch) / "run"))
        card = {"name": "", "sha256": "", "mpp": MODEL_MPP, "stain_method": "none", "licence": "", "separate_defaults": {}}
        model = model_from_net(as_stored(net), card, PredictConfig())
        fitted, _ = fit_separation(predict_samples(model, unseen), rounds=1)
        table = score_table(predict_samples(model, held_out), fitted)
    return {
        "axis": row.axis,
        "what": row.what,
        "start": row.start,
        **({"start_sha256": sha} if sha else {}),
        "steps": steps,
        "changes": changes(row),
        "macs_per_px": round(macs_per_px(NETS[row.net])),
        "mean_pq": round(sum(RESEARCH[k] * table[k]["pq"] for k in table), 4),
        "pq_unseen": {k: v["pq"] for k, v in table.items() if k not in row.sets},
        "fitted": fitted,
        "validation": table,
        "cpu_s": round(time.process_time() - began),
    }


def changes(row: Row) -> dict[str, Any]:
    """Return the options in which a row differs from the shipped recipe."""
    plain = Row("", "")
    names = [f.name for f in dataclasses.fields(Row) if f.name not in ("axis", "what", "start")]
    return {name: getattr(row, name) for name in names if getattr(row, name) != getattr(plain, name)}


def stained(sample: Sample, method: str, folder: Path) -> Sample:
    """Return the sample with its image normalized by its own stain, as a slide of one patch would be."""
    if method == "none":
        return sample
    rgb, _ = load_sample(sample)
    path = folder / f"{sample.dataset}_{sample.image_id}.png"
    Image.fromarray(normalize(rgb, fit_stain(method, rgb, np.ones(rgb.shape[:2], bool)))).save(path)
    return dataclasses.replace(sample, image_path=str(path))


def keep(name: str, found: dict[str, Any]) -> None:
    """Put one row into the results file, in place of an earlier one of its name."""
    held = saved("ablation")
    rows = {**held.get("rows", {}), name: found}
    order = [n for n in ROWS if n in rows] + sorted(set(rows) - set(ROWS))
    about = "PQ on held-out images of short trainings that differ in one thing; mean_pq weighs sets by their research shares"
    extra = {k: v for k, v in held.items() if k not in ("machine", "what", "rows")}
    save("ablation", {"what": about, **extra, "rows": {n: rows[n] for n in order}})


if __name__ == "__main__":
    main()

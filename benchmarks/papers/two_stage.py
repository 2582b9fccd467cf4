"""The two-stage U-Net of Mahbod et al. 2019 beside the two-head network: same images, same split, same few steps; and a figure.

    python benchmarks/papers/two_stage.py --data SETS --state STATE [--steps 200] [--sets tnbc]

trains each once (a finished or stopped run in STATE is taken up), scores the held-out patients, and writes
``benchmarks/results/papers/two_stage.json`` and ``.png``. What it means: ``two_stage.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._machine import machine
from benchmarks.papers._page import fill
from wsiseg.config import PredictConfig
from wsiseg.predict import load_model, load_weights, macs_per_px
from wsiseg.train.training import TrainConfig, train_samples, training_samples
from wsiseg.train.validation import predict_samples, separated

RESULTS = Path(__file__).resolve().parents[1] / "results" / "papers"
SCORES = ("dice", "aji", "pq", "sq", "dq")

# Mahbod et al. 2019, doi 10.1007/978-3-030-23937-4_9, table of the 14 test images of Kumar et al. 2017, percent.
PUBLISHED = {"dice": 79.32, "aji": 56.87, "f1": 81.88}

CONFIG = """name = "{name}"
licence = "a benchmark's weights, not for use"
out = "{name}"
data_root = "{data}"
net = "{net}"
patch_px = 128
[sets]
{sets}
[loop]
steps = {steps}
batch = 4
learning_rate = {rate}
warmup_steps = 20
report_every = 10
validate_every = 100000
seed = 1
"""


def train(name: str, net: str, model: str, args: argparse.Namespace) -> dict[str, Any]:
    """Train and score one network; a finished one is read back."""
    done = args.state / name / "row.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    path = args.state / f"{name}.toml"
    sets = "\n".join(f"{s} = 1.0" for s in args.sets)
    path.write_text(CONFIG.format(name=name, data=args.data, net=net, sets=sets, steps=args.steps, rate=args.rate))
    config = TrainConfig.from_toml(path, model)
    samples = training_samples(config)
    # few images fit thresholds and judge: the table is for comparing, and the time is short
    seen = [s for s in samples if not s.validation]
    held_out = [s for s in samples if s.validation]
    start = time.process_time()
    card = train_samples(config, [*seen, *held_out], args.state / name, resume=True)
    curve = [json.loads(line) for line in (args.state / name / "curve.jsonl").read_text().splitlines()]
    net_, _ = load_weights(str(args.state / name / "weights" / f"{name}.safetensors"))
    row = {
        "net": config.net,
        "parameters": sum(p.numel() for p in net_.parameters()),
        "multiply_adds_per_px": macs_per_px(net_.spec),
        "images": {"training": len(seen), "held_out": len(held_out)},
        "cpu_s": round(time.process_time() - start, 1),
        "scores": card["scores"],
        "separate": card["separate_defaults"],
        **{k: card[k] for k in ("mean_nucleus_diameter_px", "stain_reference") if k in card},
        "loss": card["training"]["loop"]["loss"],
        "curve": curve,
    }
    done.write_text(json.dumps(row, indent=1))
    return row


def draw(rows: dict[str, dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """Draw curves, scores of held-out images, and one held-out crop with both networks' maps and instances."""
    import matplotlib as mpl

    mpl.use("Agg")
    import numpy as np
    from matplotlib import pyplot as plt
    from skimage.segmentation import find_boundaries

    figure, axes = plt.subplots(2, 4, figsize=(13, 6.4), layout="constrained")
    for axis in axes[0, 2:]:
        axis.remove()
    losses, bars = axes[0, 0], figure.add_subplot(axes[0, 2].get_gridspec()[0, 2:])
    for axis, term in ((losses, "material_dice"), (axes[0, 1], "center")):
        for name, row in rows.items():
            key = next(k for k in row["curve"][0] if k.startswith(term))
            axis.plot([c["step"] for c in row["curve"]], [c[key] for c in row["curve"]], label=f"{name}: {key}")
        axis.set(xlabel="step", ylabel="training loss, one term", yscale="log")
        axis.legend(fontsize=7)
    for k, (name, row) in enumerate(rows.items()):
        values = [100 * _mean(row, s) for s in SCORES]
        bars.bar([i + 0.4 * k - 0.2 for i in range(len(SCORES))], values, 0.38, label=name)
    bars.set_xticks(range(len(SCORES)), SCORES)
    bars.set(ylim=(0, 100), ylabel="percent", title=f"held-out images after {args.steps} steps (mean over images)")
    bars.legend(fontsize=8)
    sample = next(s for s in training_samples(TrainConfig.from_toml(args.state / "lean.toml")) if s.validation)
    for (name, row), (left, right) in zip(rows.items(), (axes[1, :2], axes[1, 2:]), strict=True):
        model = load_model(PredictConfig(weights=str(args.state / name / "weights" / f"{name}.safetensors")))
        (judged,) = predict_samples(model, [sample])
        labels = separated(judged.maps, model.separate_defaults)
        window = (slice(0, 256), slice(0, 256))
        from wsiseg.datasets import load_sample

        rgb = load_sample(sample)[0][window].copy()
        rgb[find_boundaries(judged.truth[window], mode="inner")] = (0, 160, 0)
        rgb[find_boundaries(labels[window], mode="inner")] = (230, 0, 0)
        left.imshow(np.asarray(judged.maps.inner[0][window]), vmin=0, vmax=255)
        left.set_title(f"{name}: channel 0 ({row['net']})", fontsize=9)
        right.imshow(rgb)
        right.set_title(f"{name}: red found, green drawn", fontsize=9)
        left.axis("off")
        right.axis("off")
    figure.savefig(path, dpi=80)


def _mean(row: dict[str, Any], score: str) -> float:
    images = [s["images"] for s in row["scores"].values()]
    return float(sum(s[score] * n for s, n in zip(row["scores"].values(), images, strict=True)) / sum(images))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"), required="WSISEG_DATA" not in os.environ, type=Path)
    parser.add_argument("--state", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--sets", nargs="+", default=["tnbc"])
    args = parser.parse_args()
    args.state.mkdir(parents=True, exist_ok=True)
    rows = {"two_stage": train("two_stage", "two_stage", "two-stage", args), "lean": train("lean", "lean", "", args)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = (
        f"python benchmarks/papers/two_stage.py --data SETS --state STATE --steps {args.steps} --sets {' '.join(args.sets)}"
    )
    tree = {"command": command, "machine": machine(), "published": PUBLISHED, "rows": rows}
    (RESULTS / "two_stage.json").write_text(json.dumps(tree, indent=1) + "\n")
    draw(rows, args, RESULTS / "two_stage.png")
    shown = []
    for name, row in rows.items():
        gmac = f"{row['multiply_adds_per_px'] / 1000:.1f}"
        scores = [f"{100 * _mean(row, s):.1f}" for s in SCORES]
        shown.append([f"{name}, {args.steps} steps", f"{row['parameters']:,}", gmac, *scores, f"{row['cpu_s']:.0f}"])
    shown.append(["published, Kumar's 14 test images", "3,882,210", "-", "79.3", "56.9", "-", "-", "81.9 (F1)", "-"])
    headings = ["network", "parameters", "kMAC / px", "Dice %", "AJI %", "PQ %", "SQ %", "DQ %", "CPU s"]
    fill(Path(__file__).with_suffix(".md"), headings, shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

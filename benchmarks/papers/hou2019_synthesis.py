"""Measure the gain from synthetic patches of an organ without annotations (Hou et al. 2019), at small scale.

    python benchmarks/papers/hou2019_synthesis.py --data SETS --work FOLDER

Colon (CoNSeP) is annotated; breast (TNBC) is the unseen organ, of which only pictures are taken, none of its held-out patients.
Networks learn for the same number of steps from colon alone, and from colon and synthetic breast; all are scored on the
held-out breast patients. A refiner is trained as well, and what it did in its few steps is written down. FOLDER keeps what is
done, so the same command goes on. Writes ``benchmarks/results/papers/hou2019_synthesis.json`` and ``.jpg``; what it means:
``hou2019_synthesis.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks._machine import machine
from benchmarks.papers._page import fill
from wsiseg.datasets import list_samples, load_sample, sets_folder
from wsiseg.train import LoopConfig
from wsiseg.train.synth import fit_shapes
from wsiseg.train.synthesis import RefineConfig, SynthConfig, make_synthetic, reference_shapes, refine_synthetic
from wsiseg.train.training import TrainConfig, train_samples

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "papers"
REFERENCE, COHORT = "consep", "tnbc"
ARMS: dict[str, dict[str, float]] = {
    "colon alone": {REFERENCE: 1.0},
    "colon + synthetic breast": {REFERENCE: 0.5, "synth": 0.5},
}
SEEDS = (1, 2)
STEPS, NET = 250, "lean_w16"
SYNTH = SynthConfig(images=120, seed=1)
REFINE = RefineConfig(steps=200, batch=4, crop_px=64, width=16, learning_rate=1e-3, hard=0.02, seed=1)


def train_arm(data: Path, work: Path, arm: str, seed: int) -> dict[str, Any]:
    """Train one network, unless that is done, and return its scores on the held-out breast patients."""
    run = work / "runs" / f"{arm.replace(' ', '_').replace(',', '').replace('+', 'and')}_{seed}"
    done = run / "arm.json"
    if done.exists():
        return json.loads(done.read_text())
    sets = ARMS[arm]
    seen = [s for name in sets for s in list_samples(data if (data / name).exists() else work, (name,)) if not s.validation]
    judged = [s for s in list_samples(data, (COHORT,)) if s.validation]
    loop = LoopConfig(steps=STEPS, batch=8, warmup_steps=30, ema_decay=0.98, seed=seed, report_every=50, validate_every=STEPS)
    config = TrainConfig(name="arm", sets=sets, licence="benchmark", net=NET, loop=loop)
    started = time.process_time()
    card = train_samples(config, [*seen, *judged], run, resume=True)
    row = {"arm": arm, "seed": seed, "cpu_s": round(time.process_time() - started, 1), **card["scores"][COHORT]}
    done.write_text(json.dumps(row))
    print(row, flush=True)
    return row


def shapes_of(data: Path, work: Path) -> dict[str, Any]:
    """Compare what was drawn with what was to be drawn."""
    wanted, _ = reference_shapes(data / REFERENCE, SYNTH.patch_px)
    drawn = fit_shapes((load_sample(s)[1] for s in list_samples(work, ("synth",))), SYNTH.patch_px)
    names = ("area_px", "axis_ratio", "irregularity")
    table: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for which, fitted in (("reference", wanted), ("drawn", drawn)):
        for k, name in enumerate(names):
            table[name][which] = np.quantile(fitted.nuclei[:, k], (0.1, 0.5, 0.9)).round(3).tolist()
    contact = {"reference": round(wanted.contact, 3), "drawn": round(drawn.contact, 3)}
    return {"quantiles_10_50_90": table, "share_in_contact": contact}


def draw(data: Path, work: Path, path: Path) -> None:
    """Real, synthetic and refined patches of the cohort (TNBC, CC BY 4.0, Naylor et al. 2018), a column each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    real = [load_sample(s)[0] for s in list_samples(data, (COHORT,)) if not s.validation]
    made, refined = (list_samples(work, (name,)) for name in ("synth", "refined"))
    weights = json.loads((work / "refined" / "INFO.json").read_text())["weight_per_image"]
    figure, axes = plt.subplots(4, 7, figsize=(12.6, 7.6), layout="constrained")
    for column, k in enumerate(range(0, 7 * 11, 11)):
        crop = real[(3 * column) % len(real)][:256, :256]
        labels = load_sample(made[k])[1]
        for row, picture in enumerate((crop, load_sample(made[k])[0], load_sample(refined[k])[0], labels > 0)):
            axes[row, column].imshow(picture, cmap="gray")
            axes[row, column].set(xticks=[], yticks=[])
        axes[2, column].set_title(f"weight {weights[made[k].image_id]:.2f}", fontsize=8)
    for row, name in enumerate(("real", "synthetic", "refined", "labels")):
        axes[row, 0].set_ylabel(name)
    figure.suptitle("Breast (TNBC, Naylor et al. 2018, CC BY 4.0): nuclei drawn, 256 px patches", fontsize=10)
    figure.savefig(path, dpi=80, pil_kwargs={"quality": 80})


def page_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    out = []
    for arm in ARMS:
        mine = [r for r in rows if r["arm"] == arm]
        cells = []
        for key in ("dice", "aji", "pq", "dq", "sq"):
            values = [r[key] for r in mine]
            cells.append(f"{statistics.mean(values):.3f} ({', '.join(f'{v:.3f}' for v in values)})")
        out.append([arm, *cells])
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"), required="WSISEG_DATA" not in os.environ, type=Path)
    parser.add_argument("--work", required=True, type=Path)
    args = parser.parse_args()
    data, work = sets_folder(args.data), args.work
    if not (work / "synth" / "INFO.json").exists():
        make_synthetic(data / REFERENCE, data / COHORT, work / "synth", SYNTH)
    arms = list(ARMS)
    rows = [train_arm(data, work, arms[0], seed) for seed in SEEDS[:1]]
    if not (work / "refined" / "INFO.json").exists():
        task = str(work / "runs" / f"{arms[0].replace(' ', '_')}_{SEEDS[0]}" / "weights" / "arm.safetensors")
        refine_synthetic(work / "synth", data / COHORT, work / "refined", REFINE, task=task, resume=True)
    rows += [train_arm(data, work, arm, seed) for seed in SEEDS for arm in arms if (arm, seed) != (arms[0], SEEDS[0])]
    weights = list(json.loads((work / "refined" / "INFO.json").read_text())["weight_per_image"].values())
    curve = [json.loads(line) for line in (work / "refined" / "refiner" / "curve.jsonl").read_text().splitlines()]
    tree = {
        "machine": machine(), "published": "not at hand", "net": NET, "steps": STEPS, "batch": 8, "patch_px": 256,
        "annotated": REFERENCE, "unseen": COHORT, "judged_images": rows[0]["images"], "judged_nuclei": rows[0]["nuclei"],
        "synthetic_images": SYNTH.images, "refiner_steps": REFINE.steps, "refiner_width": REFINE.width, "rows": rows,
        "shapes": shapes_of(data, work), "refiner_curve": curve,
        "weights": {"least": min(weights), "median": statistics.median(weights), "greatest": max(weights)},
    }  # fmt: skip
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "hou2019_synthesis.json").write_text(json.dumps(tree, indent=1) + "\n")
    draw(data, work, RESULTS / "hou2019_synthesis.jpg")
    headings = ["trained on", "Dice", "AJI", "PQ", "DQ", "SQ"]
    page = HERE / "hou2019_synthesis.md"
    if page.exists():
        fill(page, headings, page_rows(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

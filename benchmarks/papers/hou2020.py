"""The validation tables of Hou et al. 2020 on the TCGA tiles at hand (MoNuSeg's), and a figure of them beside the paper's.

    python benchmarks/papers/hou2020.py --data SETS

writes ``benchmarks/results/papers/hou2020.json`` and ``.png``. Two runs: ``research`` on the seven patients held out from its
training, and ``open``, which was never trained on this set, on all thirty. What they mean: ``hou2020.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.papers._page import fill
from wsiseg.config import PredictConfig, RunConfig
from wsiseg.evaluation.choices import HouProtocol, SetChoice, SetOutputs
from wsiseg.evaluation.reports import score_sets

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "papers"

# Tables 3 and 4 of the paper (doi 10.1038/s41597-020-0528-1): Dice, Instance-Dice; all acceptable slides: count r, MAE% too.
PUBLISHED = {
    "all acceptable": (0.790, 0.667, 0.932, 16.2),
    "best": (0.797, 0.687, 0.947, 15.2),
    "unacceptable": (0.690, 0.545, 0.718, 33.8),
}
PUBLISHED_TYPES = {
    "blca": (0.779, 0.668), "brca": (0.798, 0.649), "cesc": (0.818, 0.677), "gbm": (0.809, 0.723), "luad": (0.772, 0.641),
    "lusc": (0.789, 0.665), "paad": (0.785, 0.679), "prad": (0.799, 0.670), "skcm": (0.774, 0.675), "ucec": (0.778, 0.629),
}  # fmt: skip
RUNS = (("research", "validation"), ("open", "all"))


def score(data: Path, weights: str, split: Any) -> dict[str, Any]:
    """Run the protocol through the command's own function and return its JSON."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scores.json"
        choice = SetChoice(["monuseg"], split, protocol=HouProtocol(HERE / "monuseg_cancer_types.csv"))
        report = score_sets(data, RunConfig(predict=PredictConfig(weights=weights)), choice, SetOutputs(out=out))
        for line in [f"{weights}, {split}"] + ["  ".join(row) for row in report.tables[0].rows]:
            print(line)
        tree: dict[str, Any] = json.loads(out.read_text())
    keep = ("command", "machine", "model", "split", "hou2020", "patches")
    return {name: tree[name] for name in keep}


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Bars a cancer type beside the published ones, and counts patch by patch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), width_ratios=(2.2, 1), layout="constrained")
    for (name, tree), (bars, counts) in zip(runs.items(), axes, strict=True):
        rows = {r["row"]: r for r in tree["hou2020"] if r["table"] in ("cancer type", "all")}
        places = range(len(rows))
        for shift, key, color in ((-0.3, "dice", "#1b6ca8"), (-0.1, "instance_dice", "#7fb3d5")):
            bars.bar([p + shift for p in places], [r[key] for r in rows.values()], 0.2, color=color, label=f"ours, {key}")
        for shift, k, color in ((0.1, 0, "#b8562b"), (0.3, 1, "#e8b48f")):
            known = {**PUBLISHED_TYPES, "all patches": PUBLISHED["all acceptable"]}
            at = [(p + shift, known[r][k]) for p, r in enumerate(rows) if r in known]
            bars.bar(*zip(*at, strict=True), 0.2, color=color, label=f"published, {'instance_dice' if k else 'dice'}")
        bars.set_xticks(list(places), [f"{r}\n{row['n_patches']}" for r, row in rows.items()], fontsize=8)
        bars.set(ylim=(0.3, 1.08), title=f"{name} on {tree['split']} images of MoNuSeg; patches below")
        bars.legend(fontsize=7, ncols=4, loc="upper center")
        truth, found = ([p[k] for p in tree["patches"]] for k in ("n_truth", "n_pred"))
        counts.plot([0, max(truth)], [0, max(truth)], color="gray", linewidth=0.8)
        counts.scatter(truth, found, s=10, color="#1b6ca8")
        whole = rows["all patches"]
        title = f"r {whole['pearson_r']:.3f}, MAE {whole['mae_percent']:.1f} % (published 0.932, 16.2 %)"
        counts.set(xlabel="true nuclei in the central 226 px", ylabel="found", title=title)
        counts.title.set_fontsize(9)
    figure.savefig(path, dpi=90)


def page_rows(runs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the page's rows: each run's rows beside the published Dice, Instance-Dice, r and MAE%."""
    rows = []
    for name, tree in runs.items():
        for r in tree["hou2020"]:
            ours = [f"{r[k]:.3f}" for k in ("dice", "instance_dice", "pearson_r")] + [f"{r['mae_percent']:.1f}"]
            known = PUBLISHED["all acceptable"] if r["table"] == "all" else PUBLISHED_TYPES.get(r["row"], ())
            theirs = [f"{v:.3f}" if k < 3 else f"{v:.1f}" for k, v in enumerate(known)]
            rows.append(
                [f"{name}: {r['row']}", str(r["n_patches"]), " / ".join(ours), " / ".join(theirs) or "not in the paper"]
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"), required="WSISEG_DATA" not in os.environ, type=Path)
    args = parser.parse_args()
    runs = {weights: score(args.data, weights, split) for weights, split in RUNS}
    RESULTS.mkdir(parents=True, exist_ok=True)
    tree = {"published": {"wsi group": PUBLISHED, "cancer type": PUBLISHED_TYPES}, "runs": runs}
    (RESULTS / "hou2020.json").write_text(json.dumps(tree, indent=1) + "\n")
    draw(runs, RESULTS / "hou2020.png")
    columns = "Dice / Instance-Dice / count r / MAE%"
    fill(HERE / "hou2020.md", ["run: cancer type", "patches", f"ours: {columns}", "published, their model"], page_rows(runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

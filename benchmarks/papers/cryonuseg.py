"""CryoNuSeg's agreement table (Mahbod et al. 2021), with programs in the place of the second observer, and a figure.

    python benchmarks/accuracy.py --data SETS --state STATE --datasets monuseg --methods open instanseg classical --split all
    WSISEG_DATA=SETS wsiseg train benchmarks/papers/cryonuseg_organs.toml --cv organ
    python benchmarks/papers/cryonuseg.py --data SETS --state STATE --folds runs/cryonuseg_organs/cv-organ

writes ``benchmarks/results/papers/cryonuseg.json`` and ``.png``: the annotators of MoNuSeg (FFPE, 30 images, 7 organs) against
our ``open`` weights, which never saw this set, against InstanSeg, and a cross-validation that leaves one organ out after the
other. What it means: ``cryonuseg.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._machine import machine
from benchmarks.papers._page import fill
from wsiseg.datasets import sets_folder
from wsiseg.evaluation.observer_folders import observer_report

RESULTS = Path(__file__).resolve().parents[1] / "results" / "papers"

# Mahbod et al. 2021, doi 10.1016/j.compbiomed.2021.104349: Dice, AJI, PQ in percent on the 30 cryosections of CryoNuSeg.
PUBLISHED = {
    "inter-observer, two people": (78.9, 54.1, 50.9),
    "intra-observer, one person twice": (83.8, 62.4, 57.0),
    "their network, 10-fold": (80.2, 52.9, 49.4),
}
SCORES = ("dice", "aji", "pq")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """PQ per organ of each pair with its deviation, and the three scores over all images beside the published ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (organs, whole) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(2, 1.2), layout="constrained")
    pairs = list(dict.fromkeys(r["pair"] for r in rows))
    names = [r["organ"] for r in rows if r["pair"] == pairs[0]]
    n = {r["organ"]: r["n_images"] for r in rows}
    width = 0.8 / len(pairs)
    for k, pair in enumerate(pairs):
        mine = {r["organ"]: r for r in rows if r["pair"] == pair}
        at = [i + width * (k - (len(pairs) - 1) / 2) for i in range(len(names))]
        spread = [mine[o]["pq_sd"] or 0 for o in names]
        organs.bar(at, [mine[o]["pq_mean"] for o in names], width, yerr=spread, label=pair, error_kw={"linewidth": 0.8})
        whole.plot(SCORES, [100 * mine["all"][f"{s}_mean"] for s in SCORES], "o-", label=pair)
    organs.set_xticks(range(len(names)), [f"{o}\n{n[o]}" for o in names], fontsize=8)
    organs.set(
        ylim=(0, 1), ylabel="PQ, mean ± sd over images", title="MoNuSeg (FFPE), per organ as the set names it; images below"
    )
    for name, values in PUBLISHED.items():
        whole.plot(SCORES, values, "s--", linewidth=0.8, label=f"published: {name}")
    whole.set(title="all images, percent", ylim=(35, 90))
    for axes in (organs, whole):
        axes.legend(fontsize=7, ncols=2 if axes is organs else 1, loc="upper right")
    figure.savefig(path, dpi=90)


def left_out(folder: Path) -> list[dict[str, Any]]:
    """Return the scores of each fold of ``wsiseg train --cv organ``: means over the images of the organ that it did not see."""
    folds = sorted(folder.glob("*/scores.json"))
    if not folds:
        raise SystemExit(f"{folder} holds no finished fold; run wsiseg train --cv organ first (see above)")
    return [{k: v for k, v in json.loads(path.read_text()).items() if k != "sets"} for path in folds]


def page_rows(rows: list[dict[str, Any]], folds: list[dict[str, Any]]) -> list[list[str]]:
    """Return the page's rows: Dice / AJI / PQ in percent, ours per organ, the left-out organs, then the published ones."""
    out = []
    for r in rows:
        spread = [f"{100 * r[f'{s}_mean']:.1f} ± {100 * r[f'{s}_sd']:.1f}" for s in SCORES]
        out.append([r["pair"], r["organ"], str(r["n_images"]), *spread])
    name = "annotator - open, 300 steps on six organs"
    out += [[name, f"{f['fold']}, left out", str(f["images"]), *(f"{100 * f[s]:.1f}" for s in SCORES)] for f in folds]
    if folds:
        spread = [[100 * fold[s] for fold in folds] for s in SCORES]
        over = [f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in spread]
        out.append([name, f"mean ± sd of {len(folds)} folds", str(sum(f["images"] for f in folds)), *over])
    return out + [[f"published: {name}", "all, cryosections", "30", *map(str, v)] for name, v in PUBLISHED.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("WSISEG_DATA"), required="WSISEG_DATA" not in os.environ, type=Path)
    parser.add_argument("--state", type=Path, required=True, help="folder of accuracy.py's rows")
    parser.add_argument("--folds", type=Path, help="folder of the cross-validation by organ")
    args = parser.parse_args()
    folds = left_out(args.folds) if args.folds else []
    rows = {m: args.state / m / "monuseg" / "row.json" for m in ("open", "instanseg", "classical")}
    methods = {m: json.loads(row.read_text())["key"]["facts"] for m, row in rows.items() if row.is_file()}
    if not methods:
        parser.error(f"{args.state} holds no finished row of monuseg; run benchmarks/accuracy.py first (see above)")
    folders = {"annotator": sets_folder(args.data) / "monuseg", **{m: rows[m].parent for m in methods}}
    RESULTS.mkdir(parents=True, exist_ok=True)
    out = RESULTS / "cryonuseg.json"
    report = observer_report([f"{name}={folder}" for name, folder in folders.items()], out=out)
    for shown in report.tables:
        print("\n".join("  ".join(row) for row in shown.rows))
    tree = json.loads(out.read_text())
    readings = " ".join(f"{m}=STATE/{m}/monuseg" for m in methods)
    command = f"wsiseg evaluate observers annotator=SETS/monuseg {readings}"
    tree = {
        "command": command,
        "machine": machine(),
        "published": PUBLISHED,
        "methods": methods,
        **tree,
        "organ_left_out": folds,
    }
    out.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    draw(tree["rows"], RESULTS / "cryonuseg.png")
    page = Path(__file__).with_suffix(".md")
    fill(page, ["pair", "organ", "images", "Dice %", "AJI %", "PQ %"], page_rows(tree["rows"], folds))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

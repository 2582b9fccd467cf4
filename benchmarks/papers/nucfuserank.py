r"""NucFuseRank (Torbati et al. 2026) on the sets at hand: a finished `wsiseg rank` -> JSON, figure and page.

    wsiseg rank SETS --out RANKING --sets consep,dsb2018_he,monuseg,tnbc --network tiny --network lean_w16 --steps 200 \
        --batch 4 --patch 128 --train-tiles 60 --with-macenko
    python benchmarks/papers/nucfuserank.py RANKING

writes ``benchmarks/results/papers/nucfuserank.json`` and ``.png``. What it means: ``nucfuserank.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks._machine import machine
from benchmarks.papers._page import fill

RESULTS = Path(__file__).resolve().parents[1] / "results" / "papers"

# arXiv 2601.20104: PQ % on their unified test set after training on one set alone.
PUBLISHED = {
    "HoVerNeXt": {"PCNS": 55.66, "PUMA": 55.75, "MoNuSeg": 53.38, "CPM17": 51.86, "TNBC": 46.39, "NuInsSeg": 44.92,
                  "CoNSeP": 46.41, "MoNuSAC": 47.28, "DSB": 43.83, "CryoNuSeg": 35.57},
    "CellViT": {"PCNS": 55.14, "PUMA": 54.74, "MoNuSeg": 55.11, "CPM17": 51.58, "TNBC": 48.67, "NuInsSeg": 48.54,
                "CoNSeP": 44.97, "MoNuSAC": 40.40, "DSB": 38.44, "CryoNuSeg": 40.82},
}  # fmt: skip
THEIRS = {"consep": "CoNSeP", "dsb2018_he": "DSB", "monuseg": "MoNuSeg", "tnbc": "TNBC"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranking", type=Path, help="folder that `wsiseg rank` wrote")
    args = parser.parse_args()
    tree = json.loads((args.ranking / "ranking.json").read_text())
    RESULTS.mkdir(parents=True, exist_ok=True)
    o, t = tree["options"], tree["tiles"]
    command = (
        f"wsiseg rank SETS --out RANKING --sets {','.join(t['sets'])} "
        + " ".join(f"--network {n}" for n in o["networks"])
        + f" --steps {o['steps']} --batch {o['batch']} --patch {o['patch_px']} --train-tiles {t['train_tiles']}"
        + (" --with-macenko" if o["macenko"] else "")
    )
    out = {"command": command, "published_pq_percent": PUBLISHED, **tree, "machine": machine()}
    (RESULTS / "nucfuserank.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    shutil.copyfile(args.ranking / "ranking.png", RESULTS / "nucfuserank.png")
    networks = list(tree["ranking"][0]["pq"])
    stain = {(r["network"], r["trained_on"]): r["macenko"] for r in tree["stain"]}
    rows = []
    for place, r in enumerate(tree["ranking"], 1):
        ours = [f"{100 * r['pq'][n]:.1f}" + (f" / {100 * stain[n, r['name']]:.1f}" if (n, r["name"]) in stain else "")
                for n in networks]  # fmt: skip
        theirs = [f"{PUBLISHED[n][THEIRS[r['name']]]:.1f}" for n in PUBLISHED]
        rows.append([str(place), r["name"], *ours, f"{r['mean_rank']:.1f}", *theirs])
    fused = {(n, p["k"]): p["pq"] for n, points in tree["fusion"].items() for p in points}
    rows += [
        ["", f"{k} best fused", *(f"{100 * fused[n, k]:.1f}" for n in networks), "", "", ""]
        for k in range(2, len(tree["ranking"]) + 1)
    ]
    heads = ["place", "trained on", *(f"PQ % of {n}" + (", plain / Macenko" if tree["stain"] else "") for n in networks)]
    heads += ["mean rank", *(f"published, {n}" for n in PUBLISHED)]
    fill(Path(__file__).with_suffix(".md"), heads, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Outline the nuclei of images without annotations by given weights, as a set to train on (self-training).

    python scripts/pseudo_labels.py IMAGES OUT --mpp MPP.json --weights WEIGHTS

IMAGES is a folder of pictures; MPP.json states the microns per px of each by its name without suffix, and pictures that it does
not name are left out. Maps are averaged over eight orientations. OUT becomes a set in the unified layout; pictures in which
fewer than five nuclei are found are left out, and named.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.config import PredictConfig, RunConfig
from wsiseg.labels import write_labels
from wsiseg.pipeline import segment_image
from wsiseg.predict import load_model

MIN_NUCLEI = 5


def main() -> None:
    """Write the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mpp", type=Path, required=True)
    parser.add_argument("--weights", default="open")
    args = parser.parse_args()
    stated: dict[str, float] = json.loads(args.mpp.read_text(encoding="utf-8"))
    pictures = {p.stem: p for p in sorted(args.images.iterdir()) if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif")}
    if missing := sorted(set(stated) - set(pictures)):
        parser.error(f"{args.mpp} names {len(missing)} pictures that {args.images} does not contain, {missing[0]} first.")
    config = RunConfig(predict=PredictConfig(weights=args.weights, tta=8))
    model = load_model(config.predict)
    args.out.mkdir(parents=True, exist_ok=True)
    kept: dict[str, float] = {}
    for name, mpp in stated.items():
        rgb = np.asarray(Image.open(pictures[name]).convert("RGB"))
        labels = segment_image(rgb, mpp, model, config)
        n = len(np.unique(labels)) - 1
        print(f"{name}: {n} nuclei" + (", left out" if n < MIN_NUCLEI else ""), flush=True)
        if n < MIN_NUCLEI:
            continue
        Image.fromarray(rgb).save(args.out / f"{name}.png")
        write_labels(args.out / f"{name}.labels.png", labels)
        kept[name] = mpp
    facts = {"name": args.out.name, "labels": f"{model.name} {model.sha256[:12]}, eight orientations", "mpp_per_image": kept}
    (args.out / "INFO.json").write_text(json.dumps({**facts, "mpp": 0.25}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

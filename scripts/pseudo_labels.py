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
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.config import PredictConfig, RunConfig
from wsiseg.datasets.formats.layout import AnnotatedImage, read_rgb, write_dataset
from wsiseg.pipeline import segment_image
from wsiseg.predict import Model, load_model

MIN_NUCLEI = 5


def outlined(
    pictures: Mapping[str, Path], stated: Mapping[str, float], model: Model, config: RunConfig
) -> Iterator[AnnotatedImage]:
    """Yield the pictures in which nuclei are found, with their labels."""
    for name, mpp in stated.items():
        rgb = read_rgb(pictures[name])
        labels = segment_image(rgb, mpp, model, config)
        n = np.count_nonzero(np.unique(labels))
        print(f"{name}: {n} nuclei" + (", left out" if n < MIN_NUCLEI else ""), flush=True)
        if n >= MIN_NUCLEI:
            yield AnnotatedImage(name, rgb, labels, mpp)


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
    facts = {"labels": f"{model.name} {model.sha256[:12]}, eight orientations"}
    write_dataset(outlined(pictures, stated, model, config), args.out, "pseudo-labels", facts)


if __name__ == "__main__":
    main()

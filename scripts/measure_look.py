"""Measure how the training images of shipped weights look, and store it in their cards: what QC compares slides with.

    python scripts/measure_look.py DATA [research open ...]

DATA holds the annotated sets (``WSISEG_DATA``). Validation images and sets without a scale are left out. Of each set at most
``MOST`` images count, evenly chosen, each with its middle ``SIDE_PX`` pixels, so that no set outweighs another. Written into
the card as ``look``: the 5th, 50th and 95th percentile of each trait (``wsiseg.summarize.TRAITS``).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from wsiseg.atomic import atomic_write_bytes
from wsiseg.config import RunConfig
from wsiseg.datasets import list_samples, load_sample, sets_folder
from wsiseg.pipeline import picture_look
from wsiseg.predict import load_model, weights_path
from wsiseg.summarize import look_reference

MOST = 16
SIDE_PX = 640


def middle(rgb: np.ndarray) -> np.ndarray:
    """Return the middle of a picture, at most ``SIDE_PX`` a side."""
    y, x = ((n - min(n, SIDE_PX)) // 2 for n in rgb.shape[:2])
    return np.ascontiguousarray(rgb[y : y + SIDE_PX, x : x + SIDE_PX])


def main() -> None:
    """Measure and write the cards."""
    root = sets_folder(Path(sys.argv[1]))
    for name in sys.argv[2:] or ["research", "open"]:
        config = RunConfig()
        config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, weights=name))
        model = load_model(config.predict)
        looks = []
        for dataset in model.card["data"]["sets"]:
            samples = [s for s in list_samples(root, (dataset,)) if not s.validation and s.mpp]
            for k in np.unique(np.linspace(0, len(samples) - 1, min(MOST, len(samples))).round().astype(int)):
                rgb, _ = load_sample(samples[k])
                looks.append(picture_look(middle(rgb), float(samples[k].mpp or 0), model, config))
        path = weights_path(name).with_suffix(".json")
        card = json.loads(path.read_text(encoding="utf-8"))
        card["look"] = {"images": len(looks), "percentiles_5_50_95": look_reference(looks)}
        atomic_write_bytes(path, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
        print(name, json.dumps(card["look"]))


if __name__ == "__main__":
    main()

"""Slides unlike the training images: trouble planted in clean H&E at three strengths, detection rate and false alarms.

Run ``python -m benchmarks.foreign [DATA] [--slides N]``; writes ``benchmarks/results/foreign.json`` and ``foreign.png``.
Pictures are crops of DATA/unlabelled (one a slide of a public atlas; their scale is not stated, and chosen by the size of
nuclei), and of DATA/nuclei/cpm16 (TCGA, 40x, never trained on), which alone judge a wrong scale. All slides of the atlas had a
part in the choice of the limits, so only cpm16 is unseen; the rows still tell every second slide of it (``tuned``) from the
others. A picture is flagged if its score is above 1.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from benchmarks._machine import RESULTS, save
from benchmarks._planted import PLANTED
from wsiseg.config import RunConfig
from wsiseg.datasets import list_samples, load_sample, sets_folder
from wsiseg.pipeline import picture_look
from wsiseg.predict import load_model
from wsiseg.summarize import foreign_look

SIDE_UM = 200
SCALES = (0.2528, 0.504)
SMALL_DIAM_PX = 11.5
SCALE_KINDS = ("mpp said too small", "mpp said too large")


def pictures(root: Path, most: int) -> list[dict[str, Any]]:
    """Return the clean pictures: id, pixels, um/px, whether limits were chosen on it, whether its scale is known."""
    out: list[dict[str, Any]] = []
    info = json.loads((root / "unlabelled" / "INFO.json").read_text(encoding="utf-8"))
    first = sorted(name for name, facts in info.items() if isinstance(facts, dict) and name.endswith("_0.jpg"))
    for k, name in enumerate(first[:most]):
        mpp = SCALES[info[name]["round_object_diam_px"] < SMALL_DIAM_PX]
        rgb = np.asarray(Image.open(root / "unlabelled" / name).convert("RGB"))
        out.append({"id": name, "rgb": rgb, "mpp": mpp, "tuned": k % 2 == 0, "scale_known": False})
    for sample in list_samples(sets_folder(root), ("cpm16",))[:most]:
        rgb, _ = load_sample(sample)
        out.append({"id": sample.image_id, "rgb": rgb, "mpp": sample.mpp or 0.25, "tuned": False, "scale_known": True})
    for one in out:
        side = round(SIDE_UM / one["mpp"])
        one["rgb"] = np.ascontiguousarray(one["rgb"][:side, :side])
    return out


def scored(one: dict[str, Any], model: Any, config: RunConfig, reference: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the score of a picture as it is, and with each trouble planted in it."""

    def row(kind: str, strength: str, rgb: np.ndarray, mpp: float) -> dict[str, Any]:
        found = foreign_look(picture_look(rgb, mpp, model, config), reference)
        score, reasons = (found.score, found.reasons) if found else (0.0, ())
        facts = {"id": one["id"], "tuned": one["tuned"], "kind": kind, "strength": strength}
        return {**facts, "score": round(score, 3), "reasons": list(reasons)}

    rows = [row("clean", "", one["rgb"], one["mpp"])]
    for kind, strengths in PLANTED.items():
        if kind in SCALE_KINDS and not one["scale_known"]:
            continue
        for k, (words, plant) in enumerate(strengths):
            rows.append(row(kind, words, *plant(one["rgb"], one["mpp"], np.random.default_rng(k))))
    return rows


def table(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by kind and strength the share of pictures flagged, and of those above every clean picture."""
    out: dict[str, Any] = {}
    top = max(r["score"] for r in rows if r["kind"] == "clean")
    for kind, strength in dict.fromkeys((r["kind"], r["strength"]) for r in rows):
        scores = [r["score"] for r in rows if (r["kind"], r["strength"]) == (kind, strength)]
        flagged, above = (round(float(np.mean([s > limit for s in scores])), 3) for limit in (1.0, top))
        facts = {
            "pictures": len(scores),
            "flagged": flagged,
            "above_every_clean": above,
            "median": round(float(np.median(scores)), 2),
        }
        out.setdefault(kind, {})[strength or "as it is"] = facts
    return out


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the share flagged as bars by kind and strength."""
    kinds = list(found)
    width, row = 760, 34
    image = Image.new("RGB", (width, 40 + row * len(kinds)), "white")
    pen = ImageDraw.Draw(image)
    pen.text((10, 10), "share of held-out pictures flagged (three strengths, weakest on top)", fill="black")
    for k, kind in enumerate(kinds):
        y = 36 + k * row
        pen.text((10, y + 8), kind, fill="black")
        for j, (strength, facts) in enumerate(found[kind].items()):
            length = facts["flagged"] * 380
            color = (90, 150, 90) if kind == "clean" else (70, 110, 190)
            pen.rectangle((180, y + j * 10, 180 + length, y + j * 10 + 7), fill=color)
            pen.text((186 + length, y + j * 10 - 3), f"{facts['flagged']:.0%}  {strength}", fill="black")
    image.save(path)


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=Path(os.environ.get("WSISEG_DATA", ".")))
    parser.add_argument("--slides", type=int, default=39, help="pictures of each source at most")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    config = RunConfig()
    model = load_model(config.predict)
    reference = model.card["look"]["percentiles_5_50_95"]
    rows = [r for one in pictures(options.data, options.slides) for r in scored(one, model, config, reference)]
    held_out = table([r for r in rows if not r["tuned"]])
    result = {"held_out": held_out, "tuned": table([r for r in rows if r["tuned"]]), "rows": rows}
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
    if not options.no_save:
        save("foreign", result)
        draw(held_out, RESULTS / "foreign.png")


if __name__ == "__main__":
    main()

"""Slides unlike the training images: trouble planted in clean H&E at three strengths, detection rate and false alarms.

Run ``python -m benchmarks.foreign [DATA] [--slides N] [--keep FOLDER]``; writes ``benchmarks/results/foreign.json`` and
``foreign.png``. A picture is 200 um of a side, and flagged if its score is above 1. The limits (``wsiseg.summarize.TRAITS``)
were chosen on one half of the pictures (``tuned``) and are reported on the other (``held_out``):

- tuned: of DATA/unlabelled (crops of the slides of one public atlas) every second slide, and validation images of the sets that
  the weights were trained on;
- held out: the other slides of the atlas, and DATA/nuclei/cpm16 (TCGA, 40x), on which nothing was ever trained or chosen.

The atlas states no scale: it is taken from the size of round objects, and corrected by eye where nuclei contradict it. So a
wrong scale is planted only in pictures of the annotated sets. ``--keep`` stores what the network found, for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks._machine import RESULTS, save
from benchmarks._planted import PLANTED
from wsiseg.config import RunConfig
from wsiseg.datasets import Sample, list_samples, load_sample, sets_folder
from wsiseg.pipeline import network_look, picture_look
from wsiseg.predict import load_model
from wsiseg.read import open_slide, slide_look, survey_slide
from wsiseg.run.foreign import NETWORK
from wsiseg.summarize import foreign_look, read_slides_table

SIDE_UM = 200
SCALES = (0.2528, 0.504)
SMALL_DIAM_PX = 11.5
TWICE_AS_LARGE = ("BS13_HE", "EAS1_HE2", "EAS1_HE3", "ICE1-WDNET-duodenum_HE", "PDAC-adrenal-invasion_HE", "metaplasia_HE")
HALF_AS_LARGE = ("ganglioneuroma_HE", "hodgkin_HE", "insidious-lymph-node-metastasis_HE")
BY_EYE = {**dict.fromkeys(TWICE_AS_LARGE, SCALES[0]), **dict.fromkeys(HALF_AS_LARGE, SCALES[1])}
"""Slides of the atlas whose nuclei are twice, or half, the size that the estimate gives (lymphocytes are 7 um wide)."""
VALIDATION = 6
"""Validation images of each training set, at most."""
SCALE_KINDS = ("mpp said too small", "mpp said too large")


def pictures(root: Path, most: int, planted: int, card: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the clean pictures: id, pixels, um/px, whether limits were chosen on it, whether its scale is known."""
    out: list[dict[str, Any]] = []
    info = json.loads((root / "unlabelled" / "INFO.json").read_text(encoding="utf-8"))
    first = sorted(name for name, facts in info.items() if isinstance(facts, dict) and name.endswith("_0.jpg"))
    for k, name in enumerate(first[:most]):
        slide = name.removeprefix("pa_").removesuffix("_0.jpg")
        mpp = BY_EYE.get(slide, SCALES[info[name]["round_object_diam_px"] < SMALL_DIAM_PX])
        rgb = np.asarray(Image.open(root / "unlabelled" / name).convert("RGB"))
        out.append({"id": name, "rgb": rgb, "mpp": mpp, "tuned": k % 2 == 0, "scale_known": False, "source": f"atlas {k % 2}"})
    for sample in [*list_samples(sets_folder(root), ("cpm16",))[:most], *validation(root, card)[:most]]:
        rgb, _ = load_sample(sample)
        facts = {
            "id": sample.image_id,
            "tuned": sample.dataset != "cpm16",
            "scale_known": True,
            "source": "cpm16" if sample.dataset == "cpm16" else "validation",
        }
        out.append({**facts, "rgb": rgb, "mpp": float(sample.mpp or 0.25)})
    sources = {one["source"]: [o for o in out if o["source"] == one["source"]] for one in out}
    for source in sources.values():
        chosen = set(np.linspace(0, len(source) - 1, min(planted, len(source))).round().astype(int).tolist())
        for k, one in enumerate(source):
            one["planted"] = k in chosen
    out.sort(key=lambda o: (o["tuned"], not o["planted"]))
    for one in out:
        side = round(SIDE_UM / one["mpp"])
        one["rgb"] = np.ascontiguousarray(one["rgb"][:side, :side])
    return out


def validation(root: Path, card: dict[str, Any]) -> list[Sample]:
    """Return validation images of the sets that the weights were trained on, evenly chosen, of those that state their scale."""
    out = []
    for name in card["data"]["sets"]:
        samples = [s for s in list_samples(sets_folder(root), (name,)) if s.validation and s.mpp]
        places = np.unique(np.linspace(0, len(samples) - 1, min(VALIDATION, len(samples))).round().astype(int))
        out += [samples[k] for k in places]
    return out


class Judge:
    """Scores pictures; keeps what the network found on each in a folder, if one is given."""

    def __init__(self, keep: Path | None) -> None:
        self.config = RunConfig()
        self.model = load_model(self.config.predict)
        self.reference = self.model.card["look"]["percentiles_5_50_95"]
        self.keep = keep
        if keep:
            keep.mkdir(parents=True, exist_ok=True)

    def row(self, one: dict[str, Any], kind: str, k: int, strength: str, rgb: np.ndarray, mpp: float) -> dict[str, Any]:
        """Return the score of a picture and its strongest reason."""
        path = self.keep / f"{one['id']} {one['mpp']:g} {kind} {k}.json" if self.keep else None
        if path and path.is_file():
            found = json.loads(path.read_text())
        else:
            found = network_look(rgb, mpp, self.model, self.config)
            if path:
                path.write_text(json.dumps(found))
        judged = foreign_look(picture_look(rgb, mpp, self.model, self.config, found), self.reference)
        facts = {"id": one["id"], "tuned": one["tuned"], "kind": kind, "strength": strength}
        first = judged.reasons[0] if judged and judged.reasons else ""
        return {**facts, "score": round(judged.score, 3) if judged else 0.0, "reason": first}

    def rows(self, one: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the row of a picture as it is, and with each trouble planted in it where that is asked for."""
        rows = [self.row(one, "clean", 0, "", one["rgb"], one["mpp"])]
        for kind, strengths in PLANTED.items() if one["planted"] else ():
            if kind in SCALE_KINDS and not one["scale_known"]:
                continue
            for k, (words, plant) in enumerate(strengths):
                rows.append(self.row(one, kind, k, words, *plant(one["rgb"], one["mpp"], np.random.default_rng(k))))
        return rows


_judges: list[Judge] = []


def start(keep: Path | None) -> None:
    """Load the network in a worker process."""
    _judges.append(Judge(keep))


def rows_of(one: dict[str, Any]) -> list[dict[str, Any]]:
    return _judges[0].rows(one)


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


def whole_slides(run: Path, reference: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the scores of a run's slides, with their pixels measured again and the run's results."""
    out = []
    for row in read_slides_table(run / "slides.parquet"):
        slide = open_slide(row.path, mpp=row.mpp) if row.mpp_source != "header" else open_slide(row.path)
        survey = survey_slide(slide)
        look = slide_look(slide, survey, survey.tissue)
        look |= {name: row.columns[name] for name in NETWORK}
        look["nuclei_per_colored_mm2"] = (row.n_nuclei or 0) / look["colored_mm2"]
        judged = foreign_look(look, reference)
        if judged:
            out.append({"slide": row.slide_id, "score": round(judged.score, 3), "reasons": list(judged.reasons)})
    return out


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw by kind and strength the share flagged as bars, dark for the part that is above every clean picture."""
    kinds = list(found)
    font, left, scale, line = ImageFont.load_default(13), 170, 400, 17
    image = Image.new("RGB", (900, 70 + sum(line * len(v) + 10 for v in found.values())), "white")
    pen = ImageDraw.Draw(image)
    pen.text(
        (10, 8), "Share of held-out pictures flagged, weakest trouble on top", fill="black", font=ImageFont.load_default(15)
    )
    pen.text((10, 30), "dark: score above that of every clean picture", fill=(90, 90, 90), font=font)
    y = 56
    for kind in kinds:
        pen.text((10, y), kind, fill="black", font=font)
        for strength, facts in found[kind].items():
            clean = kind == "clean"
            pen.rectangle((left, y + 2, left + scale, y + line - 4), fill=(240, 240, 240))
            light, dark = ((170, 205, 170), (90, 150, 90)) if clean else ((160, 185, 225), (45, 85, 165))
            for share, color in ((facts["flagged"], light), (facts["above_every_clean"], dark)):
                if share:
                    pen.rectangle((left, y + 2, left + share * scale, y + line - 4), fill=color)
            words = f"{facts['flagged']:.0%} of {facts['pictures']}, {strength}"
            pen.text((left + scale + 8, y), words, fill="black", font=font)
            y += line
        y += 10
    image.save(path)


def main() -> None:
    """Measure, write and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=Path(os.environ.get("WSISEG_DATA", ".")))
    parser.add_argument("--slides", type=int, default=39, help="pictures of each source at most")
    parser.add_argument("--planted", type=int, default=8, help="pictures of each source in which trouble is planted")
    parser.add_argument("--run", type=Path, nargs="*", default=[], help="run folders, whose whole slides are scored too")
    parser.add_argument("--keep", type=Path, help="folder for what the network found, read when it runs again")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    rows = []
    chosen = pictures(options.data, options.slides, options.planted, load_model(RunConfig().predict).card)
    with ProcessPoolExecutor(options.workers, initializer=start, initargs=(options.keep,)) as pool:
        for found in pool.map(rows_of, chosen):
            rows += found
            print(f"{found[0]['id']}: {len(rows)} pictures scored", file=sys.stderr, flush=True)
    held_out = table([r for r in rows if not r["tuned"]])
    reference = load_model(RunConfig().predict).card["look"]["percentiles_5_50_95"]
    slides = [s for run in options.run for s in whole_slides(run, reference)]
    result = {"held_out": held_out, "tuned": table([r for r in rows if r["tuned"]]), "slides": slides, "rows": rows}
    print(json.dumps({k: v for k, v in result.items() if k != "rows"}, indent=1))
    if not options.no_save:
        save("foreign", result)
        draw(held_out, RESULTS / "foreign.png")


if __name__ == "__main__":
    main()

"""Nuclei that the tissue mask leaves out: annotated images, whole and cut into tiles, and pictures that hold no tissue.

Run ``python -m benchmarks.tissue_mask [DATA [RUN RUN_WITHOUT_MASK]]``; writes ``benchmarks/results/tissue_mask.json``. DATA
(default: the folder of ``WSISEG_DATA``) holds the annotated sets, as ``<set>/<id>.png`` with ``<id>.labels.png`` beside it,
itself or in ``nuclei/``; ``unlabelled/`` beside it is used where it is there. A nucleus, or the piece of one that a tile holds,
is lost where more than half of its pixels lie outside the mask. Images whose set states no microns per pixel are taken at 0.25,
as a user would. Of two runs, with the mask and with ``--tissue-mask all``, nuclei are compared slide by slide.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks._machine import RESULTS
from wsiseg.datasets import list_samples, load_sample, sets_folder
from wsiseg.read import ArraySlide, fit_tissue, tissue_window
from wsiseg.summarize import read_slides_table
from wsiseg.types import Box

SIDES_PX = (0, 250, 256, 512)
"""Sides of the tiles; 0: the whole image."""

NOMINAL_MPP = 0.25


def mask_of(rgb: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Return which pixels of a picture the product's mask keeps, bool (H, W)."""
    return tissue_window(fit_tissue(ArraySlide(rgb, mpp=mpp)), Box(0, 0, rgb.shape[1], rgb.shape[0]))


def tiles(shape: tuple[int, ...], side_px: int) -> Iterator[tuple[slice, slice]]:
    """Yield the windows of whole tiles of a side; 0: one window, all of it."""
    h, w = shape[:2]
    side_h, side_w = min(side_px or h, h), min(side_px or w, w)
    for y in range(0, h - side_h + 1, side_h):
        for x in range(0, w - side_w + 1, side_w):
            yield slice(y, y + side_h), slice(x, x + side_w)


def lost_nuclei(kept: NDArray[np.bool_], truth: NDArray[np.int32]) -> tuple[int, int]:
    """Return (nuclei, those with more than half of their pixels outside ``kept``)."""
    px = np.bincount(truth.ravel())
    outside = np.bincount(truth.ravel(), weights=~kept.ravel())
    px[0] = 0
    return int((px > 0).sum()), int(((px > 0) & (2 * outside > px)).sum())


def annotated(root: Path) -> dict[str, dict[str, Any]]:
    """Return nuclei, lost ones, tiles and tiles without tissue by set and side."""
    out: dict[str, dict[str, Any]] = {}
    for name in sorted(p.parent.name for p in root.glob("*/INFO.json")):
        samples = [(load_sample(s), s.mpp or NOMINAL_MPP) for s in list_samples(root, (name,))]
        for side in SIDES_PX:
            nuclei = lost = n_tiles = without = 0
            for (rgb, truth), mpp in samples:
                for window in tiles(truth.shape, side):
                    kept = mask_of(np.ascontiguousarray(rgb[window]), mpp)
                    n, gone = lost_nuclei(kept, np.ascontiguousarray(truth[window]))
                    nuclei, lost, n_tiles, without = nuclei + n, lost + gone, n_tiles + 1, without + (n > 0 and not kept.any())
            key = f"{side} px" if side else "whole"
            facts = {"nuclei": nuclei, "lost": lost, "lost_percent": round(100 * lost / nuclei, 3)}
            out.setdefault(name, {})[key] = {**facts, "pictures": n_tiles, "with_nuclei_but_no_tissue": without}
    return out


def blank_pictures(seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    """Return pictures of glass by name: white and gray, noise of a camera, JPEG, uneven light, a warm lamp, dust."""
    random = np.random.default_rng(seed)
    out: dict[str, NDArray[np.uint8]] = {}
    for side in (256, 1000):
        for value in (255, 243, 225, 205):
            flat = np.full((side, side, 3), float(value))
            slope = flat + np.linspace(-4, 4, side)[None, :, None]
            warm = flat * np.array([1.0, 0.985, 0.96])
            for kind, picture, noise in (
                ("flat", flat, 0), ("noise", flat, 2), ("strong noise", flat, 5), ("slope", slope, 2), ("warm", warm, 2),
            ):  # fmt: skip
                pixels = picture + random.normal(0, noise, picture.shape)
                rgb = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
                out[f"{kind} {value}, {side} px"] = rgb
                for quality in (30, 75):
                    buffer = io.BytesIO()
                    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
                    out[f"{kind} {value}, {side} px, JPEG {quality}"] = np.asarray(Image.open(buffer))
    return out


def of_slides(run: Path, without_mask: Path) -> dict[str, dict[str, Any]]:
    """Return by slide of both runs the nuclei with and without the mask, the share lost, and what the run itself estimated."""
    every = {r.slide_id: r.n_nuclei or 0 for r in read_slides_table(without_mask / "slides.parquet")}
    out = {}
    for row in read_slides_table(run / "slides.parquet"):
        if n := every.get(row.slide_id):
            facts = {"nuclei": row.n_nuclei, "without_mask": n, "lost_percent": round(100 * (1 - (row.n_nuclei or 0) / n), 3)}
            out[row.slide_id] = {**facts, "estimated": [row.outside_nuclei_low, row.outside_nuclei, row.outside_nuclei_high]}
    return out


def main() -> None:
    """Measure and write the result."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["WSISEG_DATA"])
    sets = sets_folder(root)
    found = annotated(sets)
    total = {
        side: {k: sum(s[side][k] for s in found.values()) for k in ("nuclei", "lost", "pictures", "with_nuclei_but_no_tissue")}
        for side in next(iter(found.values()))
    }
    for row in total.values():
        row["lost_percent"] = round(100 * row["lost"] / row["nuclei"], 3)
    blank = {name: float(mask_of(rgb, NOMINAL_MPP).mean()) for name, rgb in blank_pictures().items()}
    result: dict[str, Any] = {
        "command": "python -m benchmarks.tissue_mask",
        "lost": "nuclei, or pieces that a tile holds, with more than half of their pixels outside the mask",
        "all_sets": total,
        "sets": found,
        "blank_pictures": {"pictures": len(blank), "with_tissue": {k: round(v, 3) for k, v in blank.items() if v > 0}},
    }
    crops = sorted(p for p in (sets.parent / "unlabelled").glob("*.jpg"))
    if crops:
        share = [float(mask_of(np.asarray(Image.open(p).convert("RGB")), NOMINAL_MPP).mean()) for p in crops]
        low = {p.stem: round(v, 3) for p, v in zip(crops, share, strict=True) if v < 0.9}
        result["unlabelled_crops"] = {
            "pictures": len(crops),
            "mean_tissue_frac": round(float(np.mean(share)), 4),
            "under_0.9": low,
        }
    if len(sys.argv) > 3:
        result["slides"] = of_slides(Path(sys.argv[2]), Path(sys.argv[3]))
    path = RESULTS / "tissue_mask.json"
    before = json.loads(path.read_text(encoding="utf-8")).get("before") if path.is_file() else None
    result |= {"before": before} if before else {}  # measured once, with this file, on the code that it names
    text = json.dumps(result, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

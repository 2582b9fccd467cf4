"""Reading and stain normalization beside other libraries, in CPU seconds of one process.

    OMP_NUM_THREADS=1 python benchmarks/reading.py [--slide FILE.svs] [--mpp UM] [--side PX]

Every reader reads the same windows of level 0 (a fresh handle each time, so no cache helps); the working read is timed with its
decoding and without. Rivals run in the same process: OpenSlide as its Python binding gives it, tifffile with imagecodecs,
Pillow's LANCZOS (what quip_cnn_segmentation resized with), scikit-image's rgb2hed (a color deconvolution, half of what Macenko
normalization does).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import tifffile
from _machine import save
from PIL import Image
from skimage.color import rgb2hed

from wsiseg.normalize import fit_stain, normalize
from wsiseg.read import fit_tissue, open_slide, read_working, stain_sample
from wsiseg.types import Box

ROOT = Path(__file__).parents[1]


def seconds(call: Callable[[], Any], repeats: int = 5) -> float:
    """Return the least CPU seconds of several calls, after one that is not counted."""
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def by_openslide(path: Path, w: int, h: int) -> np.ndarray:
    with openslide.OpenSlide(path) as slide:
        return np.asarray(slide.read_region((0, 0), 0, (w, h)).convert("RGB"))


def by_tifffile(path: Path, w: int, h: int) -> np.ndarray:
    """Decode the tiles that the window needs, as one would by hand: one tile after the other."""
    with tifffile.TiffFile(path) as tiff, path.open("rb") as file:
        page = tiff.pages[0]
        side_y, side_x = page.tilelength, page.tilewidth
        across = -(-page.imagewidth // side_x)
        out = np.empty((-(-h // side_y) * side_y, -(-w // side_x) * side_x, 3), np.uint8)
        for row in range(out.shape[0] // side_y):
            for column in range(out.shape[1] // side_x):
                k = row * across + column
                file.seek(page.dataoffsets[k])
                tile = page.decode(file.read(page.databytecounts[k]), k, jpegtables=page.jpegtables)[0][0]
                out[row * side_y :, column * side_x :][: tile.shape[0], : tile.shape[1]] = tile
        return out[:h, :w]


def by_wsiseg(path: Path, mpp: float | None, reader: str, w: int, h: int) -> np.ndarray:
    slide = open_slide(path, mpp=mpp, reader=reader)
    pixels = slide.read_level(0, 0, 0, w, h)
    slide.close()
    return pixels


def readers(path: Path, mpp: float | None, w: int, h: int) -> dict[str, Any]:
    calls = {
        "wsiseg auto": lambda: by_wsiseg(path, mpp, "auto", w, h),
        "wsiseg openslide": lambda: by_wsiseg(path, mpp, "openslide", w, h),
        "openslide-python": lambda: by_openslide(path, w, h),
        "tifffile + imagecodecs": lambda: by_tifffile(path, w, h),
    }
    reference = calls["openslide-python"]()
    slide = open_slide(path, mpp=mpp)
    rows: dict[str, Any] = {"auto takes": slide.meta.reader, "note": slide.meta.reader_note}
    for name, call in calls.items():
        s = seconds(call)
        rows[name] = {"cpu_s": s, "mpx_per_s": w * h / s / 1e6, "equal_to_openslide": bool(np.array_equal(call(), reference))}
    s = seconds(lambda: slide.read_level(0, 0, 0, w, h))
    rows["wsiseg auto, open handle"] = {"cpu_s": s, "mpx_per_s": w * h / s / 1e6}
    return rows


def working(path: Path, mpp: float | None, side: int) -> dict[str, Any]:
    slide = open_slide(path, mpp=mpp)
    rows = {}
    for scale in (2.0, 1.2, 0.7, 0.5):
        n = min(side, int(min(slide.meta.width_px, slide.meta.height_px) * scale))
        source = int(n / scale)
        whole = seconds(lambda n=n, scale=scale: read_working(slide, Box(0, 0, n, n), scale), 3)
        decode = seconds(lambda source=source: slide.read_level(0, 0, 0, source, source), 3)
        image = Image.fromarray(slide.read_level(0, 0, 0, source, source))
        lanczos = seconds(lambda image=image, n=n: image.resize((n, n), Image.Resampling.LANCZOS), 3)
        rows[str(scale)] = {"side_wpx": n, "read_working_s": whole, "decode_only_s": decode, "resample_s": whole - decode}
        rows[str(scale)]["pillow_lanczos_resample_s"] = lanczos
    return rows


def stains(path: Path, mpp: float | None, side: int) -> dict[str, Any]:
    slide = open_slide(path, mpp=mpp)
    rgb, tissue = stain_sample(slide, fit_tissue(slide), 1.0)
    tile = slide.read_level(0, 0, 0, min(side, slide.meta.width_px), min(side, slide.meta.height_px))
    tile = np.tile(tile, (-(-side // tile.shape[0]), -(-side // tile.shape[1]), 1))[:side, :side].copy()
    rows: dict[str, Any] = {"side_px": side}
    for method in ("macenko", "reinhard"):
        stain = fit_stain(method, rgb, tissue)
        rows[method] = {"cpu_s": seconds(lambda stain=stain: normalize(tile, stain), 3), "fitted": stain.method}
    rows["scikit-image rgb2hed (no recomposition)"] = {"cpu_s": seconds(lambda: rgb2hed(tile), 1)}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, default=ROOT / "tests/data/CMU-1-Small-Region.svs")
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--side", type=int, default=4000)
    args = parser.parse_args()
    slide = open_slide(args.slide, mpp=args.mpp)
    w, h = min(args.side, slide.meta.width_px), min(args.side, slide.meta.height_px)
    slide.close()
    result = {
        "slide": args.slide.name,
        "window_px": [w, h],
        "level 0": readers(args.slide, args.mpp, w, h),
        "working read": working(args.slide, args.mpp, args.side),
        "stain": stains(args.slide, args.mpp, args.side),
    }
    path = save("reading", result)
    print(path.read_text())


if __name__ == "__main__":
    main()

"""Does a worker's memory grow with the number of slides it has done?

    python -m benchmarks.memory [--slides 100]

One process segments many small slides, as a worker does, and the memory that it holds is read after each. The slope is fitted
by least squares over the second half, when windows of every size have been met. Peak memory (VmHWM) is reported too.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from benchmarks._machine import save
from wsiseg.config import PredictConfig, ReadConfig, RunConfig
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run.context import WorkerContext
from wsiseg.run.finish import finish_slide, tiles_to_do
from wsiseg.run.job import prepare_slide
from wsiseg.run.tile import segment_tile

SLIDE = Path(__file__).resolve().parents[1] / "tests" / "data" / "CMU-1-Small-Region.svs"


def crops(folder: Path, n: int, side_px: int, same: bool) -> list[SlideInput]:
    """Write ``n`` crops of the test slide, at different places or all at one, as slides of their own."""
    import openslide

    rng = np.random.default_rng(50)
    slides = []
    with openslide.OpenSlide(SLIDE) as slide:
        width, height = slide.dimensions
        for k in range(n):
            if k == 0 or not same:
                x, y = (int(v) for v in rng.integers(0, (width - side_px, height - side_px)))
            path = folder / f"crop{k:03d}.png"
            Image.fromarray(np.asarray(slide.read_region((x, y), 0, (side_px, side_px)).convert("RGB"))).save(path)
            slides.append(SlideInput(path.stem, str(path), mpp=0.499))
    return slides


def resident_curve(n_slides: int, side_px: int = 500, tile_wpx: int = 512, *, same: bool = False) -> list[int]:
    """Segment ``n_slides`` crops in this process and return after each the bytes it holds.

    Freed memory is kept for the next tile (``tune_malloc``), and would hide for long what is never freed; so it is given back
    to the system before each reading. What remains is what is really held.
    """
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
    process = psutil.Process()
    config = RunConfig(read=ReadConfig(tile_wpx=tile_wpx), predict=PredictConfig(precision="fp32"))
    curve = []
    with tempfile.TemporaryDirectory() as scratch:
        slides = crops(Path(scratch), n_slides, side_px, same)
        folder = RunFolder(Path(scratch) / "run")
        folder.create()
        context = WorkerContext(folder, config, "memory")
        try:
            for slide in slides:
                job = prepare_slide(slide, folder, config, context.model.mpp, context.stain_aim)
                for tile in tiles_to_do(job, context)[0]:
                    segment_tile(tile, context)
                finish_slide(slide.slide_id, [], context)
                gc.collect()  # what is garbage is no growth
                give_back(0)
                curve.append(process.memory_info().rss)
        finally:
            context.close()
    return curve


def slope_bytes(curve: list[int], warm_up: int) -> float:
    """Return the least-squares slope of the curve after its warm-up, bytes per slide."""
    kept = np.asarray(curve[warm_up:], dtype=np.float64)
    return float(np.polyfit(np.arange(len(kept)), kept, 1)[0])


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(n_slides: int) -> dict[str, Any]:
    start = time.process_time()
    curve = resident_curve(n_slides)
    warm_up = n_slides // 2  # by then windows of every size have been met
    return {
        "slides": n_slides,
        "warm_up_slides": warm_up,
        "slope_bytes_per_slide": round(slope_bytes(curve, warm_up)),
        "held_mb": [round(v / 1e6, 1) for v in curve],
        "growth_mb_after_warm_up": round((max(curve[warm_up:]) - curve[warm_up]) / 1e6, 1),
        "peak_mb": round(peak_bytes() / 1e6, 1),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slides", type=int, default=100)
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    result = measure(args.slides)
    print(result)
    if not args.dry:
        print(save("memory", result))


if __name__ == "__main__":
    main()

"""From a compressed slide to polygons on disk: seconds per mm2 on a GPU (or the CPU), by stage, and what bounds them.

    python -m benchmarks.gpu_end_to_end [--device cuda|cpu] [--side 16000] [--seconds 40] [--out FOLDER] [--quick]

A synthetic slide (``benchmarks.synthetic_slide``, 8,000 nuclei a mm2) is segmented tile by tile by the code that a worker runs
(``wsiseg.run.tile``), in one process whose threads stand for Dask's. Each way of reading is a row: OpenSlide in threads,
CuImage in processes, each where it is installed; the slide is read over and over until the
row's time is up. ``busy_share`` says how much of the time the threads spent reading and writing, and how much of the device's
turns was taken; the larger one is the bound, and neither near 1 means the interpreter or the bus between them. Where pyarrow is
missing (a bare machine), tiles are written as raw columns, and the row says so. Nothing is resumed and no table is finished: a
slide's end takes as long as on the CPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np

from benchmarks._machine import RESULTS, machine
from benchmarks.synthetic_slide import make_slide
from wsiseg.config import PredictConfig, ReadConfig, RunConfig, ScheduleConfig
from wsiseg.errors import WsisegError
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run import tile as tile_module
from wsiseg.run.context import WorkerContext
from wsiseg.run.job import prepare_slide, tiles_of
from wsiseg.types import PolygonBatch, Tile

HOST_STAGES = ("read", "write")
DEVICE_STAGES = ("normalize", "predict", "separate", "vectorize")
NUCLEI_PER_MM2 = 8000


def raw_part(path: Path, batch: PolygonBatch, tile: Tile, *facts: Any) -> int:
    """Stand in for ``wsiseg.write.write_part`` where pyarrow is missing: all columns, uncompressed, complete or not at all."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.savez(file, xy=batch.xy, ring_offsets=batch.ring_offsets, **batch.columns)
    partial.rename(path)
    return path.stat().st_size


def config_of(args: argparse.Namespace, reader: str, threads: int) -> RunConfig:
    """Return the config of one row."""
    return RunConfig(
        read=ReadConfig(reader=reader, tile_wpx=args.tile),  # type: ignore[arg-type]
        predict=PredictConfig(weights=args.weights, engine=args.engine),
        schedule=ScheduleConfig(device=args.device, threads_per_worker=threads),
    )


def measured(slide: Path, args: argparse.Namespace, reader: str, threads: int, scratch: Path) -> dict[str, Any]:
    """Segment the slide again and again until the row's time is up; return its figures."""
    config = config_of(args, reader, threads)
    folder = RunFolder(scratch / f"{reader}-{threads}")
    folder.create()
    context = WorkerContext(folder, config, "benchmark", args.device)
    try:
        start = time.perf_counter()
        model = context.model
        loaded_s = time.perf_counter() - start
        job = prepare_slide(SlideInput(slide.stem, str(slide)), folder, config, model.mpp, context.stain_aim)
        tiles = [dataclasses.replace(t, tissue_frac=1.0) for t in tiles_of(job, config)]
        if job.meta.reader != reader:
            return {"reader": reader, "not_run": job.meta.reader_note or f"{job.meta.reader} reads this slide"}
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda t: tile_module.segment_tile(t, context), (tiles * threads)[: 2 * threads]))  # all warm
            outcomes: list[Any] = []
            cpu, start = time.process_time(), time.perf_counter()
            while not outcomes or time.perf_counter() - start < args.seconds:
                turn = tiles * max(1, -(-4 * threads // len(tiles)))
                outcomes += pool.map(lambda t: tile_module.segment_tile(t, context), turn)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        px = sum(t.core.w * t.core.h for t in tiles) / len(tiles) * len(outcomes)
        slots = context._turns.qsize()
        return {
            "reader": reader,
            "threads": threads,
            "at_once_on_device": slots,
            "window_wpx": model.window.side_wpx,
            "precision": model.precision,
            "engine": model.engine,
            "load_s": round(loaded_s, 2),
            **figures(outcomes, px * job.mpp_working**2 * 1e-6, wall, cpu, threads, slots),
            **context.memory_facts(),
        }
    finally:
        context.close()


def figures(outcomes: list[Any], mm2: float, wall: float, cpu: float, threads: int, slots: int) -> dict[str, Any]:
    """Return rates, median milliseconds of each stage of a tile, and what bounds them."""
    stages: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for stage, seconds in outcome.seconds.items():
            stages[stage].append(seconds)
    mean = {stage: statistics.fmean(values) for stage, values in stages.items()}
    tile_s = wall / len(outcomes)
    shares = {
        "reading and writing": sum(mean.get(s, 0) for s in HOST_STAGES) / threads / tile_s,
        "the device's turn": sum(mean.get(s, 0) for s in DEVICE_STAGES) / slots / tile_s,
    }
    return {
        "tiles": len(outcomes),
        "nuclei_per_mm2": round(sum(o.n_nuclei for o in outcomes) / mm2),
        "s_per_mm2": round(wall / mm2, 5),
        "mm2_per_s": round(mm2 / wall, 3),
        "process_cpu_s_per_mm2": round(cpu / mm2, 5),
        "tile_ms": {stage: round(1e3 * statistics.median(values), 3) for stage, values in stages.items()},
        "busy_share": {name: round(share, 3) for name, share in shares.items()},
        "bound": max(shares, key=lambda name: shares[name]),
    }


def readers_here() -> list[str]:
    """Return the ways of reading that this machine has."""
    found = ["openslide"]
    if importlib.util.find_spec("cucim") is not None:
        found.append("cucim")
    return found


def main() -> int:
    """Measure every way of reading, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--side", type=int, default=16000, help="Side of the slide, px.")
    parser.add_argument("--tile", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=40, help="Time of one row.")
    parser.add_argument("--threads", type=int, default=0, help="Tiles at once; 0: one per core, 16 at most.")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--quick", action="store_true", help="A small slide and short rows: shows that it works, writes nothing."
    )
    parser.add_argument("--dry", action="store_true", help="With --quick: write the JSON all the same.")
    args = parser.parse_args()
    if args.quick:
        args.side, args.tile, args.seconds = min(args.side, 1200), min(args.tile, 600), 0.0
    threads = args.threads or max(2, min(16, len(os.sched_getaffinity(0))))
    written = "Parquet parts"
    if importlib.util.find_spec("pyarrow") is None:
        tile_module.write_part = raw_part  # type: ignore[assignment]
        written = "raw columns: pyarrow is not here"
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        slide = make_slide(Path(scratch) / "synthetic.tiff", args.side, NUCLEI_PER_MM2)
        for reader in readers_here():
            try:
                rows.append(measured(slide, args, reader, threads, Path(scratch)))
            except WsisegError as err:
                rows.append({"reader": reader, "not_run": str(err)})
            print(json.dumps(rows[-1]), flush=True)
        size = slide.stat().st_size
    result = {
        "command": " ".join(sys.argv),
        "device": device_name(args.device),
        "machine": machine(),
        "slide": {"side_px": args.side, "bytes": size, "bits_per_px": round(8 * size / args.side**2, 2)},
        "tile_wpx": args.tile,
        "written": written,
        "rows": rows,
    }
    result["measured"] = args.device != "cpu"
    if not args.quick or args.dry:
        args.out.mkdir(parents=True, exist_ok=True)
        name = re.sub("[^a-z0-9]+", "_", result["device"].lower()).strip("_")
        path = args.out / f"gpu_end_to_end_{name}{'' if written.startswith('Parquet') else '_raw'}.json"
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(path)
    return 0 if any("tiles" in row for row in rows) else 1


def device_name(device: str) -> str:
    """Return the name of what computes."""
    if device == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    sys.exit(main())

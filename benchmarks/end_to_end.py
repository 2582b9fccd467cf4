"""The main job end to end: seconds per mm2 of tissue by stage, beside a naive chain of plain parts with the same weights.

    python -m benchmarks.end_to_end [--slide PATH] [--workers N] [--tile WPX] [--quick]

``wsiseg segment`` runs twice as a user runs it, on the bundled slide or on ``--slide``: the first run compiles and warms the
disk cache and is not counted. The naive reference is what one writes first: OpenSlide, eager fp32 torch over the whole window,
scikit-image's peak_local_max, watershed, regionprops and find_contours, shapely and geopandas, on one window in one thread.
CPU seconds are compared with CPU seconds. ``--quick`` shows that it works and records nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import numpy as np
import psutil
import pyarrow.parquet as pq

from benchmarks._machine import save
from wsiseg.config import ReadConfig, RunConfig, ScheduleConfig
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import collect_slides
from wsiseg.run.context import WorkerContext
from wsiseg.run.doctor import demo_slide
from wsiseg.run.job import SlideJob, prepare_slide, tiles_of
from wsiseg.run.tile import segment_tile
from wsiseg.types import Box, Tile

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("read", "normalize", "predict", "separate", "vectorize", "write")


def watch_peak(process: subprocess.Popen[bytes], peaks: dict[int, int]) -> None:
    """Keep the highest resident memory of every worker until the run ends."""
    while process.poll() is None:
        try:
            for child in psutil.Process(process.pid).children():
                if "spawn_main" in " ".join(child.cmdline()):
                    peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_info().rss)
        except psutil.Error:
            pass
        time.sleep(0.1)


def command_run(slide: Path, out: Path, tile_wpx: int, workers: int) -> dict[str, Any]:
    """Run the command as a user does; wall and CPU seconds of the whole, peak memory of its workers."""
    command = [sys.executable, "-m", "wsiseg", "segment", str(slide), "--out", str(out), "--workers", str(workers)]
    command += ["--tile", str(tile_wpx)]
    before = os.times()
    start = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    watcher = threading.Thread(target=watch_peak, args=(process, peaks))
    watcher.start()
    _, stderr = process.communicate()
    wall = time.perf_counter() - start
    watcher.join()
    after = os.times()
    if process.returncode != 0:
        raise SystemExit(stderr.decode())
    return {
        "wall_s": wall,
        "cpu_s": after.children_user - before.children_user + after.children_system - before.children_system,
        "worker_peak_mb": [round(v / 1e6) for v in peaks.values()],
    }


def proper_run(slide: Path, out: Path, tile_wpx: int, workers: int) -> dict[str, Any]:
    """Run the job in this process with its cluster already there and warm: what a slide of a long run costs."""
    from wsiseg.run import segment as job

    config = RunConfig(read=ReadConfig(tile_wpx=tile_wpx), schedule=ScheduleConfig(workers=workers))
    slides = collect_slides([str(slide)])
    times: dict[str, float] = {}
    connect = job.connect
    with connect(config) as client:

        @contextlib.contextmanager
        def stay(_: RunConfig) -> Any:
            yield client

        job.connect = stay  # type: ignore[assignment]
        try:
            for name in ("warm", "measured"):  # another folder each: nothing is resumed
                start = time.perf_counter()
                job.segment(slides, out / name, config)
                times[name] = time.perf_counter() - start
        finally:
            job.connect = connect  # type: ignore[assignment]
    (row,) = pq.read_table(out / "measured" / "slides.parquet").to_pylist()
    return {"wall_s": times["measured"], "row": row}


def one_window(slide: Path, side_wpx: int, scratch: Path, repeats: int) -> dict[str, Any]:
    """CPU seconds of one tile, ours by stage and the naive chain, on the slide's tile with most tissue."""
    config = RunConfig(read=ReadConfig(tile_wpx=side_wpx))
    folder = RunFolder(scratch / "window")
    folder.create()
    context = WorkerContext(folder, config, "window")
    (given,) = collect_slides([str(slide)])
    job = prepare_slide(given, folder, config, context.model.mpp, context.stain_aim)
    tile = max(tiles_of(job, config), key=lambda t: (t.tissue_frac, t.core.w * t.core.h))
    segment_tile(tile, context)
    runs = []
    for _ in range(repeats):
        start = time.process_time()
        outcome = segment_tile(tile, context)
        runs.append((time.process_time() - start, outcome))
    ours_s, outcome = sorted(runs, key=lambda r: r[0])[len(runs) // 2]
    naive = naive_window(job, tile, scratch / "naive.parquet", context)
    context.close()
    mm2 = tile.core.w * tile.core.h * job.mpp_working**2 * 1e-6
    return {
        "window_wpx": [tile.core.w, tile.core.h],
        "tissue_frac": round(tile.tissue_frac, 3),
        "precision": context.model.precision,
        "ours": {"cpu_s": ours_s, "s_per_mm2": ours_s / mm2, "nuclei": outcome.n_nuclei, "stages_s": outcome.seconds},
        "naive": {**naive, "s_per_mm2": naive["cpu_s"] / mm2},
        "ratio": naive["cpu_s"] / ours_s,
    }


def naive_window(job: SlideJob, tile: Tile, out: Path, context: WorkerContext) -> dict[str, Any]:
    """The same window by plain parts; returns CPU seconds by step."""
    import geopandas
    import openslide
    import torch
    from scipy import ndimage as ndi
    from shapely.geometry import Polygon
    from skimage.feature import peak_local_max
    from skimage.measure import find_contours, regionprops
    from skimage.segmentation import watershed

    from wsiseg.predict import load_weights

    torch.set_num_threads(1)
    model = context.model
    net, _ = load_weights(RunConfig().predict.weights)
    params = context.separate_params(job.mpp_working)
    steps: dict[str, float] = {}
    last = time.process_time()

    def lap(name: str) -> None:
        nonlocal last
        steps[name], last = time.process_time() - last, time.process_time()

    read, scale = model.input_box(tile.read), job.scale
    size = round(read.w / scale), round(read.h / scale)
    with openslide.OpenSlide(job.meta.path) as slide:
        image = slide.read_region((round(read.x / scale), round(read.y / scale)), 0, size)
        rgba = np.asarray(image.resize((read.w, read.h)))
    rgb = np.ascontiguousarray(rgba[..., :3])
    rgb[rgba[..., 3] == 0] = 255
    lap("read")
    with torch.inference_mode():
        x = torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1
        prob = (torch.sigmoid(net(x, model.halo_wpx))[0] * 255).numpy()
    lap("predict")
    center, material = (ndi.gaussian_filter(p, 1.0) for p in prob)
    mask = material >= params.material_threshold / 16
    peaks = peak_local_max(
        center, min_distance=params.marker_radius_px, threshold_abs=params.center_threshold / 256, labels=mask.astype(int)
    )
    markers = np.zeros(mask.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-material, markers, mask=mask)
    lap("separate")
    left, top = read.x + model.halo_wpx, read.y + model.halo_wpx
    inner = Box(tile.core.x - left, tile.core.y - top, tile.core.w, tile.core.h)
    rows = []
    for region in regionprops(labels, intensity_image=prob[1]):
        cy, cx = region.centroid
        if region.area < params.min_area_px or not (inner.x <= cx < inner.x1 and inner.y <= cy < inner.y1):
            continue
        ring = max(find_contours(np.pad(region.image_filled, 1), 0.5), key=len)
        y0, x0 = region.bbox[:2]
        xy = (ring[:, ::-1] - 1 + (x0 + left, y0 + top)) / scale
        rows.append(
            {
                "geometry": Polygon(xy),
                "area": region.area,
                "major": region.axis_major_length,
                "minor": region.axis_minor_length,
                "perimeter": region.perimeter_crofton,
                "material": region.intensity_mean,
            }
        )
    lap("vectorize")
    geopandas.GeoDataFrame(rows, geometry="geometry").to_parquet(out)
    lap("write")
    return {"cpu_s": sum(steps.values()), "nuclei": len(rows), "stages_s": steps, "table_bytes": out.stat().st_size}


def rounded(value: Any) -> Any:
    """Return plain JSON with four significant digits."""
    return json.loads(json.dumps(value, default=str), parse_float=lambda t: float(f"{float(t):.4g}"))


def main() -> None:
    """Run, print and (without ``--quick``) save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, default=None)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tile", type=int, default=4000)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    slide = args.slide or demo_slide()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        window = one_window(slide, 500 if args.quick else 2000, folder, 1 if args.quick else 5)
        whole = {}
        for name in ("second",) if args.quick else ("first", "second"):
            whole[name] = command_run(slide, folder / name, args.tile, args.workers)
        proper = proper_run(slide, folder / "proper", args.tile, args.workers)
        row = proper.pop("row")
        table = folder / "second" / "nuclei" / f"{row['slide_id']}.parquet"
        tiles, mm2, nuclei = row["tiles_done"], row["tissue_mm2"], row["n_nuclei"]
        result = {
            "slide": {"name": slide.name, "tissue_mm2": mm2, "nuclei": nuclei, "tiles": tiles, "reader": row["reader"]},
            "workers": args.workers,
            "tile_wpx": args.tile,
            "run_proper": {**proper, "s_per_mm2": proper["wall_s"] / mm2, "nuclei_per_s": nuclei / proper["wall_s"]},
            "with_process_start": {**whole["second"], "s_per_mm2": whole["second"]["wall_s"] / mm2},
            "worker_seconds_per_tile": {s: (row[f"seconds_{s}"] or 0) / max(1, tiles) for s in STAGES},
            "worker_seconds_per_mm2": {s: (row[f"seconds_{s}"] or 0) / mm2 for s in STAGES},
            "table_bytes_per_nucleus": table.stat().st_size / max(1, nuclei),
            "one_window": window,
        }
    print(json.dumps(rounded(result), indent=1))
    if not args.quick:
        print(save("end_to_end", rounded(result)))


if __name__ == "__main__":
    main()

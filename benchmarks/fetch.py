"""Slides at addresses: is the run ever starved, does staging keep its bound, and is a cohort fetched once by many hosts?

    python -m benchmarks.fetch [--part starved placement clients] [--slides 20] [--workers 2] [--stand-in]

starved    A server on loopback of a limited rate has 20 slides (real crops). ``download_s`` is what the rate allows at best.
           Measured: ``compute_s`` (``wsiseg segment`` of the same files on disk), ``wall_s`` (of the manifest), for a server
           that takes 1.5 times as long as the computing (slow), and half as long (fast). Target: wall <= 1.1 max(download,
           compute). Both include the start of their processes. ``peak_bytes`` of the staging folder is looked at every 20 ms.
           ``--stand-in``: a tile sleeps for half a second instead of being computed, in this process, with one worker: what is
           measured is fetching and scheduling, on a machine that is busy with other things.
placement  The product's decisions (``Lanes``, ``Feeder``) in virtual time: 4 and 64 hosts, cohorts of 0.2 to 2 GB a slide:
           bytes fetched over bytes of the cohort, and the run's length over the longer of download and compute.
clients    What fetches from a web server: urllib3 in threads, as the product does, against fsspec's HTTP file system (aiohttp).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks._machine import save, saved
from tests.fetch.gdc_server import gdc_server
from tests.run.lanes_simulation import SLIDE_S, Cohort, World
from wsiseg.fetch import FetchOptions, Wanted, fetch_to_staging, staged_sizes

ROOT = Path(__file__).resolve().parents[1]
SLIDE = ROOT / "tests" / "data" / "CMU-1-Small-Region.svs"
GB = 10**9
SIDE_PX, STAND_IN_SIDE_PX = 1200, 600


def cut_slides(folder: Path, n: int, side_px: int) -> list[Path]:
    """Write square crops of a real slide as PNG (4 MB at 1200 px)."""
    import openslide

    rng = np.random.default_rng(0)
    made = []
    with openslide.OpenSlide(SLIDE) as slide:
        for k in range(n):
            x, y = (int(rng.integers(0, side - side_px)) for side in slide.dimensions)
            path = folder / f"crop{k:02d}.png"
            slide.read_region((x, y), 0, (side_px, side_px)).convert("RGB").save(path, compress_level=1)
            made.append(path)
    return made


def timed_segment(inputs: Path, out: Path, workers: int, *more: str) -> float:
    """Seconds of ``wsiseg segment``, its process included."""
    options = [
        "--mpp",
        "0.499",
        "--precision",
        "fp32",
        "--engine",
        "eager",
        "--tile",
        "1000",
        "--workers",
        str(workers),
        "--quiet",
    ]
    command = [sys.executable, "-m", "wsiseg", "segment", str(inputs), "--out", str(out), *options, *more]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run(command, env=env, check=True)
    return time.perf_counter() - start


TILE_S = 0.5


def timed_stand_in(inputs: Path, out: Path, workers: int, *more: str) -> float:
    """Seconds of the same command in this process, where tiles sleep."""
    from tests.run.conftest import run_here
    from wsiseg.run import tile as tile_module
    from wsiseg.schema import BATCH_COLUMNS
    from wsiseg.types import PolygonBatch, Tile, TileOutcome, TileStats
    from wsiseg.write import write_part

    nothing = PolygonBatch(
        np.zeros((0, 2), np.int32), np.zeros(1, np.int64), {c.name: np.zeros(0, c.arrow) for c in BATCH_COLUMNS}
    )

    def sleeping(tile: Tile, context: Any) -> TileOutcome:
        with context.slide(tile.slide_id):
            time.sleep(TILE_S)
        write_part(
            context.folder.part(tile.slide_id, tile.tile_id), nothing, tile, TileStats(), {"all": TILE_S}, context.digest
        )
        return TileOutcome(tile.slide_id, tile.tile_id, "done", 0, {"all": TILE_S})

    real, tile_module.segment_tile = tile_module.segment_tile, sleeping
    options = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--engine", "eager")
    start = time.perf_counter()
    try:
        run_here("segment", inputs, "--out", out, *options, *more)
    finally:
        tile_module.segment_tile = real
    return time.perf_counter() - start


class Peak:
    """The most bytes below a folder while the block runs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bytes = folder, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.02):
            self.bytes = max(self.bytes, sum(staged_sizes(self.folder).values()))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def starved(n: int, workers: int, stand_in: bool) -> dict[str, Any]:
    timed = timed_stand_in if stand_in else timed_segment
    with tempfile.TemporaryDirectory() as name, gdc_server(Path(name) / "server") as server:
        work = Path(name)
        (work / "slides").mkdir()
        slides = cut_slides(work / "slides", n, STAND_IN_SIDE_PX if stand_in else SIDE_PX)
        os.environ["WSISEG_GDC_API"] = server.address
        lines, wanted = ["id\tfilename\tmd5\tsize\tstate"], []
        for k, path in enumerate(slides):
            data = path.read_bytes()
            md5 = hashlib.md5(data).hexdigest()
            wanted.append(Wanted(server.put(str(k), data), path.name, len(data), md5))
            lines.append(f"{k}\t{path.name}\t{md5}\t{len(data)}\tlive")
        (work / "manifest.txt").write_text("\n".join(lines) + "\n")
        total = sum(w.size_bytes for w in wanted)
        bound = 5 * max(w.size_bytes for w in wanted)
        timed(slides[0], work / "warm", 1)  # kernels are compiled, weights are in the page cache
        compute = timed(work / "slides", work / "local", workers)
        found: dict[str, Any] = {
            "stand_in": stand_in,
            "slides": n,
            "bytes": total,
            "bound_bytes": bound,
            "workers": workers,
            "compute_s": round(compute, 2),
        }
        for label, factor in (("slow", 1.5), ("fast", 0.5)):
            (server.folder / "rate").write_text(str(total / (compute * factor)))
            alone = compute * factor  # what the rate allows at best
            with Peak(work / f"out-{label}" / "staged") as peak:
                more = ("--stage-gb", str(bound / 1e9))
                wall = timed(work / "manifest.txt", work / f"out-{label}", workers, *more)
            for path in (work / "local/nuclei").glob("*.parquet"):
                assert path.read_bytes() == (work / f"out-{label}" / "nuclei" / path.name).read_bytes(), path.name
            found[label] = {
                "rate_bytes_per_s": round(total / (compute * factor)),
                "download_s": round(alone, 2),
                "wall_s": round(wall, 2),
                "wall_over_longer": round(wall / max(alone, compute), 3),
                "peak_bytes": peak.bytes,
            }
            print(label, found[label], flush=True)
        return found


def placement() -> list[dict[str, Any]]:
    rows = []
    for n_hosts, n_slides in ((4, 60), (4, 200), (64, 600)):
        rng = np.random.default_rng(0)
        sizes = [int(s) for s in rng.integers(GB // 5, 2 * GB, n_slides)]
        tiles = [max(1, int(s / 10e6 * f)) for s, f in zip(sizes, rng.uniform(0.5, 1.5, n_slides), strict=True)]
        compute = sum(t * 4.0 + 2 * SLIDE_S for t in tiles) / (8 * n_hosts)
        for label, factor in (("slow", 2.0), ("fast", 0.5)):
            rate = sum(sizes) / n_hosts / (compute * factor)
            notes = World(Cohort(sizes, tiles), [f"h{k:02d}" for k in range(n_hosts)], 8, rate, 50 * GB).run()
            rows.append(
                {
                    "hosts": n_hosts,
                    "slides": n_slides,
                    "server": label,
                    "fetched_over_cohort": round(notes.fetched_bytes / notes.cohort_bytes, 4),
                    "wall_over_longer": round(notes.wall_s / max(compute, compute * factor), 3),
                    "peak_gb": round(notes.peak_bytes / GB, 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def clients(n_bytes: int = 200_000_000, repeats: int = 3) -> dict[str, Any]:
    import fsspec

    with tempfile.TemporaryDirectory() as name, gdc_server(Path(name) / "server") as server:
        want = Wanted(server.put("one", os.urandom(n_bytes)), "one.bin", n_bytes)

        def ours(k: int) -> None:
            fetch_to_staging(want, f"ours{k}", Path(name), FetchOptions())

        def theirs(k: int) -> None:
            fsspec.filesystem("http", skip_instance_cache=True).get_file(want.address, f"{name}/theirs{k}")

        found = {}
        for label, work in (("urllib3_threads", ours), ("fsspec_http", theirs)):
            times = []
            for k in range(repeats):
                wall, cpu = time.perf_counter(), time.process_time()
                work(k)
                times.append((time.perf_counter() - wall, time.process_time() - cpu))
            best = min(times)
            found[label] = {"mb_per_s": round(n_bytes / best[0] / 1e6, 1), "cpu_s_per_gb": round(best[1] / n_bytes * 1e9, 2)}
            print(label, found[label], flush=True)
        return {"bytes": n_bytes, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", default=["clients", "placement", "starved"])
    parser.add_argument("--slides", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stand-in", action="store_true")
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None
    kept = saved("fetch")
    result: dict[str, Any] = {name: kept[name] for name in ("clients", "placement", "starved") if name in kept}
    result["load_at_start"] = os.getloadavg()[0]
    if "clients" in args.part:
        result["clients"] = clients()
    if "placement" in args.part:
        result["placement"] = placement()
    if "starved" in args.part:
        result["starved"] = starved(args.slides, args.workers, args.stand_in)
    print(save("fetch", result))


if __name__ == "__main__":
    main()

"""A large run with stand-ins for pixels and network: what the scheduling costs, and whether anything grows.

    python -m benchmarks.cluster_simulation [--quick] [--part memory overhead scaling] [--tiles 1000000] [--dry]

Everything is the product's own (client loop, feeder, handshake, Dask scheduler and workers over TCP, worker files, part files)
but four functions in the workers: preparing a slide, a tile's stages, and finishing a slide sleep instead of computing. The
scheduler is a process of its own. Workers have one thread each and are spread over a few processes (``--hosts``): 64 of them in
one process each would need more memory and cores than a desk machine has. Workers of one process share its interpreter lock, so
their own overhead is measured as larger than it is on machines of their own, and the efficiency as lower.

memory    tiles that say 50 ms and take none, 200 a slide: bytes held by client, scheduler and one worker process over the run;
          CPU seconds of each for a tile. Parts are not written (a million files would measure the disk).
overhead  tiles of 50 ms, 16 workers: share of the workers' time that is not tile, one tile a task and in batches.
scaling   1 to 64 workers, stages of realistic length, part files with 200 real polygons each, kept for the slide's finish.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil

from benchmarks._machine import RESULTS, machine, save, saved

ROOT = Path(__file__).resolve().parents[1]
STAGES_S = {"read": 0.12, "normalize": 0.02, "predict": 0.25, "separate": 0.08, "vectorize": 0.03}
"""Slept by a realistic tile of 4000 x 4000 px, s: half a second, the length that a worker with one GPU is built for."""
PREPARE_S, FINISH_S = 2.0, 0.5
AS_RECIPES = {
    "DASK_DISTRIBUTED__ADMIN__LOG_LENGTH": "100",
    "DASK_DISTRIBUTED__ADMIN__LOW_LEVEL_LOG_LENGTH": "20",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "500ms",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
}
"""Messages and events are else remembered by the thousand, and every worker is looked at many times a second."""


def install_stand_ins(mode: dict[str, Any]) -> None:
    """Replace what touches pixels in this process."""
    from wsiseg.results.slide_record import SlideRecord, write_slide
    from wsiseg.rows import SlideRow
    from wsiseg.run import tasks, worker
    from wsiseg.run.context import WorkerContext
    from wsiseg.run.facts import ModelFacts, WorkerFacts
    from wsiseg.schema import BATCH_COLUMNS
    from wsiseg.separate import SeparateParams
    from wsiseg.types import Box, PolygonBatch, Processor, Tile, TileOutcome, TileStats
    from wsiseg.write import write_part

    model = ModelFacts("none", "0" * 64, 0.25, "none", SeparateParams(1, 1, 1, 0, 0, True, 1, 1))
    facts = WorkerFacts(model, "fp32", "eager", "none", Processor("0" * 16, "none", "none"), "none")
    stages: dict[str, float] = mode["stages"]
    batch = PolygonBatch(*_circles(200), {c.name: np.ones(200, c.arrow) for c in BATCH_COLUMNS})

    def prepare(slide: Any, folder: Any, *_: Any) -> SimpleNamespace:
        time.sleep(mode["prepare_s"])
        if mode["parts"]:
            folder.parts(slide.slide_id).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(slide_id=slide.slide_id, note="", mpp_working=0.25)

    def to_do(job: Any, context: Any) -> tuple[list[Tile], list[TileOutcome]]:
        boxes = [Box(4000 * k, 0, 4000, 4000) for k in range(mode["tiles_per_slide"])]
        return [Tile(job.slide_id, k, box, box.padded(64), 1.0, 1.0) for k, box in enumerate(boxes)], []

    def tile(one: Tile, context: Any, attempt: int = 1) -> TileOutcome:
        if mode["sleep"]:
            for seconds in stages.values():
                time.sleep(seconds)
        if mode["parts"]:
            path = context.folder.part(one.slide_id, one.tile_id)
            write_part(path, batch, one, TileStats(), stages, context.digest)
        return TileOutcome(one.slide_id, one.tile_id, "done", len(batch), dict(stages), attempts=attempt)

    def finish(slide_id: str, failed: Any, context: Any) -> SlideRow:
        time.sleep(mode["finish_s"])
        if mode["parts"]:
            found = len(list(context.folder.parts(slide_id).glob("*.parquet")))
            if found != mode["tiles_per_slide"]:
                raise OSError(f"{slide_id}: expected {mode['tiles_per_slide']} parts, found {found}")
            shutil.rmtree(context.folder.parts(slide_id))
        row = SlideRow.blank(slide_id, "done", n_nuclei=200 * mode["tiles_per_slide"])
        write_slide(context.folder, SlideRecord(context.digest, row))
        return row

    replaced = {"prepare_slide": prepare, "tiles_to_do": to_do, "run_tile": tile, "finish_slide": finish}
    replaced |= {"finished_row": lambda *_: None, "worker_facts": lambda *_: facts}
    if not mode["parts"]:
        replaced["done_before"] = lambda *_: None
    for name, function in replaced.items():
        setattr(tasks, name, function)
    worker.objections = worker.processor_objections = lambda *_: []
    WorkerContext.model = property(lambda self: None)  # type: ignore[assignment]


def _circles(n: int) -> tuple[np.ndarray, np.ndarray]:
    turns = np.linspace(0, 2 * np.pi, 33)
    ring = np.round(np.stack([12 * np.cos(turns), 12 * np.sin(turns)], axis=1))
    steps = np.diff(ring, axis=0)  # parts hold steps along one axis
    path = [ring[0]]
    for dx, dy in steps:
        path += [path[-1] + np.array((dx, 0))] if dx else []
        path += [path[-1] + np.array((0, dy))] if dy else []
    one = np.asarray(path, np.int32)
    xy = np.concatenate([one + np.array((40 * k, 40)) for k in range(n)]).astype(np.int32)
    return xy, np.arange(n + 1, dtype=np.int64) * len(one)


async def serve(address: str, n_workers: int) -> None:
    """Run workers of one thread each in this process until their scheduler is gone."""
    from distributed import Worker

    workers = [
        Worker(address, nthreads=1, name=f"{os.getpid()}-{k}", memory_limit=0, dashboard=False, host="127.0.0.1")
        for k in range(n_workers)
    ]
    await asyncio.gather(*workers)
    await asyncio.gather(*(w.finished() for w in workers))


class Cluster:
    """A scheduler process and a few processes full of workers."""

    def __init__(self, scratch: Path, n_workers: int, n_hosts: int, mode: dict[str, Any]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        environment |= AS_RECIPES
        self.file = scratch / "scheduler.json"
        quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": (scratch / "log").open("wb")}
        me = [sys.executable, "-m", "benchmarks.cluster_simulation"]
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--host", "127.0.0.1"]
        command += ["--no-dashboard", "--scheduler-file", str(self.file)]
        self.processes = [subprocess.Popen(command, cwd=ROOT, **quiet)]
        while not self.file.exists():
            time.sleep(0.05)
        address = json.loads(self.file.read_text())["address"]
        n_hosts = min(n_hosts, n_workers)
        for k in range(n_hosts):
            share = n_workers // n_hosts + (k < n_workers % n_hosts)
            self.processes.append(subprocess.Popen([*me, "--serve", address, str(share), json.dumps(mode)], cwd=ROOT, **quiet))
        self.scheduler, self.host = (psutil.Process(p.pid) for p in self.processes[:2])
        from distributed import Client

        with Client(scheduler_file=str(self.file), set_as_default=False, timeout="60s") as client:
            client.wait_for_workers(n_workers, timeout=600)

    def close(self) -> None:
        """End everything."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


class Samples:
    """Bytes and CPU seconds of client, scheduler and one process of workers, read every second, and when tiles were done."""

    def __init__(self, cluster: Cluster) -> None:
        self.who = {"client": psutil.Process(), "scheduler": cluster.scheduler, "workers": cluster.host}
        self.rows: list[dict[str, float]] = []
        self.done: list[tuple[float, int]] = []
        self.start = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Samples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._read()

    def progress(self, p: Any) -> None:
        now = time.monotonic() - self.start
        if not self.done or now - self.done[-1][0] > 0.1 or p.slides_done == p.slides:  # a long list would be growth of ours
            self.done.append((now, p.tiles_done))

    def _run(self) -> None:
        while not self._end.wait(1.0):
            self._read()

    def _read(self) -> None:
        row = {"s": time.monotonic() - self.start, "tiles": self.done[-1][1] if self.done else 0}
        for name, process in self.who.items():
            with contextlib.suppress(psutil.Error):
                row[f"{name}_mb"] = process.memory_info().rss / 1e6
                row[f"{name}_cpu_s"] = sum(process.cpu_times()[:2])
        self.rows.append(row)

    def rate(self, first: float = 0.1, last: float = 0.9) -> float:
        """Tiles a second between two shares of the run; its begin and end, when there is not work for all, left out."""
        total = self.done[-1][1]
        inside = [(t, n) for t, n in self.done if first * total <= n <= last * total]
        return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


@contextlib.contextmanager
def simulated(
    n_slides: int, tiles_per_slide: int, n_workers: int, n_hosts: int, *, task_s: float = 1.0, real: bool, sleep: bool = True
) -> Iterator[Samples]:
    """Do one run and yield what was seen of it."""
    import pyarrow.parquet  # noqa: F401 - the last tables need it: else the run would seem to grow at its end

    from wsiseg.config import RunConfig, ScheduleConfig
    from wsiseg.results.manifest import SlideInput
    from wsiseg.run.segment import segment

    mode = {
        "tiles_per_slide": tiles_per_slide,
        "parts": real,
        "stages": STAGES_S if real else {"predict": 0.05},
        "sleep": sleep,
        "prepare_s": PREPARE_S if real else 0.0,
        "finish_s": FINISH_S if real else 0.0,
    }
    with tempfile.TemporaryDirectory(prefix="wsiseg-simulation-") as scratch:
        cluster = Cluster(Path(scratch), n_workers, n_hosts, mode)
        try:
            schedule = ScheduleConfig(scheduler_file=str(cluster.file), device="cpu", task_s=task_s, tile_timeout_s=0)
            slides = [SlideInput(f"slide{k:05d}", f"/nowhere/slide{k:05d}.svs") for k in range(n_slides)]
            with Samples(cluster) as samples:
                done = segment(slides, Path(scratch) / "run", RunConfig(schedule=schedule), on_progress=samples.progress)
            if not done.ok or samples.done[-1][1] != n_slides * tiles_per_slide:
                raise SystemExit(f"{done.errors[:3]}: the simulation itself failed, see {scratch}/log")
            yield samples
        finally:
            cluster.close()


def memory(n_tiles: int, hosts: int) -> dict[str, Any]:
    """Many tiles of no length: does anything grow, and what does a tile cost?"""
    per_slide = 200
    n_slides = max(1, n_tiles // per_slide)
    with simulated(n_slides, per_slide, 8, hosts, real=False, sleep=False) as samples:
        rows = samples.rows
    first = next(r for r in rows if r["tiles"] >= 0.1 * n_tiles)
    last = [r for r in rows if r["tiles"] < n_tiles][-1]  # then the client writes the run's tables, once
    tiles = last["tiles"] - first["tiles"]
    out: dict[str, Any] = {"tiles": n_tiles, "slides": n_slides, "seconds": round(rows[-1]["s"], 1), "curve": _thinned(rows)}
    for name in ("client", "scheduler", "workers"):
        half = [r for r in rows if 0.5 * n_tiles <= r["tiles"] <= last["tiles"]]
        out[f"{name}_growth_bytes_per_slide"] = round(
            1e6 * per_slide * float(np.polyfit([r["tiles"] for r in half], [r[f"{name}_mb"] for r in half], 1)[0])
        )
        out[f"{name}_mb"] = [round(first[f"{name}_mb"], 1), round(last[f"{name}_mb"], 1)]
        out[f"{name}_cpu_ms_per_tile"] = round(1e3 * (last[f"{name}_cpu_s"] - first[f"{name}_cpu_s"]) / tiles, 4)
    out["client_mb_after_tables"] = round(rows[-1]["client_mb"], 1)
    out["tiles_per_second"] = round(tiles / (last["s"] - first["s"]))
    return out


def overhead(seconds: float, hosts: int) -> dict[str, Any]:
    """Tiles of 50 ms: how much of the workers' time is not tile."""
    out: dict[str, Any] = {"tile_ms": 50, "workers": 16}
    for name, task_s in (("one_tile_a_task", 0.0), ("batches", 1.0)):
        n_slides = max(4, int(16 * seconds / 0.05) // 200)
        with simulated(n_slides, 200, 16, hosts, real=False, task_s=task_s) as samples:
            rate = samples.rate()
            cpu = samples.rows[-1]["scheduler_cpu_s"] / (n_slides * 200)
        out[name] = {
            "tiles": n_slides * 200,
            "overhead_share": round(1 - rate * 0.05 / 16, 4),
            "scheduler_cpu_ms_per_tile": round(1e3 * cpu, 3),
        }
    return out


def scaling(counts: list[int], seconds: float, hosts: int) -> list[dict[str, Any]]:
    """The same work for each worker, more and more workers."""
    tile_s, per_slide = sum(STAGES_S.values()), 50
    rows: list[dict[str, Any]] = []
    for n in counts:
        n_slides = max(2, round(n * seconds / tile_s / per_slide))
        with simulated(n_slides, per_slide, n, hosts, real=True) as samples:
            rate, whole = samples.rate(), samples.rate(0, 1)
            cpu = samples.rows[-1]["scheduler_cpu_s"]
        ideal = n / (tile_s + (PREPARE_S + FINISH_S) / per_slide)  # nothing but sleeping
        rows.append(
            {
                "workers": n,
                "tiles": n_slides * per_slide,
                "tiles_per_second": round(rate, 2),
                "efficiency_to_ideal": round(rate / ideal, 4),
                "efficiency_to_ideal_with_begin_and_end": round(whole / ideal, 4),
                "efficiency_to_one": round(rate / n / (rows[0]["tiles_per_second"] if rows else rate), 4),
                "scheduler_cpu_share": round(cpu / samples.rows[-1]["s"], 4),
            }
        )
        print(rows[-1], flush=True)
    return rows


def _parts_kept() -> dict[str, Any]:
    """Return what an earlier call measured on this machine: the parts may be run one by one."""
    kept = saved("cluster_simulation")
    return {k: v for k, v in kept.items() if k != "machine"} if kept.get("machine") == machine() else {}


def _thinned(rows: list[dict[str, float]], n: int = 120) -> dict[str, list[float]]:
    kept = rows[:: max(1, len(rows) // n)]
    return {k: [round(r[k], 2) for r in kept] for k in kept[0]}


def plots(result: dict[str, Any]) -> None:
    """Draw what was measured."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    if "memory" in result:
        fig, ax = plt.subplots(figsize=(6, 3.5))
        curve = result["memory"]["curve"]
        for name, label in (("client", "client"), ("scheduler", "scheduler"), ("workers", "workers, one process")):
            ax.plot(
                np.asarray(curve["tiles"]) / 1e3,
                curve[f"{name}_mb"],
                label=label,
            )
        ax.set(xlabel="thousand tiles done", ylabel="resident memory, MB", ylim=(0, None), title="Memory over a simulated run")
        ax.legend()
        fig.tight_layout()
        fig.savefig(RESULTS / "cluster_memory.png", dpi=110)
    if "scaling" in result:
        fig, ax = plt.subplots(figsize=(6, 3.5))
        workers = [r["workers"] for r in result["scaling"]]
        ax.plot(workers, [100 * r["efficiency_to_one"] for r in result["scaling"]], "o-", label="to one worker")
        ax.plot(workers, [100 * r["efficiency_to_ideal"] for r in result["scaling"]], "s--", label="to nothing but sleeping")
        ax.axhline(90, color="gray", lw=0.8)
        ax.set_xscale("log", base=2)
        ax.set(
            xlabel="workers (sleeping stages, real Dask, real part files)",
            ylabel="efficiency, %",
            ylim=(0, 105),
            xticks=workers,
        )
        ax.set_xticklabels([str(n) for n in workers])
        ax.legend(loc="lower left")
        fig.tight_layout()
        fig.savefig(RESULTS / "cluster_scaling.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", default=["memory", "overhead", "scaling"])
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each run of overhead and scaling")
    parser.add_argument("--hosts", type=int, default=8, help="processes that the workers are spread over")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("--serve", nargs=3, metavar=("ADDRESS", "N", "MODE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        install_stand_ins(json.loads(args.serve[2]))
        asyncio.run(serve(args.serve[0], int(args.serve[1])))
        return
    if args.quick:
        args.tiles, args.seconds = args.tiles // 10, args.seconds / 3
    result: dict[str, Any] = {"setup": f"workers of one thread in up to {args.hosts} processes, scheduler in one, TCP"}
    result |= {"stages_s": STAGES_S, "prepare_s": PREPARE_S, "finish_s": FINISH_S}
    result |= {f"load_before_{part}": os.getloadavg()[0] for part in args.part}
    if "memory" in args.part:
        result["memory"] = memory(args.tiles, min(args.hosts, 2))
        print({k: v for k, v in result["memory"].items() if k != "curve"}, flush=True)
    if "overhead" in args.part:
        result["overhead"] = overhead(args.seconds, args.hosts)
        print(result["overhead"], flush=True)
    if "scaling" in args.part:
        result["scaling"] = scaling(args.workers, args.seconds, args.hosts)
    if not args.dry:
        result = {**_parts_kept(), **result}
        print(save("cluster_simulation", result))
        plots(result)


if __name__ == "__main__":
    main()

"""Threads of one worker that read, compute and write at the same time leave the same bytes as one tile after the other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.run.conftest import SLIDE, environment, wsiseg
from tests.run.gate import Gate
from wsiseg.config import PredictConfig, ReadConfig, RunConfig
from wsiseg.errors import TileReadError
from wsiseg.read import open_slide, read_working
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run.context import WorkerContext
from wsiseg.run.finish import finish_slide
from wsiseg.run.handles import OpenSlides
from wsiseg.run.job import prepare_slide, tiles_of
from wsiseg.run.readers import ReaderPool
from wsiseg.run.tile import run_tile
from wsiseg.types import Box, Stain

CONFIG = RunConfig(read=ReadConfig(tile_wpx=260), predict=PredictConfig(precision="fp32"))


def table_by_threads(slide: SlideInput, out: Path, n_threads: int, readers: int = 0) -> bytes:
    """Segment a slide as a worker with that many threads does; return its table's bytes."""
    folder = RunFolder(out)
    folder.create()
    context = WorkerContext(folder, CONFIG, "threads", readers=readers)
    try:
        job = prepare_slide(slide, folder, CONFIG, context.model.mpp, context.stain_aim)
        with ThreadPoolExecutor(n_threads) as pool:
            outcomes = list(pool.map(lambda tile: run_tile(tile, context), tiles_of(job, CONFIG)))
        assert {o.status for o in outcomes} == {"done"}, [o.error for o in outcomes]
        finish_slide(slide.slide_id, [], context)
    finally:
        context.close()
    return folder.table(slide.slide_id).read_bytes()


@pytest.fixture(scope="module")
def one_thread(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return table_by_threads(SlideInput("crop", str(crop_png), mpp=0.499), tmp_path_factory.mktemp("one"), 1)


@pytest.mark.parametrize("n_threads", [2, 4])
def test_threads_do_not_reach_the_table(one_thread: bytes, crop_png: Path, tmp_path: Path, n_threads: int) -> None:
    assert table_by_threads(SlideInput("crop", str(crop_png), mpp=0.499), tmp_path, n_threads) == one_thread


def test_computing_overlaps_with_reading_and_is_one_at_a_time(
    crop_png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing, most, read_meanwhile = 0, 0, 0
    entered = threading.Event()
    import wsiseg.run.tile as tile_module

    compute, pixels = tile_module._compute, WorkerContext.pixels

    def slow_compute(*args: Any) -> Any:
        nonlocal computing, most
        computing += 1
        most = max(most, computing)
        entered.set()
        time.sleep(0.05)
        try:
            return compute(*args)
        finally:
            computing -= 1

    def seen_pixels(*args: Any) -> Any:
        nonlocal read_meanwhile
        read_meanwhile += computing > 0
        return pixels(*args)

    monkeypatch.setattr(tile_module, "_compute", slow_compute)
    monkeypatch.setattr(WorkerContext, "pixels", seen_pixels)
    table_by_threads(SlideInput("crop", str(crop_png), mpp=0.499), tmp_path, 3)
    assert most == 1
    assert read_meanwhile > 0


def test_killed_and_resumed_with_threads(one_thread: bytes, crop_png: Path, tmp_path: Path) -> None:
    command = ["segment", crop_png, "--mpp", "0.499", "--out", tmp_path, "--workers", "1", "--tile", "260"]
    command += ["--precision", "fp32", "--threads-per-worker", "3"]
    gate = Gate(tmp_path / "gate")
    process = subprocess.Popen(
        [sys.executable, "-m", "wsiseg", *map(str, command)],
        env={**environment(), **gate.environment},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    parts = tmp_path / "parts" / "crop"
    gate.wait(process, 2, parts)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list(parts.glob("*.parquet"))) > 0
    again = wsiseg(*command)
    assert again.returncode == 0, again.stderr
    ours = pq.read_table(tmp_path / "nuclei/crop.parquet")
    (tmp_path / "one.parquet").write_bytes(one_thread)
    expected = pq.read_table(tmp_path / "one.parquet")
    assert ours.num_rows > 50
    assert ours.equals(expected)  # the file's facts differ by the run's digest


def test_reader_processes_give_the_same_pixels(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    prepare_slide(SlideInput(SLIDE.stem, str(SLIDE)), folder, CONFIG, 0.25, Stain())
    pool = ReaderPool(folder, CONFIG, 2)
    try:
        slide = open_slide(SLIDE)
        boxes = [Box(0, 0, 64, 48), Box(-20, 300, 200, 100), Box(4000, 4100, 700, 900)]
        for box in boxes:
            out = np.empty((box.h, box.w, 3), np.uint8)
            pool.read(SLIDE.stem, box, out)
            np.testing.assert_array_equal(out, read_working(slide, box, 0.499 / 0.25))
        slide.close()
        with pytest.raises(TileReadError, match="stored constants"):
            pool.read("unknown", boxes[0], np.empty((48, 64, 3), np.uint8))
        (reader,) = pool._readers
        reader._process.kill()
        reader._process.wait()
        out = np.empty((48, 64, 3), np.uint8)
        with pytest.raises(TileReadError, match="the process that read it ended"):
            pool.read(SLIDE.stem, boxes[0], out)
        pool.read(SLIDE.stem, boxes[0], out)  # a new one
        assert out.any()
    finally:
        pool.close()
    assert not pool._readers


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(75)"], ids=["killed", "gpu_broken"])
def test_readers_die_with_their_worker(tmp_path: Path, end: str) -> None:
    folder = RunFolder(tmp_path)
    folder.create()
    prepare_slide(SlideInput(SLIDE.stem, str(SLIDE)), folder, CONFIG, 0.25, Stain())
    code = f"""
import os, numpy as np
from pathlib import Path
from wsiseg.config import RunConfig
from wsiseg.results.folder import RunFolder
from wsiseg.run.readers import ReaderPool
from wsiseg.types import Box
pool = ReaderPool(RunFolder(Path({str(tmp_path)!r})), RunConfig(), 1)
pool.read({SLIDE.stem!r}, Box(0, 0, 16, 16), np.empty((16, 16, 3), np.uint8))
print(pool._readers[0]._process.pid, flush=True)
{end}
"""
    worker = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120)
    pid = int(worker.stdout)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the reader outlived its worker"
        time.sleep(0.02)


class Handle:
    def __init__(self) -> None:
        self.readers, self.closed = 0, 0

    def close(self) -> None:
        assert self.readers == 0, "closed while somebody reads"
        self.closed += 1


def test_no_handle_is_closed_under_a_reader_or_leaked() -> None:
    made: list[Handle] = []

    def opener(slide_id: str) -> Any:
        time.sleep(0.001)
        made.append(Handle())
        return SimpleNamespace(slide_id=slide_id), made[-1]

    slides = OpenSlides(opener, 2)

    def use(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            slide_id = f"s{rng.randrange(5)}"
            with slides.lease(slide_id) as (job, handle):
                assert job.slide_id == slide_id
                handle.readers += 1
                time.sleep(rng.random() * 0.001)
                handle.readers -= 1
            if rng.random() < 0.1:
                slides.forget(slide_id)

    threads = [threading.Thread(target=use, args=(k,)) for k in range(6)]
    failures: list[Any] = []
    before, threading.excepthook = threading.excepthook, failures.append
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = before
    assert not failures, failures[0].exc_value
    assert len(slides) <= 2
    slides.close()
    assert all(h.closed == 1 for h in made)

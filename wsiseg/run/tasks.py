"""The three tasks of a Dask worker: prepare a slide, compute some of its tiles, finish it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distributed import Status, get_worker

from wsiseg.backend import device_fault
from wsiseg.cluster.devices import device_label
from wsiseg.config import RunConfig
from wsiseg.errors import DeviceBrokenError, WsisegError, one_line
from wsiseg.fetch import is_address
from wsiseg.log import log
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import fetch_root, local_config, local_path
from wsiseg.results.manifest import SlideInput
from wsiseg.results.staging import drop_finished, drop_staged, prefetch
from wsiseg.run.context import WorkerContext
from wsiseg.run.facts import WorkerFacts
from wsiseg.run.failures import Failure, failure_kind
from wsiseg.run.feed import PrepareDone
from wsiseg.run.finish import done_before, finish_slide, finished_row, tiles_to_do
from wsiseg.run.job import prepare_slide
from wsiseg.run.tile import result_or_error, run_tile
from wsiseg.run.worker import at_work, end_broken
from wsiseg.types import Stain, Tile, TileOutcome

__all__ = ["Answer", "end_staging", "finish_task", "prepare_task", "tiles_task", "worker_facts"]

T = TypeVar("T")

FORESEEN = (WsisegError, OSError, ImportError)
"""Errors that files, storage and installations can raise; other errors are reported with their position in the code."""

FIRST_PAUSE_S = 0.2
"""Pause before the second try to open or finish a slide, s; doubled before each further try."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a task, and the address of the worker that did it."""

    worker: str
    result: Any


def worker_facts(folder: str, config: RunConfig, device: str) -> WorkerFacts:
    """Return what this worker would compute with, and its machine.

    Raises
    ------
    DeviceBrokenError
        The GPU of this worker does not compute.
    """
    from wsiseg.predict import machine_id

    root = Path(local_path(folder, config.schedule.path_map))
    context = WorkerContext(RunFolder(root), local_config(config), "", device)
    try:
        return context.worker_facts(machine_id(device))
    except RuntimeError as err:  # of PyTorch or CuPy, which the client may lack, so that it could not unpickle it
        fault = device_fault(err)
        if not fault:
            raise
        raise DeviceBrokenError(f"{device_label(device)} on {platform.node()} does not compute: {fault}") from None


def prepare_task(slide: SlideInput, ahead: SlideInput | None, setup: str, mpp_model: float, aim: Stain) -> Answer:
    """Prepare a slide; return ``PrepareDone``, or ``Failure`` if it cannot be used.

    ``ahead`` is the next slide, which may be copied in the background.
    """
    start = time.perf_counter()
    context, busy = at_work(setup)
    config = context.config
    slide = dataclasses.replace(slide, tissue_mask=local_path(slide.tissue_mask, config.schedule.path_map))

    def prepare() -> PrepareDone:
        row = finished_row(context.folder, slide, context.digest)
        if row is not None:
            return PrepareDone(slide.slide_id, row=row)
        if not config.schedule.keep_staged:
            for root in _staging_roots(config):
                drop_finished(root, context.folder.root / "slides")
        if config.schedule.stage and ahead is not None and not is_address(ahead.path):
            source = Path(local_path(ahead.path, config.schedule.path_map))
            prefetch(source, ahead.slide_id, Path(config.schedule.stage), int(config.schedule.stage_gb * 1e9))
        job = prepare_slide(slide, context.folder, config, mpp_model, aim)
        todo, decided = tiles_to_do(job, context)
        mm2 = sum(t.core.w * t.core.h * t.tissue_frac for t in todo) * job.mpp_working**2 * 1e-6
        seconds = time.perf_counter() - start
        return PrepareDone(slide.slide_id, None, tuple(todo), tuple(decided), mm2, job.note, seconds, job.warnings)

    with busy("prepare", slide.slide_id, -1):
        return _answer(_with_retries(prepare, config.schedule.retries, f"slide {slide.slide_id}: preparing"))


def tiles_task(batch: tuple[tuple[Tile, int], ...], setup: str) -> Answer:
    """Compute some tiles of a slide, each given with the number of its try; return their outcomes in the same order.

    If a batch is started again because its worker ended or left, finished tiles are not computed again. A worker that must
    leave completes only its current tile.
    """
    context, busy = at_work(setup)
    with contextlib.suppress(WsisegError, OSError, RuntimeError):  # an error is raised again, and reported, by the first tile
        _ = context.model  # loaded here, so that this time is not added to a tile
    _open_fetched(batch[0][0].slide_id, context)
    outcomes: list[TileOutcome] = []
    for tile, attempt in batch:
        if len(batch) > 1 and get_worker().status in (Status.closing, Status.closed):
            raise InterruptedError("the worker is shutting down")  # not reported: Dask gives the batch to another worker
        done = done_before(tile, context) if len(batch) > 1 else None
        with busy("tile", tile.slide_id, tile.tile_id):
            outcomes.append(done or _run_tile(tile, context, attempt, setup))
    return _answer(outcomes)


def _open_fetched(slide_id: str, context: WorkerContext) -> None:
    """Fetch a slide that another host has fetched, before the deadline of a tile starts."""
    if context.config.schedule.fetch_to:
        with contextlib.suppress(WsisegError, OSError), context.slide(slide_id):  # the first tile reports the error
            pass


def _run_tile(tile: Tile, context: WorkerContext, attempt: int, setup: str) -> TileOutcome:
    """Compute a tile; if the GPU stops computing, end this worker."""
    try:
        return run_tile(tile, context, attempt)
    except DeviceBrokenError as err:
        end_broken(setup, one_line(err))
        return TileOutcome(tile.slide_id, tile.tile_id, "failed", 0, {}, one_line(err)[:500], attempt, kind=failure_kind(err))


def finish_task(slide_id: str, failed: tuple[TileOutcome, ...], setup: str) -> Answer:
    """Finish a slide; return its statistics row, or ``Failure``."""
    context, busy = at_work(setup)
    retries = context.config.schedule.retries
    with busy("finish", slide_id, -1):
        row = _with_retries(lambda: finish_slide(slide_id, failed, context), retries, f"slide {slide_id}: finishing")
    if isinstance(row, Failure):
        return _answer(row)
    context.forget(slide_id)
    if not context.config.schedule.keep_staged:
        for root in _staging_roots(context.config):
            drop_staged(root, slide_id)
    return _answer(row)


def _answer(result: Any) -> Answer:
    return Answer(get_worker().address, result)


def _with_retries(work: Callable[[], T], retries: int, what: str) -> T | Failure:
    """Call a function, and again after a pause if it fails, since a failed read may be temporary; return its result.

    After the last try, any error is returned as ``Failure``; an unexpected one with its position in the code.
    """
    for k in itertools.count():
        found = result_or_error(work)
        if not isinstance(found, Exception):
            return found
        kind = failure_kind(found)
        if k == retries or kind:
            return Failure(_reason(found), kind)
        log.warning("%s: trying again after %s", what, one_line(found))
        time.sleep(FIRST_PAUSE_S * 2**k)
    raise AssertionError("unreachable: the loop has no end")


def _reason(err: Exception) -> str:
    """Return an error in one line; an unexpected one with its position in the code."""
    if isinstance(err, FORESEEN):
        return one_line(err)[:2000]
    place = traceback.extract_tb(err.__traceback__)[-1]
    at = f"in {place.name} of {Path(place.filename).name}, line {place.lineno}"
    return f"{one_line(err)[:2000]} (unexpected error, {at})"


def end_staging(config: RunConfig) -> None:
    """Remove this run's copies on a worker's machine."""
    if not config.schedule.keep_staged:
        for root in _staging_roots(config):
            drop_staged(root)


def _staging_roots(config: RunConfig) -> list[Path]:
    roots = [Path(config.schedule.stage)] if config.schedule.stage else []
    return [*roots, fetch_root(config)] if config.schedule.fetch_to else roots

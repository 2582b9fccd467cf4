"""Compute a tile: read, normalize, predict, separate, vectorize, write, return its outcome."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from wsiseg.backend import device_fault, device_timer
from wsiseg.errors import DeviceBrokenError, one_line
from wsiseg.log import log
from wsiseg.pipeline import StageClock, WindowPixels, window_maps, window_nuclei, window_stats
from wsiseg.read import TissueView, tissue_view, unscanned_view
from wsiseg.run.context import WorkerContext
from wsiseg.run.failures import failure_kind
from wsiseg.run.job import SlideJob, everywhere, part_path, valid_part
from wsiseg.run.tile_features import measured_in_tile
from wsiseg.types import PolygonBatch, Tile, TileOutcome, TileStats
from wsiseg.write import PartHeader, read_part, write_part

__all__ = ["run_tile", "result_or_error"]

Array = Any
T = TypeVar("T")


def segment_tile(tile: Tile, context: WorkerContext) -> TileOutcome:
    """Segment one tile and write its part file, which depends only on pixels, slide constants and config.

    Several threads of a worker run this at the same time. One thread (on a GPU: a few) computes while others read and write.
    """
    model = context.model  # loaded before the clock starts, so that this time is not added to a tile
    path = part_path(context.folder, tile)
    measure = context.config.write.features and not tile.outside
    if measure and (there := valid_part(path, context.digest)) is not None:
        return _measure_part(tile, path, there, context)
    clock = StageClock()
    with context.slide(tile.slide_id) as (job, slide):
        rgb = context.pixels(job, slide, model.input_box(tile.read))
    tissue = tissue_view(everywhere(job.meta) if tile.outside else job.tissue, tile.read, job.scale)
    clock.lap("read")
    with context.turn():
        clock.lap("wait")
        with clock.on_device(device_timer(context.device)):
            batch, stats, events = _compute(tile, job, rgb, tissue, context, clock)
    if measure:
        batch = measured_in_tile(job, batch, rgb, model.input_box(tile.read))
        clock.lap("features")
    write_part(path, batch, tile, stats, clock.seconds, context.digest, events)
    clock.lap("write")
    return TileOutcome(tile.slide_id, tile.tile_id, "done", len(batch), clock.seconds)


def _measure_part(tile: Tile, path: Path, header: PartHeader, context: WorkerContext) -> TileOutcome:
    """Add densities to the part of a tile that an earlier run, without features, has finished."""
    clock = StageClock(dict(header.seconds))
    _, batch = read_part(path)
    with context.slide(tile.slide_id) as (job, slide):
        batch = measured_in_tile(job, batch, context.pixels(job, slide, tile.read), tile.read)
    clock.lap("features")
    write_part(path, batch, tile, header.stats, clock.seconds, context.digest, header.events)
    return TileOutcome(tile.slide_id, tile.tile_id, "done", len(batch), clock.seconds)


def _compute(
    tile: Tile, job: SlideJob, rgb: Array, tissue: TissueView, context: WorkerContext, clock: StageClock
) -> tuple[PolygonBatch, TileStats, Counter[str]]:
    """Return the polygons and sums of a tile, and counts of what was computed differently for lack of GPU memory."""
    model = context.model
    events: Counter[str] = Counter()
    black = unscanned_view(job.tissue, model.input_box(tile.read), job.scale)
    pixels = WindowPixels(rgb, tissue, black)
    prob = window_maps(model, pixels, tile.read, job.stain, context.device, clock=clock, events=events)
    found = window_nuclei(prob, tile.read, tile.core, context.separate_params(job.mpp_working), clock=clock, events=events)
    stats = window_stats(found, tile.read, tile.core, tissue, events)
    clock.lap("vectorize")
    events.update(context.memory_facts())
    return found.batch, stats, events


def run_tile(tile: Tile, context: WorkerContext, attempt: int = 1) -> TileOutcome:
    """Segment one tile; any error becomes an outcome with its reason and does not stop the run.

    Raises
    ------
    DeviceBrokenError
        The GPU stopped computing, so this process cannot compute further tiles.
    """
    outcome = result_or_error(lambda: segment_tile(tile, context))
    if isinstance(outcome, Exception):
        log.error("slide %s, tile %d failed (attempt %d)", tile.slide_id, tile.tile_id, attempt, exc_info=outcome)
        context.forget(tile.slide_id)  # the reader may be in an error state, so the next tile opens it again
        fault = device_fault(outcome) if context.device != "cpu" else ""
        if fault:
            raise DeviceBrokenError(fault) from outcome
        return TileOutcome(
            tile.slide_id, tile.tile_id, "failed", 0, {}, one_line(outcome)[:500], attempt, kind=failure_kind(outcome)
        )
    return dataclasses.replace(outcome, attempts=attempt)


def result_or_error(work: Callable[[], T]) -> T | Exception:
    """Return the result of a function, or the exception that it raises, so that no tile or slide stops a run."""
    try:
        return work()
    except Exception as err:  # noqa: BLE001 - the one place of the package
        return err

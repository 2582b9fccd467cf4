"""The whole story of a tile: read, normalize, predict, separate, vectorize, write, return an outcome."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from wsiseg.backend import memory_errors, to_device, to_host
from wsiseg.errors import one_line
from wsiseg.log import log
from wsiseg.normalize import normalize
from wsiseg.read import read_on_device, tissue_window
from wsiseg.run.context import WorkerContext
from wsiseg.run.job import SlideJob
from wsiseg.separate import separate
from wsiseg.types import PolygonBatch, Tile, TileOutcome, TileStats
from wsiseg.vectorize import tile_stats, vectorize
from wsiseg.write import write_part

__all__ = ["run_tile"]

Array = Any


@dataclass(slots=True)
class StageClock:
    """Wall seconds of consecutive stages."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap to ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


def segment_tile(tile: Tile, context: WorkerContext) -> TileOutcome:
    """Segment one tile and write its part file. A pure function of pixels, slide constants and config.

    Threads of a worker do this at the same time, and only one (on a GPU: a few) of them computes: while it does, others read
    and write.
    """
    model = context.model  # loaded before the clock starts: no tile pays for it
    clock = StageClock()
    with context.slide(tile.slide_id) as (job, slide):
        rgb = None if context.decodes_on_device(job) else context.pixels(job, slide, model.input_box(tile.read))
    tissue = tissue_window(job.tissue, tile.read, job.scale)  # bool (H, W)
    clock.lap("read")
    with context.turn():
        clock.lap("wait")
        batch, stats, events = _compute(tile, job, rgb, tissue, context, clock)
    path = context.folder.part(tile.slide_id, tile.tile_id)
    write_part(path, batch, tile, stats, clock.seconds, context.digest, events)
    clock.lap("write")
    return TileOutcome(tile.slide_id, tile.tile_id, "done", len(batch), clock.seconds)


def _compute(
    tile: Tile, job: SlideJob, rgb: Array | None, tissue: Array, context: WorkerContext, clock: StageClock
) -> tuple[PolygonBatch, TileStats, Counter[str]]:
    """Pixels (``None``: the device decodes them) -> polygons, sums, and what was done otherwise for want of memory."""
    from wsiseg.predict import predict  # torch: not in the client, which only names this module

    model, device = context.model, context.device
    events: Counter[str] = Counter()
    if rgb is None:
        with context.slide(tile.slide_id) as (_, slide):
            rgb = read_on_device(slide, model.input_box(tile.read))
        clock.lap("read")
    rgb = normalize(to_device(rgb, device), job.stain)
    clock.lap("normalize")
    prob = predict(model, rgb, model.input_box(tile.read), tile.read, to_device(tissue, device), events)
    clock.lap("predict")
    try:
        instances = separate(prob, context.separate_params(job.mpp_working))
        clock.lap("separate")
        batch = vectorize(instances, prob, tile.read, tile.core)
    except memory_errors():
        log.warning("slide %s, tile %d: the memory of %s is full, separated on the CPU", tile.slide_id, tile.tile_id, device)
        events["separated_on_cpu"] += 1
        prob = to_host(prob)
        instances = separate(prob, context.separate_params(job.mpp_working))
        clock.lap("separate")
        batch = vectorize(instances, prob, tile.read, tile.core)
    stats = tile_stats(prob, instances, tile.read, tile.core, tissue)
    clock.lap("vectorize")
    events.update(context.memory_facts())
    return batch, stats, events


def run_tile(tile: Tile, context: WorkerContext, attempt: int = 1) -> TileOutcome:
    """Segment one tile; whatever goes wrong becomes an outcome with its reason, never a stop of the run."""
    try:
        outcome = segment_tile(tile, context)
    except Exception as err:  # noqa: BLE001 - the one place of the package: a tile never stops a run
        log.exception("slide %s, tile %d failed (attempt %d)", tile.slide_id, tile.tile_id, attempt)
        context.forget(tile.slide_id)  # a reader may be left in an error state: open it anew
        return TileOutcome(tile.slide_id, tile.tile_id, "failed", 0, {}, one_line(err)[:500], attempt)
    return dataclasses.replace(outcome, attempts=attempt)

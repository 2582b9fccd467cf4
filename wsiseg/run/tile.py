"""The whole story of a tile: read, normalize, predict, separate, vectorize, write, return an outcome."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

from wsiseg.backend import to_device
from wsiseg.errors import one_line
from wsiseg.log import log
from wsiseg.normalize import normalize
from wsiseg.read import read_working, tissue_window
from wsiseg.run.context import WorkerContext
from wsiseg.separate import separate
from wsiseg.types import Tile, TileOutcome
from wsiseg.vectorize import tile_stats, vectorize
from wsiseg.write import write_part

__all__ = ["run_tile"]


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
    """Segment one tile and write its part file. A pure function of pixels, slide constants and config."""
    from wsiseg.predict import predict  # torch: not in the client, which only names this function

    model = context.model  # loaded before the clock starts: no tile pays for it
    clock = StageClock()
    job, slide = context.job_and_slide(tile.slide_id)
    box = model.input_box(tile.read)
    rgb = read_working(slide, box, job.scale)
    clock.lap("read")
    rgb = to_device(normalize(rgb, job.stain), context.device)
    clock.lap("normalize")
    tissue = tissue_window(job.tissue, tile.read, job.scale)  # bool (H, W)
    prob = predict(model, rgb, box, tile.read, wanted=to_device(tissue, context.device))
    clock.lap("predict")
    instances = separate(prob, context.separate_params(job.mpp_working))
    clock.lap("separate")
    batch = vectorize(instances, prob, tile.read, tile.core)
    stats = tile_stats(prob, instances, tile.read, tile.core, tissue)
    clock.lap("vectorize")
    path = context.folder.part(tile.slide_id, tile.tile_id)
    write_part(path, batch, tile, stats, clock.seconds, context.digest)
    clock.lap("write")
    return TileOutcome(tile.slide_id, tile.tile_id, "done", len(batch), clock.seconds)


def run_tile(tile: Tile, context: WorkerContext, attempt: int = 1) -> TileOutcome:
    """Segment one tile; whatever goes wrong becomes an outcome with its reason, never a stop of the run."""
    try:
        outcome = segment_tile(tile, context)
    except Exception as err:  # noqa: BLE001 - the one place of the package: a tile never stops a run
        log.exception("slide %s, tile %d failed (attempt %d)", tile.slide_id, tile.tile_id, attempt)
        context.forget(tile.slide_id)  # a reader may be left in an error state: open it anew
        return TileOutcome(tile.slide_id, tile.tile_id, "failed", 0, {}, one_line(err)[:500], attempt)
    return dataclasses.replace(outcome, attempts=attempt)

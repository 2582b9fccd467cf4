"""``wsiseg plan``: estimate the time and bytes of a run from a few windows of the slides' tissue."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from wsiseg.cluster.devices import on_device
from wsiseg.cluster.placement import place
from wsiseg.config import RunConfig
from wsiseg.errors import WsisegError, plain_text
from wsiseg.fetch import is_address, slide_size_bytes
from wsiseg.log import log
from wsiseg.read import tissue_frac
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import fetch_options
from wsiseg.results.manifest import SlideInput
from wsiseg.results.remote import level_chooser
from wsiseg.results.run_record import ResolvedRecord
from wsiseg.results.slide_input import wanted_of
from wsiseg.run.context import WorkerContext
from wsiseg.run.job import SlideJob, prepare_slide, tiles_of
from wsiseg.run.resolve import resolve
from wsiseg.run.tile import run_tile
from wsiseg.types import Box, Tile

__all__ = ["Estimate", "Plan", "PlanRow", "plan"]

BYTES_PER_NUCLEUS = (85.0, 95.0, 115.0)
"""Low, usual and high number of bytes per nucleus in a table."""

PROBES = 8
"""Number of windows that are segmented."""

PROBE_WPX = 1000
STUDENT_90 = (math.inf, 6.31, 2.92, 2.35, 2.13, 2.02, 1.94, 1.89)
"""0.95 quantile of Student's t by degrees of freedom, for 90 % confidence intervals of a mean."""


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 90 % confidence interval."""

    low: float = 0.0
    mean: float = 0.0
    high: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the mean of measured values; the interval of a single value is from a third to three times the value."""
        mean = sum(values) / len(values)
        if len(values) == 1:
            return cls(mean / 3, mean, mean * 3)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
        half = STUDENT_90[min(len(values), len(STUDENT_90)) - 1] * spread
        return cls(max(min(values), mean - half), mean, min(max(values), mean + half))

    def times(self, factor: float, low: float = 1.0, high: float = 1.0) -> Estimate:
        """Return the estimate times a factor; ``low`` and ``high`` are further factors on the ends of the interval."""
        return Estimate(self.low * factor * low, self.mean * factor, self.high * factor * high)


@dataclasses.dataclass(frozen=True, slots=True)
class PlanRow:
    """Estimated cost of one slide.

    ``error`` is set if the slide cannot be used, ``note`` if its metadata disagree. For a slide at an address only
    ``fetch_bytes`` is known.
    """

    slide_id: str
    tiles: int = 0
    tiles_with_tissue: int = 0
    tissue_mm2: float = 0.0
    fetch_bytes: int = 0
    error: str = ""
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Rows of the slides; seconds of one worker and nuclei per mm2 of tissue, both measured on ``n_probes`` windows.

    ``resolved`` is what the run would compute with, ``free_bytes`` the free space on the disk of the staging folder,
    ``bound_bytes`` the limit for staged slides.
    """

    rows: list[PlanRow]
    resolved: ResolvedRecord
    seconds_per_mm2: Estimate
    nuclei_per_mm2: Estimate
    n_probes: int
    free_bytes: int
    bound_bytes: int

    @property
    def workers(self) -> int:
        """Number of worker processes on this machine."""
        return self.resolved.workers or 1

    def seconds(self, rows: Sequence[PlanRow]) -> Estimate:
        """Return the time that these slides take with all workers, s."""
        return self.seconds_per_mm2.times(sum(r.tissue_mm2 for r in rows) / self.workers)

    def table_bytes(self, rows: Sequence[PlanRow]) -> Estimate:
        """Return the size of the tables of these slides, bytes."""
        low, usual, high = BYTES_PER_NUCLEUS
        return self.nuclei_per_mm2.times(sum(r.tissue_mm2 for r in rows) * usual, low / usual, high / usual)

    def too_large(self) -> list[PlanRow]:
        """Return the slides that cannot be staged because they exceed the limit or the free space."""
        return [r for r in self.rows if r.fetch_bytes > min(self.bound_bytes, self.free_bytes)]


def plan(slides: Sequence[SlideInput], config: RunConfig) -> Plan:
    """Return a cost estimate for each slide.

    Windows of 1000 working px, spread evenly over the tissue of all slides, are segmented in this process; the means of their
    seconds and nuclei per mm2 of tissue, with their intervals, are extrapolated. Slides at addresses are not fetched; only
    their size is requested.
    """
    placement = place(config)
    if placement.note:
        log.warning("%s", placement.note)
    rows: dict[str, PlanRow] = {}
    with TemporaryDirectory(prefix="wsiseg-plan-") as scratch:
        folder = RunFolder(Path(scratch))
        folder.create()
        context = WorkerContext(folder, on_device(config, placement.device), "plan", placement.device)
        try:
            facts = context.worker_facts("")
            resolved = resolve(config, context.config, facts, placement).record
            mpp_model = context.model.mpp  # outside the loop: unusable weights are not an error of a slide
            jobs = _jobs([s for s in slides if not is_address(s.path)], context, rows)
            _ask_sizes([s for s in slides if is_address(s.path)], config, mpp_model, rows)
            windows = list(_windows(jobs, config))
            for tile, _ in windows[:1]:
                run_tile(tile, context)  # the first computation compiles and loads
            probes = [_probe(tile, tissue_mm2, context) for tile, tissue_mm2 in windows]
        finally:
            context.close()
    seconds, nuclei = (Estimate.of([p[k] for p in probes]) if probes else Estimate() for k in (0, 1))
    stage = Path(config.schedule.stage or os.getcwd())
    there = next(p for p in (stage, *stage.absolute().parents) if p.exists())
    free, bound = shutil.disk_usage(there).free, int(config.schedule.stage_gb * 1e9)
    return Plan([rows[s.slide_id] for s in slides], resolved, seconds, nuclei, len(probes), free, bound)


def _jobs(slides: Sequence[SlideInput], context: WorkerContext, rows: dict[str, PlanRow]) -> list[SlideJob]:
    """Fit the constants of slides on this machine; add their rows."""
    jobs = []
    config = context.config
    for slide in slides:
        try:
            job = prepare_slide(slide, context.folder, config, context.model.mpp, context.stain_aim)
        except (WsisegError, OSError) as err:
            rows[slide.slide_id] = PlanRow(slide.slide_id, error=plain_text(" ".join(str(err).split())))
            continue
        for warning in job.warnings:
            log.warning("slide %s: %s", slide.slide_id, warning)
        tiles = tiles_of(job, config)
        tissue = [t for t in tiles if t.tissue_frac > config.read.tissue_min_frac]
        mm2 = sum(t.core.w * t.core.h * t.tissue_frac for t in tissue) * job.mpp_working**2 * 1e-6
        rows[slide.slide_id] = PlanRow(slide.slide_id, len(tiles), len(tissue), mm2, note=job.meta.mpp_note)
        jobs.append(job)
    return jobs


def _ask_sizes(slides: Sequence[SlideInput], config: RunConfig, mpp_model: float, rows: dict[str, PlanRow]) -> None:
    """Add the rows of slides at addresses."""

    def ask(slide: SlideInput) -> PlanRow:
        want = wanted_of(slide)
        assert want is not None
        try:
            size = slide_size_bytes(want, fetch_options(config), level_chooser(mpp_model))
        except (WsisegError, OSError) as err:
            return PlanRow(slide.slide_id, error=plain_text(" ".join(str(err).split())))
        return PlanRow(slide.slide_id, fetch_bytes=size)

    with ThreadPoolExecutor(8) as pool:
        rows |= {row.slide_id: row for row in pool.map(ask, slides)}


def _windows(jobs: Sequence[SlideJob], config: RunConfig) -> Iterator[tuple[Tile, float]]:
    """Yield ``PROBES`` windows at equal steps of the tissue area of all slides, each with its mm2 of tissue."""
    pieces = [(job, t) for job in jobs for t in tiles_of(job, config) if t.tissue_frac > config.read.tissue_min_frac]
    areas = [job.mpp_working**2 * 1e-6 * t.core.w * t.core.h * t.tissue_frac for job, t in pieces]
    step, at = sum(areas) / PROBES, 0.0
    wanted = [step * (k + 0.5) for k in range(PROBES)] if pieces else []
    for (job, tile), area in zip(pieces, areas, strict=True):
        here = [w - at for w in wanted if at <= w < at + area]
        at += area
        parts = [(part, _tissue_mm2(part, job)) for part in _parts(tile)] if here else []
        for offset in here:
            total = 0.0
            for part, mm2 in parts:
                total += mm2
                if mm2 > 0 and (total > offset or part is parts[-1][0]):
                    yield dataclasses.replace(tile, core=part, read=part.padded(config.read.halo_wpx)), mm2
                    break


def _parts(tile: Tile) -> list[Box]:
    """Return a tile's core cut into windows of about ``PROBE_WPX``."""
    core = tile.core
    n_x, n_y = (max(1, round(side / PROBE_WPX)) for side in (core.w, core.h))
    xs, ys = [core.w * k // n_x for k in range(n_x + 1)], [core.h * k // n_y for k in range(n_y + 1)]
    return [
        Box(core.x + xs[i], core.y + ys[j], xs[i + 1] - xs[i], ys[j + 1] - ys[j]) for j in range(n_y) for i in range(n_x)
    ]  # fmt: skip


def _tissue_mm2(part: Box, job: SlideJob) -> float:
    level0 = Box(*(round(v / job.scale) for v in (part.x, part.y, part.w, part.h)))
    return tissue_frac(job.tissue, level0) * part.w * part.h * job.mpp_working**2 * 1e-6


def _probe(tile: Tile, tissue_mm2: float, context: WorkerContext) -> tuple[float, float]:
    """Return seconds and nuclei per mm2 of tissue of one window."""
    start = time.perf_counter()
    outcome = run_tile(tile, context)
    return (time.perf_counter() - start) / tissue_mm2, outcome.n_nuclei / tissue_mm2

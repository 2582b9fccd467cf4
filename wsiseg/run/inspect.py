"""Checks before a run: facts of a slide, and the cost of a run over slides."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from wsiseg.cluster.devices import compute_device
from wsiseg.cluster.limits import default_workers
from wsiseg.config import RunConfig
from wsiseg.errors import InputError, TileReadError, WsisegError, plain_text
from wsiseg.fetch import is_address, shown
from wsiseg.log import log
from wsiseg.read import fit_tissue, open_slide, scale_for, tissue_frac, working_size
from wsiseg.read.slide import layout_words
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run.context import WorkerContext
from wsiseg.run.job import prepare_slide, tiles_of
from wsiseg.run.tile import run_tile
from wsiseg.types import Box, Tile

__all__ = ["PlanRow", "plan", "slide_info"]

BYTES_PER_NUCLEUS = 110.0


def slide_info(path: str, mpp: float | None, mpp_model: float, tolerance_frac: float) -> dict[str, Any]:
    """Return the facts of one slide as ``wsiseg info`` prints them, with the share of it that is tissue."""
    if is_address(path):
        raise InputError(f"{shown(path)}: info reads slides on this machine; segment and plan take addresses too.")
    slide = open_slide(path, mpp=mpp)
    try:
        facts = dataclasses.asdict(slide.meta)
        facts["layout"] = slide.meta.layout or layout_words(path)
        scale = scale_for(slide.meta.mpp, mpp_model, tolerance_frac)
        facts["scale"] = scale
        facts["working_size_px"] = working_size(slide.meta, scale)
        facts["area_mm2"] = slide.meta.width_px * slide.meta.height_px * slide.meta.mpp**2 * 1e-6
        try:
            whole = Box(0, 0, slide.meta.width_px, slide.meta.height_px)
            facts["tissue_frac"] = round(tissue_frac(fit_tissue(slide), whole), 4)
        except TileReadError as err:
            facts["tissue_frac"] = f"unknown: {err}"
        return facts
    finally:
        slide.close()


@dataclasses.dataclass(frozen=True, slots=True)
class PlanRow:
    """Estimated cost of one slide. ``error`` is set if the slide cannot be used, ``note`` if its metadata disagree."""

    slide_id: str
    tiles: int = 0
    tiles_with_tissue: int = 0
    tissue_mm2: float = 0.0
    seconds: float = 0.0
    table_bytes: float = 0.0
    error: str = ""
    note: str = ""


def plan(slides: Sequence[SlideInput], config: RunConfig, *, workers: int = 0) -> tuple[list[PlanRow], dict[str, float]]:
    """Return a cost estimate for each slide, and the measurements of the probe on which it is based.

    The estimate is measured, not assumed: one real tile of 1000 working px from the middle of the first usable slide's
    tissue is segmented here, and its seconds and nuclei per mm2 are carried over to the rest.
    """
    n_workers, why = default_workers(workers or config.schedule.workers)
    if why:
        log.warning("%s", why)
    rows: list[PlanRow] = []
    probe: dict[str, float] = {}
    with TemporaryDirectory(prefix="wsiseg-plan-") as scratch:
        folder = RunFolder(Path(scratch))
        folder.create()
        context = WorkerContext(folder, config, "plan", compute_device(config))
        try:
            mpp_model, aim = context.model.mpp, context.stain_aim  # unusable weights are no slide's fault
            for slide in slides:
                try:
                    job = prepare_slide(slide, folder, config, mpp_model, aim)
                except (WsisegError, OSError) as err:
                    rows.append(PlanRow(slide.slide_id, error=plain_text(" ".join(str(err).split()))))
                    continue
                for warning in job.warnings:
                    log.warning("slide %s: %s", slide.slide_id, warning)
                tiles = tiles_of(job, config)
                tissue = [t for t in tiles if t.tissue_frac > config.read.tissue_min_frac]
                mm2 = sum(t.core.w * t.core.h * t.tissue_frac for t in tissue) * job.mpp_working**2 * 1e-6
                if not probe and tissue:
                    probe = _probe(max(tissue, key=lambda t: t.tissue_frac), context, job.mpp_working)
                rows.append(
                    PlanRow(
                        slide.slide_id,
                        len(tiles),
                        len(tissue),
                        mm2,
                        mm2 * probe.get("seconds_per_mm2", 0.0) / n_workers,
                        mm2 * probe.get("nuclei_per_mm2", 0.0) * BYTES_PER_NUCLEUS,
                        note=job.meta.mpp_note,
                    )
                )
        finally:
            context.close()
    probe["workers"] = n_workers
    return rows, probe


def _probe(tile: Tile, context: WorkerContext, mpp_working: float) -> dict[str, float]:
    side = min(1000, tile.core.w, tile.core.h)
    core = Box(tile.core.x + (tile.core.w - side) // 2, tile.core.y + (tile.core.h - side) // 2, side, side)
    small = dataclasses.replace(tile, core=core, read=core.padded(context.config.read.halo_wpx))
    run_tile(small, context)  # first use compiles and loads
    start = time.perf_counter()
    outcome = run_tile(small, context)
    mm2 = side * side * mpp_working**2 * 1e-6
    return {
        "seconds_per_mm2": (time.perf_counter() - start) / mm2,
        "nuclei_per_mm2": outcome.n_nuclei / mm2,
        "probe_mm2": mm2,
    }

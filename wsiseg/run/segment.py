"""``wsiseg segment``: slides in, a run folder out."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, as_completed
from distributed.client import Future

from wsiseg.config import RunConfig
from wsiseg.errors import WsisegError, one_line
from wsiseg.log import log
from wsiseg.run.cluster import WorkerSetup, connect, worker_context
from wsiseg.run.context import WorkerContext, compute_device
from wsiseg.run.feed import Feeder, PrepareDone, Task
from wsiseg.run.finish import finish_slide, finished_row, record_failed_slide, tiles_to_do
from wsiseg.run.folder import RunFolder
from wsiseg.run.job import prepare_slide
from wsiseg.run.manifest import SlideInput
from wsiseg.run.tile import run_tile
from wsiseg.summarize import write_errors_table, write_slides_table
from wsiseg.tables import sweep_partials
from wsiseg.types import Tile, TileOutcome

__all__ = ["Progress", "RunSummary", "segment"]


@dataclass(slots=True)
class Progress:
    """Running totals, handed to the progress callback after every event."""

    slides: int = 0
    slides_done: int = 0
    tiles: int = 0
    tiles_done: int = 0
    tiles_failed: int = 0
    nuclei: int = 0
    mm2: float = 0.0
    mm2_done: float = 0.0
    message: str = ""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did. ``rows`` are the statistics rows of all slides named, earlier ones included."""

    out: Path
    rows: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    seconds: float
    mm2_done: float
    digest: str
    weights: str

    @property
    def ok(self) -> bool:
        """Return whether every slide is done or empty."""
        return all(r["status"] in ("done", "empty") for r in self.rows)


def segment(
    slides: Sequence[SlideInput],
    out: Path,
    config: RunConfig,
    *,
    note: dict[str, Any] | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> RunSummary:
    """Segment slides into a run folder, resuming what an earlier run left there.

    Parameters
    ----------
    slides
        From ``wsiseg.run.manifest.collect_slides``.
    out
        Run folder; made if missing, resumed if it holds a run with the same result-changing settings.
    note
        Facts recorded in ``run.json`` (command line, time of start).
    on_progress
        Called with running totals after every tile and slide.

    Raises
    ------
    OutputMismatchError, OutputInUseError
        The folder belongs to other settings, or to a run that is alive.
    WeightsError
        The network cannot be loaded.
    OSError
        The disk is full: finished tiles are kept, and the same call resumes.
    """
    start = time.perf_counter()
    folder = RunFolder(out.absolute())
    with folder.exclusive(), connect(config) as client:
        folder.create()
        for sub in ("nuclei", "slides", "parts"):
            sweep_partials(folder.root / sub)
        config, facts = _resolve(client, folder, config)
        weights = f"{facts['weights']}: {facts.pop('licence')}"
        digest = folder.claim(config, facts, note or {})
        setup = WorkerSetup(str(folder.root), config, digest, compute_device(config))
        client.register_plugin(setup)
        progress = Progress(slides=len(slides))
        constants = (setup.name, float(facts["mpp_model"]), str(facts["stain_method"]))
        rows = _Run(client, folder, config, digest, constants, progress, on_progress).drive(slides)
        client.unregister_worker_plugin(setup.name)  # a cluster of others outlives this run
        ordered = [rows[s.slide_id] for s in slides]
        errors = _collect_errors(folder, [s.slide_id for s in slides])
        write_slides_table(ordered, folder.root / "slides.parquet")
        write_errors_table(errors, folder.root / "errors.parquet")
    return RunSummary(folder.root, ordered, errors, time.perf_counter() - start, progress.mm2_done, digest, weights)


def _resolve(client: Client, folder: RunFolder, config: RunConfig) -> tuple[RunConfig, dict[str, Any]]:
    """Pin what ``auto`` means (a resumed run keeps the folder's choice) and return it with the worker's facts."""
    old = folder.read_run()
    for name in ("precision", "engine"):
        if old is not None and getattr(config.predict, name) == "auto":
            stored = old["results"].get(f"predict.{name}", "auto")
            config = dataclasses.replace(config, predict=dataclasses.replace(config.predict, **{name: stored}))
    facts: dict[str, Any] = client.submit(_worker_facts, str(folder.root), config, compute_device(config), pure=False).result()
    predict = dataclasses.replace(config.predict, precision=facts.pop("precision"), engine=facts.pop("engine"))
    return dataclasses.replace(config, predict=predict), facts


def _worker_facts(folder: str, config: RunConfig, device: str) -> dict[str, Any]:
    context = WorkerContext(RunFolder(Path(folder)), config, "", device)
    return {**context.facts(), "licence": context.model.licence}


def _prepare_task(slide: SlideInput, setup: str, mpp_model: float, stain_method: str) -> PrepareDone | str:
    """Prepare a slide on a worker; an unusable slide comes back as its reason."""
    context = worker_context(setup)
    try:
        row = finished_row(context.folder, slide, context.digest)
        if row is not None:
            return PrepareDone(slide.slide_id, row=row)
        job = prepare_slide(slide, context.folder, context.config, mpp_model, stain_method)
    except (WsisegError, OSError) as err:
        return one_line(err)
    todo, decided = tiles_to_do(job, context)
    mm2 = sum(t.core.w * t.core.h * t.tissue_frac for t in todo) * job.mpp_working**2 * 1e-6
    return PrepareDone(slide.slide_id, None, tuple(todo), tuple(decided), mm2, job.note)


def _tile_task(tile: Tile, attempt: int, setup: str) -> TileOutcome:
    return run_tile(tile, worker_context(setup), attempt)


def _finish_task(slide_id: str, failed: tuple[TileOutcome, ...], setup: str) -> dict[str, Any] | str:
    try:
        return finish_slide(slide_id, failed, worker_context(setup))
    except (WsisegError, OSError) as err:
        return one_line(err)


class _Run:
    """The client's side of one run: feed tasks, take results, keep totals."""

    def __init__(
        self,
        client: Client,
        folder: RunFolder,
        config: RunConfig,
        digest: str,
        constants: tuple[str, float, str],
        progress: Progress,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.client = client
        self.folder = folder
        self.config = config
        self.digest = digest
        self.constants = constants  # name of the workers' setup, the model's mpp, the stain method
        self.progress = progress
        self.on_progress = on_progress
        self.rows: dict[str, dict[str, Any]] = {}
        self.inputs: dict[str, SlideInput] = {}
        self.tile_mm2: dict[str, float] = {}

    def drive(self, slides: Sequence[SlideInput]) -> dict[str, dict[str, Any]]:
        """Run all slides; return their statistics rows by slide id."""
        self.inputs = {s.slide_id: s for s in slides}
        n_workers = max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))
        limit = n_workers * self.config.schedule.in_flight_per_worker
        feeder = Feeder(slides, limit=limit, retries=self.config.schedule.retries)
        flying: dict[Future, Task] = {}
        ready = as_completed(loop=self.client.loop)
        while not feeder.done():
            while (task := feeder.next_task()) is not None:
                future = self._submit(task)
                flying[future] = task
                ready.add(future)
            future = next(ready)
            self._take(flying.pop(future), future, feeder)
            self.on_progress(self.progress)
        return self.rows

    def _submit(self, task: Task) -> Future:
        options = {"pure": False, "retries": 0}
        if task.kind == "prepare":
            return self.client.submit(_prepare_task, task.payload, *self.constants, priority=5, **options)
        if task.kind == "tile":
            tile, attempt = task.payload
            return self.client.submit(_tile_task, tile, attempt, self.constants[0], **options)
        slide_id, failed = task.payload
        return self.client.submit(_finish_task, slide_id, failed, self.constants[0], priority=10, **options)

    def _take(self, task: Task, future: Future, feeder: Feeder) -> None:
        error = future.exception()
        result: Any = None if error is not None else future.result()
        reason = one_line(error)[:500] if error is not None else ""
        if task.kind == "tile":
            self._take_tile(task, result, reason, feeder)
        elif task.kind == "prepare":
            self._take_prepared(task, reason if result is None else result, feeder)
        else:
            feeder.finished()
            self._close_slide(task.slide_id, reason if result is None else result)

    def _take_prepared(self, task: Task, result: PrepareDone | str, feeder: Feeder) -> None:
        if isinstance(result, str):
            feeder.prepare_failed()
            self._close_slide(task.slide_id, result)
            return
        feeder.prepared(result)
        if result.note:
            log.warning("slide %s is done anew: %s", task.slide_id, result.note)
        if result.row is not None:
            self._close_slide(task.slide_id, result.row)
            self.progress.nuclei += int(result.row["n_nuclei"])
            return
        total = sum(t.core.w * t.core.h * t.tissue_frac for t in result.todo) or 1.0
        self.tile_mm2[task.slide_id] = result.mm2_todo / total
        self.progress.tiles += len(result.todo)
        self.progress.mm2 += result.mm2_todo
        self.progress.nuclei += sum(o.n_nuclei for o in result.decided)

    def _take_tile(self, task: Task, result: TileOutcome | None, reason: str, feeder: Feeder) -> None:
        tile, attempt = task.payload
        if result is not None:
            _stop_on_full_disk(result.error, self.folder)
        else:  # the worker died on it more often than the scheduler allows, or was cancelled
            result = TileOutcome(
                tile.slide_id, tile.tile_id, "failed", 0, {}, reason, self.config.schedule.retries + attempt + 1
            )
        final = feeder.tile_done(tile, result)
        if not final:
            log.warning("slide %s, tile %d: trying again (%s)", tile.slide_id, tile.tile_id, result.error)
            return
        self.progress.tiles_done += 1
        self.progress.tiles_failed += result.status == "failed"
        self.progress.nuclei += result.n_nuclei
        self.progress.mm2_done += tile.core.w * tile.core.h * tile.tissue_frac * self.tile_mm2[tile.slide_id]

    def _close_slide(self, slide_id: str, result: dict[str, Any] | str) -> None:
        if isinstance(result, str):
            _stop_on_full_disk(result, self.folder)
            slide = self.inputs[slide_id]
            log.error("slide %s: %s", slide_id, result)
            result = record_failed_slide(self.folder, slide_id, slide.path, slide.cohort, self.digest, result)
        self.rows[slide_id] = result
        self.progress.slides_done += 1


def _stop_on_full_disk(reason: str, folder: RunFolder) -> None:
    """Raise ``OSError`` where a reason says that nothing can be stored: every further tile would be computed for nothing."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        if os.strerror(number) in reason:
            raise OSError(number, os.strerror(number), str(folder.root))


def _collect_errors(folder: RunFolder, slide_ids: Sequence[str]) -> list[dict[str, Any]]:
    errors: list[dict[str, Any]] = []
    for slide_id in slide_ids:
        record = json.loads(folder.slide_json(slide_id).read_text(encoding="utf-8"))
        errors.extend(record.get("errors", []))
    return errors

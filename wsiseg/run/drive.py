"""The client's side of a run: feed tasks to Dask, take their results, keep totals."""

from __future__ import annotations

import os
import queue
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distributed.client import Future

from wsiseg.config import RunConfig
from wsiseg.errors import SchedulerLostError, one_line
from wsiseg.log import log
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run.crew import ANSWER_S, LOOK_S, Crew
from wsiseg.run.feed import MOST_RETURNS, Feeder, PrepareDone, Task
from wsiseg.run.finish import record_failed_slide
from wsiseg.run.hosts import STRIKES, Thing
from wsiseg.run.tasks import Answer, Failure, end_staging, finish_task, full_disk, prepare_task, tiles_task
from wsiseg.run.watch import Watch
from wsiseg.types import Stain, Tile, TileOutcome

__all__ = ["Drive", "Progress"]

LOGGED = ("slide_id", "status", "n_nuclei", "tissue_mm2", "error")
"""What the log says of a slide that is closed, beside its tiles and seconds."""


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
    kernels_s: float = 0.0
    message: str = ""


class Drive:
    """One run: hands out what the feeder says and takes what comes back."""

    def __init__(
        self,
        crew: Crew,
        folder: RunFolder,
        config: RunConfig,
        digest: str,
        constants: tuple[float, Stain],
        progress: Progress,
        on_progress: Callable[[Progress], None],
        watch: Watch,
        rows: dict[str, dict[str, Any]],
    ) -> None:
        self.crew = crew
        self.client = crew.client
        self.folder = folder
        self.config = config
        self.digest = digest
        self.constants = constants  # the model's mpp, what slides are normalized to
        self.progress = progress
        self.on_progress = on_progress
        self.watch = watch
        self.lost: Counter[tuple[str, str]] = Counter()
        self.rows = rows  # by slide id; those of an earlier connection stay
        self.inputs: dict[str, SlideInput] = {}
        self.tile_mm2: dict[str, float] = {}
        self.unopened: dict[str, SlideInput] = {}  # a host that comes later may be able to open them
        self.hosts_seen = 0
        self.there_seen: dict[str, int] = {}
        self.recalled: set[Future] = set()  # tasks bound to workers that are gone

    def run(self, slides: Sequence[SlideInput]) -> None:
        """Run all slides; their statistics rows stand in ``rows`` then.

        Raises
        ------
        SchedulerLostError
            The scheduler is gone.
        OSError
            The disk is full.
        """
        self.inputs = {s.slide_id: s for s in slides}
        schedule = self.config.schedule
        feeder = Feeder(
            slides, limit=1, retries=schedule.retries, in_flight=schedule.in_flight_per_worker, task_s=schedule.task_s
        )
        flying: dict[Future, tuple[Task, frozenset[str]]] = {}
        ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
        while not feeder.done():
            feeder.limit = max(1, self._look()) * schedule.in_flight_per_worker
            self._reopen(feeder)
            self._recall(flying)
            while (task := feeder.next_task()) is not None:
                future, chosen = self._submit(task, feeder)
                flying[future] = task, chosen
                future.add_done_callback(ready.put)
            try:
                future = ready.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            self._take(flying.pop(future)[0], future, feeder)
            self.on_progress(self.progress)
        self._tell_of_hosts()
        if schedule.stage:
            self.client.run(end_staging, schedule.stage, on_error="ignore")

    def _look(self) -> int:
        if self.client.status != "running":
            raise SchedulerLostError(
                f"The Dask scheduler is gone (connection {self.client.status}). Finished tiles are kept: start a scheduler and "
                "run the same command again."
            )
        self._tell_of_hosts()
        try:
            return self.crew.look()
        except (OSError, TimeoutError) as err:
            raise SchedulerLostError(
                f"The Dask scheduler does not answer ({one_line(err)}). Finished tiles are kept: run the same command again."
            ) from err

    def _tell_of_hosts(self) -> None:
        hosts = self.crew.hosts
        for text in hosts.news:
            log.warning("%s", text)
        hosts.news.clear()
        self.watch.hosts_aside |= hosts.aside

    def _recall(self, flying: Mapping[Future, tuple[Task, frozenset[str]]]) -> None:
        """Take back tasks of which all workers that they are bound to are gone: nobody would ever take them."""
        there = self.crew.there
        if there is self.there_seen:
            return
        self.there_seen = there
        for future in [f for f, (_, chosen) in flying.items() if chosen and not chosen & there.keys()]:
            if future not in self.recalled:
                self.recalled.add(future)
                future.cancel()

    def _reopen(self, feeder: Feeder) -> None:
        """Give slides that could not be opened to hosts that came since."""
        hosts = self.crew.hosts
        if len(hosts) == self.hosts_seen:
            return
        self.hosts_seen = len(hosts)
        able = self.crew.able("prepare")
        for slide_id in [s for s in self.unopened if hosts.may_be_done(("prepare", s, -1), able)]:
            log.warning("slide %s: tried again on a host that came later", slide_id)
            feeder.add(self.unopened.pop(slide_id))
            self.rows.pop(slide_id, None)
            self.progress.slides_done -= 1

    def _submit(self, task: Task, feeder: Feeder) -> tuple[Future, frozenset[str]]:
        """Hand out a task; return it and the workers that it is bound to (none: any)."""
        name = self.crew.setup.name
        options = {"pure": False, "retries": 0, **self.crew.options(task.kind, _things(task))}
        bound = frozenset(options.get("workers", ()))
        if task.kind == "prepare":
            return self.client.submit(
                prepare_task, task.payload, feeder.upcoming(), name, *self.constants, priority=5, **options
            ), bound
        if task.kind == "tiles":
            return self.client.submit(tiles_task, task.payload, name, **options), bound
        slide_id, failed = task.payload
        return self.client.submit(finish_task, slide_id, failed, name, priority=10, **options), bound

    def _take(self, task: Task, future: Future, feeder: Feeder) -> None:
        if future in self.recalled:
            self.recalled.discard(future)
            self._take_lost(task, str(future.key), "the workers that it was bound to are gone", feeder)
            return
        error = future.exception()
        if error is not None:
            if future.cancelled():
                self._look()  # the scheduler may be gone
            self._take_lost(task, str(future.key), one_line(error)[:500], feeder)
            return
        answer = _fetched(future)
        if task.kind == "tiles":
            self._take_tiles(task, self.crew.hosts.took_tiles(answer.worker, answer.result), feeder)
        elif isinstance(answer.result, Failure):
            self._take_failure(task, answer.worker, answer.result, feeder)
        elif task.kind == "prepare":
            if answer.result.row is None:  # else nothing was opened
                self.crew.hosts.succeeded(answer.worker, *_things(task))
            self._take_prepared(task, answer.result, feeder)
        else:
            self.crew.hosts.succeeded(answer.worker, *_things(task))
            feeder.finished()
            self._close_slide(task.slide_id, answer.result)

    def _take_failure(self, task: Task, worker: str, failure: Failure, feeder: Feeder) -> None:
        """Take a slide that could not be prepared or finished: another host tries it, where there is one that may succeed."""
        hosts, (thing,) = self.crew.hosts, _things(task)
        if not failure.fact:
            hosts.failed(worker, thing, failure.reason, STRIKES)  # it was tried more than once there
            if hosts.may_be_done(thing, self.crew.able(task.kind)):
                self.watch.counts["retries"] += 1
                where = " ".join(hosts.where(worker))
                log.warning("slide %s: trying again on another host than %s (%s)", task.slide_id, where, failure.reason)
                feeder.again(task)
                return
            if task.kind == "prepare":
                self.unopened[task.slide_id] = task.payload
        (feeder.prepare_failed if task.kind == "prepare" else feeder.finished)()
        reasons = hosts.failures(thing) or [(worker, failure.reason)]
        # a host whose disk is full says that of every slide
        worker, reason = next((r for r in reversed(reasons) if not full_disk(r[1])), reasons[-1])
        self._close_slide(task.slide_id, reason, worker=worker, attempts=len(reasons))

    def _take_lost(self, task: Task, key: str, reason: str, feeder: Feeder) -> None:
        """Take a task without a result: its worker died, or left, or could not even begin."""
        deaths = self.watch.blamed(key)
        self.crew.hosts.took_deaths(deaths)
        self.watch.counts["retries"] += 1
        if task.kind == "tiles":
            log.warning(
                "slide %s: %d tiles lost (%s)", task.slide_id, len(task.payload), deaths[0].reason if deaths else reason
            )
            by_id = {tile.tile_id: tile for tile, _ in task.payload}
            guilty = {d.tile_id: d for d in deaths if d.kind == "tile"}
            for outcome in feeder.tiles_lost(task, guilty, reason, self._elsewhere(task)):
                self._count(by_id[outcome.tile_id], outcome)
            return
        self.lost[task.kind, task.slide_id] += 1
        patience = self.config.schedule.retries if deaths else MOST_RETURNS
        elsewhere = self.crew.hosts.may_be_done(_things(task)[0], self.crew.able(task.kind))
        if self.lost[task.kind, task.slide_id] <= patience or elsewhere:
            log.warning(
                "slide %s: %s was lost (%s); trying again", task.slide_id, task.kind, deaths[0].reason if deaths else reason
            )
            feeder.again(task)
            return
        (feeder.prepare_failed if task.kind == "prepare" else feeder.finished)()
        worker = deaths[0].worker if deaths else ""
        why = deaths[0].reason if deaths else reason
        self._close_slide(task.slide_id, why, worker=worker, attempts=self.lost[task.kind, task.slide_id])

    def _take_prepared(self, task: Task, result: PrepareDone, feeder: Feeder) -> None:
        feeder.prepared(result)
        if result.note:
            log.warning("slide %s is done anew: %s", task.slide_id, result.note)
        for warning in result.warnings:
            log.warning("slide %s: %s", task.slide_id, warning)
        if result.row is not None:
            self._close_slide(task.slide_id, result.row, earlier=True)
            self.progress.nuclei += int(result.row["n_nuclei"])
            return
        total = sum(t.core.w * t.core.h * t.tissue_frac for t in result.todo) or 1.0
        self.tile_mm2[task.slide_id] = result.mm2_todo / total
        self.progress.tiles += len(result.todo)
        self.progress.mm2 += result.mm2_todo
        self.progress.nuclei += sum(o.n_nuclei for o in result.decided)
        self.watch.event("slide_opened", slide_id=task.slide_id, tiles=len(result.todo), tiles_decided=len(result.decided))

    def _take_tiles(self, task: Task, outcomes: list[TileOutcome], feeder: Feeder) -> None:
        elsewhere = self._elsewhere(task)
        for outcome in outcomes:
            thing = ("tile", outcome.slide_id, outcome.tile_id)
            everywhere = all(full_disk(reason) for _, reason in self.crew.hosts.failures(thing))
            if outcome.tile_id not in elsewhere and everywhere:
                _stop_on_full_disk(outcome.error, self.folder)
        final = feeder.tiles_done(task, outcomes, elsewhere)
        for (tile, _), outcome, is_final in zip(task.payload, outcomes, final, strict=True):
            if is_final:
                self._count(tile, outcome)
                continue
            self.watch.counts["retries"] += 1
            where = f"after {outcome.error}" + (f" on {outcome.host} {outcome.worker}" if outcome.host else "")
            log.warning("slide %s, tile %d: trying again %s", tile.slide_id, tile.tile_id, where)

    def _elsewhere(self, task: Task) -> frozenset[int]:
        """Return which tiles of a task failed, and are to be tried on another host before they are given up."""
        hosts, able = self.crew.hosts, self.crew.able("tiles")
        return frozenset(thing[2] for thing in _things(task) if hosts.may_be_done(thing, able))

    def _count(self, tile: Tile, outcome: TileOutcome) -> None:
        """Add a tile that is decided to the totals."""
        self.progress.tiles_done += 1
        self.progress.nuclei += outcome.n_nuclei
        self.progress.mm2_done += tile.core.w * tile.core.h * tile.tissue_frac * self.tile_mm2[tile.slide_id]
        if outcome.status == "failed":
            self.crew.hosts.forget(("tile", tile.slide_id, tile.tile_id))
            self.progress.tiles_failed += 1
            facts = {"slide_id": tile.slide_id, "tile_id": tile.tile_id, "attempts": outcome.attempts}
            facts |= {"host": outcome.host, "worker": outcome.worker}
            self.watch.event("tile_failed", level="error", **facts, error=outcome.error)

    def _close_slide(
        self, slide_id: str, result: dict[str, Any] | str, *, earlier: bool = False, worker: str = "", attempts: int = 1
    ) -> None:
        if isinstance(result, str):
            _stop_on_full_disk(result, self.folder)
            slide = self.inputs[slide_id]
            result += f" ({slide.origin})" if slide.origin else ""
            at = self.crew.hosts.where(worker)
            log.error("slide %s: %s%s", slide_id, result, f" (on {at[0]}, worker {at[1]})" if at[0] else "")
            result = record_failed_slide(self.folder, slide, self.digest, result, attempts, at)
        self.rows[slide_id] = result
        self.tile_mm2.pop(slide_id, None)
        self.progress.slides_done += 1
        if not earlier:
            facts = {k: v for k, v in result.items() if k in LOGGED or k.startswith(("seconds_", "tiles_"))}
            level = "warning" if result["status"] == "suspect" else "info"
            self.watch.event("slide_closed", level=level, **facts)


def _things(task: Task) -> list[Thing]:
    if task.kind == "tiles":
        return [("tile", task.slide_id, tile.tile_id) for tile, _ in task.payload]
    return [(task.kind, task.slide_id, -1)]


def _fetched(future: Future) -> Answer:
    """Return what a finished task returned; ``SchedulerLostError`` where it does not arrive."""
    try:
        return future.result(timeout=ANSWER_S)
    except TimeoutError as err:
        raise SchedulerLostError(
            f"A result does not arrive from the Dask scheduler within {ANSWER_S:g} s. Finished tiles are kept: run the same "
            "command again."
        ) from err


def _stop_on_full_disk(reason: str, folder: RunFolder) -> None:
    """Raise ``OSError`` where a reason says that nothing can be stored: every further tile would be computed for nothing."""
    number = full_disk(reason)
    if number:
        raise OSError(number, os.strerror(number), str(folder.root))

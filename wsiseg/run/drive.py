"""The client's side of a run: feed tasks to Dask, take their results, keep totals."""

from __future__ import annotations

import os
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from distributed import Client
from distributed.client import Future

from wsiseg.config import RunConfig
from wsiseg.errors import InputError, SchedulerLostError, one_line
from wsiseg.log import log
from wsiseg.run.feed import MOST_RETURNS, Feeder, PrepareDone, Task
from wsiseg.run.finish import record_failed_slide
from wsiseg.run.folder import RunFolder
from wsiseg.run.manifest import SlideInput
from wsiseg.run.tasks import end_staging, finish_task, full_disk, prepare_task, tiles_task
from wsiseg.run.watch import Watch
from wsiseg.run.worker import WorkerSetup, verdict_of
from wsiseg.types import Stain, Tile, TileOutcome

__all__ = ["Crew", "Drive", "Progress"]

LOOK_S = 2.0
"""How often the client asks who is there, s."""

LOGGED = ("slide_id", "status", "n_nuclei", "tissue_mm2", "error")
"""What the log says of a slide that is closed, beside its tiles and seconds."""

ASK_S = 0.5
"""How long the client waits for workers to speak before it asks them, and between its questions at the start, s."""

ANSWER_S = 60.0
"""How long the scheduler may take to answer, s: a connection may be dead with nobody told."""

PATIENCE_S = 30.0
"""How long no worker may be there before the user is told, s."""


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


class Crew:
    """Who works for a run: workers that were accepted, what each may do, and who was refused and why."""

    def __init__(self, client: Client, setup: WorkerSetup) -> None:
        self.client = client
        self.setup = setup
        self._roles: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._looked = -LOOK_S
        self._seen = time.monotonic()
        self._told = False
        self.threads = 0
        self._slide_role = False

    def join(self) -> None:
        """Have every worker, those that come later too, checked and set up.

        Raises
        ------
        InputError
            There are workers, and every one of them was refused.
        """
        self.client.subscribe_topic(self.setup.name, self._event)
        try:
            self.client.register_plugin(self.setup)
        except (ImportError, AttributeError, TypeError, ValueError) as err:  # a worker cannot even read what it was sent
            log.warning("a worker cannot be set up, its wsiseg is missing or another: %s", one_line(err))
        start = time.monotonic()
        while (answers := len(self._roles) + len(self.refused)) < len(everyone := self._everyone()):
            # the events come by another way than the answer; a refusal comes sooner than a worker that loads its libraries
            waited = time.monotonic() - start
            if waited > (PATIENCE_S if answers and not self._roles else LOOK_S):
                break
            if waited > ASK_S:
                self._ask(everyone)
            time.sleep(0.01 if waited < ASK_S else ASK_S)
        self.look()
        if self.refused and not self._roles:
            raise InputError(
                "Every worker of the scheduler was refused:\n" + "\n".join(f"  {r}" for r in self.refused.values())
            )

    def look(self) -> int:
        """Return how many tiles the accepted workers do at once, asked anew every few seconds."""
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            everyone = self._everyone()
            self._ask(everyone)
            roles = dict(self._roles)
            there = {a: n for a, n in everyone.items() if a in roles}
            self.threads = sum(n for a, n in there.items() if roles[a] == "tile")
            self._slide_role = any(roles[a] == "slide" for a in there)
            if self.threads:
                self._seen, self._told = now, False
            elif not self._told and now - self._seen > PATIENCE_S:
                self._told = True
                log.warning("no worker is there; waiting for one. Ctrl-C stops; the same command resumes")
        return self.threads

    def resources(self, kind: str) -> dict[str, float]:
        """Return what a task must ask for."""
        role = "tile" if kind == "tiles" else "slide" if self._slide_role else "any"
        return {self.setup.resource(role): 1}

    def leave(self) -> None:
        """Let the workers go: a cluster of others outlives this run."""
        self.client.unsubscribe_topic(self.setup.name)
        self.client.unregister_worker_plugin(self.setup.name)

    def _everyone(self) -> dict[str, int]:
        there: dict[str, int] = self.client.nthreads(callback_timeout=ANSWER_S)
        return there

    def _ask(self, everyone: Iterable[str]) -> None:
        """Ask workers that were not heard of: an event that is sent before the scheduler knows of our interest is lost."""
        silent = [a for a in everyone if a not in self._roles and a not in self.refused]
        if silent:
            try:
                answers = self.client.run(
                    verdict_of, self.setup.name, workers=silent, on_error="ignore", callback_timeout=ANSWER_S
                )
            except TimeoutError:  # a worker that hangs from the start must not hold up those that work
                log.warning("%d workers do not answer: %s", len(silent), ", ".join(silent[:4]))
                return
            for message in filter(None, answers.values()):
                self._hear(message)

    def _event(self, event: tuple[float, dict[str, str]]) -> None:
        self._hear(event[1])

    def _hear(self, message: dict[str, str]) -> None:
        address = message["worker"]
        if address in self._roles or address in self.refused:
            return
        if message["refused"]:
            self.refused[address] = f"{address} on {message['host']}: {message['refused']}"
            log.warning("worker %s is refused", self.refused[address])
        else:
            self._roles[address] = message["role"]
            self._looked = -LOOK_S


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
        flying: dict[Future, Task] = {}
        ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
        while not feeder.done():
            feeder.limit = max(1, self._look()) * schedule.in_flight_per_worker
            while (task := feeder.next_task()) is not None:
                future = self._submit(task, feeder)
                flying[future] = task
                future.add_done_callback(ready.put)
            try:
                future = ready.get(timeout=LOOK_S)
            except queue.Empty:
                continue
            self._take(flying.pop(future), future, feeder)
            self.on_progress(self.progress)
        if schedule.stage:
            self.client.run(end_staging, schedule.stage, on_error="ignore")

    def _look(self) -> int:
        if self.client.status != "running":
            raise SchedulerLostError(
                f"The Dask scheduler is gone (connection {self.client.status}). Finished tiles are kept: start a scheduler and "
                "run the same command again."
            )
        try:
            return self.crew.look()
        except (OSError, TimeoutError) as err:
            raise SchedulerLostError(
                f"The Dask scheduler does not answer ({one_line(err)}). Finished tiles are kept: run the same command again."
            ) from err

    def _submit(self, task: Task, feeder: Feeder) -> Future:
        name = self.crew.setup.name
        options: dict[str, Any] = {"pure": False, "retries": 0, "resources": self.crew.resources(task.kind)}
        if task.kind == "prepare":
            return self.client.submit(
                prepare_task, task.payload, feeder.upcoming(), name, *self.constants, priority=5, **options
            )
        if task.kind == "tiles":
            return self.client.submit(tiles_task, task.payload, name, **options)
        slide_id, failed = task.payload
        return self.client.submit(finish_task, slide_id, failed, name, priority=10, **options)

    def _take(self, task: Task, future: Future, feeder: Feeder) -> None:
        error = future.exception()
        if error is not None:
            if future.cancelled():
                self._look()  # the scheduler may be gone
            self._take_lost(task, str(future.key), one_line(error)[:500], feeder)
        elif task.kind == "tiles":
            self._take_tiles(task, _fetched(future), feeder)
        elif task.kind == "prepare":
            self._take_prepared(task, _fetched(future), feeder)
        else:
            row = _fetched(future)
            feeder.finished()
            self._close_slide(task.slide_id, row)

    def _take_lost(self, task: Task, key: str, reason: str, feeder: Feeder) -> None:
        """Take a task without a result: its worker died, or left, or could not even begin."""
        deaths = self.watch.blamed(key)
        self.watch.counts["retries"] += 1
        if task.kind == "tiles":
            log.warning(
                "slide %s: %d tiles lost (%s)", task.slide_id, len(task.payload), deaths[0].reason if deaths else reason
            )
            by_id = {tile.tile_id: tile for tile, _ in task.payload}
            for outcome in feeder.tiles_lost(task, {d.tile_id: d for d in deaths if d.kind == "tile"}, reason):
                self._count(by_id[outcome.tile_id], outcome)
            return
        self.lost[task.kind, task.slide_id] += 1
        patience = self.config.schedule.retries if deaths else MOST_RETURNS
        if self.lost[task.kind, task.slide_id] <= patience:
            log.warning(
                "slide %s: %s was lost (%s); trying again", task.slide_id, task.kind, deaths[0].reason if deaths else reason
            )
            feeder.again(task)
            return
        (feeder.prepare_failed if task.kind == "prepare" else feeder.finished)()
        self._close_slide(task.slide_id, reason)

    def _take_prepared(self, task: Task, result: PrepareDone | str, feeder: Feeder) -> None:
        if isinstance(result, str):
            feeder.prepare_failed()
            self._close_slide(task.slide_id, result)
            return
        feeder.prepared(result)
        if result.note:
            log.warning("slide %s is done anew: %s", task.slide_id, result.note)
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
        for outcome in outcomes:
            _stop_on_full_disk(outcome.error, self.folder)
        final = feeder.tiles_done(task, outcomes)
        for (tile, _), outcome, is_final in zip(task.payload, outcomes, final, strict=True):
            if is_final:
                self._count(tile, outcome)
                continue
            self.watch.counts["retries"] += 1
            log.warning("slide %s, tile %d: trying again (%s)", tile.slide_id, tile.tile_id, outcome.error)

    def _count(self, tile: Tile, outcome: TileOutcome) -> None:
        """Add a tile that is decided to the totals."""
        self.progress.tiles_done += 1
        self.progress.nuclei += outcome.n_nuclei
        self.progress.mm2_done += tile.core.w * tile.core.h * tile.tissue_frac * self.tile_mm2[tile.slide_id]
        if outcome.status == "failed":
            self.progress.tiles_failed += 1
            facts = {"slide_id": tile.slide_id, "tile_id": tile.tile_id, "attempts": outcome.attempts}
            self.watch.event("tile_failed", level="error", **facts, error=outcome.error)

    def _close_slide(self, slide_id: str, result: dict[str, Any] | str, *, earlier: bool = False) -> None:
        if isinstance(result, str):
            _stop_on_full_disk(result, self.folder)
            slide = self.inputs[slide_id]
            log.error("slide %s: %s", slide_id, result)
            result = record_failed_slide(self.folder, slide_id, slide.path, slide.cohort, self.digest, result)
        self.rows[slide_id] = result
        self.tile_mm2.pop(slide_id, None)
        self.progress.slides_done += 1
        if not earlier:
            facts = {k: v for k, v in result.items() if k in LOGGED or k.startswith(("seconds_", "tiles_"))}
            self.watch.event("slide_closed", **facts)


def _fetched(future: Future) -> Any:
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

"""The client side of a run: submit tasks to Dask, process their results, keep totals."""

from __future__ import annotations

import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from distributed.client import Future

from wsiseg.errors import SchedulerLostError, one_line
from wsiseg.fetch import shown
from wsiseg.log import log
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.rows import SlideRow
from wsiseg.run.failures import Failure, stop_on_full_disk
from wsiseg.run.feed import MAX_RETURNS, Feeder, PrepareDone, Task
from wsiseg.run.fetching import FetchDone, fetch_task, lanes_of
from wsiseg.run.finish import record_failed_slide
from wsiseg.run.hosts import MAX_FAILURES_IN_A_ROW, WorkItem
from wsiseg.run.lanes import FetchOrder
from wsiseg.run.resolve import Resolved
from wsiseg.run.tasks import Answer, end_staging, finish_task, prepare_task, tiles_task
from wsiseg.run.watch import Watch
from wsiseg.run.worker_pool import ANSWER_S, LOOK_S, WorkerPool
from wsiseg.types import Tile, TileOutcome

__all__ = ["Drive", "Progress"]

LOGGED = ("slide_id", "status", "n_nuclei", "tissue_mm2", "error")
"""Fields of a finished slide's row that are logged, besides its tiles and seconds."""


@dataclass(slots=True)
class Progress:
    """Running totals, passed to the progress callback after every event, and at least every ``LOOK_S`` seconds."""

    slides: int = 0
    slides_done: int = 0
    tiles: int = 0
    tiles_done: int = 0
    tiles_failed: int = 0
    nuclei: int = 0
    mm2: float = 0.0
    mm2_done: float = 0.0
    kernels_s: float = 0.0
    fetched_bytes: int = 0
    message: str = ""


class Drive:
    """One run on the client: submits the tasks that the feeders choose and processes their results.

    Decisions are made elsewhere: ``Feeder`` decides which task is next and when a tile is given up, ``Lanes`` which host
    fetches a slide and runs its tiles, ``Hosts`` which workers may run a task, ``WorkerPool`` which workers there are. This
    class connects them to Dask. A task can end in four ways: with a result (``_take_tiles``, ``_take_prepared``,
    ``_close_slide``), with a ``Failure`` that the task caught (``_take_failure``), without a result because its worker process
    ended (``_take_lost``), or cancelled because all workers that were allowed to run it are gone.
    """

    def __init__(
        self,
        pool: WorkerPool,
        folder: RunFolder,
        resolved: Resolved,
        progress: Progress,
        on_progress: Callable[[Progress], None],
        watch: Watch,
        rows: dict[str, SlideRow],
    ) -> None:
        self.pool = pool
        self.client = pool.client
        self.folder = folder
        self.config = resolved.config
        self.digest = resolved.digest
        model = resolved.facts.model
        self.constants = model.mpp_model, model.aim  # the model's resolution and the target stain
        self.progress = progress
        self.on_progress = on_progress
        self.watch = watch
        self.lost: Counter[tuple[str, str]] = Counter()
        self.rows = rows  # by slide id; includes rows from before the scheduler was lost
        self.inputs: dict[str, SlideInput] = {}
        self.tile_mm2: dict[str, float] = {}
        self.unopened: dict[str, SlideInput] = {}  # slides that no host could open; a host that connects later may
        self.hosts_seen = 0
        self.there_seen: dict[str, int] = {}
        self.recalled: set[Future] = set()  # cancelled because all their allowed workers are gone

    def run(self, slides: Sequence[SlideInput]) -> None:
        """Run all slides; afterwards ``rows`` holds their statistics.

        Raises
        ------
        SchedulerLostError
            The scheduler is gone or does not answer.
        OSError
            The disk is full.
        """
        self.inputs = {s.slide_id: s for s in slides}
        schedule = self.config.schedule
        self.lanes = lanes = lanes_of(slides, self.pool, self.folder, self.digest, self.config)
        submitted: dict[Future, tuple[Task, frozenset[str], Feeder]] = {}
        ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
        while not lanes.done():
            self._look()
            lanes.set_hosts(self.pool.threads_by_host(), schedule.in_flight_per_worker, time.monotonic())
            self._reopen(lanes.base.feeder)
            self._recall(submitted)
            for task, feeder in self._next_tasks():
                future, chosen = self._submit(task, feeder)
                submitted[future] = task, chosen, feeder
                future.add_done_callback(ready.put)
            try:  # wake up at least every LOOK_S, as workers may have joined or left without any task ending
                future = ready.get(timeout=LOOK_S)
            except queue.Empty:
                self.on_progress(self.progress)
                continue
            task, _, feeder = submitted.pop(future)
            self._take(task, future, feeder)
            self.on_progress(self.progress)
        self._report_hosts()
        if schedule.stage or schedule.fetch_to:
            self.client.run(end_staging, self.config, on_error="ignore")

    def _next_tasks(self) -> Iterator[tuple[Task, Feeder]]:
        """Yield the tasks that can be submitted now, each with its feeder; fetches first, as they occupy no worker thread."""
        lanes = self.lanes
        while (order := lanes.next_fetch()) is not None:
            yield Task("fetch", order.slide.slide_id, order), lanes.base.feeder
        while lanes.refused:
            slide, reason = lanes.refused.pop()
            self._close_slide(slide.slide_id, Failure(f"{shown(slide.path)}: {reason}"))
        for lane in lanes.working():
            while (task := lane.feeder.next_task()) is not None:
                yield task, lane.feeder

    def _look(self) -> int:
        if self.client.status != "running":
            raise SchedulerLostError(
                f"The Dask scheduler is gone (connection {self.client.status}). Finished tiles are kept: start a scheduler and "
                "run the same command again."
            )
        self._report_hosts()
        try:
            return self.pool.update()
        except (OSError, TimeoutError) as err:
            raise SchedulerLostError(
                f"The Dask scheduler does not answer ({one_line(err)}). Finished tiles are kept: run the same command again."
            ) from err

    def _report_hosts(self) -> None:
        hosts = self.pool.hosts
        for text in hosts.news:
            log.warning("%s", text)
        hosts.news.clear()
        self.watch.hosts_aside |= hosts.exclusions

    def _recall(self, submitted: Mapping[Future, tuple[Task, frozenset[str], Feeder]]) -> None:
        """Cancel tasks whose allowed workers are all gone, which Dask would never run."""
        there = self.pool.accepted
        if there is self.there_seen:
            return
        self.there_seen = there
        for future in [f for f, (_, chosen, _) in submitted.items() if chosen and not chosen & there.keys()]:
            if future not in self.recalled:
                self.recalled.add(future)
                future.cancel()

    def _reopen(self, feeder: Feeder) -> None:
        """Try slides that could not be opened again on hosts that have connected since."""
        hosts = self.pool.hosts
        if len(hosts) == self.hosts_seen:
            return
        self.hosts_seen = len(hosts)
        able = self.pool.workers_for("prepare")
        for slide_id in [s for s in self.unopened if hosts.may_be_done(("prepare", s, -1), able)]:
            log.warning("slide %s: trying again on a host that connected later", slide_id)
            feeder.add(self.unopened.pop(slide_id))
            self.rows.pop(slide_id, None)
            self.progress.slides_done -= 1

    def _submit(self, task: Task, feeder: Feeder) -> tuple[Future, frozenset[str]]:
        """Submit a task; return its future and the workers allowed to run it (empty: any)."""
        name = self.pool.setup.name
        if task.kind == "fetch":
            order: FetchOrder = task.payload
            worker = self.pool.first_of(order.host)
            asked = {"pure": False, "retries": 0, "priority": 20, "workers": [worker] if worker else None}
            return self.client.submit(fetch_task, order, name, self.constants[0], **asked), frozenset(filter(None, [worker]))
        places = self.lanes.places(task.slide_id)
        options = {"pure": False, "retries": 0, **self.pool.options(task.kind, _items(task), places)}
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
            self._take_lost(task, str(future.key), "the workers allowed to run it are gone", feeder)
            return
        error = future.exception()
        if error is not None:
            if future.cancelled():
                self._look()  # raises if the scheduler is gone
            self._take_lost(task, str(future.key), one_line(error)[:500], feeder)
            return
        answer = _fetched(future)
        if task.kind == "fetch":
            self._take_fetched(task.payload, answer)
        elif task.kind == "tiles":
            self._take_tiles(task, self.pool.hosts.record_outcomes(answer.worker, answer.result), feeder)
        elif isinstance(answer.result, Failure):
            self._take_failure(task, answer.worker, answer.result, feeder)
        elif task.kind == "prepare":
            if answer.result.row is None:  # with a row, an earlier run finished the slide and this task did not open it
                self.pool.hosts.succeeded(answer.worker, *_items(task))
            self._take_prepared(task, answer.result, feeder)
        else:
            self.pool.hosts.succeeded(answer.worker, *_items(task))
            feeder.finished()
            self._close_slide(task.slide_id, answer.result)

    def _take_fetched(self, order: FetchOrder, answer: Answer) -> None:
        """Process the result of a fetch: the slide is fetched, needs more space than there is, or cannot be fetched."""
        slide_id, result = order.slide.slide_id, answer.result
        if isinstance(result, Failure):
            self.lanes.failed(order)
            if order.share:
                log.warning("slide %s: not shared with host %s (%s)", slide_id, order.host, result.reason)
            else:
                self._close_slide(slide_id, result, worker=answer.worker)
            return
        done: FetchDone = result
        if done.no_room:
            self.lanes.no_room(order, done.size_bytes)
            return
        self.lanes.fetched(order, done.size_bytes, done.new_bytes, done.seconds)
        self.progress.fetched_bytes += done.new_bytes
        facts = {"bytes": done.size_bytes, "new_bytes": done.new_bytes, "seconds": round(done.seconds, 3)}
        self.watch.event("slide_fetched", slide_id=slide_id, host=order.host, again=order.copy, **facts)

    def _take_failure(self, task: Task, worker: str, failure: Failure, feeder: Feeder) -> None:
        """Process the failure to prepare or finish a slide: try another host, if there is one that may succeed."""
        hosts, (item,) = self.pool.hosts, _items(task)
        if failure.kind != "fact":  # a fact about the file (such as no mpp) is the same on every host
            hosts.failed(
                worker, item, failure.reason, MAX_FAILURES_IN_A_ROW, failure.kind
            )  # the task itself tried more than once
            if hosts.may_be_done(item, self.pool.workers_for(task.kind)):
                self.watch.counts["retries"] += 1
                where = " ".join(hosts.where(worker))
                log.warning("slide %s: trying again on another host than %s (%s)", task.slide_id, where, failure.reason)
                feeder.again(task)
                return
            if task.kind == "prepare":
                self.unopened[task.slide_id] = task.payload
        (feeder.prepare_failed if task.kind == "prepare" else feeder.finished)()
        failures = hosts.failures(item) or [(worker, failure)]
        # a full disk is a fault of one host, so a different reason is more informative about the slide
        worker, failure = next((f for f in reversed(failures) if f[1].kind != "disk"), failures[-1])
        self._close_slide(task.slide_id, failure, worker=worker, attempts=len(failures))

    def _take_lost(self, task: Task, key: str, reason: str, feeder: Feeder) -> None:
        """Process a task without a result: its worker process ended or left, or could not start the task."""
        deaths = self.watch.deaths_at(key)
        self.pool.hosts.record_deaths(deaths)
        self.watch.counts["retries"] += 1
        if task.kind == "tiles":
            log.warning(
                "slide %s: %d tiles lost (%s)", task.slide_id, len(task.payload), deaths[0].reason if deaths else reason
            )
            by_id = {tile.tile_id: tile for tile, _ in task.payload}
            died_at = {d.tile_id: d for d in deaths if d.kind == "tile"}
            for outcome in feeder.tiles_lost(task, died_at, reason, self._elsewhere(task)):
                self._count(by_id[outcome.tile_id], outcome)
            return
        self.lost[task.kind, task.slide_id] += 1
        if task.kind == "fetch":
            if self.lost[task.kind, task.slide_id] <= MAX_RETURNS:
                self.lanes.again(task.payload)
            else:
                self._take_fetched(task.payload, Answer("", Failure(f"{shown(task.payload.slide.path)}: {reason}")))
            return
        patience = self.config.schedule.retries if deaths else MAX_RETURNS
        elsewhere = self.pool.hosts.may_be_done(_items(task)[0], self.pool.workers_for(task.kind))
        if self.lost[task.kind, task.slide_id] <= patience or elsewhere:
            log.warning(
                "slide %s: %s was lost (%s); trying again", task.slide_id, task.kind, deaths[0].reason if deaths else reason
            )
            feeder.again(task)
            return
        (feeder.prepare_failed if task.kind == "prepare" else feeder.finished)()
        worker = deaths[0].worker if deaths else ""
        why = deaths[0].reason if deaths else reason
        self._close_slide(task.slide_id, Failure(why), worker=worker, attempts=self.lost[task.kind, task.slide_id])

    def _take_prepared(self, task: Task, result: PrepareDone, feeder: Feeder) -> None:
        feeder.prepared(result)
        if result.note:
            log.warning("slide %s is segmented again from the start: %s", task.slide_id, result.note)
        for warning in result.warnings:
            log.warning("slide %s: %s", task.slide_id, warning)
        if result.row is not None:
            self._close_slide(task.slide_id, result.row, earlier=True)
            self.progress.nuclei += result.row.n_nuclei or 0
            return
        total = sum(t.core.w * t.core.h * t.tissue_frac for t in result.todo) or 1.0
        self.tile_mm2[task.slide_id] = result.mm2_todo / total
        tiles = sum(not t.outside for t in result.todo)
        self.progress.tiles += tiles
        self.progress.mm2 += result.mm2_todo
        self.progress.nuclei += sum(o.n_nuclei for o in result.decided)
        self.watch.event("slide_opened", slide_id=task.slide_id, tiles=tiles, tiles_decided=len(result.decided))

    def _take_tiles(self, task: Task, outcomes: list[TileOutcome], feeder: Feeder) -> None:
        elsewhere = self._elsewhere(task)
        for outcome in outcomes:
            item = ("tile", outcome.slide_id, outcome.tile_id)
            everywhere = all(failure.kind == "disk" for _, failure in self.pool.hosts.failures(item))
            if outcome.tile_id not in elsewhere and everywhere:
                stop_on_full_disk(Failure(outcome.error, outcome.kind), self.folder.root)
        final = feeder.tiles_done(task, outcomes, elsewhere)
        for (tile, _), outcome, is_final in zip(task.payload, outcomes, final, strict=True):
            if is_final:
                self._count(tile, outcome)
                continue
            self.watch.counts["retries"] += 1
            where = f"after {outcome.error}" + (f" on {outcome.host} {outcome.worker}" if outcome.host else "")
            log.warning("slide %s, tile %d: trying again %s", tile.slide_id, tile.tile_id, where)

    def _elsewhere(self, task: Task) -> frozenset[int]:
        """Return the ids of a task's failed tiles that another host should try before they are given up."""
        hosts, able = self.pool.hosts, self.pool.workers_for("tiles")
        return frozenset(item[2] for item in _items(task) if hosts.may_be_done(item, able))

    def _count(self, tile: Tile, outcome: TileOutcome) -> None:
        """Add a tile that is done or given up to the totals; windows sampled outside the mask are not counted."""
        if tile.outside:
            self.pool.hosts.forget(("tile", tile.slide_id, tile.tile_id))
            return
        self.progress.tiles_done += 1
        self.progress.nuclei += outcome.n_nuclei
        self.progress.mm2_done += tile.core.w * tile.core.h * tile.tissue_frac * self.tile_mm2[tile.slide_id]
        if outcome.status == "failed":
            self.pool.hosts.forget(("tile", tile.slide_id, tile.tile_id))
            self.progress.tiles_failed += 1
            facts = {"slide_id": tile.slide_id, "tile_id": tile.tile_id, "attempts": outcome.attempts}
            facts |= {"host": outcome.host, "worker": outcome.worker}
            self.watch.event("tile_failed", level="error", **facts, error=outcome.error)

    def _close_slide(
        self, slide_id: str, result: SlideRow | Failure, *, earlier: bool = False, worker: str = "", attempts: int = 1
    ) -> None:
        if isinstance(result, Failure):
            stop_on_full_disk(result, self.folder.root)
            slide = self.inputs[slide_id]
            reason = f"{result.reason} ({slide.origin})" if slide.origin else result.reason
            at = self.pool.hosts.where(worker)
            log.error("slide %s: %s%s", slide_id, reason, f" (on {at[0]}, worker {at[1]})" if at[0] else "")
            result = record_failed_slide(self.folder, slide, self.digest, reason, attempts, at)
        self.rows[slide_id] = result
        self.lanes.closed(slide_id)
        self.tile_mm2.pop(slide_id, None)
        self.progress.slides_done += 1
        if not earlier:
            facts = {k: v for k, v in result.columns.items() if k in LOGGED or k.startswith(("seconds_", "tiles_"))}
            level = "warning" if result.status == "suspect" else "info"
            self.watch.event("slide_closed", level=level, **facts)


def _items(task: Task) -> list[WorkItem]:
    if task.kind == "tiles":
        return [("tile", task.slide_id, tile.tile_id) for tile, _ in task.payload]
    return [(task.kind, task.slide_id, -1)]


def _fetched(future: Future) -> Answer:
    """Return the result of a finished task. Raises ``SchedulerLostError`` if it does not arrive."""
    try:
        return future.result(timeout=ANSWER_S)
    except TimeoutError as err:
        raise SchedulerLostError(
            f"The Dask scheduler did not deliver a result within {ANSWER_S:g} s. Finished tiles are kept: run the same command "
            "again."
        ) from err

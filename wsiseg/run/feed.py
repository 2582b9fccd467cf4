"""Decide which task is next: a state machine over slides and tiles that does not depend on Dask.

A slide is prepared (constants, list of tiles to do), its tiles run in any order, then it is finished. The feeder keeps a
bounded number of tasks in flight, batches short tiles into one task, prepares enough slides in advance that no worker waits
for one, and tries a failed tile again a few times.

A slide goes through: ``_slides`` (to be prepared) -> ``_open`` (tiles to do) -> ``_finish`` (all tiles decided) -> done. A tile
of an open slide is in ``waiting`` (not tried, or lost while it was not being computed), ``alone`` (failed, to be tried in a
task with no other tile), ``_suspects`` or ``_last_tries`` (it may have crashed a worker), or in flight (``running``).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wsiseg.results.manifest import SlideInput
from wsiseg.rows import SlideRow
from wsiseg.run.presence import Death
from wsiseg.types import Tile, TileOutcome

__all__ = ["Feeder", "PrepareDone", "Task"]

TaskKind = Literal["fetch", "prepare", "tiles", "finish"]

MAX_TILES = 64
"""Maximum number of tiles in one task; it bounds the work that is lost if a worker process ends."""

MAX_RETURNS = 20
"""Maximum number of times that a tile is submitted again after its worker was lost without a record of what it computed."""

MIN_TILE_S = 1e-3
"""Lower bound for the measured duration of a tile, s."""

FIRST_GUESS_TILES = 8
"""Assumed number of tiles per slide until the first slide has been prepared."""


@dataclass(frozen=True, slots=True)
class Task:
    """One task to submit.

    ``payload`` is by kind: ``prepare``: a SlideInput; ``tiles``: (Tile, attempt) pairs; ``finish``: a (slide_id, failed
    outcomes) pair; ``fetch``: a ``wsiseg.run.lanes.FetchOrder``, which comes from ``Lanes``.
    """

    kind: TaskKind
    slide_id: str
    payload: Any


@dataclass(frozen=True, slots=True)
class PrepareDone:
    """Result of preparing a slide: a finished row (nothing to do), or tiles to do and outcomes of tiles already decided."""

    slide_id: str
    row: SlideRow | None = None
    todo: tuple[Tile, ...] = ()
    decided: tuple[TileOutcome, ...] = ()
    mm2_todo: float = 0.0
    note: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Open:
    """A slide in progress: tiles to submit, tiles to submit alone, the number in flight, of suspects, and failed tiles."""

    waiting: deque[tuple[Tile, int]]
    alone: deque[tuple[Tile, int]] = field(default_factory=deque)
    running: int = 0
    suspects: int = 0
    failed: list[TileOutcome] = field(default_factory=list)


class Feeder:
    """Decides which task is submitted next, from the results of earlier ones.

    If a worker process ends unexpectedly, every tile that it was computing becomes a suspect. At most one suspect is in flight
    at a time. A suspect without tries left is tried a last time with no other task in flight: if the worker process ends again,
    this tile is the cause and is given up. So a tile is never given up because of another.

    ``limit`` is the maximum number of tasks in flight and may be changed at any time; ``in_flight`` is the number of tasks per
    worker; tiles are batched until a task takes about ``task_s`` seconds (0: one tile per task).
    """

    def __init__(
        self, slides: Iterable[SlideInput], *, limit: int, retries: int, in_flight: int = 2, task_s: float = 0.0
    ) -> None:
        self._slides = deque(slides)
        self.limit = limit
        self._retries = retries
        self._in_flight = in_flight
        self._task_s = task_s
        self._open: dict[str, _Open] = {}
        self._finish: deque[Task] = deque()
        self._suspects: deque[tuple[Tile, int]] = deque()
        self._last_tries: deque[tuple[Tile, int]] = deque()
        self._last_try_in_flight = False
        self._suspect_in_flight: Task | None = None
        self._returns: Counter[tuple[str, int]] = Counter()
        self._preparing = 0
        self._running = 0
        self._waiting = 0
        self._tile_s = _Mean()
        self._prepare_s = _Mean()
        self._slide_tiles = _Mean(FIRST_GUESS_TILES)

    def done(self) -> bool:
        """Return whether no task is waiting or in flight."""
        return not (self._slides or self._open or self._finish or self._running)

    def upcoming(self) -> SlideInput | None:
        """Return the slide that is to be prepared next; None if there is none."""
        return self._slides[0] if self._slides else None

    @property
    def n_waiting_slides(self) -> int:
        """Return the number of slides that wait to be prepared."""
        return len(self._slides)

    @property
    def n_waiting_tiles(self) -> int:
        """Return the number of tiles of prepared slides that wait to be submitted."""
        return self._waiting

    @property
    def seconds_left(self) -> float:
        """Return the estimated time of all waiting slides and tiles on one thread, s (0 until a tile is done)."""
        return (self._waiting + len(self._slides) * max(1.0, self._slide_tiles.value)) * self._tile_s.value

    @property
    def tile_seconds_left(self) -> float:
        """Return the estimated time of the waiting tiles on one thread, s."""
        return self._waiting * self._tile_s.value

    def most_waiting(self) -> str:
        """Return the id of the slide with the most waiting tiles; empty if no tile waits."""
        found = max(self._open, key=lambda i: len(self._open[i].waiting), default="")
        return found if found and self._open[found].waiting else ""

    def take_back(self) -> SlideInput | None:
        """Remove and return the last slide that waits to be prepared; ``None`` if none waits."""
        return self._slides.pop() if self._slides else None

    def next_task(self) -> Task | None:
        """Return the next task, or None while enough tasks are in flight."""
        if self._running >= max(1, self.limit) or self._last_try_in_flight:
            return None
        if self._last_tries:
            if self._running:
                return None  # wait until nothing else is in flight
            self._last_try_in_flight = True
            self._suspect_in_flight = self._suspect_task(self._last_tries)
            return self._suspect_in_flight
        if self._finish:
            self._running += 1
            return self._finish.popleft()
        if self._suspects and self._suspect_in_flight is None:
            self._suspect_in_flight = self._suspect_task(self._suspects)
            return self._suspect_in_flight
        if self._slides and self._expected() < self._wanted() and self._preparing < max(1, self.limit // self._in_flight):
            slide = self._slides.popleft()
            self._preparing += 1
            self._running += 1
            return Task("prepare", slide.slide_id, slide)
        for slide_id, state in self._open.items():
            if state.alone or state.waiting:
                batch = self._batch(state)
                state.running += len(batch)
                self._waiting -= len(batch)
                self._running += 1
                return Task("tiles", slide_id, batch)
        return None

    def prepared(self, result: PrepareDone) -> None:
        """Record the result of a prepare task."""
        self._running -= 1
        self._preparing -= 1
        if result.row is None:
            self._prepare_s.add(result.seconds)
            self._slide_tiles.add(len(result.todo))
            self._open[result.slide_id] = _Open(deque((t, 1) for t in result.todo))
            self._waiting += len(result.todo)
            self._maybe_finish(result.slide_id)

    def prepare_failed(self) -> None:
        """Record that a prepare task failed; the slide has no further tasks."""
        self._running -= 1
        self._preparing -= 1

    def add(self, slide: SlideInput) -> None:
        """Queue a slide, for example one that could not be prepared and that another host may be able to open."""
        self._slides.append(slide)

    def tiles_done(self, task: Task, outcomes: Iterable[TileOutcome], elsewhere: Collection[int] = ()) -> list[bool]:
        """Record the outcomes of a tiles task, in its order; return for each whether it is final (else it is tried again).

        ``elsewhere``: ids of tiles that another host should try, regardless of the number of tries.
        """
        state = self._no_longer_in_flight(task)
        final = []
        for (tile, _), outcome in zip(task.payload, outcomes, strict=True):
            state.running -= 1
            if outcome.status == "done":
                self._tile_s.add(max(MIN_TILE_S, sum(outcome.seconds.values())))
            spent = outcome.attempts > self._retries and tile.tile_id not in elsewhere
            final.append(outcome.status != "failed" or spent)
            if not final[-1]:
                state.alone.append((tile, outcome.attempts + 1))
                self._waiting += 1
            elif outcome.status == "failed":
                state.failed.append(outcome)
        self._maybe_finish(task.slide_id)
        return final

    def tiles_lost(
        self, task: Task, deaths: Mapping[int, Death], reason: str, elsewhere: Collection[int] = ()
    ) -> list[TileOutcome]:
        """Record that a tiles task was lost with its worker; return the outcomes of tiles that are given up.

        ``deaths`` maps the id of a tile to the worker exit during its computation. Tiles that only waited in the task are
        submitted again without using up a try. If ``deaths`` is empty, all tiles of the task are suspects, and are given up for
        ``reason`` after ``MAX_RETURNS`` losses. ``elsewhere``: ids of tiles that another host should try.
        """
        was_suspect = task is self._suspect_in_flight
        state = self._no_longer_in_flight(task)
        given_up: list[TileOutcome] = []
        for tile, attempt in task.payload:
            state.running -= 1
            self._returns[tile.slide_id, tile.tile_id] += 1
            death = deaths.get(tile.tile_id)
            spent = death is not None and attempt > self._retries
            is_cause = spent and death is not None and death.alone and tile.tile_id not in elsewhere
            if is_cause or self._returns[tile.slide_id, tile.tile_id] > MAX_RETURNS:
                why = death.reason if death else reason
                given_up.append(TileOutcome(tile.slide_id, tile.tile_id, "failed", 0, {}, why, attempt))
            elif death or was_suspect or not deaths:
                state.suspects += 1
                (self._last_tries if spent else self._suspects).append((tile, attempt + (death is not None)))
            else:
                state.waiting.appendleft((tile, attempt))
                self._waiting += 1
        state.failed += given_up
        self._maybe_finish(task.slide_id)
        return given_up

    def again(self, task: Task) -> None:
        """Queue a prepare or finish task again whose worker was lost."""
        self._running -= 1
        if task.kind == "prepare":
            self._preparing -= 1
            self._slides.appendleft(task.payload)
        else:
            self._finish.append(task)

    def _no_longer_in_flight(self, task: Task) -> _Open:
        self._running -= 1
        if task is self._suspect_in_flight:
            self._suspect_in_flight = None
            self._last_try_in_flight = False
        return self._open[task.slide_id]

    def _suspect_task(self, suspects: deque[tuple[Tile, int]]) -> Task:
        tile, attempt = suspects.popleft()
        state = self._open[tile.slide_id]
        state.suspects -= 1
        state.running += 1
        self._running += 1
        return Task("tiles", tile.slide_id, ((tile, attempt),))

    def finished(self) -> None:
        """Record that a finish task has ended."""
        self._running -= 1

    def _batch(self, state: _Open) -> tuple[tuple[Tile, int], ...]:
        if state.alone:
            return (state.alone.popleft(),)
        n = 1
        if self._tile_s.value > 0:
            n = min(MAX_TILES, math.ceil(self._task_s / self._tile_s.value))
        if not self._slides and not self._preparing:  # near the end of a run the last tiles are spread over all workers
            n = min(n, self._waiting // max(1, self.limit))
        return tuple(state.waiting.popleft() for _ in range(min(max(1, n), len(state.waiting))))

    def _expected(self) -> float:
        return self._waiting + self._preparing * max(1.0, self._slide_tiles.value)

    def _wanted(self) -> float:
        """Return the number of waiting tiles that keeps all workers busy while the next slide is prepared."""
        if self._tile_s.value <= 0:
            return self.limit
        per_worker = max(1.0, self._task_s / self._tile_s.value) * self._in_flight + self._prepare_s.value / self._tile_s.value
        return per_worker * self.limit / self._in_flight

    def _maybe_finish(self, slide_id: str) -> None:
        state = self._open[slide_id]
        if not (state.waiting or state.alone or state.running or state.suspects):
            del self._open[slide_id]
            self._finish.append(Task("finish", slide_id, (slide_id, tuple(state.failed))))


class _Mean:
    """A running mean; after 100 values, recent ones count more."""

    def __init__(self, first: float = 0.0) -> None:
        self.value = first
        self._n = 0

    def add(self, value: float) -> None:
        """Add a value."""
        self._n += 1
        self.value += (value - self.value) / min(self._n, 100)

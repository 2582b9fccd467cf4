"""Hosts, a server and a cohort in virtual time: the product's own decisions (``Lanes``, ``Feeder``), no pixels and no network.

A host has threads that take tasks which may run there, in the order in which they were handed out; its fetches come one after
the other over its own line. A tile takes ``tile_s``, preparing and finishing a slide a second.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wsiseg.results.manifest import SlideInput
from wsiseg.run.feed import Feeder, PrepareDone, Task
from wsiseg.run.lanes import GONE_S, FetchOrder, Lanes
from wsiseg.types import Box, Tile, TileOutcome

IN_FLIGHT = 2
SLIDE_S = 1.0


@dataclass
class Cohort:
    """Slides: bytes and tiles of each."""

    sizes: Sequence[int]
    tiles: Sequence[int]
    tile_s: float = 4.0


@dataclass
class Told:
    """What came of it: ``starved_frac`` is the share of the threads' time without work until the run's end."""

    wall_s: float = 0.0
    fetched_bytes: int = 0
    cohort_bytes: int = 0
    peak_bytes: int = 0
    busy_s: float = 0.0
    done: dict[str, int] = field(default_factory=dict)
    fetches: dict[str, int] = field(default_factory=dict)


class World:
    """One run."""

    def __init__(
        self,
        cohort: Cohort,
        hosts: Iterable[str],
        threads: int,
        rate: float,
        bound: int,
        deaths: dict[str, float] | None = None,
    ) -> None:
        self.cohort, self.threads, self.rate = cohort, threads, rate
        self.hosts = list(hosts)
        self.alive = dict.fromkeys(self.hosts, threads)
        self.slides = [SlideInput(f"s{k:04d}", f"https://x/{k}", size_bytes=n) for k, n in enumerate(cohort.sizes)]
        self.lanes = Lanes(
            ((), self.slides),
            lambda some: Feeder(some, limit=1, retries=2, in_flight=IN_FLIGHT, task_s=1.0),
            bound,
            one_host=len(self.hosts) == 1,
        )
        self.now = 0.0
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = itertools.count()
        self.waiting: list[tuple[Task, Feeder, frozenset[str]]] = []
        self.running: dict[str, int] = dict.fromkeys(self.hosts, 0)
        self.line_free = dict.fromkeys(self.hosts, 0.0)
        self.on_disk: dict[str, dict[str, int]] = {h: {} for h in self.hosts}
        self.told = Told(cohort_bytes=sum(cohort.sizes))
        self.left = {s.slide_id: n for s, n in zip(self.slides, cohort.tiles, strict=True)}
        for host, at in (deaths or {}).items():
            self._at(at, "death", host)

    def run(self) -> Told:
        """Run to the end."""
        for _ in range(1_000_000):
            self.lanes.set_hosts(self.alive, IN_FLIGHT, self.now)
            while (order := self.lanes.next_fetch()) is not None:
                self._fetch(order)
            for lane in self.lanes.working():
                while (task := lane.feeder.next_task()) is not None:
                    self.waiting.append((task, lane.feeder, self.lanes.places(task.slide_id)))
            self._start_tasks()
            if self.lanes.done():
                self.told.wall_s = self.now
                return self.told
            assert self.events, "nothing is under way and the run is not done"
            self.now, _, kind, what = heapq.heappop(self.events)
            getattr(self, f"_end_{kind}")(what)
        raise AssertionError("no end")

    def _at(self, when: float, kind: str, what: Any) -> None:
        heapq.heappush(self.events, (when, next(self.order), kind, what))

    def _fetch(self, order: FetchOrder) -> None:
        disk = self.on_disk[order.host]
        for slide_id in order.drop:
            disk.pop(slide_id, None)
        size = order.slide.size_bytes
        self.line_free[order.host] = max(self.now, self.line_free[order.host]) + size / self.rate
        disk[order.slide.slide_id] = size
        assert size <= order.room_bytes
        self.told.peak_bytes = max(self.told.peak_bytes, sum(disk.values()))
        self._at(self.line_free[order.host], "fetch", order)

    def _end_fetch(self, order: FetchOrder) -> None:
        if order.host not in self.alive:
            self.lanes.again(order)
            return
        self.told.fetched_bytes += order.slide.size_bytes
        self.told.fetches[order.slide.slide_id] = self.told.fetches.get(order.slide.slide_id, 0) + 1
        self.lanes.fetched(order, order.slide.size_bytes, order.slide.size_bytes, order.slide.size_bytes / self.rate)

    def _end_death(self, host: str) -> None:
        del self.alive[host]
        self._at(self.now + GONE_S + 1.0, "wait", host)

    def _end_wait(self, host: str) -> None:
        """Nothing happens but that time has passed."""

    def _start_tasks(self) -> None:
        kept = []
        for task, feeder, places in self.waiting:
            allowed = [h for h in (places & self.alive.keys() or self.alive) if self.running[h] < self.threads]
            if not allowed:
                kept.append((task, feeder, places))
                continue
            host = min(allowed, key=lambda h: self.running[h])
            self.running[host] += 1
            seconds = SLIDE_S if task.kind != "tiles" else self.cohort.tile_s * len(task.payload)
            if task.slide_id not in self.on_disk[host]:  # a task that is run where the slide is not fetches it first
                size = self.cohort.sizes[int(task.slide_id[1:])]
                self.told.fetched_bytes += size
                self.on_disk[host][task.slide_id] = size
                seconds += size / self.rate
            self.told.busy_s += seconds
            self._at(self.now + seconds, "task", (task, feeder, host))
        self.waiting = kept

    def _end_task(self, what: tuple[Task, Feeder, str]) -> None:
        task, feeder, host = what
        self.running[host] -= 1
        lost = host not in self.alive
        if task.kind == "prepare":
            box = Box(0, 0, 1, 1)
            tiles = tuple(Tile(task.slide_id, k, box, box, 1.0, 1.0) for k in range(self.left[task.slide_id]))
            feeder.again(task) if lost else feeder.prepared(PrepareDone(task.slide_id, None, tiles, (), 1.0, "", SLIDE_S))
        elif task.kind == "tiles":
            if lost:
                feeder.tiles_lost(task, {}, "died")
                return
            done = [TileOutcome(t.slide_id, t.tile_id, "done", 1, {"all": self.cohort.tile_s}) for t, _ in task.payload]
            self.told.done[task.slide_id] = self.told.done.get(task.slide_id, 0) + len(done)
            feeder.tiles_done(task, done)
        elif lost:
            feeder.again(task)
        else:
            feeder.finished()
            self.on_disk[host].pop(task.slide_id, None)
            self.lanes.closed(task.slide_id)

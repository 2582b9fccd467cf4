"""Which host failed at what: what one cannot do goes to another, and a host that fails where others succeed gets no more work.

The host that fails answers fastest, so a cluster without this would give it everything. Nothing here knows of Dask: things that
were done or failed come in, the workers that may try one come out. With workers on one host only, nothing is ever held back.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from wsiseg.run.presence import Death
from wsiseg.types import TileOutcome

__all__ = ["Hosts", "Thing"]

Thing = tuple[str, str, int]
"""What may fail: kind (prepare, tile, finish), slide, and tile (-1: the whole slide)."""

STRIKES = 3
"""Failures of a host without a success in between, until it is put aside for what others can do."""

GOOD_HOSTS = 2
"""Hosts that did other things of the kind and failed at this one, until it is the thing that is taken to be bad."""

MOST_HOSTS = 8
"""Hosts that try one thing at most: before anything has succeeded anywhere, nobody is known to be good."""

REST_S = 60.0
"""How long a host is put aside the first time, s; twice as long each further time."""

LONGEST_REST_S = 3600.0
"""How long a host is put aside at most, s: a mount that came back is found again."""


@dataclass(slots=True)
class _Rest:
    """A host that is put aside: until when, and for how long that was."""

    until: float
    rest_s: float


class Hosts:
    """What is known of the hosts of a run.

    A host is its name together with the network address of its workers: containers may share the one, and machines behind a
    gateway the other. Its worker processes stand and fall together, but for one that fails where another of the same host
    succeeds (a broken GPU of several): that one is put aside alone.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._host: dict[str, str] = {}  # by worker's address
        self._label: dict[str, str] = {}
        self._tried: defaultdict[Thing, dict[str, str]] = defaultdict(dict)  # which worker failed at what is not done, and why
        # of hosts, and of workers by their addresses
        self._streak: Counter[str] = Counter()
        self._blamed: dict[str, str] = {}  # failed where another succeeded, and has succeeded at nothing since
        self._good: set[tuple[str, str]] = set()
        self._resting: dict[str, _Rest] = {}
        self._rests: Counter[str] = Counter()
        self.aside: dict[str, str] = {}
        """Every host (or single worker) that was ever put aside, and why."""
        self.news: list[str] = []
        """What is to be told: sentences about hosts that were put aside, or are tried again."""

    def __len__(self) -> int:
        """Return how many hosts were ever there."""
        return len(set(self._host.values()))

    def add(self, worker: str, name: str, label: str = "") -> None:
        """Take note of a worker: its address, the name of its host, and what it is called (empty: by its address)."""
        url = urlsplit(worker)
        ip = (url.hostname or "") if url.scheme != "inproc" else ""
        self._host[worker] = name if not ip or ip in ("::1", name) or ip.startswith("127.") else f"{name} ({ip})"
        self._label[worker] = label or worker

    def where(self, worker: str) -> tuple[str, str]:
        """Return host and name of a worker, for tables."""
        return self._host.get(worker, ""), self._label.get(worker, worker)

    def succeeded(self, worker: str, thing: Thing) -> None:
        """Take note that a thing was done: whoever failed at it before is to blame, not the thing."""
        host = self._host.get(worker)
        if host is None:
            return
        for unit in (host, worker):
            self._streak[unit] = 0
            self._blamed.pop(unit, None)
        self._good.add((thing[0], host))
        for other, reason in self._tried.pop(thing, {}).items():
            if other != worker:
                guilty, who = (other, f"worker {worker}") if self._host[other] == host else (self._host[other], host)
                self._blamed[guilty] = f"failed at {_named(thing)}, which {who} could do: {reason}"
                self._judge(guilty)

    def failed(self, worker: str, thing: Thing, reason: str, strikes: int = 1) -> None:
        """Take note that a thing failed at a worker; ``strikes`` is how many tries that stands for."""
        host = self._host.get(worker)
        if host is None:
            return
        self._tried[thing].pop(worker, None)
        self._tried[thing][worker] = reason  # the last one stands last
        for unit in (host, worker):
            self._streak[unit] += strikes
            self._judge(unit)

    def took_tiles(self, worker: str, outcomes: Iterable[TileOutcome]) -> list[TileOutcome]:
        """Take note of what a worker made of some tiles; return the outcomes, failed ones with host and worker."""
        host, label = self.where(worker)
        named = []
        for outcome in outcomes:
            thing = ("tile", outcome.slide_id, outcome.tile_id)
            if outcome.status == "failed":
                self.failed(worker, thing, outcome.error)
                named.append(dataclasses.replace(outcome, host=host, worker=label))
            else:
                self.succeeded(worker, thing)
                named.append(outcome)
        return named

    def took_deaths(self, deaths: Iterable[Death]) -> None:
        """Take note of what workers died at."""
        for death in deaths:
            self.failed(death.worker, (death.kind, death.slide_id, death.tile_id), death.reason)

    def failures(self, thing: Thing) -> list[tuple[str, str]]:
        """Return worker and reason of each failure at a thing, the one to be believed most last.

        That is one that did other such things; else one of which nothing bad is known; else the last.
        """
        kind = thing[0]
        every = [(self._host[worker], worker, reason) for worker, reason in self._tried.get(thing, {}).items()]
        ordered = sorted(every, key=lambda f: ((kind, f[0]) in self._good, f[0] not in self._blamed))
        return [(worker, reason) for _, worker, reason in ordered]

    def forget(self, thing: Thing) -> None:
        """Take note that a thing is given up."""
        self._tried.pop(thing, None)

    def may_be_done(self, thing: Thing, there: Collection[str]) -> bool:
        """Return whether a failed thing is to be tried on another host, of workers that are there, before it is given up."""
        tried = self._hosts_of([thing])
        good = sum((thing[0], host) in self._good for host in tried)
        return 0 < len(tried) < MOST_HOSTS and good < GOOD_HOSTS and bool(self._others(tried, there))

    def choose(self, things: Iterable[Thing], there: Collection[str]) -> frozenset[str] | None:
        """Return which of the workers that are there may get some things of one kind; None: any.

        Not those of hosts that are put aside or have failed at one of the things, as long as there are others; those of hosts
        that have done such things before, where a thing has failed. On one host it is another worker that tries again.
        """
        asked = list(things)
        tried = self._hosts_of(asked)
        if not tried and not self._resting:
            return None
        found = self._others(tried, there)
        if tried and asked:
            found = [w for w in found if (asked[0][0], self._host[w]) in self._good] or found
        if not found:
            found = self._others((), there)
            found = [w for w in found if not any(w in self._tried.get(thing, ()) for thing in asked)] or found
        return frozenset(found) if found and len(found) < len(there) else None

    def working(self, there: Iterable[str]) -> list[str]:
        """Return the workers of hosts that are not put aside; all where none else are left."""
        every = [w for w in there if w in self._host]
        return self._others((), every) or every

    def _others(self, tried: Collection[str], there: Iterable[str]) -> list[str]:
        self._wake()
        hosts = ((w, self._host.get(w)) for w in there if w not in self._resting)
        return [w for w, host in hosts if host is not None and host not in tried and host not in self._resting]

    def _hosts_of(self, things: Iterable[Thing]) -> set[str]:
        return {self._host[worker] for thing in things for worker in self._tried.get(thing, ())}

    def _wake(self) -> None:
        now = self._clock()
        for unit in [u for u, rest in self._resting.items() if rest.until <= now]:
            rest_s = self._resting.pop(unit).rest_s
            self._streak[unit] = STRIKES - 1
            self.news.append(f"{self._title(unit)} is tried again after {rest_s:g} s")

    def _judge(self, unit: str) -> None:
        if unit in self._resting or unit not in self._blamed or self._streak[unit] < STRIKES:
            return
        rest_s = min(LONGEST_REST_S, REST_S * 2 ** min(20, self._rests[unit]))
        again = " again" if self._rests[unit] else ""
        self._resting[unit] = _Rest(self._clock() + rest_s, rest_s)
        self._rests[unit] += 1
        self.aside[self._title(unit).removeprefix("host ")] = self._blamed[unit]
        self.news.append(f"{self._title(unit)} is put aside{again} for {rest_s:g} s: it {self._blamed[unit]}")

    def _title(self, unit: str) -> str:
        return f"worker {self._label[unit]} on {self._host[unit]}" if unit in self._host else f"host {unit}"


def _named(thing: Thing) -> str:
    kind, slide_id, tile_id = thing
    verb = {"prepare": "opening slide", "finish": "finishing slide"}.get(kind, "slide")
    return f"{verb} {slide_id}" + (f", tile {tile_id}" if tile_id >= 0 else "")

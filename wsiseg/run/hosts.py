"""Record which host failed at what: another host tries it, and a host that fails where others succeed gets no more work.

A broken host fails fast and is soon idle again, so without this it would be given most of the work and fail all of it. Nothing
here depends on Dask: successes and failures come in, the workers that may try an item come out. If all workers are on one host,
none is ever excluded.

A failure may be the fault of the item (a damaged tile) or of the host (no mount, full disk, broken GPU). It is the host's if
another host then does the same item: see ``succeeded``. It is taken to be the item's after ``GOOD_HOSTS`` hosts failed at it
that have done other items of the same kind: see ``may_be_done``.
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

__all__ = ["Hosts", "WorkItem"]

WorkItem = tuple[str, str, int]
"""What may succeed or fail: kind (prepare, tile, finish), slide id, and tile id (-1: the whole slide)."""

MAX_FAILURES_IN_A_ROW = 3
"""A host is put aside after this many failures without a success in between, if others could do what it failed at."""

NOT_INSTALLED = ("ImportError", "ModuleNotFoundError")
"""How the reason of a failure begins that is a fault of the worker's installation."""

MAX_GPU_BREAKS = 2
"""How often a GPU stops computing, without a success in between, until it is put aside."""

GOOD_HOSTS = 2
"""An item is given up after this many hosts failed at it that have done other items of its kind."""

MAX_HOSTS = 8
"""Most hosts that try one item: a limit for a run in which no host has succeeded at anything yet."""

ASIDE_S = 60.0
"""How long a host is put aside the first time, s; twice as long each further time."""

LONGEST_ASIDE_S = 3600.0
"""Longest time that a host is put aside, s: afterwards it is tried again, as a lost mount may be back."""


@dataclass(slots=True)
class _Aside:
    """A host that is put aside: until when (by the clock), and for how long."""

    until: float
    rest_s: float


class Hosts:
    """What is known of the hosts of a run.

    A host is identified by its name and the network address of its workers: containers may share a name, and machines behind a
    gateway an address. All worker processes of a host are put aside together, except if one fails at an item that another of
    the same host can do: then only that worker is put aside. So is a GPU that stops computing, with all workers that use it,
    now or later. A *unit* below is a host's name, a worker's address or a GPU.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._host: dict[str, str] = {}  # by worker's address
        self._label: dict[str, str] = {}
        self._gpu: dict[str, str] = {}  # by worker's address: the same for every process that had that GPU
        self._breaks: defaultdict[str, dict[str, frozenset[WorkItem]]] = defaultdict(dict)  # by GPU: what its workers did then
        self._tried: defaultdict[WorkItem, dict[str, str]] = defaultdict(dict)  # items not done: which workers failed, and why
        # the following are by unit: a host, a single worker or a GPU
        self._streak: Counter[str] = Counter()
        self._at_fault: dict[str, str] = {}  # failed at what another could do and has not succeeded since: why
        self._good: set[tuple[str, str]] = set()
        self._resting: dict[str, _Aside] = {}
        self._rests: Counter[str] = Counter()
        self.aside: dict[str, str] = {}
        """Every host (or single worker) that was ever put aside, and why."""
        self.news: list[str] = []
        """Messages not yet logged: hosts that were put aside or are tried again."""

    def __len__(self) -> int:
        """Return how many hosts have been seen."""
        return len(set(self._host.values()))

    def add(self, worker: str, name: str, label: str = "", gpu: str = "") -> None:
        """Record a worker: its address, the name of its host, its label in messages (empty: its address), and its GPU."""
        url = urlsplit(worker)
        ip = (url.hostname or "") if url.scheme != "inproc" else ""
        self._host[worker] = name if not ip or ip in ("::1", name) or ip.startswith("127.") else f"{name} ({ip})"
        self._label[worker] = label or worker
        if gpu:
            self._gpu[worker] = f"{gpu} on {self._host[worker]}"

    def where(self, worker: str) -> tuple[str, str]:
        """Return host and name of a worker, for tables."""
        return self._host.get(worker, ""), self._label.get(worker, worker)

    def succeeded(self, worker: str, item: WorkItem) -> None:
        """Record that an item was done. Units that failed at it before are at fault, not the item."""
        host = self._host.get(worker)
        if host is None:
            return
        for unit in (host, worker):
            self._streak[unit] = 0
            self._at_fault.pop(unit, None)
        self._breaks.pop(self._gpu.get(worker, ""), None)
        self._good.add((item[0], host))
        for other, reason in self._tried.pop(item, {}).items():
            if other != worker:
                # on the same host only that worker is at fault, on another host the host
                unit, who = (other, f"worker {worker}") if self._host[other] == host else (self._host[other], host)
                self._at_fault[unit] = f"failed at {_named(item)}, which {who} could do: {reason}"
                self._put_aside_if_due(unit)

    def failed(self, worker: str, item: WorkItem, reason: str, strikes: int = 1) -> None:
        """Record that an item failed at a worker; ``strikes`` is the number of tries that this counts as."""
        host = self._host.get(worker)
        if host is None:
            return
        self._tried[item].pop(worker, None)
        self._tried[item][worker] = reason  # popped before, so that the latest failure comes last
        for unit in (host, worker):
            self._streak[unit] += strikes
            self._put_aside_if_due(unit)

    def took_tiles(self, worker: str, outcomes: Iterable[TileOutcome]) -> list[TileOutcome]:
        """Record a worker's outcomes of tiles; return them, failed ones with host and worker filled in."""
        host, label = self.where(worker)
        named = []
        for outcome in outcomes:
            item = ("tile", outcome.slide_id, outcome.tile_id)
            if outcome.status == "failed":
                self.failed(worker, item, outcome.error)
                named.append(dataclasses.replace(outcome, host=host, worker=label))
            else:
                self.succeeded(worker, item)
                named.append(outcome)
        return named

    def took_deaths(self, deaths: Iterable[Death]) -> None:
        """Record the deaths of workers as failures of what they were doing."""
        for death in deaths:
            self.failed(death.worker, (death.kind, death.slide_id, death.tile_id), death.reason)
            if death.broken_at:
                self.broke(death.worker, death.broken_at, death.reason)

    def broke(self, worker: str, items: Collection[WorkItem], reason: str) -> None:
        """Record that a worker's GPU stopped computing while it did some items.

        A GPU that does so twice with no success in between is put aside, unless one item was there each time: then that
        item is at fault, and is given up after its tries.
        """
        gpu = self._gpu.get(worker)
        if gpu is None:
            return
        breaks = self._breaks[gpu]
        breaks[worker] = frozenset(items)
        if len(breaks) >= MAX_GPU_BREAKS and not frozenset.intersection(*breaks.values()) and gpu not in self._resting:
            self._at_fault[gpu] = f"stopped computing {len(breaks)} times, the last time: {reason}"
            self._put_aside(gpu)

    def no_gpu_left(self, there: Collection[str]) -> str:
        """Return why no connected worker can compute: each has a GPU that is put aside.

        Empty if a worker can compute, or if no worker is connected.
        """
        self._end_rests()
        gpus = {self._gpu.get(worker, "") for worker in there}
        return "; ".join(f"{gpu} {self.aside[gpu]}" for gpu in sorted(gpus)) if gpus and gpus <= self._resting.keys() else ""

    def failures(self, item: WorkItem) -> list[tuple[str, str]]:
        """Return worker and reason of each failure at an item, the most credible one last.

        Most credible is a host that did other items of the kind, then one not at fault elsewhere, then the latest.
        """
        kind = item[0]
        every = [(self._host[worker], worker, reason) for worker, reason in self._tried.get(item, {}).items()]
        ordered = sorted(every, key=lambda f: ((kind, f[0]) in self._good, f[0] not in self._at_fault))
        return [(worker, reason) for _, worker, reason in ordered]

    def forget(self, item: WorkItem) -> None:
        """Record that an item is given up."""
        self._tried.pop(item, None)

    def may_be_done(self, item: WorkItem, there: Collection[str]) -> bool:
        """Return whether a failed item should be tried on another host of the workers ``there`` before it is given up."""
        tried = self._hosts_of([item])
        good = sum((item[0], host) in self._good for host in tried)
        reasons = self._tried.get(item, {})
        if reasons and all(r.startswith(NOT_INSTALLED) for r in reasons.values()):  # other workers of its host may have it
            return any(w not in reasons for w in self._others((), there))
        return 0 < len(tried) < MAX_HOSTS and good < GOOD_HOSTS and bool(self._others(tried, there))

    def choose(self, items: Iterable[WorkItem], there: Collection[str]) -> frozenset[str] | None:
        """Return which of the workers ``there`` may get some items of one kind; None: any.

        Hosts that are put aside or have failed at one of the items are left out as long as others remain. An item that has
        failed goes to hosts that have done items of its kind, if there are any. With one host, another worker tries again.
        """
        asked = list(items)
        tried = self._hosts_of(asked)
        if not tried and not self._resting:
            return None
        found = self._others(tried, there)
        if tried and asked:
            found = [w for w in found if (asked[0][0], self._host[w]) in self._good] or found
        if not found:
            found = self._others((), there)
            found = [w for w in found if not any(w in self._tried.get(item, ()) for item in asked)] or found
        return frozenset(found) if found and len(found) < len(there) else None

    def working(self, there: Iterable[str]) -> list[str]:
        """Return the workers of hosts that are not put aside; all workers if every host is."""
        every = [w for w in there if w in self._host]
        return self._others((), every) or every

    def _others(self, tried: Collection[str], there: Iterable[str]) -> list[str]:
        self._end_rests()
        hosts = ((w, self._host.get(w)) for w in there if w not in self._resting and self._gpu.get(w) not in self._resting)
        return [w for w, host in hosts if host is not None and host not in tried and host not in self._resting]

    def _hosts_of(self, items: Iterable[WorkItem]) -> set[str]:
        return {self._host[worker] for item in items for worker in self._tried.get(item, ())}

    def _end_rests(self) -> None:
        now = self._clock()
        for unit in [u for u, rest in self._resting.items() if rest.until <= now]:
            rest_s = self._resting.pop(unit).rest_s
            self._streak[unit] = MAX_FAILURES_IN_A_ROW - 1  # one more failure puts it aside again
            self.news.append(f"{self._title(unit)} is tried again after {rest_s:g} s")

    def _put_aside_if_due(self, unit: str) -> None:
        if unit not in self._resting and unit in self._at_fault and self._streak[unit] >= MAX_FAILURES_IN_A_ROW:
            self._put_aside(unit)

    def _put_aside(self, unit: str) -> None:
        rest_s = min(LONGEST_ASIDE_S, ASIDE_S * 2 ** min(20, self._rests[unit]))
        again = " again" if self._rests[unit] else ""
        self._resting[unit] = _Aside(self._clock() + rest_s, rest_s)
        self._rests[unit] += 1
        self.aside[self._title(unit).removeprefix("host ")] = self._at_fault[unit]
        self.news.append(f"{self._title(unit)} is put aside{again} for {rest_s:g} s: it {self._at_fault[unit]}")

    def _title(self, unit: str) -> str:
        if unit in self._gpu.values():
            return unit
        return f"worker {self._label[unit]} on {self._host[unit]}" if unit in self._host else f"host {unit}"


def _named(item: WorkItem) -> str:
    kind, slide_id, tile_id = item
    verb = {"prepare": "opening slide", "finish": "finishing slide"}.get(kind, "slide")
    return f"{verb} {slide_id}" + (f", tile {tile_id}" if tile_id >= 0 else "")

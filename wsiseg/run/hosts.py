"""Decide which hosts may try an item again after a failure, and exclude hosts that fail where others succeed.

A broken host fails fast and is soon idle again, so without exclusion it would get most of the work and fail all of it. This
module does not depend on Dask: it records successes and failures, and returns the workers that may try an item. If all workers
are on one host, none is excluded.

The cause of a failure may be the item (a damaged tile) or the host (no mount, full disk, broken GPU). It is the host if another
host then succeeds with the same item (``succeeded``). It is assumed to be the item after ``GOOD_HOSTS`` hosts failed with it
that have succeeded with other items of the same kind (``may_be_done``).
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from wsiseg.run.failures import Failure
from wsiseg.run.presence import Death
from wsiseg.types import FailureKind, TileOutcome

__all__ = ["Hosts", "WorkItem"]

WorkItem = tuple[str, str, int]
"""What may succeed or fail: kind (prepare, tile, finish), slide id, and tile id (-1: the whole slide)."""

MAX_FAILURES_IN_A_ROW = 3
"""A host is excluded after this many failures in a row, if another host succeeded with one of the failed items."""

MAX_GPU_BREAKS = 2
"""A GPU is excluded after it stopped computing this many times without a success in between."""

GOOD_HOSTS = 2
"""An item is given up after this many hosts failed with it that have succeeded with other items of its kind."""

MAX_HOSTS = 8
"""Maximum number of hosts that try one item while no host has succeeded with anything yet."""

EXCLUDE_S = 60.0
"""How long a host is excluded the first time, s; the time doubles with each further exclusion."""

MAX_EXCLUDE_S = 3600.0
"""Maximum time that a host is excluded, s. It is then tried again, because a lost mount may be back."""


@dataclass(slots=True)
class _Exclusion:
    """An excluded host: until when (by the clock), and for how long, s."""

    until: float
    exclude_s: float


class Hosts:
    """The successes, failures and exclusions of the hosts of a run.

    A host is identified by its name and the network address of its workers, because containers may share a name, and machines
    behind a gateway an address. All workers of a host are excluded together, with two exceptions: if another worker of the same
    host succeeds with an item, only the worker that failed is excluded; and a GPU that stops computing is excluded together
    with all workers that use it, now or later. A *unit* below is a host's name, a worker's address or a GPU.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._host: dict[str, str] = {}  # by worker's address
        self._label: dict[str, str] = {}
        self._gpu: dict[str, str] = {}  # by worker's address: the same for every process that had that GPU
        self._breaks: defaultdict[str, dict[str, frozenset[WorkItem]]] = defaultdict(dict)  # by GPU: items in work then
        self._tried: defaultdict[WorkItem, dict[str, Failure]] = defaultdict(
            dict
        )  # items not done: which workers failed, and why
        # the following are by unit: a host, a single worker or a GPU
        self._streak: Counter[str] = Counter()
        self._at_fault: dict[str, str] = {}  # failed where another unit succeeded, and has not succeeded since: the reason
        self._good: set[tuple[str, str]] = set()
        self._excluded: dict[str, _Exclusion] = {}
        self._n_exclusions: Counter[str] = Counter()
        self.exclusions: dict[str, str] = {}
        """Every unit that was ever excluded, and why."""
        self.news: list[str] = []
        """Messages to be logged: exclusions, and units that are tried again."""

    def __len__(self) -> int:
        """Return the number of hosts that were added."""
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
        """Return host and label of a worker, for tables."""
        return self._host.get(worker, ""), self._label.get(worker, worker)

    def succeeded(self, worker: str, item: WorkItem) -> None:
        """Record that an item was done. Units that failed with it before are at fault, not the item."""
        host = self._host.get(worker)
        if host is None:
            return
        for unit in (host, worker):
            self._streak[unit] = 0
            self._at_fault.pop(unit, None)
        self._breaks.pop(self._gpu.get(worker, ""), None)
        self._good.add((item[0], host))
        for other, failure in self._tried.pop(item, {}).items():
            if other != worker:
                # on the same host only that worker is at fault, on another host the host
                unit, who = (other, f"worker {worker}") if self._host[other] == host else (self._host[other], host)
                self._at_fault[unit] = f"failed at {_named(item)}, which {who} could do: {failure.reason}"
                self._exclude_if_due(unit)

    def failed(self, worker: str, item: WorkItem, reason: str, strikes: int = 1, kind: FailureKind = "") -> None:
        """Record that an item failed at a worker, and why; ``strikes`` is the number of tries that this counts as."""
        host = self._host.get(worker)
        if host is None:
            return
        self._tried[item].pop(worker, None)
        self._tried[item][worker] = Failure(reason, kind)  # popped before, so that the latest failure comes last
        for unit in (host, worker):
            self._streak[unit] += strikes
            self._exclude_if_due(unit)

    def record_outcomes(self, worker: str, outcomes: Iterable[TileOutcome]) -> list[TileOutcome]:
        """Record a worker's outcomes of tiles; return them, with host and worker added to failed ones."""
        host, label = self.where(worker)
        named = []
        for outcome in outcomes:
            item = ("tile", outcome.slide_id, outcome.tile_id)
            if outcome.status == "failed":
                self.failed(worker, item, outcome.error, kind=outcome.kind)
                named.append(dataclasses.replace(outcome, host=host, worker=label))
            else:
                self.succeeded(worker, item)
                named.append(outcome)
        return named

    def record_deaths(self, deaths: Iterable[Death]) -> None:
        """Record the exits of worker processes as failures of the items in work."""
        for death in deaths:
            self.failed(death.worker, (death.kind, death.slide_id, death.tile_id), death.reason)
            if death.broken_at:
                self.gpu_stopped(death.worker, death.broken_at, death.reason)

    def gpu_stopped(self, worker: str, items: Collection[WorkItem], reason: str) -> None:
        """Record that a worker's GPU stopped computing while these items were in work.

        A GPU that stops ``MAX_GPU_BREAKS`` times without a success in between is excluded, unless the same item was in work
        each time: then that item is the cause, and is given up after its tries.
        """
        gpu = self._gpu.get(worker)
        if gpu is None:
            return
        breaks = self._breaks[gpu]
        breaks[worker] = frozenset(items)
        if len(breaks) >= MAX_GPU_BREAKS and not frozenset.intersection(*breaks.values()) and gpu not in self._excluded:
            self._at_fault[gpu] = f"stopped computing {len(breaks)} times, the last time: {reason}"
            self._exclude(gpu)

    def no_gpu_left(self, there: Collection[str]) -> str:
        """Return the reasons if the GPU of every worker in ``there`` is excluded.

        Empty if a worker can compute, or if no worker is connected.
        """
        self._end_exclusions()
        gpus = {self._gpu.get(worker, "") for worker in there}
        return (
            "; ".join(f"{gpu} {self.exclusions[gpu]}" for gpu in sorted(gpus)) if gpus and gpus <= self._excluded.keys() else ""
        )

    def failures(self, item: WorkItem) -> list[tuple[str, Failure]]:
        """Return the worker of each failure at an item, the most credible one last.

        Failures of hosts that succeeded with other items of the kind are more informative than those of hosts that did not,
        then those of hosts that are not at fault elsewhere, then later ones.
        """
        kind = item[0]
        every = [(self._host[worker], worker, failure) for worker, failure in self._tried.get(item, {}).items()]
        ordered = sorted(every, key=lambda f: ((kind, f[0]) in self._good, f[0] not in self._at_fault))
        return [(worker, failure) for _, worker, failure in ordered]

    def forget(self, item: WorkItem) -> None:
        """Record that an item is given up."""
        self._tried.pop(item, None)

    def may_be_done(self, item: WorkItem, there: Collection[str]) -> bool:
        """Return whether another host of the workers ``there`` should try a failed item before it is given up."""
        tried = self._hosts_of([item])
        good = sum((item[0], host) in self._good for host in tried)
        failures = self._tried.get(item, {})
        if failures and all(f.kind == "library" for f in failures.values()):  # other workers of its host may have it
            return any(w not in failures for w in self._others((), there))
        return 0 < len(tried) < MAX_HOSTS and good < GOOD_HOSTS and bool(self._others(tried, there))

    def choose(self, items: Iterable[WorkItem], there: Collection[str]) -> frozenset[str] | None:
        """Return which of the workers ``there`` may run a task of these items, all of one kind; None: any.

        Hosts that are excluded or failed with one of the items are left out unless no others remain. An item that failed goes
        to hosts that succeeded with items of its kind, if there are any. If there is one host, another of its workers tries.
        """
        asked = list(items)
        tried = self._hosts_of(asked)
        if not tried and not self._excluded:
            return None
        found = self._others(tried, there)
        if tried and asked:
            found = [w for w in found if (asked[0][0], self._host[w]) in self._good] or found
        if not found:
            found = self._others((), there)
            found = [w for w in found if not any(w in self._tried.get(item, ()) for item in asked)] or found
        return frozenset(found) if found and len(found) < len(there) else None

    def working(self, there: Iterable[str]) -> list[str]:
        """Return the workers of hosts that are not excluded; all workers if every host is excluded."""
        every = [w for w in there if w in self._host]
        return self._others((), every) or every

    def _others(self, tried: Collection[str], there: Iterable[str]) -> list[str]:
        self._end_exclusions()
        hosts = ((w, self._host.get(w)) for w in there if w not in self._excluded and self._gpu.get(w) not in self._excluded)
        return [w for w, host in hosts if host is not None and host not in tried and host not in self._excluded]

    def _hosts_of(self, items: Iterable[WorkItem]) -> set[str]:
        return {self._host[worker] for item in items for worker in self._tried.get(item, ())}

    def _end_exclusions(self) -> None:
        now = self._clock()
        for unit in [u for u, rest in self._excluded.items() if rest.until <= now]:
            exclude_s = self._excluded.pop(unit).exclude_s
            self._streak[unit] = MAX_FAILURES_IN_A_ROW - 1  # one more failure excludes it again
            self.news.append(f"{self._title(unit)} is tried again after {exclude_s:g} s")

    def _exclude_if_due(self, unit: str) -> None:
        if unit not in self._excluded and unit in self._at_fault and self._streak[unit] >= MAX_FAILURES_IN_A_ROW:
            self._exclude(unit)

    def _exclude(self, unit: str) -> None:
        exclude_s = min(MAX_EXCLUDE_S, EXCLUDE_S * 2 ** min(20, self._n_exclusions[unit]))
        again = " again" if self._n_exclusions[unit] else ""
        self._excluded[unit] = _Exclusion(self._clock() + exclude_s, exclude_s)
        self._n_exclusions[unit] += 1
        self.exclusions[self._title(unit).removeprefix("host ")] = self._at_fault[unit]
        self.news.append(f"{self._title(unit)} is excluded{again} for {exclude_s:g} s: it {self._at_fault[unit]}")

    def _title(self, unit: str) -> str:
        if unit in self._gpu.values():
            return unit
        return f"worker {self._label[unit]} on {self._host[unit]}" if unit in self._host else f"host {unit}"


def _named(item: WorkItem) -> str:
    kind, slide_id, tile_id = item
    verb = {"prepare": "opening slide", "finish": "finishing slide"}.get(kind, "slide")
    return f"{verb} {slide_id}" + (f", tile {tile_id}" if tile_id >= 0 else "")

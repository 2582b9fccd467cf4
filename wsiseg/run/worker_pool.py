"""The workers of a run on the client: which were accepted or refused, and which may run a task."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from distributed import Client

from wsiseg.decode import decode
from wsiseg.errors import DeviceBrokenError, FormatError, InputError, one_line
from wsiseg.log import log
from wsiseg.run.facts import WorkerReport
from wsiseg.run.hosts import Hosts, WorkItem
from wsiseg.run.worker import WorkerSetup, report_of

__all__ = ["WorkerPool"]

LOOK_S = 2.0
"""Interval at which the client updates the list of connected workers, s."""

ASK_S = 0.5
"""How long the client waits for reports of workers before it requests them, and the interval of requests at the start, s."""

ANSWER_S = 60.0
"""Time after which a scheduler that does not answer is considered lost, s; a broken connection may raise no error."""

NO_WORKER_WARNING_S = 30.0
"""The user is warned when no worker has been connected for this long, s."""

PREPARING_S = 4.0
"""If workers take longer than this to prepare their kernels, they are compiling, and the user is informed, s."""

MAX_PREPARING_S = 600.0
"""Maximum time that the run waits while all workers are preparing, s; after it, they count as not connected."""


FETCH_WAITS = "fetch_waits"
"""Key of a worker's message that a server gives no bytes."""


class WorkerPool:
    """The workers of a run: those accepted, the tasks that each may run, and those refused, with the reason."""

    def __init__(
        self,
        client: Client,
        setup: WorkerSetup,
        report: Callable[[str], None] = lambda text: None,
        on_ready: Callable[[WorkerReport], None] = lambda worker: None,
        *,
        remote: bool = True,
    ) -> None:
        self.client = client
        self.setup = setup
        self._report = report
        self._on_ready = on_ready
        self._ready: queue.SimpleQueue[WorkerReport] = queue.SimpleQueue()  # filled by the thread of the Dask client
        self._preparing: set[str] = set()
        self._roles: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._remote = remote  # False: the run started its own cluster, which no other workers join
        self._without_gpu: set[str] = set()  # refused because their GPU does not compute
        self.hosts = Hosts()
        self.accepted: dict[str, int] = {}  # accepted workers and their threads, as last seen
        self._looked = -LOOK_S
        self._seen = time.monotonic()
        self._warned = False
        self.threads = 0

    def join(self) -> None:
        """Check and set up every worker, including those that connect later.

        Raises
        ------
        InputError
            Every connected worker was refused.
        """
        self.client.subscribe_topic(self.setup.name, self._event)
        error = _worker_error(self.client.register_plugin, self.setup)
        if error is not None:
            log.warning("a worker cannot be set up, because it lacks wsiseg or has another version: %s", one_line(error))
        start = time.monotonic()
        warned = False
        while (answers := len(self._roles) + len(self.refused)) < len(everyone := self._connected_workers()):
            # Workers report through scheduler events, which may arrive later than the answer of register_plugin. A refusal
            # arrives sooner than the acceptance of a worker, which loads its libraries first.
            waited = time.monotonic() - start
            compiling = bool(self._preparing) and not self._roles
            patience = MAX_PREPARING_S if compiling else NO_WORKER_WARNING_S if answers and not self._roles else LOOK_S
            if waited > patience:
                break
            if compiling and waited > PREPARING_S and not warned:
                warned = True
                self._report("preparing  CPU kernels, compiled once on each machine and kept for later runs")
            if waited > ASK_S:
                self._ask(everyone)
            time.sleep(0.01 if waited < ASK_S else ASK_S)
        self.update()
        if self.refused and not self._roles:
            raise InputError(
                "Every worker of the scheduler was refused:\n" + "\n".join(f"  {r}" for r in self.refused.values())
            )

    def update(self) -> int:
        """Return the number of tiles that the accepted workers compute at once, updated every ``LOOK_S`` seconds."""
        while not self._ready.empty():
            self._on_ready(self._ready.get())
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            everyone = self._connected_workers()
            self._ask(everyone)
            roles = dict(self._roles)
            self.accepted = {a: n for a, n in everyone.items() if a in roles}
            self._stop_without_gpu(everyone)
            working = self.hosts.working(self.accepted)
            self.threads = sum(self.accepted[a] for a in working if roles[a] == "tile")
            if self.threads:
                self._seen, self._warned = now, False
            elif not self._warned and now - self._seen > NO_WORKER_WARNING_S:
                self._warned = True
                why = "no worker is ready yet: kernels are still compiled" if self._preparing else "no worker is there"
                log.warning("%s; waiting for one. Ctrl-C stops; the same command resumes", why)
        return self.threads

    def _stop_without_gpu(self, everyone: Collection[str]) -> None:
        """Raise ``DeviceBrokenError`` if every GPU of the run is broken, instead of failing all tiles."""
        # a worker may break so soon that it is never seen; without others to come, all that ever worked are what there is
        known = self.workers_for("tiles") if self._remote else [a for a, role in self._roles.items() if role == "tile"]
        reason = self.hosts.no_gpu_left(known)
        if not reason and everyone and not self._remote and self._without_gpu >= set(everyone):  # and none connects later
            reason = "; ".join(self.refused[a] for a in everyone)
        if reason:
            raise DeviceBrokenError(
                f"No GPU is left to compute on: {reason}. Finished tiles are kept: run the same command again once the GPU is "
                "reset or excluded (--gpus), or on another machine."
            )

    def workers_for(self, kind: str) -> list[str]:
        """Return the workers that may run a kind of task, of those connected at the last update."""
        return [a for a in self.accepted if kind != "tiles" or self._roles[a] == "tile"]

    def threads_by_host(self) -> dict[str, int]:
        """Return the number of tiles that each host computes at once, without excluded hosts."""
        found: dict[str, int] = {}
        for address in self.hosts.working(self.accepted):
            host = self.hosts.where(address)[0]
            found[host] = found.get(host, 0) + (self.accepted[address] if self._roles[address] == "tile" else 0)
        return found

    def first_of(self, host: str) -> str:
        """Return one worker of a host, always the same, preferably one that only reads; empty if none is connected."""
        own = [a for a in self.accepted if self.hosts.where(a)[0] == host]
        return min(own, key=lambda a: (self._roles[a] != "slide", a), default="")

    def options(self, kind: str, items: Sequence[WorkItem], places: Collection[str] = ()) -> dict[str, Any]:
        """Return a task's Dask options: a resource for its role, and the allowed workers unless all are allowed.

        ``places`` are the hosts that have the slide staged (empty: any host); if all of them are excluded, others may run it.
        """
        able = self.workers_for(kind)
        chosen = self.hosts.choose(items, able)
        if places:
            there = frozenset(a for a in (able if chosen is None else chosen) if self.hosts.where(a)[0] in places)
            chosen = there or chosen
        if kind == "tiles":
            role = "tile"
        else:
            readers = [a for a in (able if chosen is None else chosen) if self._roles[a] == "slide"]
            role = "slide" if readers else "any"
        asked: dict[str, Any] = {"resources": {self.setup.resource(role): 1}}
        return asked if chosen is None else {**asked, "workers": sorted(chosen)}

    def leave(self) -> None:
        """Remove this run's setup from the workers, because a shared cluster continues after the run."""
        self.client.unsubscribe_topic(self.setup.name)
        _worker_error(self.client.unregister_worker_plugin, self.setup.name)  # workers without it raise, which is ignored

    def _connected_workers(self) -> dict[str, int]:
        there: dict[str, int] = self.client.nthreads(callback_timeout=ANSWER_S)
        return there

    def _ask(self, everyone: Iterable[str]) -> None:
        """Request reports that have not arrived; events sent before the scheduler registered our subscription are lost."""
        silent = [a for a in everyone if a not in self._roles and a not in self.refused]
        if silent:
            try:
                answers = self.client.run(
                    report_of, self.setup.name, workers=silent, on_error="return", callback_timeout=ANSWER_S
                )
            except TimeoutError:  # a worker that hangs at its start must not delay the others
                log.warning("%d workers do not answer: %s", len(silent), ", ".join(silent[:4]))
                return
            for address, answer in answers.items():
                if isinstance(answer, dict) and answer:
                    self._read(answer)
                elif isinstance(answer, Exception) and not isinstance(answer, OSError):  # which would be a lost connection
                    host = urlsplit(address).hostname or address
                    self._take(WorkerReport(address, "", host, f"wsiseg cannot be loaded there: {one_line(answer)}"))

    def _event(self, event: tuple[float, object]) -> None:
        message = event[1]
        if isinstance(message, dict) and FETCH_WAITS in message:
            log.warning("%s", message[FETCH_WAITS])
        else:
            self._read(message)

    def _read(self, message: object) -> None:
        try:
            self._take(decode(WorkerReport, message, "report of a worker"))
        except FormatError as err:  # from another version of wsiseg, so the worker gets no task
            log.warning("%s", err)

    def _take(self, report: WorkerReport) -> None:
        address = report.worker
        if address in self._roles or address in self.refused:
            return
        if report.preparing:
            self._preparing.add(address)
            return
        self._preparing.discard(address)
        if report.refused:
            self.refused[address] = f"{address} on {report.host}: {report.refused}"
            log.warning("worker %s is refused", self.refused[address])
            if report.broken:
                self._without_gpu.add(address)
                self.hosts.exclusions[f"{report.gpu} on {report.host}"] = report.refused.removeprefix(f"{report.gpu} ")
        else:
            self._roles[address] = report.role
            self.hosts.add(address, report.host, report.name, report.gpu)
            self._ready.put(report)
            self._looked = -LOOK_S


def _worker_error(ask: Callable[..., Any], *args: Any) -> BaseException | None:
    """Send a request to all workers; return the exception that one of them raised, or ``None``.

    The exception may be of any type, because a worker without this version of wsiseg cannot unpickle the request. The request
    is sent from a separate thread, which stores the exception.

    Raises
    ------
    OSError
        The connection to the scheduler is lost.
    """
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(ask, *args).exception()
    if isinstance(error, OSError):
        raise error
    return error

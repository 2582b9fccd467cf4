"""Who works for a run: workers that were accepted or refused, and which of them may get a task."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from distributed import Client

from wsiseg.errors import InputError, one_line
from wsiseg.log import log
from wsiseg.run.hosts import Hosts, Thing
from wsiseg.run.worker import WorkerSetup, verdict_of

__all__ = ["Crew"]

LOOK_S = 2.0
"""How often the client asks who is there, s."""

ASK_S = 0.5
"""How long the client waits for workers to speak before it asks them, and between its questions at the start, s."""

ANSWER_S = 60.0
"""How long the scheduler may take to answer, s: a connection may be dead with nobody told."""

PATIENCE_S = 30.0
"""How long no worker may be there before the user is told, s."""

PREPARING_S = 4.0
"""Workers that take longer than this to prepare their kernels are compiling them, and the user is told, s."""

LONGEST_PREPARING_S = 600.0
"""How long all workers may be preparing before the run goes on as if none were there, s."""


class Crew:
    """Who works for a run: workers that were accepted, what each may do, and who was refused and why."""

    def __init__(
        self,
        client: Client,
        setup: WorkerSetup,
        tell: Callable[[str], None] = lambda text: None,
        on_ready: Callable[[dict[str, Any]], None] = lambda facts: None,
    ) -> None:
        self.client = client
        self.setup = setup
        self._tell = tell
        self._on_ready = on_ready
        self._ready: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()  # from the client's own thread
        self._preparing: set[str] = set()
        self._roles: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.hosts = Hosts()
        self.there: dict[str, int] = {}  # accepted workers and their threads, as last seen
        self._looked = -LOOK_S
        self._seen = time.monotonic()
        self._told = False
        self.threads = 0

    def join(self) -> None:
        """Have every worker, those that come later too, checked and set up.

        Raises
        ------
        InputError
            There are workers, and every one of them was refused.
        """
        self.client.subscribe_topic(self.setup.name, self._event)
        error = _worker_error(self.client.register_plugin, self.setup)
        if error is not None:
            log.warning("a worker cannot be set up, its wsiseg is missing or another: %s", one_line(error))
        start = time.monotonic()
        told = False
        while (answers := len(self._roles) + len(self.refused)) < len(everyone := self._everyone()):
            # the events come by another way than the answer; a refusal comes sooner than a worker that loads its libraries
            waited = time.monotonic() - start
            compiling = bool(self._preparing) and not self._roles
            patience = LONGEST_PREPARING_S if compiling else PATIENCE_S if answers and not self._roles else LOOK_S
            if waited > patience:
                break
            if compiling and waited > PREPARING_S and not told:
                told = True
                self._tell("preparing  CPU kernels, compiled once on each machine and kept for later runs")
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
        while not self._ready.empty():
            self._on_ready(self._ready.get())
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            everyone = self._everyone()
            self._ask(everyone)
            roles = dict(self._roles)
            self.there = {a: n for a, n in everyone.items() if a in roles}
            working = self.hosts.working(self.there)
            self.threads = sum(self.there[a] for a in working if roles[a] == "tile")
            if self.threads:
                self._seen, self._told = now, False
            elif not self._told and now - self._seen > PATIENCE_S:
                self._told = True
                why = "no worker is ready yet: kernels are still compiled" if self._preparing else "no worker is there"
                log.warning("%s; waiting for one. Ctrl-C stops; the same command resumes", why)
        return self.threads

    def able(self, kind: str) -> list[str]:
        """Return the workers, of those seen last, that a kind of task may go to."""
        return [a for a in self.there if kind != "tiles" or self._roles[a] == "tile"]

    def options(self, kind: str, things: Sequence[Thing]) -> dict[str, Any]:
        """Return what a task must ask for: a role and, where some hosts are to be avoided, one of certain workers."""
        chosen = self.hosts.choose(things, self.able(kind))
        if kind == "tiles":
            role = "tile"
        else:
            readers = [a for a in (self.able(kind) if chosen is None else chosen) if self._roles[a] == "slide"]
            role = "slide" if readers else "any"
        asked: dict[str, Any] = {"resources": {self.setup.resource(role): 1}}
        return asked if chosen is None else {**asked, "workers": sorted(chosen)}

    def leave(self) -> None:
        """Let the workers go: a cluster of others outlives this run."""
        self.client.unsubscribe_topic(self.setup.name)
        _worker_error(self.client.unregister_worker_plugin, self.setup.name)  # one that never had it says so

    def _everyone(self) -> dict[str, int]:
        there: dict[str, int] = self.client.nthreads(callback_timeout=ANSWER_S)
        return there

    def _ask(self, everyone: Iterable[str]) -> None:
        """Ask workers that were not heard of: an event that is sent before the scheduler knows of our interest is lost."""
        silent = [a for a in everyone if a not in self._roles and a not in self.refused]
        if silent:
            try:
                answers = self.client.run(
                    verdict_of, self.setup.name, workers=silent, on_error="return", callback_timeout=ANSWER_S
                )
            except TimeoutError:  # a worker that hangs from the start must not hold up those that work
                log.warning("%d workers do not answer: %s", len(silent), ", ".join(silent[:4]))
                return
            for address, answer in answers.items():
                if isinstance(answer, dict) and answer:
                    self._hear(answer)
                elif isinstance(answer, Exception) and not isinstance(answer, OSError):  # not a link that was cut
                    host = urlsplit(address).hostname or address
                    self._hear(
                        {"worker": address, "host": host, "refused": f"wsiseg cannot be loaded there: {one_line(answer)}"}
                    )

    def _event(self, event: tuple[float, dict[str, Any]]) -> None:
        self._hear(event[1])

    def _hear(self, message: dict[str, Any]) -> None:
        address = message["worker"]
        if address in self._roles or address in self.refused:
            return
        if message.get("preparing"):
            self._preparing.add(address)
            return
        self._preparing.discard(address)
        if message["refused"]:
            self.refused[address] = f"{address} on {message['host']}: {message['refused']}"
            log.warning("worker %s is refused", self.refused[address])
        else:
            self._roles[address] = message["role"]
            self.hosts.add(address, message["host"], message["name"])
            self._ready.put(message)
            self._looked = -LOOK_S


def _worker_error(ask: Callable[..., Any], *args: Any) -> BaseException | None:
    """Ask all workers for something; return what one of them raised, whatever it was: it cannot even load what it is sent.

    Raises
    ------
    OSError
        The link to the scheduler is lost.
    """
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(ask, *args).exception()
    if isinstance(error, OSError):
        raise error
    return error

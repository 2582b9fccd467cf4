"""Record how worker processes of this machine ended: by which signal, and whether memory ran out.

The only source is the log of Dask's nannies, because a killed worker process cannot report anything itself.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
import time
from collections.abc import Callable, Iterator

from wsiseg.cluster.limits import oom_kills

__all__ = ["record_ends", "last_end", "memory_note", "describe_end"]

_END_LINE = re.compile(r"Worker process (\d+) (?:was killed by signal (\d+)|exited with status (\d+))")

NANNY_S = 1.0
"""Maximum time to wait until a nanny has logged how its worker ended, s."""

FEWER = "for lack of memory: use fewer --workers or a smaller --tile"


class _Ends(logging.Handler):
    """Log handler that stores what the nannies of this process log about ended workers."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.by_pid: dict[int, int] = {}
        self.oom_before = oom_kills()[0]

    def emit(self, record: logging.LogRecord) -> None:
        """Process a line of the log."""
        said = _END_LINE.search(record.getMessage())
        if said:
            pid, number, status = said.groups()
            self.by_pid[int(pid)] = -int(number) if number else int(status)


_ENDS: list[_Ends] = []


@contextlib.contextmanager
def record_ends() -> Iterator[None]:
    """Record how workers of this process's cluster end while the block runs."""
    nanny = logging.getLogger("distributed.nanny")
    level, propagate = nanny.level, nanny.propagate
    ends = _Ends()
    _ENDS.append(ends)
    nanny.addHandler(ends)
    nanny.setLevel(logging.INFO)
    nanny.propagate = False  # its messages are not meant for the user
    try:
        yield
    finally:
        nanny.removeHandler(ends)
        nanny.setLevel(level)
        nanny.propagate = propagate
        _ENDS.remove(ends)


def describe_end(pid: int) -> str:
    """Return how the worker process with this id ended, such as ``was killed by signal 9 (SIGKILL)``; empty if unknown."""
    if not _waited_for(lambda: any(pid in e.by_pid for e in _ENDS)):
        return ""
    code = next(e.by_pid[pid] for e in reversed(_ENDS) if pid in e.by_pid)
    if code >= 0:
        return f"ended with status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {-code} ({name})" + (memory_note() if -code == signal.SIGKILL else "")


def last_end() -> str:
    """Return how the last worker process ended; empty if unknown."""
    _waited_for(lambda: any(e.by_pid for e in _ENDS))
    pid = next((list(e.by_pid)[-1] for e in reversed(_ENDS) if e.by_pid), None)
    return "" if pid is None else describe_end(pid)


def _waited_for(known: Callable[[], bool]) -> bool:
    """Wait up to ``NANNY_S`` until the reason is known; a nanny notices the end of a worker later than the scheduler."""
    end = time.monotonic() + (NANNY_S if _ENDS else 0.0)
    while not known():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def memory_note() -> str:
    """Return the end of a sentence about processes killed for lack of memory since the run started, certainly or possibly."""
    if not _ENDS:
        return ""
    count, by = oom_kills()
    more = count - _ENDS[-1].oom_before
    if more > 0:
        return f"; the {by} ended {more} process{'es' if more > 1 else ''} meanwhile {FEWER}"
    return ""

"""Standard output and error that never stop a run: a pipe may be closed or full, or the encoding only ASCII."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from typing import Any

__all__ = ["lost_output", "steady_streams"]

_LEFT = (errno.EPIPE, errno.ECONNRESET, errno.EBADF)
"""Errors of a reader that closed the pipe (``| head``), or of no reader at all: these are not reported."""

MAX_WAIT_S = 5.0
"""How long to wait for a full non-blocking pipe, s; after that the output is lost."""

_LOST: dict[int, OSError] = {}
"""For each file descriptor, why its output is lost."""


class _Steady(io.RawIOBase):
    """A file descriptor on which writing always succeeds; output that cannot be written is lost, and so is all that follows."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._handle

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._handle)

    def writable(self) -> bool:
        """Return that it can be written to."""
        return True

    def write(self, data: Any) -> int:
        """Write what can be written; return that all was."""
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and self._handle not in _LOST:
            try:
                done += os.write(self._handle, view[done:])
            except BlockingIOError:  # a non-blocking pipe: wait for it, up to a limit
                if not select.select([], [self._handle], [], MAX_WAIT_S)[1]:
                    break
            except OSError as err:
                _LOST[self._handle] = err
        return len(view)


def steady_streams() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that fail neither for a closed pipe nor for a character.

    Closed descriptors (``>&-``) are opened on the null device: else the next file that is opened would get their number,
    and output for the terminal would be written into it.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, handle)
            if nowhere != handle:
                os.close(nowhere)
    sys.stdout = _steady(sys.stdout, 1)
    sys.stderr = _steady(sys.stderr, 2)


def _steady(stream: Any, handle: int) -> io.TextIOWrapper:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    if encoding.lower().replace("_", "-") in ("ascii", "us-ascii", "ansi-x3.4-1968", "646"):
        encoding = "utf-8"  # the C locale: µm² cannot be written in it, although terminals can show it
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    buffered = io.BufferedWriter(_Steady(handle))
    line_by_line = handle == 2 or os.isatty(handle)
    return io.TextIOWrapper(buffered, encoding=encoding, errors="backslashreplace", line_buffering=line_by_line)


def lost_output() -> str:
    """Return why output to standard output is lost, such as a full disk; empty if it is not, or its reader closed the pipe."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    err = _LOST.get(1)
    return "" if err is None or err.errno in _LEFT else (err.strerror or str(err))

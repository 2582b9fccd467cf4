"""Replace standard output and error by streams that never raise, even if a pipe is closed or full, or the encoding ASCII."""

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
"""Errors if the reader has closed the pipe (``| head``) or there is none; these are not reported."""

MAX_WAIT_S = 5.0
"""Maximum time to wait for a full non-blocking pipe, s; after that the output is lost."""

_LOST: dict[int, OSError] = {}
"""The error by which output was lost, by file descriptor."""


class _Steady(io.RawIOBase):
    """A stream on which writing always succeeds; after the first error, all output is discarded."""

    def __init__(self, handle: int) -> None:
        super().__init__()
        self._handle = handle

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._handle

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._handle)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, data: Any) -> int:
        """Write as much as possible; always return the full length."""
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
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that do not fail for a closed pipe or an unsupported character.

    Closed descriptors (``>&-``) are opened on the null device. Otherwise the next file to be opened would get their number, and
    terminal output would be written into it.
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
        encoding = "utf-8"  # the C locale cannot encode µm², although terminals can show it
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    buffered = io.BufferedWriter(_Steady(handle))
    line_by_line = handle == 2 or os.isatty(handle)
    return io.TextIOWrapper(buffered, encoding=encoding, errors="backslashreplace", line_buffering=line_by_line)


def lost_output() -> str:
    """Return why standard output was lost, such as a full disk; empty if it was not, or if the reader closed the pipe."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    err = _LOST.get(1)
    return "" if err is None or err.errno in _LEFT else (err.strerror or str(err))

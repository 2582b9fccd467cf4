"""The logger of the package, and the log of a run as lines of JSON; the CLI decides what is printed."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
from pathlib import Path
from typing import Any

__all__ = ["EventLog", "log"]

log = logging.getLogger("wsiseg")
log.addHandler(logging.NullHandler())

MAX_LOG_BYTES = 16 * 2**20
"""A log longer than this is renamed to ``<name>.1``, replacing an older one, so logs never use more than twice this size."""


class EventLog(logging.Handler):
    """A file with one JSON object per line: ``time`` (UTC), ``level``, ``event`` and further fields of the event.

    As a handler of ``log`` it also writes the package's warnings and errors (event ``message``). Each line is appended by one
    write, so the lines of two writers are never mixed. A log that cannot be written (disk full) does not stop the run.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_LOG_BYTES) -> None:
        super().__init__(logging.WARNING)
        self.path = path
        self._max_bytes = max_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Write one of the logger's records."""
        self.event("message", level=record.levelname.lower(), text=record.getMessage())

    def event(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Append one line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": level, "event": event, **fields}, default=str) + "\n"
        with contextlib.suppress(OSError):
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(handle, line.encode())
                full = os.fstat(handle).st_size > self._max_bytes
            finally:
                os.close(handle)
            if full:
                os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))

"""What every worker is doing, on disk, and a deadline that also ends a hang inside a C library.

A worker overwrites one small file in place, ``RUN/workers/<id>.json``, when it begins and ends something. If it dies, the
file remains and names the work in progress, so that tasks that only waited in the same worker are not held responsible. No
fsync: the file outlives its process; if the whole host dies, no tile is held responsible.

A hang inside OpenSlide or a network mount cannot be interrupted from Python, not even by another Python thread if the library
holds the interpreter's lock. ``faulthandler`` watches from a C thread, writes the stack of every thread, and ends the process;
the worker's nanny starts another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import platform
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiseg.cluster.exits import word_of

__all__ = ["Death", "Presence", "deaths", "read_workers", "sweep_workers"]

BROKEN_STATUS = 75
"""Exit status of a worker that ends itself because its GPU stopped computing."""

_PLACE = re.compile(r'File ".*?(wsiseg/[^"]+)", line (\d+) in (\S+)')


@dataclass(frozen=True, slots=True)
class Death:
    """The death of a worker and its work at the time; ``tile_id`` is -1 for the whole slide, ``reason`` is one line.

    ``alone``: the process did nothing else of the run, so this work is what killed it. ``worker`` is its
    address in the cluster. ``broken_at``: the worker ended itself because its GPU stopped computing; all that it did then.
    """

    kind: str
    slide_id: str
    tile_id: int
    reason: str
    alone: bool = True
    worker: str = ""
    broken_at: tuple[tuple[str, str, int], ...] = ()


class Presence:
    """One worker's file and its deadline.

    Parameters
    ----------
    folder
        ``RUN/workers``; made if missing.
    worker_id
        Unique to this start of the worker.
    timeout_s
        Most seconds that one piece of work may take before the process is ended; 0: no limit.
    address
        Of the worker in its cluster.
    """

    def __init__(self, folder: Path, worker_id: str, timeout_s: float = 0.0, address: str = "") -> None:
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in worker_id)
        self.path = folder / f"{name}.json"
        self._timeout_s = timeout_s
        self._address = address
        self._lock = threading.Lock()
        self._at: dict[int, tuple[float, dict[str, Any]]] = {}  # by thread: deadline, and what it does
        self._done = 0
        self._broken = ""
        self._file = self._trace = -1
        with contextlib.suppress(OSError):  # a full or read-only disk: writing the tile will report it
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            self._trace = os.open(self.path.with_suffix(".trace"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._note()

    @contextlib.contextmanager
    def busy(self, task: str, kind: str, slide_id: str, tile_id: int = -1) -> Iterator[None]:
        """Record what this thread does while the block runs; past the deadline the process ends."""
        me = threading.get_ident()
        entry = {"task": task, "kind": kind, "slide_id": slide_id, "tile_id": tile_id}
        with self._lock:
            self._at[me] = (time.monotonic() + self._timeout_s, entry)
            self._note()
            self._watch()
        try:
            yield
        finally:
            with self._lock:
                del self._at[me]
                self._done += kind == "tile"
                self._note()
                self._watch()

    def end_process(self, reason: str) -> None:
        """End this process at once, whatever its threads are doing, and store the reason in its file."""
        with self._lock:
            self._broken = reason
            self._note()
            os._exit(BROKEN_STATUS)

    def close(self) -> None:
        """Remove the files: this worker ends normally."""
        with self._lock:
            if self._timeout_s and self._at:
                faulthandler.cancel_dump_traceback_later()
            for handle in (self._file, self._trace):
                if handle >= 0:
                    os.close(handle)
            self._file = self._trace = -1
            for path in (self.path, self.path.with_suffix(".trace")):
                with contextlib.suppress(OSError):
                    path.unlink()

    def _note(self) -> None:
        if self._file < 0:
            return
        record = {
            "host": platform.node(),
            "pid": os.getpid(),
            "worker": self._address,
            "tiles_done": self._done,
            "timeout_s": self._timeout_s,
            "at": [entry for _, entry in self._at.values()],
            **({"broken": self._broken} if self._broken else {}),
        }
        data = json.dumps(record).encode()
        with contextlib.suppress(OSError):
            os.pwrite(self._file, data.ljust(os.fstat(self._file).st_size or 512), 0)

    def _watch(self) -> None:
        """Set the timer of the process to the earliest deadline."""
        if not self._timeout_s:
            return
        if not self._at:
            faulthandler.cancel_dump_traceback_later()
            return
        left_s = min(end for end, _ in self._at.values()) - time.monotonic()
        faulthandler.dump_traceback_later(max(0.01, left_s), exit=True, file=self._trace if self._trace >= 0 else 2)


def read_workers(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the workers' files, each with ``id``; incomplete and vanished files are left out."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found.append({**record, "id": path.stem, "at": list(record["at"])})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def deaths(folder: Path, task: str) -> list[Death]:
    """Return the work in progress of ``task`` in workers that died. Call it for a task whose workers are known to be dead."""
    found: list[Death] = []
    for record in read_workers(folder):
        for entry in record["at"]:
            if entry.get("task") == task:
                reason = _reason(folder / f"{record['id']}.trace", record)
                alone = len(record["at"]) == 1
                what = _what(entry)
                broken_at = tuple(_what(e) for e in record["at"]) if record.get("broken") else ()
                found.append(Death(*what, reason, alone, str(record.get("worker", "")), broken_at))
    return found


def _what(entry: dict[str, Any]) -> tuple[str, str, int]:
    return str(entry["kind"]), str(entry["slide_id"]), int(entry["tile_id"])


def _reason(trace: Path, record: dict[str, Any]) -> str:
    where = f"worker process {record['pid']} on {record['host']}"
    if record.get("broken"):
        return f"{record['broken']}; the {where} was ended, because its GPU stopped computing"
    try:
        text = trace.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    if not text.startswith("Timeout"):
        here = record["host"] == platform.node()
        return f"WorkerDied: the {where} {(word_of(int(record['pid'])) if here else '') or 'was killed or crashed'} at it"
    # Most recent call first, so the first line of wsiseg is where it hangs.
    places = [m for m in _PLACE.findall(text) if not m[0].startswith("wsiseg/run/presence")]
    inner = f", in {places[0][0]}:{places[0][1]} {places[0][2]}" if places else ""
    return f"TileTimeout: no end within {record['timeout_s']:g} s{inner}; the {where} was ended (--tile-timeout)"


def sweep_workers(folder: Path) -> None:
    """Remove what dead workers left. Call it only while no run writes to the folder."""
    for path in [*folder.glob("*.json"), *folder.glob("*.trace")]:
        with contextlib.suppress(OSError):
            path.unlink()

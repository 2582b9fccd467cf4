"""Record on disk what every worker is doing, and end a worker that exceeds its deadline, even inside a C library.

A worker overwrites one small file in place, ``RUN/workers/<id>.json``, when it starts and ends a piece of work. If its process
ends unexpectedly, the file remains and names the work in progress, so that only this work is suspected. There is no fsync,
because the file only needs to outlive the process: if the whole host stops, no tile is suspected.

A hang inside OpenSlide or a network mount cannot be interrupted from Python, not even from another Python thread if the library
holds the interpreter's lock. ``faulthandler`` therefore waits in a C thread for the deadline, writes the stack of every thread,
and ends the process; the worker's nanny starts another.
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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from wsiseg.cluster.exits import describe_end
from wsiseg.decode import OMITTED, decode, encode
from wsiseg.errors import FormatError

__all__ = ["Death", "Presence", "Work", "WorkerRecord", "deaths", "read_workers", "sweep_workers"]

BROKEN_STATUS = 75
"""Exit status of a worker that ends itself because its GPU stopped computing."""

_PLACE = re.compile(r'File ".*?(wsiseg/[^"]+)", line (\d+) in (\S+)')


@dataclass(frozen=True, slots=True)
class Death:
    """The unexpected end of a worker process, and one piece of work that it was doing.

    Attributes
    ----------
    kind, slide_id, tile_id
        The work; ``tile_id`` is -1 for the whole slide.
    reason
        Why the process ended, in one line.
    alone
        True if the process did nothing else of the run, so that this work is the cause.
    worker
        Its address in the cluster.
    broken_at
        All (kind, slide_id, tile_id) in work if the process ended itself because its GPU stopped computing, else empty.
    """

    kind: str
    slide_id: str
    tile_id: int
    reason: str
    alone: bool = True
    worker: str = ""
    broken_at: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """What a thread of a worker is doing: key and kind of the task, and the slide and tile (-1: the whole slide)."""

    task: str
    kind: str
    slide_id: str
    tile_id: int = -1


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """``RUN/workers/<id>.json``: a worker and its work in progress (``at``).

    ``broken`` is the error by which its GPU stopped computing, after which it ended itself. ``id`` and ``age_s`` are not in the
    file but set by the reader: the file's name, and the seconds since it was written.
    """

    at: tuple[Work, ...]
    host: str = ""
    pid: int = 0
    worker: str = ""
    tiles_done: int = 0
    timeout_s: float = 0.0
    broken: str = field(default="", metadata=OMITTED)
    id: str = field(default="", metadata=OMITTED)
    age_s: float = field(default=0.0, metadata=OMITTED)
    other: Mapping[str, object] = field(default_factory=dict)


class Presence:
    """One worker's file and its deadline.

    Parameters
    ----------
    folder
        ``RUN/workers``; made if missing.
    worker_id
        Unique to this start of the worker.
    timeout_s
        Maximum time of one piece of work, s, after which the process is ended; 0: no limit.
    address
        Address of the worker in its cluster.
    """

    def __init__(self, folder: Path, worker_id: str, timeout_s: float = 0.0, address: str = "") -> None:
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in worker_id)
        self.path = folder / f"{name}.json"
        self._timeout_s = timeout_s
        self._address = address
        self._lock = threading.Lock()
        self._at: dict[int, tuple[float, Work]] = {}  # by thread: deadline and work
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
        """Record what this thread does while the block runs; end the process if the block exceeds the deadline."""
        me = threading.get_ident()
        entry = Work(task, kind, slide_id, tile_id)
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
        """Store the reason in this worker's file and end the process at once, whatever its threads are doing."""
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
        record = WorkerRecord(
            tuple(entry for _, entry in self._at.values()),
            platform.node(),
            os.getpid(),
            self._address,
            self._done,
            self._timeout_s,
            self._broken,
        )
        data = json.dumps(encode(record)).encode()
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


def read_workers(folder: Path) -> list[WorkerRecord]:
    """Return the records of the workers' files, each with ``id``; incomplete and vanished files are left out."""
    found: list[WorkerRecord] = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = decode(WorkerRecord, json.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError, RecursionError, FormatError):
            continue
        found.append(replace(record, id=path.stem))
    return found


def deaths(folder: Path, task: str) -> list[Death]:
    """Return the work of ``task`` that was in progress when its workers ended.

    Call it only for a task whose workers are known to have ended.
    """
    found: list[Death] = []
    for record in read_workers(folder):
        for work in record.at:
            if work.task == task:
                reason = _reason(folder / f"{record.id}.trace", record)
                broken_at = tuple((w.kind, w.slide_id, w.tile_id) for w in record.at) if record.broken else ()
                alone = len(record.at) == 1
                found.append(Death(work.kind, work.slide_id, work.tile_id, reason, alone, record.worker, broken_at))
    return found


def _reason(trace: Path, record: WorkerRecord) -> str:
    where = f"worker process {record.pid} on {record.host}"
    if record.broken:
        return f"{record.broken}; the {where} was ended, because its GPU stopped computing"
    try:
        text = trace.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    if not text.startswith("Timeout"):
        here = record.host == platform.node()
        return f"WorkerDied: the {where} {(describe_end(record.pid) if here else '') or 'was killed or crashed'} at it"
    # the most recent call is first, so the first line in wsiseg is where it hangs
    places = [m for m in _PLACE.findall(text) if not m[0].startswith("wsiseg/run/presence")]
    inner = f", in {places[0][0]}:{places[0][1]} {places[0][2]}" if places else ""
    return f"TileTimeout: no end within {record.timeout_s:g} s{inner}; the {where} was ended (--tile-timeout)"


def sweep_workers(folder: Path) -> None:
    """Remove the files of workers that have ended. Call it only while no run writes to the folder."""
    for path in [*folder.glob("*.json"), *folder.glob("*.trace")]:
        with contextlib.suppress(OSError):
            path.unlink()

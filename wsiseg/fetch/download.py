"""Fetch one object into one verified file, in parallel byte ranges; a journal of finished ranges lets it be resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from wsiseg.errors import FetchDamagedError, FetchUnreachableError
from wsiseg.fetch.address import Wanted, is_address, shown
from wsiseg.fetch.source import Facts, Source, TryAgain
from wsiseg.fetch.stores import StoreSource
from wsiseg.fetch.tokens import token_headers

__all__ = ["FetchOptions", "FetchStopped", "download", "partial_of", "request_facts", "source_of"]

MIN_PART_BYTES, MAX_PART_BYTES = 1 << 18, 1 << 25
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 60.0
"""Pause after the first failure, s, doubled with each further one up to the maximum."""

MAX_RETRY_AFTER_S = 3600.0
"""A fetch fails if the server requests a longer pause (``Retry-After``), s."""

REPORT_WAIT_S = 10.0
"""A server that has sent no byte for this long is reported, s."""

CHECKSUM_TRIES = 3
"""Number of times that a file is fetched if its checksum is wrong."""

Range = tuple[int, int]


class FetchStopped(Exception):  # noqa: N818 - not an error: the caller requested it
    """The caller requested a stop; the fetched ranges are kept for the next try."""


def _ignore(text: str) -> None:
    """Ignore a message."""


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """Options of fetching.

    Attributes
    ----------
    connections
        Number of byte ranges that are fetched in parallel.
    patience_s
        Maximum time without receiving a byte, s.
    token_file
        File with the token of the GDC.
    on_wait
        Called with a message while a server sends no byte: after ``REPORT_WAIT_S``, then each time that the wait has tripled;
        and whenever the server requests a longer pause than ``REPORT_WAIT_S``.
    """

    connections: int = 4
    patience_s: float = 600.0
    token_file: str = ""
    on_wait: Callable[[str], None] = _ignore


def source_of(address: str, options: FetchOptions) -> Source:
    """Return the source for an address: of urllib3 for web servers, of fsspec for everything else."""
    if address[:7].lower() == "http://" or address[:8].lower() == "https://":
        from wsiseg.fetch.web import WebSource

        return WebSource(address, token_headers(address, options.token_file))
    assert is_address(address), address
    return StoreSource(address)


def download(
    source: Source,
    facts: Facts,
    target: Path,
    want: Wanted,
    options: FetchOptions,
    *,
    turn: AbstractContextManager[object] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """Fetch an object to ``target``, complete and with the stated size and MD5, or not at all; return its MD5.

    Parameters
    ----------
    facts
        From ``request_facts``.
    turn
        Held while ranges are started. Of several files that share it, the next starts when the last range of one has started.
    stop
        Called frequently; when it returns True, ``FetchStopped`` is raised.

    Raises
    ------
    FetchError
        The object is refused, missing, damaged or unreachable (see the subclasses).
    OSError
        The file cannot be written, for example because the disk is full.
    """
    pace = _Pauses(source.address, options, stop)
    _check_size(facts, want, source.address)
    md5 = want.md5.lower() or facts.md5
    partial, journal = partial_of(target), partial_of(target).with_suffix(".ranges")
    target.parent.mkdir(parents=True, exist_ok=True)
    for k in range(1, CHECKSUM_TRIES + 1):
        _transfer(source, facts, partial, journal, _Transfer(options.connections, pace, turn or nullcontext()))
        got = _md5(partial) if md5 else ""
        if got == md5:
            break
        for path in (partial, journal):
            path.unlink(missing_ok=True)
        if k == CHECKSUM_TRIES:
            raise FetchDamagedError(
                f"{shown(source.address)}: expected MD5 {md5}, got {got} ({CHECKSUM_TRIES} tries). The object is damaged, or "
                "the manifest is for another version of it: get a new manifest."
            )
    os.replace(partial, target)
    journal.unlink(missing_ok=True)
    return md5


def partial_of(target: Path) -> Path:
    """Return the path of a file while it is being fetched."""
    return target.with_name(f".{target.name}.part")


def request_facts(source: Source, options: FetchOptions, stop: Callable[[], bool] = lambda: False) -> Facts:
    """Return an object's facts; try again after temporary failures. Raises ``FetchError``, ``FetchStopped``."""
    pace = _Pauses(source.address, options, stop)
    while True:
        pace.wait()
        try:
            return source.facts()
        except TryAgain as err:
            pace.failed(err)


@dataclass(frozen=True, slots=True)
class _Transfer:
    """How a file is fetched: number of connections, the pauses that they share, and the turn of this file among others."""

    connections: int
    pace: _Pauses
    turn: AbstractContextManager[object]


class _Pauses:
    """Pauses between requests, which grow with each failure or are set by the server; shared by a file's connections."""

    def __init__(self, address: str, options: FetchOptions, stop: Callable[[], bool]) -> None:
        self._address, self._options, self.stop = address, options, stop
        self._report_after_s = REPORT_WAIT_S
        self._lock = threading.Lock()
        self._failures = 0
        self._not_before = self._alive = time.monotonic()
        self.ended = False
        """Set when one connection has failed permanently, so that the others end too."""

    def wait(self) -> None:
        """Wait until a request may be made. Raises ``FetchStopped``."""
        while True:
            left = self._not_before - time.monotonic()
            if self.ended or self.stop():
                raise FetchStopped
            if left <= 0:
                return
            time.sleep(min(left, 0.1))

    def progressed(self) -> None:
        """Record that bytes were received."""
        self._alive = time.monotonic()
        self._failures = 0
        self._report_after_s = REPORT_WAIT_S

    def failed(self, err: TryAgain) -> None:
        """Set a pause. Raises ``FetchUnreachableError`` after too long without a byte."""
        with self._lock:
            now = time.monotonic()
            pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**self._failures) if err.wait_s is None else err.wait_s
            where = shown(self._address)
            if pause_s > MAX_RETRY_AFTER_S:
                raise FetchUnreachableError(
                    f"{where}: {err.reason}; the server requests {pause_s:.0f} s of pause. Run again later."
                )
            if now > self._not_before:  # else another connection has already set the pause for the same failure
                self._failures += 1
            if now - self._alive > self._options.patience_s:
                raise FetchUnreachableError(
                    f"{where}: {err.reason}; no byte for {now - self._alive:.0f} s. Check the server and the network."
                )
            self._report_wait(where, err, now - self._alive)
            if err.wait_s:
                self._alive = max(self._alive, now + err.wait_s)  # a pause that the server requests does not count
            self._not_before = max(self._not_before, now + pause_s)

    def _report_wait(self, where: str, err: TryAgain, silent_s: float) -> None:
        """Report a server that sends no bytes, each time that the wait has tripled since the last report."""
        if (err.wait_s or 0.0) > REPORT_WAIT_S:
            self._options.on_wait(f"{where}: {err.reason}; the server requests a pause of {err.wait_s:.0f} s")
        elif silent_s >= self._report_after_s:
            self._report_after_s = 3 * silent_s
            until = f"trying again until {self._options.patience_s:.0f} s have passed without one"
            self._options.on_wait(f"{where}: {err.reason}; no byte for {silent_s:.0f} s, {until}")


def _check_size(facts: Facts, want: Wanted, address: str) -> None:
    if want.size_bytes and facts.size_bytes >= 0 and want.size_bytes != facts.size_bytes:
        raise FetchDamagedError(
            f"{shown(address)}: expected {want.size_bytes} bytes by the manifest, but the server has {facts.size_bytes}. Get a "
            "new manifest."
        )
    if facts.size_bytes == 0:
        raise FetchDamagedError(f"{shown(address)}: the object is empty (zero bytes).")


def _transfer(source: Source, facts: Facts, partial: Path, journal: Path, way: _Transfer) -> None:
    """Fetch all bytes that are not in ``partial`` yet."""
    if not facts.ranges or facts.size_bytes < 0:
        _in_one_stream(source, facts, partial, way)
        return
    identity = {"address": shown(source.address), "size_bytes": facts.size_bytes, "version": facts.version or facts.md5}
    done = _read_journal(journal, identity) if partial.is_file() and partial.stat().st_size == facts.size_bytes else []
    handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        os.ftruncate(handle, facts.size_bytes)
        with journal.open("r+b" if done else "wb") as notes:
            notes.seek(0, os.SEEK_END)
            notes.write(b"\n" if done else json.dumps(identity).encode() + b"\n")  # the newline ends a line that was cut short
            notes.flush()
            part = max(MIN_PART_BYTES, min(MAX_PART_BYTES, facts.size_bytes // (4 * way.connections)))
            _Parts(source, handle, notes.fileno(), _missing(done, facts.size_bytes, part), way).run()
    finally:
        os.close(handle)


class _Parts:
    """The ranges of one file, fetched by several threads."""

    def __init__(self, source: Source, handle: int, notes: int, todo: list[Range], way: _Transfer) -> None:
        self._source, self._handle, self._notes, self._way = source, handle, notes, way
        self._todo = deque(todo)
        self._lock = threading.Lock()
        self._issued = threading.Event()

    def run(self) -> None:
        """Fetch all ranges. Raises the exception of a failed thread, ``FetchStopped`` only if there is no other."""
        n = max(1, min(self._way.connections, len(self._todo)))
        with ThreadPoolExecutor(n, thread_name_prefix="fetch") as pool:
            with self._way.turn:
                working = [pool.submit(self._work) for _ in range(n)]
                self._issued.wait()
            errors = [err for future in working if (err := future.exception()) is not None]
        if errors:
            raise next((err for err in errors if not isinstance(err, FetchStopped)), errors[0])

    def _work(self) -> None:
        try:
            while (span := self._next()) is not None:
                rest = self._one(*span)
                if rest is not None:
                    with self._lock:
                        self._todo.appendleft(rest)
        except BaseException:
            self._way.pace.ended = True
            raise
        finally:
            self._issued.set()

    def _next(self) -> Range | None:
        with self._lock:
            span = self._todo.popleft() if self._todo else None
            if not self._todo:
                self._issued.set()
            return span

    def _one(self, start: int, stop: int) -> Range | None:
        """Fetch one range; return the rest of it if the connection ended early."""
        pace, at = self._way.pace, start
        pace.wait()
        trouble: TryAgain | None = None
        try:
            for chunk in self._source.read(start, stop):
                at = _written(self._handle, chunk, at)
                pace.progressed()
                if pace.ended or pace.stop():
                    break
        except TryAgain as err:
            trouble = err
        if at > start:
            os.fdatasync(self._handle)
            with self._lock:
                os.write(self._notes, f"{start} {at}\n".encode())
        if at >= stop:
            return None
        if trouble is not None or at == start:
            pace.failed(trouble or TryAgain("the connection ended without a byte"))
        return at, stop


def _in_one_stream(source: Source, facts: Facts, partial: Path, way: _Transfer) -> None:
    """Fetch an object from a server that does not support ranges, again from its start if the connection ends early."""
    end = facts.size_bytes if facts.size_bytes >= 0 else 1 << 62
    while True:
        way.pace.wait()
        trouble = TryAgain("the connection ended before the end of the object")
        with partial.open("wb") as out, way.turn:
            try:
                for chunk in source.read(0, end):
                    out.write(chunk)
                    way.pace.wait()
            except TryAgain as err:
                trouble = err
            out.flush()
            os.fsync(out.fileno())
            if (out.tell() and out.tell() == facts.size_bytes) or (facts.size_bytes < 0 and out.tell()):
                return
        way.pace.failed(trouble)


def _written(handle: int, chunk: bytes, at: int) -> int:
    view = memoryview(chunk)
    while view:
        n = os.pwrite(handle, view, at)
        at, view = at + n, view[n:]
    return at


def _read_journal(journal: Path, identity: dict[str, object]) -> list[Range]:
    """Return the ranges fetched already; empty if the journal is for another object or version."""
    done: list[Range] = []
    with contextlib.suppress(OSError, ValueError):
        lines = journal.read_text(encoding="ascii").splitlines()
        if not lines or json.loads(lines[0]) != identity:
            return []
        for line in filter(None, lines[1:]):
            numbers = line.split()
            if len(numbers) == 2 and int(numbers[0]) < int(numbers[1]) <= int(str(identity["size_bytes"])):
                done.append((int(numbers[0]), int(numbers[1])))
    return done


def _missing(done: list[Range], size: int, part: int) -> list[Range]:
    """Return the bytes that are not in ``done``, as ranges of at most ``part`` bytes, in order."""
    out: list[Range] = []
    at = 0
    for start, stop in [*sorted(done), (size, size)]:
        out += list(_split(at, min(start, size), part))
        at = max(at, stop)
    return out


def _split(start: int, stop: int, part: int) -> Iterator[Range]:
    for at in range(start, stop, part):
        yield at, min(stop, at + part)


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

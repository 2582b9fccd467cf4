"""Reviewers' marks: one append-only file of JSON lines per reviewer, which survives a crash at any byte.

A mark is on disk (written in one call, then fsync) before the page gets its acknowledgement. The last mark of an item counts;
the mark ``none`` withdraws the one before. An incomplete last line, left by a crash, was never acknowledged to the page and is
dropped when the file is opened again.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from wsiseg.errors import FormatError, InputError, OutputInUseError

__all__ = ["PATCH_MARKS", "SLIDE_MARKS", "Mark", "MarkLog", "read_all_marks", "read_marks", "reviewer_file"]

Queue = Literal["patches", "slides"]
PATCH_MARKS = ("adequate", "not_adequate", "unsure")
SLIDE_MARKS = ("acceptable", "unacceptable", "unsure")
WITHDRAWN = "none"
QUEUES: dict[str, tuple[str, ...]] = {"patches": PATCH_MARKS, "slides": SLIDE_MARKS}

_REVIEWER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Mark:
    """One judgement of a reviewer.

    ``item`` is a patch id or a slide id; ``seconds`` is how long the page showed it; ``time`` is UTC. ``order`` says in which
    review order the item was shown: ``random``, ``predicted`` (suspects first), ``predicted K/N`` (suspects first, K-th of N
    reviewers who divide the work), or ``second`` (a second opinion on an item that another reviewer had judged).
    """

    run: str
    reviewer: str
    queue: Queue
    item: str
    mark: str
    comment: str = ""
    seconds: float = 0.0
    time: str = ""
    order: str = "random"


def reviewer_file(folder: Path, reviewer: str) -> Path:
    """Return a reviewer's marks file. Raises ``InputError`` for a name that cannot be a file name."""
    if not _REVIEWER.fullmatch(reviewer):
        raise InputError(f"Expected a reviewer name of letters, digits, '-', '_' or '.' (64 at most), got {reviewer!r}.")
    return folder / f"{reviewer}.jsonl"


def read_marks(path: Path, run: str) -> list[Mark]:
    """Return all marks of a file, oldest first; an incomplete last line is left out.

    Raises
    ------
    FormatError
        A line is not a mark, or belongs to another run.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    marks = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline was never acknowledged
        if line.strip():
            marks.append(_parse(line, path, number, run))
    return marks


def _parse(line: bytes, path: Path, number: int, run: str) -> Mark:
    try:
        mark = Mark(**json.loads(line))
        known = (*QUEUES[mark.queue], WITHDRAWN)
    except (ValueError, TypeError, KeyError) as err:
        raise FormatError(f"{path}, line {number}: not a review mark ({err}). Repair the line, or move the file away.") from err
    if mark.mark not in known:
        raise FormatError(f"{path}, line {number}: expected one of {known} for {mark.queue}, got {mark.mark!r}.")
    if mark.run != run:
        raise FormatError(
            f"{path}, line {number}: the mark belongs to run {mark.run}, but this folder holds run {run}. Marks of another run "
            "do not apply to these polygons: move the file away."
        )
    return mark


def read_all_marks(folder: Path, run: str, queue: Queue) -> dict[str, dict[str, Mark]]:
    """Return ``{reviewer: {item: its latest mark}}`` for all reviewers of a run. Raises as ``read_marks`` does."""
    found: dict[str, dict[str, Mark]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        found[path.stem] = latest_marks(m for m in read_marks(path, run) if m.queue == queue)
    return found


def latest_marks(marks: Iterable[Mark]) -> dict[str, Mark]:
    """Return the latest mark of each item, in the order in which the marks were given; withdrawn marks are left out."""
    last: dict[str, Mark] = {}
    for mark in marks:
        last.pop(mark.item, None)
        if mark.mark != WITHDRAWN:
            last[mark.item] = mark
    return last


def decide(marks: Mapping[str, Mapping[str, Mark]], good: str, bad: str) -> dict[str, str]:
    """Return one mark per item, decided from the marks of all reviewers.

    The majority of ``good`` and ``bad`` decides; a tie is ``bad``. An item that was only marked ``unsure`` is ``unsure``.
    """
    votes: dict[str, int] = {}
    for by_item in marks.values():
        for item, mark in by_item.items():
            votes.setdefault(item, 0)
            votes[item] += {good: 1, bad: -1}.get(mark.mark, 0)
    decided = {item for by_item in marks.values() for item, mark in by_item.items() if mark.mark in (good, bad)}
    return {item: ("unsure" if item not in decided else good if vote > 0 else bad) for item, vote in votes.items()}


class MarkLog:
    """A reviewer's marks file, open and locked for one server.

    Raises
    ------
    OutputInUseError
        Another server writes marks for the same reviewer.
    FormatError
        The file holds something other than marks, or marks of another run.
    """

    def __init__(self, folder: Path, reviewer: str, run: str, order: str = "random") -> None:
        self.path = reviewer_file(folder, reviewer)
        self.reviewer = reviewer
        self.run = run
        self.order = order
        folder.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._lock()
            self.marks = read_marks(self.path, run)
            self._drop_incomplete_line()
        except BaseException:
            os.close(self._handle)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise OutputInUseError(
                f"Another review server is writing marks of reviewer {self.reviewer!r} in {self.path.parent}. "
                "Use that server, or start this one with another reviewer name."
            ) from err
        except OSError:
            return  # this file system has no locks, so a second server for this reviewer cannot be detected

    def _drop_incomplete_line(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._handle, whole)

    def append(self, queue: Queue, item: str, mark: str, comment: str = "", seconds: float = 0.0) -> Mark:
        """Append one mark and return it; it is on disk when this returns.

        Raises ``InputError`` for an unknown mark, ``OSError`` if the mark could not be written.
        """
        if mark not in (*QUEUES[queue], WITHDRAWN):
            raise InputError(f"Expected one of {QUEUES[queue]} for {queue}, got {mark!r}.")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        shown_s = round(min(max(seconds, 0.0), 86400.0), 2)
        made = Mark(self.run, self.reviewer, queue, item, mark, comment[:2000], shown_s, now, self.order)
        line = json.dumps(asdict(made), ensure_ascii=False, sort_keys=True).encode() + b"\n"
        before = os.fstat(self._handle).st_size
        written = os.write(self._handle, line)
        if written != len(line):
            os.ftruncate(self._handle, before)
            raise OSError(
                f"{self.path}: only {written} of {len(line)} bytes were written, so the mark is not recorded. Free disk space."
            )
        os.fsync(self._handle)
        return made

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

"""What reviewers said: one append-only file of JSON lines a reviewer, safe against a crash at any byte.

A mark is on disk (written in one call, fsync) before the page is told so. The last mark of an item counts; ``none`` takes a
mark back. A line cut short by a crash was never acknowledged and is dropped when the file is opened again.
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
TAKEN_BACK = "none"
QUEUES: dict[str, tuple[str, ...]] = {"patches": PATCH_MARKS, "slides": SLIDE_MARKS}

_REVIEWER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Mark:
    """One judgement.

    ``item`` is a patch id or a slide id; ``seconds`` is how long the page showed it; ``time`` is UTC. ``order`` says how the
    item came to be shown: ``random``, ``predicted`` or ``predicted K/N`` (suspects first, of a divided review), or ``second``
    (because another reviewer had judged it).
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
    """Return all marks of a file, oldest first; a line cut short at the end is left out.

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
        known = (*QUEUES[mark.queue], TAKEN_BACK)
    except (ValueError, TypeError, KeyError) as err:
        raise FormatError(f"{path}, line {number}: not a review mark ({err}). Repair or move the file away.") from err
    if mark.mark not in known:
        raise FormatError(f"{path}, line {number}: expected one of {known} for {mark.queue}, got {mark.mark!r}.")
    if mark.run != run:
        raise FormatError(
            f"{path}, line {number}: the mark is of run {mark.run}, this folder is run {run}. Marks of another run say nothing "
            "about these polygons: move the file away."
        )
    return mark


def read_all_marks(folder: Path, run: str, queue: Queue) -> dict[str, dict[str, Mark]]:
    """Return ``{reviewer: {item: mark that counts}}`` over all reviewers of a run (see ``read_marks`` for what is raised)."""
    found: dict[str, dict[str, Mark]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        found[path.stem] = standing(m for m in read_marks(path, run) if m.queue == queue)
    return found


def standing(marks: Iterable[Mark]) -> dict[str, Mark]:
    """Return the mark that counts for each item, in the order in which those were given."""
    last: dict[str, Mark] = {}
    for mark in marks:
        last.pop(mark.item, None)
        if mark.mark != TAKEN_BACK:
            last[mark.item] = mark
    return last


def decide(marks: Mapping[str, Mapping[str, Mark]], good: str, bad: str) -> dict[str, str]:
    """Return each item's word from all reviewers: the majority of good and bad, a tie is bad; only unsure is ``unsure``."""
    votes: dict[str, int] = {}
    for by_item in marks.values():
        for item, mark in by_item.items():
            votes.setdefault(item, 0)
            votes[item] += {good: 1, bad: -1}.get(mark.mark, 0)
    decided = {item for by_item in marks.values() for item, mark in by_item.items() if mark.mark in (good, bad)}
    return {item: ("unsure" if item not in decided else good if vote > 0 else bad) for item, vote in votes.items()}


class MarkLog:
    """A reviewer's marks file, held open for one server.

    Raises
    ------
    OutputInUseError
        Another server writes marks for the same reviewer.
    FormatError
        The file holds something else, or marks of another run.
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
            self._drop_torn_line()
        except BaseException:
            os.close(self._handle)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise OutputInUseError(
                f"Another review server writes marks of {self.reviewer!r} in {self.path.parent}. "
                "Use that one, or another reviewer name."
            ) from err
        except OSError:
            return  # a file system without locks

    def _drop_torn_line(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._handle, whole)

    def append(self, queue: Queue, item: str, mark: str, comment: str = "", seconds: float = 0.0) -> Mark:
        """Write one mark, on disk when this returns. Raises ``InputError`` for an unknown word, ``OSError`` if not written."""
        if mark not in (*QUEUES[queue], TAKEN_BACK):
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
                f"{self.path}: the disk took {written} of {len(line)} bytes; the mark was not recorded. Free some space."
            )
        os.fsync(self._handle)
        return made

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

"""One reviewer's work: what comes next, what was said, how fast it goes. No request touches more than a few items."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from wsiseg.errors import InputError
from wsiseg.qc.marks import QUEUES, TAKEN_BACK, MarkLog, Queue, standing

__all__ = ["ReviewSession"]

RATE_OVER_MARKS = 50
PAUSE_S = 60.0
"""A longer gap between two marks is a pause and does not count for the rate."""


class _Lane:
    """One queue: its order, what is marked, and the first place that may be open."""

    def __init__(self, items: Sequence[str], marked: Mapping[str, str]) -> None:
        self.items = list(items)
        self.place = {item: i for i, item in enumerate(self.items)}
        self.words = {item: word for item, word in marked.items() if item in self.place}
        self.trail = list(self.words)  # in the order they were given: what undo goes back along
        self.first_open = 0

    def upcoming(self, n: int) -> list[str]:
        """Return the next open items."""
        while self.first_open < len(self.items) and self.items[self.first_open] in self.words:
            self.first_open += 1
        found: list[str] = []
        i = self.first_open
        while i < len(self.items) and len(found) < n:
            if self.items[i] not in self.words:
                found.append(self.items[i])
            i += 1
        return found


class ReviewSession:
    """A reviewer's queues over one marks file; safe to call from several threads.

    Parameters
    ----------
    log
        The reviewer's open marks file.
    queues
        Items of each queue, in review order.
    """

    def __init__(self, log: MarkLog, queues: Mapping[Queue, Sequence[str]]) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._lanes: dict[str, _Lane] = {}
        for name in QUEUES:
            stands = standing(m for m in log.marks if m.queue == name)
            marked = {item: m.mark for item, m in stands.items()}
            self._lanes[name] = _Lane(queues.get(name, ()), marked)  # type: ignore[call-overload]
        self._gaps: dict[str, deque[float]] = {name: deque(maxlen=RATE_OVER_MARKS) for name in QUEUES}
        self._last_mark_s = 0.0

    @property
    def reviewer(self) -> str:
        """Return whose marks these are."""
        return self._log.reviewer

    def _lane(self, queue: str) -> _Lane:
        if queue not in self._lanes:
            raise InputError(f"Expected one of the queues {sorted(self._lanes)}, got {queue!r}.")
        return self._lanes[queue]

    def items(self, queue: str) -> list[str]:
        """Return all items of a queue in review order."""
        return self._lane(queue).items

    def state(self, queue: str, n: int = 4) -> dict[str, Any]:
        """Return the next ``n`` open items, progress, and marks a minute."""
        with self._lock:
            return self._state(queue, n)

    def _state(self, queue: str, n: int, first: str | None = None) -> dict[str, Any]:
        lane, gaps = self._lane(queue), self._gaps[queue]
        total_s = sum(gaps)
        upcoming = lane.upcoming(max(0, min(n, 32)))
        if first is not None:
            upcoming = [first, *(i for i in upcoming if i != first)]
        return {
            "queue": queue,
            "next": upcoming,
            "places": [lane.place[i] for i in upcoming],
            "done": len(lane.words),
            "total": len(lane.items),
            "per_minute": round(60 * len(gaps) / total_s, 1) if total_s > 0 else None,
            "can_undo": bool(lane.trail),
        }

    def mark(self, queue: Queue, item: str, word: str, comment: str = "", seconds: float = 0.0, n: int = 4) -> dict[str, Any]:
        """Record a mark, durable before this returns; return the new state.

        Raises
        ------
        InputError
            The item is not in the queue, or the word is not one of its marks.
        OSError
            It could not be written: then it does not count.
        """
        with self._lock:
            lane = self._lane(queue)
            if item not in lane.place:
                raise InputError(f"Item {item!r} is not in the queue {queue} of this run.")
            if word not in QUEUES[queue]:
                raise InputError(f"Expected one of {QUEUES[queue]} for {queue}, got {word!r}.")
            self._log.append(queue, item, word, comment, seconds)
            if item in lane.words:
                lane.trail.remove(item)
            lane.words[item] = word
            lane.trail.append(item)
            now = time.monotonic()
            gap = now - self._last_mark_s
            if self._last_mark_s and gap < PAUSE_S:
                self._gaps[queue].append(gap)
            self._last_mark_s = now
            return self._state(queue, n)

    def undo(self, queue: Queue, n: int = 4) -> dict[str, Any]:
        """Take the last mark back, durable before this returns; its item comes next again."""
        with self._lock:
            lane = self._lane(queue)
            if lane.trail:
                item = lane.trail[-1]
                self._log.append(queue, item, TAKEN_BACK)
                lane.trail.pop()
                word = lane.words.pop(item)
                lane.first_open = min(lane.first_open, lane.place[item])
                return {**self._state(queue, n, first=item), "undone": word}
            return self._state(queue, n)

    def close(self) -> None:
        """Close the marks file."""
        self._log.close()

"""State of one reviewer's work: next items, marks given, marks per minute.

Each request costs the same, however long the queue.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from wsiseg.errors import InputError
from wsiseg.qc.marks import QUEUES, WITHDRAWN, MarkLog, Queue, latest_marks

__all__ = ["ReviewSession"]

RATE_OVER_MARKS = 50
PAUSE_S = 60.0
"""A longer time between two marks counts as a pause and is left out of the rate."""


class _QueueState:
    """One queue: its items in order, their marks, and the position before which every item is marked."""

    def __init__(self, items: Sequence[str], marked: Mapping[str, str]) -> None:
        self.items = list(items)
        self.place = {item: i for i, item in enumerate(self.items)}
        self.words = {item: word for item, word in marked.items() if item in self.place}
        self.undo_stack = list(self.words)  # marked items in the order of their marks; undo takes the last
        self.first_open = 0

    def upcoming(self, n: int) -> list[str]:
        """Return the next ``n`` items without a mark."""
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
    """A reviewer's queues and marks file; safe to call from several threads.

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
        self._queues: dict[str, _QueueState] = {}
        for name in QUEUES:
            latest = latest_marks(m for m in log.marks if m.queue == name)
            marked = {item: m.mark for item, m in latest.items()}
            self._queues[name] = _QueueState(queues.get(name, ()), marked)  # type: ignore[call-overload]
        self._gaps: dict[str, deque[float]] = {name: deque(maxlen=RATE_OVER_MARKS) for name in QUEUES}
        self._last_mark_s = 0.0

    @property
    def reviewer(self) -> str:
        """Name of the reviewer."""
        return self._log.reviewer

    def _queue_state(self, queue: str) -> _QueueState:
        if queue not in self._queues:
            raise InputError(f"Expected the queue to be one of {sorted(self._queues)}, got {queue!r}.")
        return self._queues[queue]

    def items(self, queue: str) -> list[str]:
        """Return all items of a queue in review order."""
        return self._queue_state(queue).items

    def state(self, queue: str, n: int = 4) -> dict[str, Any]:
        """Return the next ``n`` items without a mark, the progress, and marks per minute, as a dict for the page."""
        with self._lock:
            return self._state(queue, n)

    def _state(self, queue: str, n: int, first: str | None = None) -> dict[str, Any]:
        state, gaps = self._queue_state(queue), self._gaps[queue]
        total_s = sum(gaps)
        upcoming = state.upcoming(max(0, min(n, 32)))
        if first is not None:
            upcoming = [first, *(i for i in upcoming if i != first)]
        return {
            "queue": queue,
            "next": upcoming,
            "places": [state.place[i] for i in upcoming],
            "done": len(state.words),
            "total": len(state.items),
            "per_minute": round(60 * len(gaps) / total_s, 1) if total_s > 0 else None,
            "can_undo": bool(state.undo_stack),
        }

    def mark(self, queue: Queue, item: str, word: str, comment: str = "", seconds: float = 0.0, n: int = 4) -> dict[str, Any]:
        """Record a mark and return the new state. The mark is on disk when this returns.

        Raises
        ------
        InputError
            The item is not in the queue, or ``word`` is not a mark of this queue.
        OSError
            The mark could not be written; the state is unchanged.
        """
        with self._lock:
            state = self._queue_state(queue)
            if item not in state.place:
                raise InputError(f"Item {item!r} is not in the queue {queue} of this run.")
            if word not in QUEUES[queue]:
                raise InputError(f"Expected one of {QUEUES[queue]} for {queue}, got {word!r}.")
            self._log.append(queue, item, word, comment, seconds)
            if item in state.words:
                state.undo_stack.remove(item)
            state.words[item] = word
            state.undo_stack.append(item)
            now = time.monotonic()
            gap = now - self._last_mark_s
            if self._last_mark_s and gap < PAUSE_S:
                self._gaps[queue].append(gap)
            self._last_mark_s = now
            return self._state(queue, n)

    def undo(self, queue: Queue, n: int = 4) -> dict[str, Any]:
        """Withdraw the last mark, on disk when this returns; its item is shown next."""
        with self._lock:
            state = self._queue_state(queue)
            if state.undo_stack:
                item = state.undo_stack[-1]
                self._log.append(queue, item, WITHDRAWN)
                state.undo_stack.pop()
                word = state.words.pop(item)
                state.first_open = min(state.first_open, state.place[item])
                return {**self._state(queue, n, first=item), "undone": word}
            return self._state(queue, n)

    def close(self) -> None:
        """Close the marks file."""
        self._log.close()

"""State of one reviewer's work: next items, marks given, marks per minute, and where the reviewer stopped.

The cost of a request does not depend on the length of the queue.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsiseg.errors import InputError
from wsiseg.qc.marks import QUEUES, WITHDRAWN, MarkLog, Queue, latest_marks
from wsiseg.tables import atomic_write_bytes

__all__ = ["PageFacts", "ReviewSession"]

PageFacts = dict[str, Any]
"""A JSON answer to the page."""

RATE_OVER_MARKS = 50
PAUSE_S = 60.0
"""A longer time between two marks counts as a pause and is left out of the rate."""


class _QueueState:
    """One queue: its items in order, other items that can be judged too, their marks, and the first position without a mark."""

    def __init__(self, items: Sequence[str], marked: Mapping[str, str], others: Sequence[str] = ()) -> None:
        self.items = [*items, *(i for i in others if i not in set(items))]
        self.n_queue = len(items)
        self.place = {item: i for i, item in enumerate(self.items)}
        self.words = {item: word for item, word in marked.items() if item in self.place}
        self.undo_stack = list(self.words)  # marked items in the order of their marks; undo removes the last
        self.done = sum(self.place[i] < self.n_queue for i in self.words)
        self.first_open = 0

    def set_mark(self, item: str, word: str) -> None:
        """Store the mark of an item."""
        if item in self.words:
            self.undo_stack.remove(item)
        else:
            self.done += self.place[item] < self.n_queue
        self.words[item] = word
        self.undo_stack.append(item)

    def undo_mark(self) -> tuple[str, str]:
        """Withdraw the last mark and return (item, mark)."""
        item = self.undo_stack.pop()
        word = self.words.pop(item)
        self.done -= self.place[item] < self.n_queue
        self.first_open = min(self.first_open, self.place[item])
        return item, word

    def upcoming(self, n: int, only: Collection[str] | None = None) -> list[str]:
        """Return the next ``n`` items of the queue without a mark, or of ``only`` these items."""
        while self.first_open < self.n_queue and self.items[self.first_open] in self.words:
            self.first_open += 1
        found: list[str] = []
        i = self.first_open
        while i < self.n_queue and len(found) < n:
            if self.items[i] not in self.words and (only is None or self.items[i] in only):
                found.append(self.items[i])
            i += 1
        return found

    def progress(self, only: Collection[str] | None = None) -> tuple[int, int]:
        """Return (judged items, all items) of the queue, or of ``only`` these items."""
        if only is None:
            return self.done, self.n_queue
        here = [i for i in only if self.place.get(i, self.n_queue) < self.n_queue]
        return sum(i in self.words for i in here), len(here)


class ReviewSession:
    """A reviewer's queues and marks file; safe to call from several threads.

    Parameters
    ----------
    log
        The reviewer's open marks file.
    queues
        Items of each queue, in review order.
    others
        Items outside the queue that the reviewer can also select and judge.
    """

    def __init__(
        self, log: MarkLog, queues: Mapping[Queue, Sequence[str]], others: Mapping[Queue, Sequence[str]] | None = None
    ) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._queues: dict[str, _QueueState] = {}
        for name in QUEUES:
            latest = latest_marks(m for m in log.marks if m.queue == name)
            marked = {item: m.mark for item, m in latest.items()}
            more = (others or {}).get(name, ())  # type: ignore[call-overload]
            self._queues[name] = _QueueState(queues.get(name, ()), marked, more)  # type: ignore[call-overload]
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
        """Return all items of a queue in review order, then those outside it that can be judged."""
        return self._queue_state(queue).items

    def words(self, queue: str) -> dict[str, str]:
        """Return the reviewer's mark of each item."""
        with self._lock:
            return dict(self._queue_state(queue).words)

    def queued(self, queue: str) -> int:
        """Return the number of items in the queue, without the others that can be judged."""
        return self._queue_state(queue).n_queue

    def state(self, queue: str, n: int = 4, *, only: Collection[str] | None = None, first: str | None = None) -> PageFacts:
        """Return the next ``n`` items without a mark, the progress, and marks per minute, as a dict for the page.

        Parameters
        ----------
        only
            Restrict the queue to these items.
        first
            Item to show first, even if it is judged already or outside the queue.

        Raises
        ------
        InputError
            There is no such queue or no such item.
        """
        with self._lock:
            if first is not None and first not in self._queue_state(queue).place:
                raise InputError(f"This run has no item {first!r} in {queue}.")
            return self._state(queue, n, first, only)

    def _state(self, queue: str, n: int, first: str | None = None, only: Collection[str] | None = None) -> PageFacts:
        state, gaps = self._queue_state(queue), self._gaps[queue]
        total_s = sum(gaps)
        upcoming = state.upcoming(max(0, min(n, 32)), only)
        done, total = state.progress(only)
        if first is not None:
            upcoming = [first, *(i for i in upcoming if i != first)]
        return {
            "queue": queue,
            "next": upcoming,
            "places": [state.place[i] for i in upcoming],
            "words": [state.words.get(i, "") for i in upcoming],
            "done": done,
            "total": total,
            "per_minute": round(60 * len(gaps) / total_s, 1) if total_s > 0 else None,
            "can_undo": bool(state.undo_stack),
        }

    def mark(
        self,
        queue: Queue,
        item: str,
        word: str,
        comment: str = "",
        seconds: float = 0.0,
        *,
        only: Collection[str] | None = None,
    ) -> PageFacts:
        """Record a mark and return the new state, restricted to ``only``. The mark is on disk when this returns.

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
            state.set_mark(item, word)
            now = time.monotonic()
            gap = now - self._last_mark_s
            if self._last_mark_s and gap < PAUSE_S:
                self._gaps[queue].append(gap)
            self._last_mark_s = now
            return self._state(queue, 4, only=only)

    def undo(self, queue: Queue, *, only: Collection[str] | None = None) -> PageFacts:
        """Withdraw the last mark and return the state, in which its item is next. The change is on disk when this returns."""
        with self._lock:
            state = self._queue_state(queue)
            if state.undo_stack:
                self._log.append(queue, state.undo_stack[-1], WITHDRAWN)
                item, word = state.undo_mark()
                return {**self._state(queue, 4, item, only), "undone": word}
            return self._state(queue, 4, only=only)

    @property
    def place(self) -> PageFacts:
        """Return the place that ``remember`` stored; an empty dict if there is none."""
        try:
            found = json.loads(self._place_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def remember(self, place: Mapping[str, Any]) -> None:
        """Store where the reviewer is, next to the marks file, so that the page can reopen there."""
        atomic_write_bytes(self._place_file, json.dumps(dict(place)).encode())

    @property
    def _place_file(self) -> Path:
        return self._log.path.with_suffix(".place.json")

    def close(self) -> None:
        """Close the marks file."""
        self._log.close()

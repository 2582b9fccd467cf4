"""Cache of open slides, shared by the threads of a worker: opened on first use, closed when evicted and no longer in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from wsiseg.read.slide import Slide
from wsiseg.run.job import SlideJob

__all__ = ["OpenSlides"]


@dataclass(slots=True)
class _Entry:
    job: SlideJob
    slide: Slide
    users: int = 0
    dropped: bool = False


class OpenSlides:
    """At most ``max_open`` open slides, not counting those being read; the least recently used one is closed first.

    Tiles arrive slide by slide, so few are needed. All threads share one open handle of a slide and may read at the same time
    (see ``wsiseg.read.slide.Slide``).
    """

    def __init__(self, opener: Callable[[str], tuple[SlideJob, Slide]], max_open: int) -> None:
        self._opener = opener
        self._max_open = max_open
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return the number of open slides."""
        return len(self._entries)

    @contextmanager
    def lease(self, slide_id: str) -> Iterator[tuple[SlideJob, Slide]]:
        """Yield a slide's constants and open handle, which stays open until the block ends."""
        entry = self._take(slide_id)
        try:
            yield entry.job, entry.slide
        finally:
            with self._lock:
                entry.users -= 1
                closing = self._surplus()
                if entry.dropped and entry.users == 0:
                    closing.append(entry)
            _close(closing)

    def forget(self, slide_id: str) -> None:
        """Close a slide as soon as no thread reads it; the next ``lease`` opens it again."""
        with self._lock:
            entry = self._entries.pop(slide_id, None)
            if entry is None:
                return
            entry.dropped = True
            idle = entry.users == 0
        if idle:
            _close([entry])

    def close(self) -> None:
        """Close all slides."""
        with self._lock:
            slide_ids = list(self._entries)
        for slide_id in slide_ids:
            self.forget(slide_id)

    def _take(self, slide_id: str) -> _Entry:
        with self._lock:
            opening = self._opening.setdefault(slide_id, threading.Lock())
        with opening:
            with self._lock:
                entry = self._entries.get(slide_id)
                if entry is not None:
                    entry.users += 1
                    self._entries.move_to_end(slide_id)
                    return entry
            entry = _Entry(*self._opener(slide_id), users=1)
            with self._lock:
                self._entries[slide_id] = entry
                closing = self._surplus()
        _close(closing)
        return entry

    def _surplus(self) -> list[_Entry]:
        """Remove and return the entries that exceed the limit and are not in use."""
        idle = [slide_id for slide_id, entry in self._entries.items() if entry.users == 0]
        return [self._entries.pop(slide_id) for slide_id in idle[: max(0, len(self._entries) - self._max_open)]]


def _close(entries: list[_Entry]) -> None:
    for entry in entries:
        entry.slide.close()

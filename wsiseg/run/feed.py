"""Which task next: a plain state machine over slides and tiles that knows nothing of Dask.

A slide is prepared (constants, list of tiles to do), its tiles run in any order, then it is finished. The feeder keeps a
bounded number of tasks in the air, prepares the next slide before the current one runs dry, and gives a failed tile
a few more tries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from wsiseg.run.manifest import SlideInput
from wsiseg.types import Tile, TileOutcome

__all__ = ["Feeder", "PrepareDone", "Task"]

TaskKind = Literal["prepare", "tile", "finish"]


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to run: ``payload`` is a SlideInput, a (Tile, attempt) pair, or a (slide_id, failed outcomes) pair."""

    kind: TaskKind
    slide_id: str
    payload: Any


@dataclass(frozen=True, slots=True)
class PrepareDone:
    """Result of preparing a slide: a finished row (nothing to do), or tiles to do and outcomes of tiles already decided."""

    slide_id: str
    row: dict[str, Any] | None = None
    todo: tuple[Tile, ...] = ()
    decided: tuple[TileOutcome, ...] = ()
    mm2_todo: float = 0.0
    note: str = ""


@dataclass(slots=True)
class _Open:
    """A slide in work."""

    waiting: deque[tuple[Tile, int]]
    running: int = 0
    failed: list[TileOutcome] = field(default_factory=list)


class Feeder:
    """Hands out tasks and takes their results."""

    def __init__(self, slides: Iterable[SlideInput], *, limit: int, retries: int) -> None:
        self._slides = deque(slides)
        self._limit = max(1, limit)
        self._retries = retries
        self._open: dict[str, _Open] = {}
        self._finish: deque[Task] = deque()
        self._preparing = 0
        self._running = 0

    def done(self) -> bool:
        """Return whether nothing is left to hand out or to wait for."""
        return not (self._slides or self._open or self._finish or self._running)

    def next_task(self) -> Task | None:
        """Return the next task, or None while enough is in the air."""
        if self._running >= self._limit:
            return None
        if self._finish:
            self._running += 1
            return self._finish.popleft()
        waiting = sum(len(o.waiting) for o in self._open.values())
        if self._slides and waiting + self._preparing * 8 < self._limit:
            slide = self._slides.popleft()
            self._preparing += 1
            self._running += 1
            return Task("prepare", slide.slide_id, slide)
        for slide_id, state in self._open.items():
            if state.waiting:
                state.running += 1
                self._running += 1
                return Task("tile", slide_id, state.waiting.popleft())
        return None

    def prepared(self, result: PrepareDone) -> None:
        """Take the result of a prepare task."""
        self._running -= 1
        self._preparing -= 1
        if result.row is None:
            self._open[result.slide_id] = _Open(deque((t, 1) for t in result.todo))
            self._maybe_finish(result.slide_id)

    def prepare_failed(self) -> None:
        """Take the failure of a prepare task: the slide is left out."""
        self._running -= 1
        self._preparing -= 1

    def tile_done(self, tile: Tile, outcome: TileOutcome) -> bool:
        """Take a tile's outcome; return False where it will be tried again."""
        self._running -= 1
        state = self._open[tile.slide_id]
        state.running -= 1
        final = outcome.status != "failed" or outcome.attempts > self._retries
        if not final:
            state.waiting.append((tile, outcome.attempts + 1))
        elif outcome.status == "failed":
            state.failed.append(outcome)
        self._maybe_finish(tile.slide_id)
        return final

    def finished(self) -> None:
        """Take the end of a finish task."""
        self._running -= 1

    def _maybe_finish(self, slide_id: str) -> None:
        state = self._open[slide_id]
        if not state.waiting and not state.running:
            del self._open[slide_id]
            self._finish.append(Task("finish", slide_id, (slide_id, tuple(state.failed))))

"""``wsiseg compare``: compare two runs and write a folder with rows, maps, pictures and an HTML page."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg import __version__
from wsiseg.cluster.spread import spread
from wsiseg.config import RunConfig
from wsiseg.errors import WsisegError, one_line
from wsiseg.evaluation.compare.overlaps import Counted, WindowWork, count_windows, merged
from wsiseg.evaluation.compare.page import ComparedPage, write_page
from wsiseg.evaluation.compare.pairing import Pairs, SlidePair, bounds_of, checked_pair, pair_slides
from wsiseg.evaluation.compare.pictures import draw_disagreements, draw_map, map_path
from wsiseg.evaluation.compare.slide import SlideComparison, finished_slide, read_record, refused_slide, write_record
from wsiseg.evaluation.paths import null_for_nan
from wsiseg.metrics import mean_scores, pooled_scores
from wsiseg.results.locate import local_path
from wsiseg.schema import COMPARED, SCHEMA_VERSION
from wsiseg.tables import atomic_path, atomic_write_bytes
from wsiseg.tables.arrow import META_KEY, has_more_rows
from wsiseg.tables.records import write_rows
from wsiseg.tables.windows import occupied_windows
from wsiseg.types import Box

__all__ = ["CompareProgress", "Comparison", "SlideComparison", "compare_segmentations"]

WINDOW_PX = 2048
"""Side of a window, level-0 px; results do not depend on it. Counting one takes about 0.4 GB of memory."""

PIECE_WINDOWS = 32
"""Number of adjacent windows in one piece of work, so that each row group is decoded about once."""

FEW_NUCLEI = 150_000
"""With fewer nuclei in both tables, this process counts, because starting workers would take longer."""


@dataclass(slots=True)
class CompareProgress:
    """Running totals, passed to the progress callback after every piece of work."""

    slides: int = 0
    slides_done: int = 0
    windows: int = 0
    windows_done: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of a comparison; ``slides`` are in order of id, and ``reused`` of them were compared by an earlier command."""

    a: Path
    b: Path
    out: Path
    slides: tuple[SlideComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    seconds: float
    reused: int = 0

    @property
    def ok(self) -> bool:
        """Whether every slide that both have could be compared."""
        return all(s.status in ("done", "empty") for s in self.slides)

    def pooled(self) -> SlideComparison:
        """Return the comparison of all slides together, in which every nucleus has the same weight."""
        used = [s for s in self.slides if s.status == "done"]
        areas = (sum(s.area_a_um2 for s in used), sum(s.area_b_um2 for s in used))
        return SlideComparison("pooled", "done" if used else "empty", pooled_scores(s.scores for s in used), *areas)

    def mean(self) -> dict[str, float]:
        """Return the mean of each score over slides."""
        return mean_scores([s.scores for s in self.slides if s.status == "done"])

    def as_dict(self) -> dict[str, Any]:
        """Return everything except the maps as values for JSON."""
        pooled = dataclasses.asdict(self.pooled().row())
        return null_for_nan(
            {
                "wsiseg": __version__,
                "a": str(self.a),
                "b": str(self.b),
                "seconds": round(self.seconds, 3),
                "pooled": {k: v for k, v in pooled.items() if k not in ("slide_id", "status", "notes", "error")},
                "mean": self.mean(),
                "only_a": list(self.only_a),
                "only_b": list(self.only_b),
                "slides": [dataclasses.asdict(s.row()) for s in self.slides],
                "worst": [
                    {"slide_id": s.slide_id, "x_px": w.x_px, "y_px": w.y_px, "side_px": w.side_px, "n_a": w.n_a, "n_b": w.n_b,
                     "unmatched": w.unmatched}
                    for s in self.slides
                    for w in s.worst[:8]
                ],
            }
        )  # fmt: skip


@dataclass(slots=True)
class _Open:
    """A slide whose windows are being counted."""

    pair: SlidePair
    windows: tuple[Box, ...]
    notes: list[str]
    left: int
    parts: list[Counted] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some windows of a slide, and the path map for the worker."""

    slide_id: str
    work: WindowWork
    path_map: tuple[str, ...]


def compare_segmentations(
    a: Path,
    b: Path,
    out: Path,
    config: RunConfig | None = None,
    slide_ids: tuple[str, ...] = (),
    n_crops: int = 12,
    on_progress: Callable[[CompareProgress], None] = lambda progress: None,
) -> Comparison:
    """Compare the segmentation A with B, the reference, on all slides that both have (paired by id).

    Slides whose comparison is already in ``out``, and whose tables have not changed, are not compared again.

    Parameters
    ----------
    a, b
        Run folders (segmented or imported), folders of tables, or one table each.
    out
        Receives ``compare.json``, ``compare.parquet`` (``wsiseg.schema.COMPARED``), ``cells/<slide_id>.parquet``
        (``COMPARED_CELLS``), ``disagreements.jpg`` and ``compare.html``.
    config
        Its ``schedule`` sets the workers; ``None``: only this process.
    slide_ids
        Slides to compare; empty: all.
    n_crops
        Number of places in the picture; 0: no picture.
    on_progress
        Called with running totals after every piece of work.

    Raises
    ------
    InputError, FormatError
        There is no pair of slides. A slide that cannot be read or compared does not raise, but is a row with its reason.
    """
    start = time.perf_counter()
    config = config or RunConfig()
    a, b, out = a.absolute(), b.absolute(), out.absolute()
    pairs = pair_slides(a, b, slide_ids)
    out.mkdir(parents=True, exist_ok=True)
    stored = {p.slide_id: record for p in pairs.both if (record := read_record(out, p)) is not None}
    progress = CompareProgress(len(pairs.both), len(stored))
    on_progress(progress)
    fresh = _compared([p for p in pairs.both if p.slide_id not in stored], out, config, progress, on_progress)
    slides = tuple(sorted((*stored.values(), *fresh), key=lambda s: s.slide_id))
    found = Comparison(a, b, out, slides, pairs.only_a, pairs.only_b, time.perf_counter() - start, len(stored))
    _write(found, pairs, config, n_crops)
    return found


def _compared(
    pairs: list[SlidePair],
    out: Path,
    config: RunConfig,
    progress: CompareProgress,
    on_progress: Callable[[CompareProgress], None],
) -> list[SlideComparison]:
    """Count the windows of slide after slide on the workers; finish each slide here when its last window is counted."""
    opened: dict[str, _Open] = {}
    done: list[SlideComparison] = []

    def close(found: SlideComparison) -> None:
        done.append(found)
        progress.slides_done += 1
        on_progress(progress)

    def finish(slide: _Open) -> None:
        try:
            found, cells = finished_slide(slide.pair, merged(slide.parts), slide.windows, slide.notes)
        except WsisegError as err:
            close(refused_slide(slide.pair.slide_id, "failed", one_line(err)))
            return
        picture = map_path(out, found.slide_id)
        picture.parent.mkdir(exist_ok=True)
        with atomic_path(picture) as partial:
            draw_map(cells, found.size_px).save(partial, format="PNG", optimize=True)
        write_record(out, found, cells)
        close(found)

    def pieces() -> Iterator[_Piece]:
        for pair in pairs:
            try:
                slide = _opened(pair)
            except (WsisegError, OSError) as err:
                close(refused_slide(pair.slide_id, "refused", one_line(err)))
                continue
            progress.windows += len(slide.windows)
            if not slide.windows:
                finish(slide)
                continue
            opened[pair.slide_id] = slide
            for k in range(0, len(slide.windows), PIECE_WINDOWS):
                work = WindowWork(pair.a, pair.b, slide.windows[k : k + PIECE_WINDOWS])
                yield _Piece(pair.slide_id, work, config.schedule.path_map)

    many = has_more_rows((p for pair in pairs for p in (pair.a, pair.b)), FEW_NUCLEI)
    for piece, answer in spread(_counted, pieces(), config, here=not many):
        slide = opened.get(piece.slide_id)
        progress.windows_done += len(piece.work.windows)
        if slide is None:
            continue  # another piece of the slide failed
        if isinstance(answer, str):
            del opened[piece.slide_id]
            close(refused_slide(piece.slide_id, "failed", answer))
            continue
        slide.left -= 1
        slide.parts.append(answer)
        if len(slide.parts) > 32:
            slide.parts = [merged(slide.parts)]
        if slide.left == 0:
            finish(opened.pop(piece.slide_id))
        on_progress(progress)
    return done


def _opened(pair: SlidePair) -> _Open:
    a, b = bounds_of(pair.a), bounds_of(pair.b)
    notes = checked_pair(pair, a, b)
    ends = [bounds[2:].max(axis=1) for bounds in (a, b) if bounds.size]
    # bounds are float32, so they may be off by up to a px
    width, height = (math.ceil(max(end[k] for end in ends)) + 1 for k in (0, 1)) if ends else (0, 0)
    windows = tuple(occupied_windows([_graced(a), _graced(b)], (max(width, 0), max(height, 0)), WINDOW_PX))
    return _Open(pair, windows, notes, -(-len(windows) // PIECE_WINDOWS))


def _graced(bounds: Any) -> Any:
    """Return the boxes enlarged by a px, because they are stored as float32."""
    return bounds + np.array([-1.0, -1.0, 1.0, 1.0])[:, None]


def _counted(piece: _Piece) -> Counted | str:
    """Count the windows of a piece, on a worker; return the reason as text if a table cannot be read."""
    a, b = (Path(local_path(str(p), piece.path_map)) for p in (piece.work.a, piece.work.b))
    try:
        return count_windows(WindowWork(a, b, piece.work.windows))
    except (WsisegError, OSError) as err:
        return one_line(err)


def _write(found: Comparison, pairs: Pairs, config: RunConfig, n_crops: int) -> None:
    rows = [s.row() for s in found.slides]
    write_rows(found.out / "compare.parquet", COMPARED, rows, {META_KEY: {"schema": SCHEMA_VERSION}})
    atomic_write_bytes(found.out / "compare.json", (json.dumps(found.as_dict(), indent=1, allow_nan=False) + "\n").encode())
    picture = draw_disagreements(found.slides, pairs.both, found.out, config.schedule.path_map, n_crops)
    shown = ComparedPage(found.a, found.b, found.slides, found.pooled().row(), found.only_a, found.only_b)
    write_page(shown, found.out, picture)

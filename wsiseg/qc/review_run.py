"""``wsiseg qc review``: a run folder -> the review page, with slides decoded on the fly."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError, InputError, WsisegError
from wsiseg.qc.marks import MarkLog, read_all_marks
from wsiseg.qc.patches import read_picture
from wsiseg.qc.prediction import by_suspicion
from wsiseg.qc.release import read_rows
from wsiseg.qc.review.app import ReviewSource
from wsiseg.qc.review.queues import parse_share, patch_queue
from wsiseg.qc.review.serve import ReviewServer
from wsiseg.qc.review.session import ReviewSession
from wsiseg.qc.runs import QcRun, open_row_slide
from wsiseg.read import Slide
from wsiseg.tables import read_nuclei, wkb_rings
from wsiseg.types import Box

__all__ = ["SlideCache", "make_source", "open_review", "parse_share"]

TILE_PX = 256
JPEG_QUALITY = 88
MAX_OPEN_SLIDES = 4


class SlideCache:
    """Open slides for the page: a few at a time, one thread in each at a time."""

    def __init__(self, run: QcRun) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[Slide, threading.Lock]] = OrderedDict()

    @contextmanager
    def slide(self, slide_id: str) -> Iterator[Slide]:
        """Yield an open slide. Raises ``SlideOpenError`` where its file is gone."""
        while True:
            with self._lock:
                if slide_id not in self._open:
                    self._open[slide_id] = (open_row_slide(self._run, self._run.row(slide_id)), threading.Lock())
                self._open.move_to_end(slide_id)
                entry = self._open[slide_id]
                self._close_idle()
            slide, one = entry
            with one:
                if self._open.get(slide_id) is entry:  # not closed while we waited for it
                    yield slide
                    return

    def _close_idle(self) -> None:
        for name in list(self._open)[: max(0, len(self._open) - MAX_OPEN_SLIDES)]:
            slide, one = self._open[name]
            if one.acquire(blocking=False):
                del self._open[name]
                slide.close()
                one.release()

    def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes:
        """Return a JPEG of a 256 px tile of the slide shrunk 2**level times; white beyond its edges."""
        from PIL import Image

        with self.slide(slide_id) as slide:
            wanted = 2.0**level
            fits = [k for k, d in enumerate(slide.meta.level_downsamples) if d <= wanted * 1.01]
            k = max(fits, key=lambda k: slide.meta.level_downsamples[k], default=0)
            ratio = wanted / slide.meta.level_downsamples[k]
            x, y, side = column * TILE_PX * ratio, row * TILE_PX * ratio, TILE_PX * ratio
            if math.floor(x) >= slide.level_sizes_px[k][0] or math.floor(y) >= slide.level_sizes_px[k][1]:
                raise InputError(f"Slide {slide_id}: no tile {column}, {row} at level {level}.")
            reach = math.ceil(side) + 1
            rgb = slide.read_level(k, math.floor(x), math.floor(y), reach, reach)
        dx, dy = x - math.floor(x), y - math.floor(y)
        picture = Image.fromarray(np.ascontiguousarray(rgb))
        if ratio != 1.0 or dx or dy:
            picture = picture.resize(
                (TILE_PX, TILE_PX), Image.Resampling.BILINEAR, (dx, dy, dx + side, dy + side), reducing_gap=2.0
            )
        else:
            picture = picture.crop((0, 0, TILE_PX, TILE_PX))
        return jpeg(picture)

    def close(self) -> None:
        """Close all slides."""
        with self._lock:
            for slide, _ in self._open.values():
                slide.close()
            self._open.clear()


def jpeg(picture: Any, quality: int = JPEG_QUALITY) -> bytes:
    """Return a Pillow image as JPEG; color is kept at full resolution, or tiles would show seams."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def make_source(run: QcRun, slide_cache: SlideCache, packs: dict[str, str], reasons: dict[str, list[str]]) -> ReviewSource:
    """Return the page's pictures of a run.

    Parameters
    ----------
    packs
        Picture pack of each patch.
    reasons
        Why each slide of the slide queue was flagged.
    """

    def picture(patch: str, layer: bool) -> bytes:
        if patch not in packs:
            raise InputError(f"Run {run.folder.root} has no patch {patch!r}.")
        return read_picture(run.qc, packs[patch], f"{patch}.contours.png" if layer else f"{patch}.png")

    def info(slide_id: str) -> dict[str, Any]:
        row = run.row(slide_id)
        facts: dict[str, Any] = {"slide_id": slide_id, "cohort": row.get("cohort") or "", "reasons": reasons.get(slide_id, [])}
        try:
            with slide_cache.slide(slide_id) as slide:
                meta = slide.meta
        except (WsisegError, OSError) as err:
            return {**facts, "error": f"The slide cannot be shown, judge by its patches or answer unsure. {err}"}
        top = max(0, math.ceil(math.log2(max(meta.width_px, meta.height_px) / TILE_PX)))
        return {**facts, "width_px": meta.width_px, "height_px": meta.height_px, "mpp": meta.mpp, "max_level": top}

    def nuclei(slide_id: str, view: Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        run.row(slide_id)
        try:
            return wkb_rings(read_nuclei(run.folder.table(slide_id), view, ["geometry"])["geometry"])
        except FileNotFoundError:
            return np.empty((0, 2)), np.zeros(1, np.int64)  # a slide without segmentation has none to draw

    return ReviewSource(picture, info, slide_cache.tile, nuclei)


def open_review(
    run: QcRun,
    reviewer: str,
    *,
    port: int = 0,
    share: tuple[int, int] = (1, 1),
    second_opinion_frac: float = 0.0,
    slides: Sequence[str] | None = None,
    order: str = "random",
) -> tuple[ReviewServer, SlideCache]:
    """Return a server, ready to ``run``, of a reviewer's queues.

    Parameters
    ----------
    share, second_opinion_frac
        See ``wsiseg.qc.review.patch_queue``.
    slides
        Slides of the slide queue; ``None``: the flagged ones.
    order
        ``random``: by blinded name, so that any part of the review is a fair sample and slides can be graded from it.
        ``predicted``: suspects tend to come first (``wsiseg.qc.prediction.by_suspicion``); shares are corrected for it, and a
        slide is graded when all its patches are judged.

    Raises
    ------
    InputError
        There is nothing to review, the reviewer's name cannot be a file name, or the port is taken.
    OutputInUseError
        Another server runs for this reviewer.
    FormatError
        Marks are damaged or of another run.
    """
    index = [e for e in read_rows(run.qc / "patches.parquet", ("patch_id", "file")) if e["file"]]
    outliers = read_rows(run.qc / "outliers.parquet")
    flagged = [r["slide_id"] for r in sorted(outliers, key=lambda r: (r["round"], r["cohort"], r["slide_id"])) if r["round"]]
    shown = flagged if slides is None else [run.row(s)["slide_id"] for s in slides]
    if not index and not shown:
        raise InputError(
            f"Run {run.folder.root} has nothing to review. Run `wsiseg qc patches` and `wsiseg qc outliers` first."
        )
    everyone = read_all_marks(run.marks, run.digest, "patches")
    own = everyone.pop(reviewer, {})
    others = {item for by_item in everyone.values() for item in by_item}
    ids = [e["patch_id"] for e in index]
    if order not in ("random", "predicted"):
        raise ConfigError(f"Expected the order random or predicted, got {order!r}.")
    if order == "predicted" and ids:
        ids = by_suspicion(run, ids)
    queue = patch_queue(ids, own, others, share=share, second_opinion_frac=second_opinion_frac)
    tilted = "predicted" if share == (1, 1) else f"predicted {share[0]}/{share[1]}"
    shown_by = "second" if second_opinion_frac > 0 else tilted if order == "predicted" else "random"
    log = MarkLog(run.marks, reviewer, run.digest, shown_by)
    slide_cache = SlideCache(run)
    reasons = {r["slide_id"]: [t for t in (r["reasons"] or r["note"] or "").split("; ") if t] for r in outliers}
    source = make_source(run, slide_cache, {e["patch_id"]: e["file"] for e in index}, reasons)
    session = ReviewSession(log, {"patches": queue, "slides": shown})
    try:
        return ReviewServer(session, source, port=port, title=Path(run.folder.root).name), slide_cache
    except WsisegError:
        session.close()
        raise

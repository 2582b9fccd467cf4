"""``wsiseg qc review``: serve the review page of a run; tiles of slides are read when the page requests them."""

from __future__ import annotations

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError, InputError, WsisegError
from wsiseg.qc.marks import MarkLog, read_all_marks
from wsiseg.qc.patch_features import NUCLEUS_COLUMNS
from wsiseg.qc.patches import read_picture
from wsiseg.qc.prediction import quality_model, suspects_first
from wsiseg.qc.quality_map import map_png, quality_map
from wsiseg.qc.review.app import ListedSlide, ReviewSource
from wsiseg.qc.review.queues import parse_share, patch_queue
from wsiseg.qc.review.serve import ReviewServer, free_port
from wsiseg.qc.review.session import PageFacts, ReviewSession
from wsiseg.qc.rows import EstimateRow, FlagRow, PatchRow, PredictedRow, stored_rows
from wsiseg.qc.runs import QcRun, open_row_slide, size_and_mpp
from wsiseg.read import Slide
from wsiseg.tables import read_nuclei, wkb_rings
from wsiseg.types import Box

__all__ = ["SlideCache", "make_source", "open_review", "parse_share"]

TILE_PX = 256
JPEG_QUALITY = 88
MAX_OPEN_SLIDES = 4

FLAG_WORDS = {
    "n_nuclei": "nucleus count",
    "nuclei_per_mm2": "density",
    "area_mean_um2": "mean area",
    "area_std_um2": "spread of area",
    "joint": "all statistics together",
    "foreign": "unlike the training images",
    "outside_frac": "nuclei outside the mask",
    "outside": "nuclei outside the mask",
    "status": "failed, partly failed, empty or suspect",
}
"""Text of the flags in the page's list of reasons."""


class SlideCache:
    """The most recently used slides, kept open; each slide is used by one thread at a time."""

    def __init__(self, run: QcRun) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._open: OrderedDict[str, tuple[Slide, threading.Lock]] = OrderedDict()

    @contextmanager
    def slide(self, slide_id: str) -> Iterator[Slide]:
        """Yield an open slide, locked for this thread. Raises ``SlideOpenError`` if its file is missing."""
        while True:
            with self._lock:
                if slide_id not in self._open:
                    self._open[slide_id] = (open_row_slide(self._run, self._run.row(slide_id)), threading.Lock())
                self._open.move_to_end(slide_id)
                entry = self._open[slide_id]
                self._close_idle()
            slide, one = entry
            with one:
                if self._open.get(slide_id) is entry:  # false if another thread closed it while this one waited for its lock
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
        """Return a JPEG of a 256 px tile of the slide reduced by 2**level; white beyond the slide's edges."""
        from PIL import Image

        with self.slide(slide_id) as slide:
            wanted = 2.0**level
            fits = [k for k, d in enumerate(slide.meta.level_downsamples) if d <= wanted * 1.01]
            k = max(fits, key=lambda k: slide.meta.level_downsamples[k], default=0)
            ratio = wanted / slide.meta.level_downsamples[k]
            x, y, side = column * TILE_PX * ratio, row * TILE_PX * ratio, TILE_PX * ratio
            if math.floor(x) >= slide.level_sizes_px[k][0] or math.floor(y) >= slide.level_sizes_px[k][1]:
                raise InputError(f"Slide {slide_id} has no tile {column}, {row} at level {level}.")
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
    """Return a Pillow image as JPEG bytes, without chroma subsampling, which would make seams between tiles visible."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def make_source(run: QcRun, slide_cache: SlideCache, packs: dict[str, str], outliers: Sequence[FlagRow]) -> ReviewSource:
    """Return the functions that supply the page with pictures of a run.

    Parameters
    ----------
    packs
        ZIP of pictures for each patch id, relative to the qc folder.
    outliers
        Rows of ``qc/outliers.parquet``.
    """
    reasons = {r.slide_id: [t for t in (r.reasons or r.note).split("; ") if t] for r in outliers}

    def picture(patch: str, layer: bool) -> bytes:
        if patch not in packs:
            raise InputError(f"Run {run.folder.root} has no patch {patch!r}.")
        return read_picture(run.qc, packs[patch], f"{patch}.contours.png" if layer else f"{patch}.png")

    def info(slide_id: str) -> PageFacts:
        facts: PageFacts = {
            "slide_id": slide_id, "cohort": run.row(slide_id).cohort, "reasons": reasons.get(slide_id, [])
        }  # fmt: skip
        try:
            with slide_cache.slide(slide_id) as slide:
                meta = slide.meta
        except (WsisegError, OSError) as err:
            return {**facts, "error": f"The slide cannot be shown: judge it by its patches, or answer unsure. {err}"}
        top = max(0, math.ceil(math.log2(max(meta.width_px, meta.height_px) / TILE_PX)))
        return {**facts, "width_px": meta.width_px, "height_px": meta.height_px, "mpp": meta.mpp, "max_level": top}

    def nuclei(slide_id: str, view: Box) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        run.row(slide_id)
        try:
            return wkb_rings(read_nuclei(run.folder.table(slide_id), view, ["geometry"])["geometry"])
        except FileNotFoundError:
            return np.empty((0, 2)), np.zeros(1, np.int64)  # no table: the slide failed, so there are no nuclei to draw

    return ReviewSource(picture, info, slide_cache.tile, nuclei, _listed(run, outliers), _quality_source(run))


def _quality_source(run: QcRun) -> Callable[[str], tuple[PageFacts, bytes]]:
    """Return the function for ``ReviewSource.slide_quality``: the map from a slide's table, and its sampled patches."""

    @lru_cache(maxsize=8)
    def found(slide_id: str) -> tuple[PageFacts, bytes]:
        row = run.row(slide_id)
        model = quality_model(run)[0].of_nuclei
        if model is None:
            name = (run.record.weights if run.record is not None else "") or "(unknown)"
            raise InputError(f"No map of predicted quality: the quality model for the weights {name} needs pixels of patches.")
        if row.mpp is None or not run.folder.table(slide_id).is_file():
            raise InputError(f"Slide {slide_id}: its quality cannot be predicted, because it has no table of nuclei.")
        table = read_nuclei(run.folder.table(slide_id), columns=["cx", "cy", *NUCLEUS_COLUMNS])
        columns = {k: np.asarray(table[k]) for k in ("cx", "cy", *NUCLEUS_COLUMNS)}
        size, mpp = size_and_mpp(row)
        heat = quality_map(columns, size, mpp, model)
        place = {e.patch_id: (e.x_px, e.y_px, e.side_px) for e in stored_rows(PatchRow, run.qc / "patches.parquet")}
        patches = [
            [*place[r.patch_id], r.fail_prob_run]
            for r in stored_rows(PredictedRow, run.qc / "predicted.parquet")
            if r.slide_id == slide_id and r.patch_id in place
        ]
        h, w = heat.fail_prob.shape
        facts = {"cell_px": heat.cell_px, "cell_um": heat.cell_px * mpp, "w": w, "h": h, "patches": patches}
        return {**facts, "auc": model.facts.get("auc")}, map_png(heat)

    return found


def _listed(run: QcRun, outliers: Sequence[FlagRow]) -> list[ListedSlide]:
    """Return ``ReviewSource.slides``: one dict for each slide of the run."""
    tails = {r.slide_id: r.tails.split() for r in outliers}
    flagged = {r.slide_id for r in outliers if r.round}
    guesses = {
        r.slide_id: r.bad_frac_estimate
        for r in stored_rows(EstimateRow, run.qc / "predicted_slides.parquet", "predicted quality of slides")
    }
    return [
        ListedSlide(
            row.slide_id,
            row.cohort,
            tuple(sorted({flag_words(t) for t in tails.get(row.slide_id, ())})),
            row.slide_id in flagged,
            guesses.get(row.slide_id),
        )
        for row in run.rows
    ]


def flag_words(tail: str) -> str:
    """Return a flag's code, such as ``n_nuclei:low``, as text for the list of reasons."""
    column, _, side = tail.partition(":")
    name = FLAG_WORDS.get(column, column.replace("_", " "))
    return f"{name}: {side}" if side in ("low", "high") and column not in ("foreign", "outside") else name


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
    """Return the server of the review page for one reviewer, not yet running, and the slide cache, to be closed after it.

    Parameters
    ----------
    share, second_opinion_frac
        See ``wsiseg.qc.review.patch_queue``.
    port
        TCP port. 0: the run's own port (``QcRun.review_port``), to which its report links, or any free port if that is taken.
    slides
        Slides of the slide queue; ``None``: the flagged slides. The reviewer can also select any other slide of the run.
    order
        ``random``: by patch name, which is a hash, so that the patches judged so far are a random sample from which slides can
        be graded. ``predicted``: suspects tend to come first (``wsiseg.qc.prediction.suspects_first``); estimated shares are
        corrected for that, and a slide is graded once all its patches are judged.

    Raises
    ------
    InputError
        There is nothing to review, the reviewer's name cannot be a file name, or the port is taken.
    OutputInUseError
        Another server runs for this reviewer.
    FormatError
        Marks are damaged or of another run.
    """
    index = [e for e in stored_rows(PatchRow, run.qc / "patches.parquet") if e.file]
    outliers = stored_rows(FlagRow, run.qc / "outliers.parquet")
    flagged = [r.slide_id for r in sorted(outliers, key=lambda r: (r.round, r.cohort, r.slide_id)) if r.round]
    shown = flagged if slides is None else [run.row(s).slide_id for s in slides]
    if not index and not shown:
        raise InputError(
            f"Run {run.folder.root} has neither patches nor flagged slides to review. Run `wsiseg qc patches` and `wsiseg qc "
            "outliers` first."
        )
    everyone = read_all_marks(run.marks, run.digest, "patches")
    own = everyone.pop(reviewer, {})
    others = {item for by_item in everyone.values() for item in by_item}
    ids = [e.patch_id for e in index]
    if order not in ("random", "predicted"):
        raise ConfigError(f"Expected order to be random or predicted, got {order!r}.")
    if order == "predicted" and ids:
        ids = suspects_first(run, ids)
    queue = patch_queue(ids, own, others, share=share, second_opinion_frac=second_opinion_frac)
    predicted = "predicted" if share == (1, 1) else f"predicted {share[0]}/{share[1]}"
    shown_by = "second" if second_opinion_frac > 0 else predicted if order == "predicted" else "random"
    log = MarkLog(run.marks, reviewer, run.digest, shown_by)
    slide_cache = SlideCache(run)
    source = make_source(run, slide_cache, {e.patch_id: e.file for e in index}, outliers)
    session = ReviewSession(log, {"patches": queue, "slides": shown}, {"slides": [r.slide_id for r in run.rows]})
    try:
        return ReviewServer(session, source, port=port or free_port(run.review_port), title=run.folder.root.name), slide_cache
    except WsisegError:
        session.close()
        raise

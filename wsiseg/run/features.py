"""``wsiseg features``: measure for finished slides the columns that need pixels or neighbors, and write them as own tables.

They are not part of the main run, which stays fast with small tables. The slide is read again at working resolution, window by
window, on all workers; the rings of a window are rasterized, and each pixel is added to its nucleus. Memory: one window per
worker, and about 200 bytes per nucleus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.cluster.spread import spread
from wsiseg.config import RunConfig, ScheduleConfig
from wsiseg.errors import InputError, SlideOpenError, WsisegError, first_names
from wsiseg.normalize import fit_stain
from wsiseg.read import TissueMask, fit_tissue, stain_sample, working_size
from wsiseg.read.slide import Slide
from wsiseg.results.folder import RunFolder
from wsiseg.results.reopen import reopen_slide
from wsiseg.results.slide_record import slide_record
from wsiseg.run.feature_pieces import FeaturePiece, measure_piece
from wsiseg.run.feature_table import feature_facts, write_measured
from wsiseg.summarize import RUIFROK_JOHNSTON
from wsiseg.tables import NucleiFile, open_nuclei, read_nuclei, read_table_meta
from wsiseg.tables.arrow import has_more_rows
from wsiseg.tables.features import features_path, table_fingerprint
from wsiseg.tables.windows import occupied_windows
from wsiseg.types import Box

__all__ = ["FeatureOptions", "FeatureProgress", "measure_features", "measure_run"]

Array = npt.NDArray[Any]

PIECE_PX = 1 << 26
"""Working px of the windows in one piece of work: about one to two seconds."""

PIECE_GROUPS = 4
"""Row groups in one piece of work on outlines."""

FEW_NUCLEI = 100_000
"""With fewer nuclei, this process measures them, because starting workers would take longer."""


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    """How features are measured.

    Attributes
    ----------
    stain
        ``ruifrok``: the published hematoxylin and eosin vectors, the same for all slides; ``macenko``: fitted to each slide.
    pixels
        Whether to measure optical densities. If False, the slide files are not needed.
    tile_wpx
        Side of the windows read, working px. Results do not depend on it.
    path_map
        New paths of slides that were moved, see ``schedule.path_map``.
    overwrite
        Measure slides again even if their features fit their table.
    """

    stain: Literal["ruifrok", "macenko"] = "ruifrok"
    pixels: bool = True
    tile_wpx: int = 2048
    path_map: tuple[str, ...] = ()
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 64 <= self.tile_wpx <= 16384:
            raise InputError(f"Expected windows of 64 to 16384 working px, got {self.tile_wpx}.")


@dataclass(slots=True)
class FeatureProgress:
    """Running totals, passed to the progress callback after every piece of work."""

    slides: int = 0
    slides_done: int = 0
    pieces: int = 0
    pieces_done: int = 0


@dataclass(slots=True)
class _Open:
    """A slide that is being measured."""

    slide_id: str
    left: int
    facts: dict[str, object]
    sums: npt.NDArray[np.int64]
    columns: dict[str, Array] = field(default_factory=dict)
    outlines: dict[int, Array] = field(default_factory=dict)


def measure_run(
    run: Path,
    options: FeatureOptions | None = None,
    slide_ids: Sequence[str] = (),
    config: RunConfig | None = None,
    on_progress: Callable[[FeatureProgress], None] = lambda progress: None,
) -> Iterator[tuple[str, int | str]]:
    """Measure the slides of a run; yield (slide_id, number of nuclei) for each, or (slide_id, reason) if it failed.

    Slides that already have features of their present table are skipped.

    Parameters
    ----------
    slide_ids
        Slides to measure; empty: all that have a table.
    config
        Its ``schedule`` sets the workers; ``None``: only this process.

    Raises
    ------
    InputError
        The slide does not exist, or the run has no table.
    """
    options, config = options or FeatureOptions(), config or RunConfig(schedule=ScheduleConfig(workers=1))
    run = run.absolute()
    folder = RunFolder(run)
    known = sorted(p.stem for p in (run / "nuclei").glob("*.parquet"))
    if not known:
        raise InputError(f"{run}: expected a run folder with nuclei/*.parquet.")
    unknown = sorted(set(slide_ids) - set(known))
    if unknown:
        raise InputError(f"{run}: no slide {unknown[0]!r} in this run. It has: {first_names(known)}.")
    todo = [s for s in (slide_ids or known) if options.overwrite or not _has_features(folder.table(s), options)]
    return _measured(folder, todo, options, config, on_progress)


def measure_features(run: Path, slide_id: str, options: FeatureOptions | None = None) -> int:
    """Measure one slide's nuclei in this process, write ``RUN/features/<slide_id>.parquet``, return the number of nuclei.

    Raises
    ------
    InputError
        The run has no such slide, or its file was moved (see ``options.path_map``, ``options.pixels``) or cannot be read.
    FormatError
        The table cannot be read.
    """
    options, folder = options or FeatureOptions(), RunFolder(run.absolute())
    slide, pieces = _opened(folder, slide_id, options, ())
    for piece in pieces:
        answer = measure_piece(piece)
        if isinstance(answer, str):
            raise InputError(answer)
        _add(slide, piece, answer)
    return _written(folder, slide)


def _measured(
    folder: RunFolder,
    todo: Sequence[str],
    options: FeatureOptions,
    config: RunConfig,
    on_progress: Callable[[FeatureProgress], None],
) -> Iterator[tuple[str, int | str]]:
    opened: dict[str, _Open] = {}
    failed: list[tuple[str, str]] = []
    progress = FeatureProgress(len(todo))
    on_progress(progress)

    def pieces() -> Iterator[FeaturePiece]:
        for slide_id in todo:
            try:
                opened[slide_id], found = _opened(folder, slide_id, options, config.schedule.path_map)
            except (WsisegError, OSError) as err:
                failed.append((slide_id, str(err)))
                continue
            progress.pieces += len(found)
            yield from found

    many = has_more_rows((folder.table(s) for s in todo), FEW_NUCLEI)
    for piece, answer in spread(measure_piece, pieces(), config, here=not many):
        progress.pieces_done += 1
        slide = opened.get(piece.slide_id)
        ended: list[tuple[str, int | str]] = [*failed]
        failed.clear()
        if slide is not None and isinstance(answer, str):
            del opened[piece.slide_id]
            ended.append((piece.slide_id, answer))
        elif slide is not None and not isinstance(answer, str):
            _add(slide, piece, answer)
            if slide.left == 0:
                ended.append((piece.slide_id, _written(folder, opened.pop(piece.slide_id))))
        progress.slides_done += len(ended)
        on_progress(progress)
        yield from ended
    yield from failed


def _has_features(table: Path, options: FeatureOptions) -> bool:
    path = features_path(table)
    if not path.is_file():
        return False
    facts = read_table_meta(path)
    return facts.get("of") == table_fingerprint(table) and facts.get("stain") == (options.stain if options.pixels else "none")


def _opened(
    folder: RunFolder, slide_id: str, options: FeatureOptions, path_map: tuple[str, ...]
) -> tuple[_Open, list[FeaturePiece]]:
    """Return a slide with nothing measured yet, and all its pieces of work."""
    import pyarrow.parquet as pq

    table = folder.table(slide_id)
    source = open_nuclei(table)
    n_groups = pq.read_metadata(str(table)).num_row_groups
    facts = feature_facts(slide_id, "none")
    maps = tuple(dict.fromkeys((*options.path_map, *path_map)))
    common: dict[str, Any] = {"run": str(folder.root), "slide_id": slide_id, "path_map": maps}
    pieces = [FeaturePiece("neighbors", mpp=source.mpp, **common)]
    pieces += [
        FeaturePiece("outlines", groups=tuple(range(n_groups)[first : first + PIECE_GROUPS]), **common)
        for first in range(0, n_groups, PIECE_GROUPS)
    ]
    if options.pixels:
        vectors, windows = _plan(folder, source, options)
        facts = feature_facts(slide_id, options.stain, vectors)
        step = max(1, PIECE_PX // options.tile_wpx**2)
        pieces += [
            FeaturePiece("pixels", windows=tuple(windows[k : k + step]), scale=source.scale, vectors=vectors, **common)
            for k in range(0, len(windows), step)
        ]
    return _Open(slide_id, len(pieces), facts, np.zeros((source.n_nuclei, 5), np.int64)), pieces


def _plan(folder: RunFolder, source: NucleiFile, options: FeatureOptions) -> tuple[tuple[tuple[float, ...], ...], list[Box]]:
    """Return the stain vectors, and the windows (working px) that intersect the bounding box of a nucleus."""
    record = slide_record(folder, source.path.stem)
    try:
        slide = reopen_slide(folder, record, options.path_map)
    except SlideOpenError as err:
        raise SlideOpenError(f"{err} Optical densities need its pixels: --no-pixels leaves them out.") from err
    try:
        vectors = _stain_vectors(slide, folder.tissue_png(source.path.stem), source.scale, options.stain)
        size = working_size(slide.meta, source.scale)
    finally:
        slide.close()
    boxes = read_nuclei(source.path, columns=["bbox"])["bbox"].combine_chunks()
    bounds = np.stack([np.asarray(boxes.field(f), np.float64) for f in ("xmin", "ymin", "xmax", "ymax")])
    return tuple(tuple(v) for v in vectors), occupied_windows([bounds * source.scale], size, options.tile_wpx)


def _stain_vectors(slide: Slide, tissue_png: Path, scale: float, stain: str) -> Sequence[Sequence[float]]:
    if stain == "ruifrok":
        return RUIFROK_JOHNSTON
    tissue = TissueMask.load(tissue_png) if tissue_png.is_file() else fit_tissue(slide)
    fitted = fit_stain("macenko", *stain_sample(slide, tissue, scale))
    if fitted.method == "none":
        raise InputError(f"Slide {slide.meta.slide_id}: Macenko's method found no two distinct stains. Use --stain ruifrok.")
    return fitted.params[:3], fitted.params[3:6]


def _add(slide: _Open, piece: FeaturePiece, answer: dict[str, Array]) -> None:
    """Add the result of a piece to the slide."""
    slide.left -= 1
    if piece.kind == "pixels":
        slide.sums[answer["rows"]] += answer["sums"]
    elif piece.kind == "outlines":
        slide.outlines[piece.groups[0]] = answer["solidity"]
    else:
        slide.columns |= answer


def _written(folder: RunFolder, slide: _Open) -> int:
    """Write a slide's features and return how many nuclei it has."""
    found = [slide.outlines[k] for k in sorted(slide.outlines)]
    sums = slide.sums if slide.facts["stain"] != "none" else None
    solid = np.concatenate([np.empty(0, np.float32), *found])
    return write_measured(folder.table(slide.slide_id), slide.facts, sums, solid, slide.columns)

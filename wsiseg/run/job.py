"""Constants of a slide: fitted once, stored in the run folder, then loaded by every worker that computes one of its tiles."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.config import RunConfig
from wsiseg.decode import encode, read_record
from wsiseg.errors import FormatError, SlideOpenError, TileReadError
from wsiseg.fetch import Wanted, is_address, shown
from wsiseg.normalize import fit_stain
from wsiseg.read import (
    OutsideWindow,
    SlideSurvey,
    TissueMask,
    open_slide,
    outside_windows,
    scale_for,
    slide_look,
    stain_sample,
    survey_slide,
    tile_grid,
    tissue_cells,
    tissue_from_file,
)
from wsiseg.read.slide import Slide, content_digest, fingerprint
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import fetched_slide, local_path, slide_file
from wsiseg.results.manifest import SlideInput
from wsiseg.results.mask_picture import picture_base
from wsiseg.results.slide_input import ALL_TISSUE, wanted_of
from wsiseg.results.slide_record import SlideArguments, slide_or_none
from wsiseg.schema import FINISHED_STATUSES
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Box, SlideMeta, Stain, Tile
from wsiseg.write import PartHeader, read_part_header

__all__ = [
    "SlideJob",
    "slide_arguments",
    "everywhere",
    "load_job",
    "open_job_slide",
    "outside_tiles",
    "part_path",
    "prepare_slide",
    "tiles_of",
    "valid_part",
]


COMPARED_SIDE = 512
MIN_COMMON_FRAC = 0.1
"""The user is warned if less than this fraction of the smaller of given mask and found tissue is inside the other."""


@dataclass(frozen=True, slots=True)
class FetchSource:
    """Where a slide was fetched from: address, size and MD5 as the manifest states them, and the version at the address."""

    address: str
    filename: str
    size_bytes: int
    md5: str
    version: str


@dataclass(frozen=True, slots=True)
class _JobRecord:
    """``RUN/parts/<slide_id>/job.json``. Unknown fields, of a newer version, are refused because they may change the tiles."""

    meta: SlideMeta
    scale: float
    stain: Stain
    asked: SlideArguments
    content: str
    source: FetchSource | None = None
    outside: tuple[tuple[int, int, int, int, str], ...] | None = None
    look: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlideJob:
    """Constants of a slide, which all its tiles share.

    Attributes
    ----------
    asked
        What the user gave for this slide alone (see ``slide_arguments``).
    content
        ``content_digest`` of the file.
    note
        Why earlier work on the slide was removed; empty if none was.
    warnings
        Disagreements within the slide's metadata, or between the slide and a given mask.
    source
        Source of a fetched slide; None: it was not fetched.
    outside
        Windows sampled outside the tissue mask; None: none could be chosen.
    look
        Statistics of the slide's colors and sharpness (``wsiseg.read.slide_look``).
    """

    meta: SlideMeta
    scale: float
    stain: Stain
    tissue: TissueMask
    asked: SlideArguments = field(default_factory=SlideArguments)
    content: str = ""
    note: str = ""
    warnings: tuple[str, ...] = ()
    source: FetchSource | None = None
    outside: tuple[OutsideWindow, ...] | None = None
    look: dict[str, float] = field(default_factory=dict)

    @property
    def mask_origin(self) -> str:
        """Origin of the tissue mask: ``found``, ``given`` or ``all``."""
        given = self.asked.tissue_mask_sha256
        return "all" if given == ALL_TISSUE else "given" if given else "found"

    @property
    def mpp_working(self) -> float:
        """Microns per working px."""
        return self.meta.mpp / self.scale


def slide_arguments(slide_input: SlideInput) -> SlideArguments:
    """Return the inputs for one slide that change its results but are not in the config: mpp and tissue mask.

    Raises
    ------
    FormatError
        The tissue mask cannot be read.
    """
    mask = ALL_TISSUE if slide_input.tissue_mask == ALL_TISSUE else ""
    if slide_input.tissue_mask and not mask:
        try:
            mask = hashlib.sha256(Path(slide_input.tissue_mask).read_bytes()).hexdigest()
        except OSError as err:
            raise FormatError(f"tissue mask {slide_input.tissue_mask}: cannot be read: {err.strerror or err}") from err
    frame = slide_input.frame if mask != ALL_TISSUE else ""
    return SlideArguments(slide_input.mpp, mask, frame)


def prepare_slide(slide_input: SlideInput, folder: RunFolder, config: RunConfig, mpp_model: float, aim: Stain) -> SlideJob:
    """Fit a slide's constants and store them, or load those stored by an earlier try of the same run.

    If the slide's file, mpp or mask changed since, the stored constants and tiles are removed and the slide is started again,
    so that tiles of two versions are never mixed in one table; ``note`` of the result then has the reason.

    Raises
    ------
    SlideOpenError, MissingMppError, AnisotropicMppError, FormatError
        The slide (or its given tissue mask) cannot be used.
    """
    asked = slide_arguments(slide_input)
    want = wanted_of(slide_input)
    file, source = _place(slide_input.path, slide_input.slide_id, config, want, mpp_model)
    slide = _opened(slide_input.path, file, config, slide_input.mpp, slide_input.cohort, config.read.reader)
    try:
        meta = dataclasses.replace(slide.meta, slide_id=slide_input.slide_id, cohort=slide_input.cohort)
        content = content_digest(file if want else local_path(slide_input.path, config.schedule.path_map))
        before = slide_or_none(folder, meta.slide_id)
        note = ""
        if before is not None and before.row.status in FINISHED_STATUSES and before.asked is not None:
            note = _changed_arguments(before.asked, asked)
        if folder.job_json(meta.slide_id).is_file():
            job = load_job(folder, meta.slide_id)
            note = _changes(job, meta, asked, content)
            if not note:
                place = dataclasses.replace(job.meta, path=meta.path, cohort=meta.cohort, file=meta.file)
                moved = dataclasses.replace(job, meta=place, source=source)
                if (moved.meta, moved.source) != (job.meta, job.source):
                    _store_job(moved, folder)
                return moved
            shutil.rmtree(folder.parts(meta.slide_id))
        scale = scale_for(meta.mpp, mpp_model, config.read.mpp_tolerance_frac)
        warnings = [meta.mpp_note] if meta.mpp_note else []
        tissue, survey = _tissue_of(slide, meta, slide_input, warnings)
        stained = survey.tissue if survey is not None and slide_input.tissue_mask == ALL_TISSUE else tissue
        stain = Stain() if aim.method == "none" else fit_stain(aim.method, *stain_sample(slide, stained, scale), aim.params)
        outside = None if survey is None else tuple(outside_windows(meta, scale, tissue, survey, content))
        look = {} if survey is None else _look_of(slide, survey, stained, warnings)
        job = SlideJob(meta, scale, stain, tissue, asked, content, note, tuple(warnings), source, outside, look)
        _store_job(job, folder, None if survey is None else picture_base(slide, survey))
        return job
    finally:
        slide.close()


def _tissue_of(
    slide: Slide, meta: SlideMeta, slide_input: SlideInput, warnings: list[str]
) -> tuple[TissueMask, SlideSurvey | None]:
    """Return the mask to use and the survey of the slide (None if a mask is given and parts of the slide are unreadable)."""
    given = slide_input.tissue_mask
    if not given:
        survey = survey_slide(slide)
        return survey.tissue, survey
    if given == ALL_TISSUE:
        survey = survey_slide(slide)
        whole = dataclasses.replace(survey.tissue, mask=np.ones_like(survey.tissue.mask), has_unscanned=False)
        return whole, survey
    tissue = tissue_from_file(given, meta, slide_input.frame, warnings.append)
    try:
        survey = survey_slide(slide)
    except TileReadError as err:  # it may be damaged only outside the mask; damage inside makes tiles fail
        warnings.append(f"tissue mask {given}: not compared with the slide, because parts of it cannot be read: {err}")
        return tissue, None
    _compare(tissue, survey.tissue, meta, given, warnings)
    return tissue, survey


def _look_of(slide: Slide, survey: SlideSurvey, tissue: TissueMask, warnings: list[str]) -> dict[str, float]:
    """Return ``slide_look`` of a slide; an empty dict and a warning if pixels cannot be decoded."""
    try:
        return slide_look(slide, survey, tissue)
    except TileReadError as err:
        warnings.append(f"no score of how unlike the training images the slide is, because it cannot be read: {err}")
        return {}


def _compare(given: TissueMask, found: TissueMask, meta: SlideMeta, path: str, warnings: list[str]) -> None:
    """Warn if the user's mask hardly overlaps the tissue found on the slide: its frame or slide may be wrong."""
    cell = max(1, max(meta.width_px, meta.height_px) // COMPARED_SIDE)
    whole = Box(0, 0, meta.width_px, meta.height_px)
    masks = [tissue_cells(mask, whole, cell) > 0.5 * cell**2 for mask in (given, found)]
    both, given_n, found_n = (int(m.sum()) for m in (masks[0] & masks[1], *masks))
    if given_n and found_n and both < MIN_COMMON_FRAC * min(given_n, found_n):
        warnings.append(
            f"tissue mask {path}: it covers {given_n / masks[0].size:.1%} of the slide, and "
            f"{both / given_n:.1%} of that shows tissue, while {found_n / masks[0].size:.1%} of the slide does. Check that the "
            "mask belongs to this slide and that its frame is right (--frame)."
        )


def load_job(folder: RunFolder, slide_id: str) -> SlideJob:
    """Load stored constants. Raises ``FormatError`` if they are missing or damaged."""
    path = folder.job_json(slide_id)
    advice = f"Remove the folder {path.parent} to redo slide {slide_id}."
    try:
        record = read_record(_JobRecord, path, "record of a slide's constants", advice)
        tissue = TissueMask.load(folder.tissue_png(slide_id))
        drawn = record.outside  # None: the slide was started by an earlier version, which chose none
        outside = None if drawn is None else tuple(OutsideWindow(Box(*box), float.fromhex(weight)) for *box, weight in drawn)
    except FormatError:
        raise
    except (OSError, ValueError) as err:
        raise FormatError(f"Slide {slide_id}: stored constants {path} are unreadable ({err}). {advice}") from err
    return SlideJob(
        record.meta,
        record.scale,
        record.stain,
        tissue,
        record.asked,
        record.content,
        source=record.source,
        outside=outside,
        look=record.look,
    )


def open_job_slide(job: SlideJob, config: RunConfig) -> Slide:
    """Open the slide of a job with the reader that was chosen for it.

    Raises
    ------
    SlideOpenError
        The file is missing or was changed since its constants were fitted, or its reader is not installed.
    """
    reader = job.meta.reader if job.meta.reader in ("cucim", "openslide") else "auto"
    if job.meta.reader == "cucim-gpu":  # of an earlier version; all other readers give equal pixels
        raise SlideOpenError(
            f"Slide {job.meta.slide_id} was started by an older wsiseg that decoded it on the GPU (reader cucim-gpu), which "
            "this version cannot do. Continue with that version, or choose another --out."
        )
    want = _wanted(job)
    file, source = _place(job.meta.path, job.meta.slide_id, config, want, job.mpp_working)
    if source is not None and job.source is not None and source.version != job.source.version:
        raise SlideOpenError(
            f"Slide {job.meta.slide_id}: {shown(job.meta.path)} changed during the run (version was {job.source.version}, is "
            f"{source.version}). Run the same command again: the slide is then started again."
        )
    slide = _opened(job.meta.path, file, config, job.meta.mpp, job.meta.cohort, reader)
    if (slide.meta.size_bytes, slide.meta.mtime_ns) != (job.meta.size_bytes, job.meta.mtime_ns):
        slide.close()
        raise SlideOpenError(
            f"Slide {job.meta.slide_id}: {job.meta.path} changed during the run (size or time differ). "
            "Run the same command again: the slide is then started again."
        )
    return slide


def _place(
    path: str, slide_id: str, config: RunConfig, want: Wanted | None, mpp_model: float
) -> tuple[str, FetchSource | None]:
    """Return the file of a slide on this machine (copied or fetched if need be), and where it was fetched from."""
    if want is None:
        return slide_file(path, slide_id, config), None
    here = fetched_slide(want, slide_id, config, mpp_model)
    return str(here.path), FetchSource(shown(want.address), want.filename, want.size_bytes, want.md5, here.version)


def _wanted(job: SlideJob) -> Wanted | None:
    """Return what to fetch for a slide in progress; ``None``: nothing."""
    source = job.source
    return Wanted(source.address, source.filename, source.size_bytes, source.md5) if source else None


def _opened(path: str, file: str, config: RunConfig, mpp: float | None, cohort: str, reader: str) -> Slide:
    """Open a local file of a slide; its metadata have the name, size and time of ``path``, which the user gave."""
    slide = open_slide(file, mpp=mpp, cohort=cohort, reader=reader, cache_bytes=config.read.cache_bytes)
    if is_address(path):
        slide.meta = dataclasses.replace(slide.meta, path=shown(path), mtime_ns=0, file=Path(file).name)
    elif file != path:
        size_bytes, mtime_ns = fingerprint(local_path(path, config.schedule.path_map))
        slide.meta = dataclasses.replace(slide.meta, path=path, size_bytes=size_bytes, mtime_ns=mtime_ns)
    return slide


def tiles_of(job: SlideJob, config: RunConfig) -> list[Tile]:
    """Return all tiles of the slide's grid, including those without tissue."""
    return tile_grid(job.meta, job.scale, config.read.tile_wpx, config.read.halo_wpx, job.tissue)


def everywhere(meta: SlideMeta) -> TissueMask:
    """Return a mask that marks the whole slide as tissue."""
    return TissueMask(np.ones((1, 1), np.uint8), float(meta.width_px), float(meta.height_px))


def part_path(folder: RunFolder, tile: Tile) -> Path:
    """Return the part file of a tile."""
    return (folder.outside_part if tile.outside else folder.part)(tile.slide_id, tile.tile_id)


def valid_part(path: Path, digest: str) -> PartHeader | None:
    """Return the header of a part file of this run; ``None`` if there is none, or one that is damaged or of another run."""
    try:
        header = read_part_header(path)
    except FormatError:
        return None  # a tile with a damaged part file is computed again
    return header if header is not None and header.digest == digest else None


def outside_tiles(job: SlideJob, config: RunConfig) -> list[tuple[Tile, float]]:
    """Return the windows sampled outside the mask as tiles, each with its weight; their ids follow those of the grid."""
    n, halo = len(tiles_of(job, config)), config.read.halo_wpx
    return [
        (Tile(job.meta.slide_id, n + k, window.box, window.box.padded(halo), job.scale, 0.0, outside=True), window.weight)
        for k, window in enumerate(job.outside or ())
    ]


def _store_job(job: SlideJob, folder: RunFolder, thumbnail: bytes | None = None) -> None:
    folder.parts(job.meta.slide_id).mkdir(parents=True, exist_ok=True)
    if thumbnail is not None:
        folder.outside_part(job.meta.slide_id, 0).parent.mkdir(exist_ok=True)
        atomic_write_bytes(folder.thumbnail_png(job.meta.slide_id), thumbnail)
    atomic_write_bytes(folder.tissue_png(job.meta.slide_id), job.tissue.to_png())
    windows = None if job.outside is None else tuple((w.box.x, w.box.y, w.box.w, w.box.h, w.weight.hex()) for w in job.outside)
    record = _JobRecord(job.meta, job.scale, job.stain, job.asked, job.content, job.source, windows, job.look)
    atomic_write_bytes(folder.job_json(job.meta.slide_id), json.dumps(encode(record), indent=1, sort_keys=True).encode())


def _changes(job: SlideJob, meta: SlideMeta, asked: SlideArguments, content: str) -> str:
    """Return in which of the things that constants and tiles are made from a slide differs from its job; empty: in none."""
    names = ("size_bytes", "mtime_ns", "width_px", "height_px", "mpp")
    found = [_changed(name, getattr(job.meta, name), getattr(meta, name)) for name in names]
    found += [_changed_arguments(job.asked, asked), _changed("content", job.content, content)]
    return ", ".join(text for text in found if text)


def _changed(name: str, before: object, now: object) -> str:
    return f"{name} was {before!r}, is {now!r}" if before != now else ""


def _changed_arguments(before: SlideArguments, now: SlideArguments) -> str:
    """Return which of the values that the user gave for a slide changed."""
    then, given = encode(before), encode(now)
    found = [_changed(f"given {name}", then.get(name), given.get(name)) for name in dict.fromkeys([*then, *given])]
    return ", ".join(text for text in found if text)

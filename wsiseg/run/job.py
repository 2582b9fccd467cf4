"""One slide's constants: fitted once, stored in the run folder, then read by every worker that gets one of its tiles."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsiseg.config import RunConfig
from wsiseg.errors import FormatError, OutputMismatchError, SlideOpenError
from wsiseg.normalize import fit_stain
from wsiseg.read import TissueMask, fit_tissue, open_slide, scale_for, stain_sample, tile_grid, tissue_from_file
from wsiseg.read.slide import Slide
from wsiseg.run.folder import RunFolder
from wsiseg.run.manifest import SlideInput
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import SlideMeta, Stain, Tile

__all__ = ["SlideJob", "load_job", "open_job_slide", "prepare_slide", "tiles_of"]


@dataclass(frozen=True, slots=True)
class SlideJob:
    """What all tiles of a slide share."""

    meta: SlideMeta
    scale: float
    stain: Stain
    tissue: TissueMask

    @property
    def mpp_working(self) -> float:
        """Return microns per working px."""
        return self.meta.mpp / self.scale


def prepare_slide(
    slide_input: SlideInput, folder: RunFolder, config: RunConfig, mpp_model: float, stain_method: str
) -> SlideJob:
    """Fit a slide's constants and store them, or load those stored by an earlier try of the same run.

    Raises
    ------
    SlideOpenError, MissingMppError, AnisotropicMppError, FormatError
        The slide (or its given tissue mask) cannot be used.
    OutputMismatchError
        The stored constants belong to another file of this name, or to another mpp or mask.
    """
    slide = open_slide(
        slide_input.path,
        mpp=slide_input.mpp,
        cohort=slide_input.cohort,
        reader=config.read.reader,
        cache_bytes=config.read.cache_bytes,
    )
    try:
        meta = dataclasses.replace(slide.meta, slide_id=slide_input.slide_id, cohort=slide_input.cohort)
        stored = folder.job_json(meta.slide_id)
        if stored.is_file():
            job = load_job(folder, meta.slide_id)
            _same_slide(job.meta, meta, folder)
            return job
        scale = scale_for(meta.mpp, mpp_model, config.read.mpp_tolerance_frac)
        tissue = tissue_from_file(slide_input.tissue_mask, meta) if slide_input.tissue_mask else fit_tissue(slide)
        stain = Stain() if stain_method == "none" else fit_stain(stain_method, *stain_sample(slide, tissue, scale))
        job = SlideJob(meta, scale, stain, tissue)
        _store_job(job, folder)
        return job
    finally:
        slide.close()


def load_job(folder: RunFolder, slide_id: str) -> SlideJob:
    """Load stored constants. Raises ``FormatError`` where they are missing or broken."""
    path = folder.job_json(slide_id)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        meta = SlideMeta(**{**raw["meta"], "level_downsamples": tuple(raw["meta"]["level_downsamples"])})
        stain = Stain(raw["stain"]["method"], tuple(raw["stain"]["params"]))
        tissue = TissueMask.load(folder.tissue_png(slide_id))
        return SlideJob(meta, float(raw["scale"]), stain, tissue)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise FormatError(
            f"Slide {slide_id}: stored constants {path} are unreadable ({err}). Remove the folder {path.parent} to redo it."
        ) from err


def open_job_slide(job: SlideJob, config: RunConfig) -> Slide:
    """Open the slide of a job with the reader that was chosen for it.

    Raises
    ------
    SlideOpenError
        The file is gone, or is no longer the file whose constants were fitted.
    """
    slide = open_slide(
        job.meta.path,
        mpp=job.meta.mpp,
        cohort=job.meta.cohort,
        reader=job.meta.reader if job.meta.reader in ("cucim", "openslide") else "auto",
        cache_bytes=config.read.cache_bytes,
    )
    if (slide.meta.size_bytes, slide.meta.mtime_ns) != (job.meta.size_bytes, job.meta.mtime_ns):
        slide.close()
        raise SlideOpenError(
            f"Slide {job.meta.slide_id}: {job.meta.path} changed while the run was going on (size or time differ). "
            f"Remove {job.meta.slide_id} from the output folder and run again."
        )
    return slide


def tiles_of(job: SlideJob, config: RunConfig) -> list[Tile]:
    """Return the slide's tile grid, the empty ones included."""
    return tile_grid(job.meta, job.scale, config.read.tile_wpx, config.read.halo_wpx, job.tissue)


def _store_job(job: SlideJob, folder: RunFolder) -> None:
    folder.parts(job.meta.slide_id).mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(folder.tissue_png(job.meta.slide_id), job.tissue.to_png())
    record: dict[str, Any] = {
        "meta": dataclasses.asdict(job.meta),
        "scale": job.scale,
        "stain": dataclasses.asdict(job.stain),
    }
    atomic_write_bytes(folder.job_json(job.meta.slide_id), json.dumps(record, indent=1, sort_keys=True).encode())


def _same_slide(stored: SlideMeta, now: SlideMeta, folder: RunFolder) -> None:
    for field in ("size_bytes", "width_px", "height_px", "mpp"):
        if getattr(stored, field) != getattr(now, field):
            raise OutputMismatchError(
                f"Slide {now.slide_id}: {Path(now.path).name} has {field} {getattr(now, field)!r}, but the tiles done in "
                f"{folder.parts(now.slide_id)} were made with {getattr(stored, field)!r}. Remove that folder to start it anew."
            )

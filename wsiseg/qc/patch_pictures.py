"""``wsiseg qc patches``: draw random patches of every slide of a run and store their pictures and features."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError, FormatError, WsisegError
from wsiseg.labels import rasterize_rings
from wsiseg.qc import patch_features
from wsiseg.qc.patch_features import NUCLEUS_COLUMNS
from wsiseg.qc.patch_orientations import PatchSegmenter, load_patch_segmenter, orientation_features
from wsiseg.qc.patches import (
    LAYER_ZOOM,
    PATCH_MPP,
    PATCH_PX,
    PATCHES_PER_SLIDE,
    Patch,
    contour_png,
    inner_mask,
    pack_names,
    patch_id,
    rgb_png,
    sample_patches,
    write_pack,
)
from wsiseg.qc.predict_quality import FALLBACK, load_quality
from wsiseg.qc.rows import PatchRow, read_features, stored_rows, write_features
from wsiseg.qc.runs import QcRun, open_row_slide, size_and_mpp
from wsiseg.read import TissueMask, read_working, scale_for
from wsiseg.read.tissue import MARGIN_UM as TISSUE_MARGIN_UM
from wsiseg.results.slide_record import slide_record
from wsiseg.rows import SlideRow
from wsiseg.schema import PATCHES
from wsiseg.tables import atomic_write_bytes, read_nuclei, wkb_rings
from wsiseg.tables.records import write_rows
from wsiseg.types import Box

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PatchSummary", "make_patches", "nuclei_of_patch", "patch_segmenter_of", "picture_features"]

MPP_TOLERANCE_FRAC = 0.10
"""A slide whose microns per pixel differ from 0.25 by no more than this fraction is shown in its own pixels, not resampled."""


@dataclass(frozen=True, slots=True)
class PatchSummary:
    """Result of ``make_patches``.

    Attributes
    ----------
    slides, patches
        Number of slides with patches, and of patches in the index.
    made
        Number of patches that this call rendered.
    failed
        (slide id, reason) of each slide whose patches could not be made.
    """

    slides: int
    patches: int
    made: int
    failed: list[tuple[str, str]]


def make_patches(
    run: QcRun,
    per_slide: int = PATCHES_PER_SLIDE,
    *,
    more: int = 0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> PatchSummary:
    """Draw and render random patches of every segmented slide; patches that exist already are kept.

    Parameters
    ----------
    per_slide
        Patches per slide; a slide that has more keeps them.
    more
        Patches to add to every slide, in addition to those it has.
    seed
        Seed of the random sample. It can only be chosen for a run that has no patches yet.
    progress
        Called with (slides done, slides).

    Raises
    ------
    ConfigError
        ``per_slide`` is below 1, ``more`` is negative, or the seed differs from that of the existing patches.
    """
    if per_slide < 1 or more < 0:
        raise ConfigError(
            f"Expected at least 1 patch per slide and at least 0 more, got {per_slide} per slide and {more} more."
        )
    _same_seed(run, seed)
    old: dict[str, list[PatchRow]] = {}
    for row in stored_rows(PatchRow, run.qc / "patches.parquet"):
        old.setdefault(row.slide_id, []).append(row)
    slides = [r for r in run.rows if r.status != "failed" and r.n_nuclei]
    from wsiseg.cluster.limits import usable_cores

    features: dict[str, list[float]] = {}
    index: list[PatchRow] = []
    failed, done = [], 0
    with ThreadPoolExecutor(max_workers=max(1, min(8, usable_cores()))) as pool:
        jobs = {
            r.slide_id: pool.submit(
                _slide_patches, run, r, max(per_slide, len(old.get(r.slide_id, ()))) + more, seed, old.get(r.slide_id, [])
            )
            for r in slides
        }
        for slide_id, job in jobs.items():
            of_slide = job.result()
            index += of_slide.rows
            features |= of_slide.features
            if of_slide.error:
                failed.append((slide_id, of_slide.error))
            done += 1
            if progress is not None:
                progress(done, len(slides))
    index.sort(key=lambda e: e.patch_id)
    if features:
        write_features(run.qc / "features.parquet", {**read_features(run.qc / "features.parquet"), **features})
    write_rows(run.qc / "patches.parquet", PATCHES, index)
    return PatchSummary(len({e.slide_id for e in index}), len(index), len(features), failed)


def _same_seed(run: QcRun, seed: int) -> None:
    path = run.qc / "patches.json"
    if path.is_file():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            same = (stored["seed"], stored["run"]) == (seed, run.digest)
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise FormatError(f"{path} is unreadable ({err}). Remove {run.qc} to start QC again.") from err
        if not same:
            raise ConfigError(
                f"{run.qc} holds patches drawn with seed {stored['seed']} for run {stored['run']}, but this command has seed "
                f"{seed} and run {run.digest}. Reviewers' marks belong to the existing patches: use their seed, or move the qc "
                "folder away."
            )
        return
    run.qc.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, json.dumps({"seed": seed, "run": run.digest}).encode())


@dataclass(frozen=True, slots=True)
class _SlidePatches:
    """Patches of a slide: index rows, features of those that were rendered now, by patch id, and what went wrong."""

    rows: Sequence[PatchRow]
    features: Mapping[str, list[float]]
    error: str = ""


def _slide_patches(run: QcRun, row: SlideRow, n: int, seed: int, old: list[PatchRow]) -> _SlidePatches:
    file = f"patches/{row.slide_id}.zip"
    drawn: list[PatchRow] = []
    have = {e.patch_id: e for e in old if e.file}
    try:
        zoom = scale_for(size_and_mpp(row)[1], PATCH_MPP, MPP_TOLERANCE_FRAC)
        side = max(1, round(PATCH_PX / zoom))
        for p in _draw_patches(run, row, side, n, seed):
            name = patch_id(run.digest, row.slide_id, p.number)
            drawn.append(PatchRow(name, row.slide_id, row.cohort, p.number, p.box.x, p.box.y, side, zoom, None, file))
        names = [e.patch_id for e in drawn]
        if drawn and all(name in have for name in names) and {f"{name}.png" for name in names} <= pack_names(run.qc / file):
            return _SlidePatches([have[name] for name in names], {})
        if not drawn:
            return _SlidePatches([], {}, "no segmented tissue to draw patches from")
        rendered = _render_slide(run, row, drawn)
        write_pack(run.qc / file, [picture for r in rendered for picture in r.pictures])
    except (WsisegError, OSError, ValueError, KeyError) as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        stored = [have.get(e.patch_id, dataclasses.replace(e, file="", error=reason)) for e in drawn]
        return _SlidePatches(stored or old, {}, reason)
    return _SlidePatches([r.row for r in rendered], {r.row.patch_id: r.features for r in rendered})


def _draw_patches(run: QcRun, row: SlideRow, side_px: int, n: int, seed: int) -> list[Patch]:
    tissue = TissueMask.load(run.folder.tissue_png(row.slide_id))
    size, mpp = size_and_mpp(row)
    inner = inner_mask(tissue.mask, tissue.px_w, tissue.px_h, TISSUE_MARGIN_UM / mpp)
    within, failed = dataclasses.replace(tissue, mask=inner), _failed_tiles(run, row)
    return sample_patches(row.slide_id, within, size, side_px, n, seed=seed, excluded=failed)


def _failed_tiles(run: QcRun, row: SlideRow) -> list[Box]:
    """Return the level-0 boxes of tiles that were not segmented."""
    if not row.tiles_failed or not row.scale:
        return []
    side = round(run.record.tile_wpx / row.scale)
    errors = slide_record(run.folder, row.slide_id).errors
    return [Box(e.x_px, e.y_px, side, side) for e in errors if e.tile_id >= 0]


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A patch that was rendered: its index row, (name, PNG) of its pictures, and its features."""

    row: PatchRow
    pictures: tuple[tuple[str, bytes], tuple[str, bytes]]
    features: list[float]


def _render_slide(run: QcRun, row: SlideRow, patches: Sequence[PatchRow]) -> list[_Rendered]:
    """Render a slide's patches."""
    rendered = []
    segmenter = patch_segmenter_of(run)
    slide = open_row_slide(run, row)
    try:
        for patch in patches:
            zoom = patch.zoom
            window = Box(round(patch.x_px * zoom), round(patch.y_px * zoom), PATCH_PX, PATCH_PX)
            nuclei = nuclei_of_patch(run, patch)
            rgb = read_working(slide, window, zoom)
            xy, offsets = wkb_rings(nuclei["geometry"])
            origin = (window.x / zoom, window.y / zoom)
            layer = contour_png(xy, offsets, origin, zoom * LAYER_ZOOM, PATCH_PX * LAYER_ZOOM)
            pictures = ((f"{patch.patch_id}.png", rgb_png(rgb)), (f"{patch.patch_id}.contours.png", layer))
            features = picture_features(rgb, nuclei, patch, segmenter).tolist()
            rendered.append(_Rendered(dataclasses.replace(patch, n_nuclei=nuclei.num_rows), pictures, features))
    finally:
        slide.close()
    return rendered


def nuclei_of_patch(run: QcRun, patch: PatchRow) -> pa.Table:
    """Return the nuclei whose polygons intersect a patch, with the columns that its picture and features need."""
    region = Box(patch.x_px, patch.y_px, patch.side_px, patch.side_px)
    return read_nuclei(run.folder.table(patch.slide_id), region, ["geometry", "cx", "cy", *NUCLEUS_COLUMNS])


def picture_features(
    rgb: npt.NDArray[np.uint8], nuclei: pa.Table, patch: PatchRow, segmenter: PatchSegmenter
) -> npt.NDArray[np.float64]:
    """Return the features of a patch, in the order of ``FEATURES``, from its picture and the nuclei that intersect it.

    Nuclei with their centroid in the patch count as its nuclei. ``segmenter`` is applied to the picture in its eight
    orientations.
    """
    zoom, side = patch.zoom, patch.side_px
    xy, offsets = wkb_rings(nuclei["geometry"])
    origin = np.array([round(patch.x_px * zoom), round(patch.y_px * zoom)], np.float64)
    labels = rasterize_rings(xy * zoom - origin, offsets, rgb.shape[:2])
    x, y = np.asarray(nuclei["cx"], np.float64) - patch.x_px, np.asarray(nuclei["cy"], np.float64) - patch.y_px
    own = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    of_picture = patch_features(rgb, labels, {k: np.asarray(nuclei[k])[own] for k in NUCLEUS_COLUMNS})
    return np.concatenate([of_picture, orientation_features(rgb, labels, segmenter)])


def patch_segmenter_of(run: QcRun) -> PatchSegmenter:
    """Return the segmenter with the run's weights, or with ``FALLBACK`` if no quality model was fitted for those."""
    name = run.record.weights if run.record is not None else ""
    return load_patch_segmenter(name if load_quality(name) is not None else FALLBACK)

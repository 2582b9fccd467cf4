"""``wsiseg import``: import files of other tools into a run folder that qc, evaluate, query and export can use."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiseg.config import RunConfig
from wsiseg.coordinates import Frame, Ground, check_fit, ground_of, mpp_note, parse_frame, size_note
from wsiseg.errors import DuplicateSlideError, FormatError, InputError, MissingMppError
from wsiseg.export import READERS
from wsiseg.export.incoming import Incoming, Provenance, Source, safe_name
from wsiseg.export.labelmap import class_names, incoming_of_batch, label_windows, open_label_map
from wsiseg.export.table import Imported, write_imported_table
from wsiseg.read import TissueMask, fit_tissue, open_slide, tissue_px_in
from wsiseg.results.folder import RunFolder
from wsiseg.results.reopen import file_facts
from wsiseg.results.run_record import RunNote
from wsiseg.results.slide_record import ImportFacts, SlideRecord, read_slide, slide_or_none, write_slide
from wsiseg.summarize import SlideWork, summarize_slide, write_errors_table, write_slides_table
from wsiseg.tables import atomic_write_bytes
from wsiseg.tables.outlines import require_outlines
from wsiseg.types import Box, Instances, SlideMeta, TileStats
from wsiseg.vectorize import vectorize

__all__ = ["IMPORT_FORMATS", "ImportOptions", "import_files"]

IMPORT_FORMATS = (*sorted(READERS), "hovernext", "labels")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of ``wsiseg import``. For those that are None, what the file itself states is used.

    Attributes
    ----------
    mpp
        um per level-0 px of the slide.
    slide
        The slide file; its mpp, size, bounds and tissue are then used.
    width_px, height_px
        Size of the slide, level-0 px, if no slide file is given.
    cohort, slide_id
        Cohort and id of the slide; the default id is that of the slide file, else it comes from the imported file's name.
    frame
        Frame of the file's coordinates (or label pixels), in the grammar of ``wsiseg.coordinates``. ``auto``: relative to the
        scanned area for files of QuPath and HoVer-NeXt, otherwise relative to the slide's corner.
    scale, label_mpp
        Alternatives to a unit in ``frame``: file px per level-0 px, or um per file px.
    components
        Every connected part of a label image is a nucleus, whatever its value.
    dx, dy
        Level-0 px added to all coordinates, for a file of one tile of a slide.
    classes
        HoVer-NeXt's ``class_inst.json``.
    fix_edge_tiles, strict
        See ``wsiseg.export.read_quip`` and ``write_imported_table``.
    """

    mpp: float | None = None
    slide: str = ""
    width_px: int | None = None
    height_px: int | None = None
    cohort: str = ""
    slide_id: str = ""
    scale: float | None = None
    label_mpp: float | None = None
    frame: str = "auto"
    components: bool = False
    dx: float = 0.0
    dy: float = 0.0
    classes: Path | None = None
    fix_edge_tiles: bool = False
    strict: bool = False


@dataclass(slots=True)
class _Slide:
    """What is known about the slide before the imported file is read."""

    meta: SlideMeta | None = None
    tissue_px: int = 0
    tissue_png: bytes = b""
    tissue: TissueMask | None = None


MIN_ON_TISSUE = 0.5
"""Share of nuclei on tissue below which the user is warned: in the right frame, nearly all nuclei are on tissue."""
_ENDINGS = (
    ".geojson.gz", ".json.gz", ".json.snappy", ".geojson.snappy",
    ".geojson", ".json", ".zarr", ".zip", ".db", ".tiff", ".tif", ".png", ".npy",
    ".npz", ".mat", ".snappy", ".geojsonl", ".geojsons", ".ndjson", ".jsonl", ".gz",
)  # fmt: skip
_STEM_ENDS = ("-features", "_seg", "_cp_masks", "_cell_detection", ".labels", "_labels", "_nuclei", ".nuclei")


def import_files(paths: Sequence[Path], fmt: str, out: Path, options: ImportOptions | None = None) -> list[Imported]:
    """Import files of other tools into a new or existing run folder. Each file is one slide (for QuIP, each folder).

    ``RUN/nuclei``, ``RUN/slides`` and ``slides.parquet`` are written as for a segmented run, so that ``qc``, ``evaluate``,
    ``query`` and ``export`` can use them. Statistics that the file does not contain are null: probabilities, and statistics per
    tissue area unless the slide is given.

    Raises
    ------
    MissingMppError
        Neither the file, the slide nor an option states the microns per pixel.
    DuplicateSlideError
        Two files have the same slide id, or the run has that slide from another file.
    FormatError, InputError
        As raised by the reader of the format.
    """
    options = options or ImportOptions()
    if fmt not in IMPORT_FORMATS:
        raise InputError(f"Expected one of the formats {', '.join(IMPORT_FORMATS)}, got {fmt!r}.")
    if len(paths) > 1 and (options.slide or options.slide_id):
        raise InputError(
            f"--slide-file and --slide-id apply to a single file, got {len(paths)} files: import them one at a time."
        )
    folder = RunFolder(out.absolute())
    with folder.exclusive():
        folder.create()
        folder.claim(RunConfig(), {"source": "import"}, RunNote(note="imported: see each table's metadata"))
        done = [_import_one(path, fmt, folder, options) for path in paths]
        _write_run_tables(folder)
    return done


def _import_one(path: Path, fmt: str, folder: RunFolder, options: ImportOptions) -> Imported:
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder.")
    slide = _known_slide(options)
    provenance = Provenance(fmt, *_digest(path, options.classes))
    frame = _frame(options)
    chunks = _chunks(path, fmt, slide, provenance, frame, options)
    first = next(chunks, None)  # after the first chunk, the reader has filled in what the file itself states
    require_outlines(first is not None, provenance.tally, str(path))
    meta = _meta(path, slide, provenance, options)
    if folder.slide_json(meta.slide_id).exists() and not _same_source(folder, meta.slide_id, provenance.sha256):
        raise DuplicateSlideError(
            f"Run {folder.root} already has slide {meta.slide_id!r}, from another file. Use --slide-id or another --out."
        )
    ground = _ground(slide, meta, provenance, options)
    chunks = _prepend(first, chunks)
    if fmt in READERS:
        chunks = _placed(chunks, path, frame, ground, slide, provenance, options)
    else:
        chunks = _checked(chunks, path, slide, provenance)
    done = write_imported_table(chunks, folder.table(meta.slide_id), meta, provenance, strict=options.strict)
    meta = dataclasses.replace(meta, width_px=done.width_px, height_px=done.height_px)
    _write_slide(folder, meta, slide, done, provenance)
    return done


def _chunks(
    path: Path, fmt: str, slide: _Slide, provenance: Provenance, frame: Frame, options: ImportOptions
) -> Iterator[Incoming]:
    """Yield the nuclei of a file: of a polygon file in the file's own frame, of a label image in level-0 px."""
    width = options.width_px or (slide.meta.width_px if slide.meta else None)
    height = options.height_px or (slide.meta.height_px if slide.meta else None)
    mpp = options.mpp if options.mpp is not None else slide.meta.mpp if slide.meta else None
    if fmt in READERS:
        return READERS[fmt](
            Source(path, mpp, width, height, fix_edge_tiles=options.fix_edge_tiles, slide=options.slide), provenance
        )
    if mpp is None:
        raise MissingMppError(f"{path}: a label image does not state its microns per pixel. Add --mpp, or --slide-file.")
    ground = Ground(width or 0, height or 0, mpp) if slide.meta is None else ground_of(slide.meta)
    factor, dx, dy = frame.on(ground, "bounds" if fmt == "hovernext" else "slide", str(path))
    source = Source(path, mpp, width, height, 1 / factor, dx + options.dx, dy + options.dy)
    return _label_chunks(source, provenance, options, ground, (dx, dy))


def _label_chunks(
    source: Source, provenance: Provenance, options: ImportOptions, ground: Ground, corner: tuple[float, float]
) -> Iterator[Incoming]:
    """Yield the nuclei of a label image, traced window by window."""
    assert source.mpp is not None
    names = class_names(options.classes, provenance) if options.classes else None
    provenance.missing += ["center_prob"]
    labels = open_label_map(source.path, components=options.components, notes=provenance.notes)
    height, width = labels.shape
    if source.width_px is None:
        provenance.height_px, provenance.width_px = (math.ceil(n / source.scale) for n in labels.shape)
    elif not options.dx and not options.dy:
        bounds = (ground.bounds_x, ground.bounds_y) == corner != (0, 0)
        notes = size_note(str(source.path), (width, height), ground, 1 / source.scale, origin="bounds" if bounds else "slide")
        if notes and "--frame" in notes[0] and parse_frame(options.frame).origin == "auto":
            raise FormatError(f"{notes[0]} To import it nevertheless, name the frame: --frame slide or --frame bounds.")
        provenance.notes += notes
    for window in label_windows(labels):
        blank = np.zeros((2, *window.labels.shape), np.uint8)
        batch = vectorize(Instances(window.labels, window.anchors), blank, window.read, window.core)
        if len(batch):
            yield incoming_of_batch(batch, window, source, source.mpp, names)


def _placed(
    chunks: Iterator[Incoming],
    path: Path,
    frame: Frame,
    ground: Ground,
    slide: _Slide,
    provenance: Provenance,
    options: ImportOptions,
) -> Iterator[Incoming]:
    """Yield a file's nuclei in level-0 px; after the last, warn or raise if coordinates do not fit the slide."""
    provenance.notes += mpp_note(str(path), provenance.mpp, ground.mpp if frame.unit_plain and options.scale is None else None)
    factor, dx, dy = frame.on(ground, provenance.stated_origin, str(path))
    if (dx, dy) != (0.0, 0.0) and frame.origin == "auto":
        provenance.notes.append(
            f"coordinates are taken as relative to the scanned area, as in QuPath: ({dx:g}, {dy:g}) px are added (else use "
            "--frame slide)"
        )
    if slide.meta is None and provenance.stated_origin == "bounds" and frame.origin != "slide":
        provenance.notes.append(
            "coordinates are relative to the scanned area; give --slide-file to make them relative to the slide"
        )
    placed = (factor, dx + options.dx, dy + options.dy)
    points = [np.empty((0, 2))]
    for nuclei in chunks:
        points.append(nuclei.xy[nuclei.ring_offsets[:-1]])
        same = placed == (1.0, 0.0, 0.0)
        yield nuclei if same else dataclasses.replace(nuclei, xy=nuclei.xy * factor + np.array(placed[1:]))
    xy = np.concatenate(points)
    provenance.notes += check_fit(xy, ground, placed, f"{path}: nuclei")
    provenance.notes += _off_tissue(xy * factor + np.array(placed[1:]), slide, path)


def _checked(chunks: Iterator[Incoming], path: Path, slide: _Slide, provenance: Provenance) -> Iterator[Incoming]:
    points = [np.empty((0, 2))]
    for nuclei in chunks:
        points.append(nuclei.xy[nuclei.ring_offsets[:-1]])
        yield nuclei
    provenance.notes += _off_tissue(np.concatenate(points), slide, path)


def _off_tissue(xy: npt.NDArray[np.float64], slide: _Slide, path: Path) -> list[str]:
    """Return warnings if many nuclei are not on tissue, which shows a wrong frame even if all are within the slide."""
    if slide.tissue is None or slide.meta is None or not slide.tissue.mask.any() or len(xy) == 0:
        return []
    found = slide.tissue
    at = np.floor((xy - (found.x0, found.y0)) / (found.px_w, found.px_h)).astype(np.int64)
    h, w = found.mask.shape
    inside = (at >= 0).all(axis=1) & (at < (w, h)).all(axis=1)
    on_tissue = float(found.mask[at[inside, 1], at[inside, 0]].sum()) / len(xy)
    share = slide.tissue_px / (slide.meta.width_px * slide.meta.height_px)
    if on_tissue >= MIN_ON_TISSUE:
        return []
    text = f"{path}: only {on_tissue:.1%} of {len(xy):,} nuclei are on tissue, which covers {share:.1%} of the slide: "
    return [text + "check that they belong to this slide, and --frame."]


def _known_slide(options: ImportOptions) -> _Slide:
    if not options.slide:
        return _Slide()
    slide = open_slide(os.path.abspath(options.slide), mpp=options.mpp, cohort=options.cohort)
    try:
        tissue = fit_tissue(slide)
        meta = slide.meta
        area = tissue_px_in(tissue, Box(0, 0, meta.width_px, meta.height_px))
        return _Slide(meta, area, tissue.to_png(), tissue)
    finally:
        slide.close()


def _frame(options: ImportOptions) -> Frame:
    """Return the frame of the options, whose unit can be given in three ways."""
    frame = parse_frame(options.frame)
    ways = [not frame.unit_plain, options.scale is not None, options.label_mpp is not None]
    if sum(ways) > 1:
        raise InputError("Give the unit of the coordinates only once: in --frame, by --scale, or by --label-mpp.")
    if options.scale is not None:
        if not 0 < options.scale < 1000:
            raise InputError(f"Expected --scale (file px per level-0 px) above 0, got {options.scale}.")
        return dataclasses.replace(frame, down=1 / options.scale)
    if options.label_mpp is not None:
        return dataclasses.replace(frame, um_per_unit=options.label_mpp)
    return frame


def _ground(slide: _Slide, meta: SlideMeta, provenance: Provenance, options: ImportOptions) -> Ground:
    """Return size, bounds and mpp of the slide: from the slide file, else from options or the imported file.

    Differences between what the slide and the imported file state become notes.
    """
    if slide.meta is None:
        return Ground(options.width_px or provenance.width_px or 0, options.height_px or provenance.height_px or 0, meta.mpp)
    ground = ground_of(slide.meta)
    stated = (provenance.width_px, provenance.height_px)
    if all(stated) and stated != (ground.width_px, ground.height_px):
        text = f"the file states a slide of {stated[0]} x {stated[1]} px, but {options.slide} has "
        provenance.notes.append(f"{text}{ground.width_px} x {ground.height_px} px")
    return ground


def _meta(path: Path, slide: _Slide, provenance: Provenance, options: ImportOptions) -> SlideMeta:
    if slide.meta is not None:
        return dataclasses.replace(slide.meta, slide_id=options.slide_id or slide.meta.slide_id, cohort=options.cohort)
    mpp = options.mpp if options.mpp is not None else provenance.mpp
    if mpp is None or not 0 < mpp < 100:
        raise MissingMppError(
            f"{path}: the file does not state its microns per pixel. Add --mpp (um per level-0 px), or --slide-file."
        )
    name = options.slide_id or _stem(Path(provenance.slide_name or path.name).name)
    width = options.width_px or provenance.width_px or 0
    height = options.height_px or provenance.height_px or 0
    return SlideMeta(safe_name(name, str(path)), str(path), width, height, float(mpp), "user", cohort=options.cohort)


def _stem(name: str) -> str:
    lower = name.lower()
    for ending in (*_ENDINGS, ".svs", ".ndpi", ".mrxs", ".dcm"):
        if lower.endswith(ending):
            name = name[: -len(ending)]
            break
    for end in _STEM_ENDS:
        name = name.removesuffix(end)
    return name


def _prepend(first: Incoming | None, rest: Iterator[Incoming]) -> Iterator[Incoming]:
    if first is not None:
        yield first
    yield from rest


def _digest(path: Path, classes: Path | None) -> tuple[list[str], str]:
    """Return the names of all files and one SHA-256 over their contents, in the order of names."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files += [classes] if classes is not None else []
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return [f.name for f in files], total.hexdigest()


def _same_source(folder: RunFolder, slide_id: str, sha256: str) -> bool:
    record = slide_or_none(folder, slide_id)
    return record is not None and record.imported is not None and record.imported.sha256 == sha256


def _write_slide(folder: RunFolder, meta: SlideMeta, slide: _Slide, done: Imported, provenance: Provenance) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(str(folder.table(meta.slide_id)), columns=["area_um2", "area_px", "center_prob"])
    area = table["area_um2"].to_numpy()
    blank = np.zeros(len(area), np.uint8)
    material = round(float(table["area_px"].to_numpy().sum(dtype=np.float64)))
    size = meta.width_px * meta.height_px
    row = summarize_slide(
        {"area_um2": area, "center_prob": table["center_prob"].fill_null(0).to_numpy(), "material_prob": blank},
        TileStats(core_px=size, tissue_px=slide.tissue_px, material_px=material),
        meta,
        1.0,
        SlideWork(),
        table_name=f"nuclei/{meta.slide_id}.parquet",
    )
    row = dataclasses.replace(
        row,
        material_prob_mean=None,
        center_prob_mean=None if table["center_prob"].null_count else row.center_prob_mean,
        tissue_mm2=row.tissue_mm2 if slide.tissue_px else None,
    )
    if slide.tissue_png:
        atomic_write_bytes(folder.tissue_png(meta.slide_id), slide.tissue_png)
    record = SlideRecord(
        "",
        row,
        imported=ImportFacts(provenance.format, provenance.sha256, done.flags, done.skipped, tuple(provenance.notes)),
        file=None if slide.meta is None else file_facts(slide.meta.path),
        tissue_png=f"slides/{meta.slide_id}.tissue.png" if slide.tissue_png else None,
    )
    write_slide(folder, record)


def _write_run_tables(folder: RunFolder) -> None:
    rows = [read_slide(folder, path.stem).row for path in sorted((folder.root / "slides").glob("*.json"))]
    write_slides_table(rows, folder.root / "slides.parquet")
    write_errors_table([], folder.root / "errors.parquet")

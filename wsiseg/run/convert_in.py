"""``wsiseg import``: other tools' files -> a run folder, on which qc, evaluate, query and export work."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from wsiseg.config import RunConfig
from wsiseg.errors import DuplicateSlideError, FormatError, InputError, MissingMppError
from wsiseg.export import (
    READERS,
    Imported,
    Incoming,
    Provenance,
    Source,
    class_names,
    incoming_of_batch,
    label_windows,
    open_label_map,
    safe_name,
    write_imported_table,
)
from wsiseg.read import fit_tissue, open_slide, tissue_px_in
from wsiseg.run.folder import RunFolder
from wsiseg.summarize import summarize_slide, write_errors_table, write_slides_table
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Box, Instances, SlideMeta, TileStats
from wsiseg.vectorize import vectorize

__all__ = ["IMPORT_FORMATS", "ImportOptions", "import_files"]

IMPORT_FORMATS = (*sorted(READERS), "hovernext", "labels")


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What the user says of imported files; the file's own facts are used where these are None.

    Attributes
    ----------
    mpp
        um per level-0 px of the slide.
    slide
        The slide file: its mpp, size, bounds and tissue are then used.
    width_px, height_px
        Size of the slide, level-0 px, where no slide file is given.
    cohort, slide_id
        Of the slide; the id's default is the slide's, else the file's name.
    scale
        Coordinates (or label pixels) per level-0 px; None: 1, and for HoVer-NeXt and label images ``mpp / label_mpp``.
    label_mpp
        um per px of a label image, where it is not the slide's level 0.
    origin
        ``bounds``: coordinates count from the scanned area (QuPath, HoVer-NeXt); ``slide``: from the slide's corner; ``auto``:
        bounds where the format says so.
    dx, dy
        Level-0 px added to all coordinates (a tile's place in its slide).
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
    origin: Literal["auto", "bounds", "slide"] = "auto"
    dx: float = 0.0
    dy: float = 0.0
    classes: Path | None = None
    fix_edge_tiles: bool = False
    strict: bool = False


@dataclass(slots=True)
class _Slide:
    """What is known of the slide before the file is read."""

    meta: SlideMeta | None = None
    tissue_px: int = 0
    tissue_png: bytes = b""
    bounds: tuple[int, int] = (0, 0)


BOUNDS_FRAME = frozenset(("qupath", "hovernext"))
_ENDINGS = (
    ".geojson.gz",
    ".json.gz",
    ".geojson",
    ".json",
    ".zarr",
    ".zip",
    ".db",
    ".tiff",
    ".tif",
    ".png",
    ".npy",
    ".mat",
    ".gz",
)
_STEM_ENDS = ("-features", "_cell_detection", ".labels", "_labels", "_nuclei", ".nuclei")


def import_files(paths: Sequence[Path], fmt: str, out: Path, options: ImportOptions | None = None) -> list[Imported]:
    """Make a run folder (or add to one) of other tools' files, one slide a file (or a folder, for QuIP).

    ``RUN/nuclei``, ``RUN/slides`` and ``slides.parquet`` are those of a segmented run, so ``qc``, ``evaluate``, ``query`` and
    ``export`` work on them. Statistics that nobody measured are null: probabilities, and what needs the tissue area unless the
    slide is given.

    Raises
    ------
    MissingMppError
        Neither file, slide nor option says how large a pixel is.
    DuplicateSlideError
        Two files give one slide id, or the run has that slide from another source.
    FormatError, InputError
        As the reader says.
    """
    options = options or ImportOptions()
    if fmt not in IMPORT_FORMATS:
        raise InputError(f"Expected one of the formats {', '.join(IMPORT_FORMATS)}, got {fmt!r}.")
    if len(paths) > 1 and (options.slide or options.slide_id):
        raise InputError("A slide or slide id can be named for one file at a time.")
    folder = RunFolder(out.absolute())
    with folder.exclusive():
        folder.create()
        folder.claim(RunConfig(), {"source": "import"}, {"note": "imported: see each table's metadata"})
        done = [_import_one(path, fmt, folder, options) for path in paths]
        _write_run_tables(folder)
    return done


def _import_one(path: Path, fmt: str, folder: RunFolder, options: ImportOptions) -> Imported:
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder.")
    slide = _known_slide(options)
    provenance = Provenance(fmt, *_digest(path, options.classes))
    source = _source(path, fmt, slide, options)
    chunks = _chunks(fmt, source, provenance, options)
    first = next(chunks, None)  # the reader has now seen the file's own facts
    meta = _meta(path, slide, provenance, options)
    if folder.slide_json(meta.slide_id).exists() and not _same_source(folder, meta.slide_id, provenance.sha256):
        raise DuplicateSlideError(
            f"Run {folder.root} has slide {meta.slide_id!r} from another file. Use --slide-id or another --out."
        )
    table = folder.table(meta.slide_id)
    done = write_imported_table(_again(first, chunks), table, meta, provenance, strict=options.strict)
    meta = dataclasses.replace(meta, width_px=done.width_px, height_px=done.height_px)
    _write_slide(folder, meta, slide, done, provenance)
    return done


def _chunks(fmt: str, source: Source, provenance: Provenance, options: ImportOptions) -> Iterator[Incoming]:
    if fmt in READERS:
        return READERS[fmt](source, provenance)
    return _label_chunks(source, provenance, options)


def _label_chunks(source: Source, provenance: Provenance, options: ImportOptions) -> Iterator[Incoming]:
    """Trace a label image window by window."""
    if source.mpp is None:
        raise MissingMppError(f"{source.path}: a label image does not say its um/px. Add --mpp, or --slide.")
    names = class_names(options.classes, provenance) if options.classes else None
    provenance.missing += ["center_prob"]
    labels = open_label_map(source.path)
    if source.width_px is None:
        provenance.height_px, provenance.width_px = (math.ceil(n / source.scale) for n in labels.shape)
    for window in label_windows(labels):
        blank = np.zeros((2, *window.labels.shape), np.uint8)
        batch = vectorize(Instances(window.labels, window.anchors), blank, window.read, window.core)
        if len(batch):
            yield incoming_of_batch(batch, window, source, source.mpp, names)


def _known_slide(options: ImportOptions) -> _Slide:
    if not options.slide:
        return _Slide()
    slide = open_slide(options.slide, mpp=options.mpp, cohort=options.cohort)
    try:
        tissue = fit_tissue(slide)
        meta = slide.meta
        area = tissue_px_in(tissue, Box(0, 0, meta.width_px, meta.height_px))
        return _Slide(meta, area, tissue.to_png(), (meta.bounds_x, meta.bounds_y))
    finally:
        slide.close()


def _source(path: Path, fmt: str, slide: _Slide, options: ImportOptions) -> Source:
    mpp = options.mpp if options.mpp is not None else slide.meta.mpp if slide.meta else None
    scale = options.scale
    if scale is None:
        scale = mpp / options.label_mpp if mpp and options.label_mpp else 1.0
    if not 0 < scale < 1000:
        raise InputError(f"Expected a positive scale (file px per level-0 px), got {scale}.")
    shift = slide.bounds if options.origin == "bounds" or (options.origin == "auto" and fmt in BOUNDS_FRAME) else (0, 0)
    width = options.width_px or (slide.meta.width_px if slide.meta else None)
    height = options.height_px or (slide.meta.height_px if slide.meta else None)
    dx, dy = shift[0] + options.dx, shift[1] + options.dy
    return Source(path, mpp, width, height, scale, dx, dy, options.fix_edge_tiles)


def _meta(path: Path, slide: _Slide, provenance: Provenance, options: ImportOptions) -> SlideMeta:
    if slide.meta is not None:
        return dataclasses.replace(slide.meta, slide_id=options.slide_id or slide.meta.slide_id, cohort=options.cohort)
    mpp = options.mpp if options.mpp is not None else provenance.mpp
    if mpp is None or not 0 < mpp < 100:
        raise MissingMppError(f"{path}: the file does not say how large a pixel is. Add --mpp (um per level-0 px), or --slide.")
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


def _again(first: Incoming | None, rest: Iterator[Incoming]) -> Iterator[Incoming]:
    if first is not None:
        yield first
    yield from rest


def _digest(path: Path, classes: Path | None) -> tuple[list[str], str]:
    """Return names and one SHA-256 over the contents, in the order of names."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    files += [classes] if classes is not None else []
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return [f.name for f in files], total.hexdigest()


def _same_source(folder: RunFolder, slide_id: str, sha256: str) -> bool:
    try:
        record = json.loads(folder.slide_json(slide_id).read_text(encoding="utf-8"))
        return bool(record["imported"]["sha256"] == sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return False


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
        tiles=(0, 0, 0),
        seconds={},
        stain="",
        table_name=f"nuclei/{meta.slide_id}.parquet",
    )
    row["material_prob_mean"] = None
    if table["center_prob"].null_count:
        row["center_prob_mean"] = None
    if not slide.tissue_px:
        row["tissue_mm2"] = None
    imported = {"format": provenance.format, "sha256": provenance.sha256, "flags": done.flags, "skipped": done.skipped,
                "notes": provenance.notes}  # fmt: skip
    record = {"digest": "", "row": row, "errors": [], "imported": imported}
    if slide.tissue_png:
        atomic_write_bytes(folder.tissue_png(meta.slide_id), slide.tissue_png)
        record["tissue_png"] = f"slides/{meta.slide_id}.tissue.png"
    atomic_write_bytes(folder.slide_json(meta.slide_id), json.dumps(record, indent=1, sort_keys=True).encode())


def _write_run_tables(folder: RunFolder) -> None:
    rows: list[dict[str, Any]] = []
    for path in sorted((folder.root / "slides").glob("*.json")):
        try:
            rows.append(json.loads(path.read_text(encoding="utf-8"))["row"])
        except (ValueError, KeyError) as err:
            raise FormatError(f"Slide record {path} is unreadable: {err!r}") from err
    write_slides_table(rows, folder.root / "slides.parquet")
    write_errors_table([], folder.root / "errors.parquet")

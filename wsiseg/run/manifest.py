"""What the user names on the command line -> the list of slides.

A SLIDE argument is a file, a DICOM folder, a folder of slides, a glob, or a manifest (``.csv``, ``.tsv``, ``.parquet``) with a
``path`` column and optional ``cohort``, ``mpp``, ``tissue_mask`` and ``frame`` (of the mask) columns. Column names of two
widespread manifests are understood too: ``wsi`` (TRIDENT) for ``path``, ``wsi_mpp`` (CellViT) for ``mpp``.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsiseg.coordinates import parse_frame
from wsiseg.errors import DuplicateSlideError, InputError, ManifestError

__all__ = ["SLIDE_SUFFIXES", "SlideInput", "collect_slides", "require_plain_names", "slide_id_of"]

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif", ".dcm", ".czi"}
    | {".png", ".jpg", ".jpeg"}
)
"""File endings taken from a folder (a file named outright may have any ending)."""

_MANIFEST_SUFFIXES = frozenset((".csv", ".tsv", ".parquet"))
_ALIASES = {"wsi": "path", "slide": "path", "file": "path", "wsi_mpp": "mpp", "cancer_type": "cohort", "mask": "tissue_mask"}


@dataclass(frozen=True, slots=True)
class SlideInput:
    """One slide to segment, as the user named it."""

    slide_id: str
    path: str
    cohort: str = ""
    mpp: float | None = None
    tissue_mask: str = ""
    frame: str = ""


def slide_id_of(path: str | Path) -> str:
    """Return the slide id: the file stem (a TCGA barcode verbatim), for a DICOM folder its name without ``.dicom``."""
    p = Path(path)
    if p.suffix.lower() in SLIDE_SUFFIXES or p.suffix.lower() in (".dicom", ".zarr"):
        return p.stem
    return p.stem if p.is_file() else p.name


def collect_slides(
    inputs: Sequence[str], *, cohort: str = "", mpp: float | None = None, tissue_mask: str = "", frame: str = ""
) -> list[SlideInput]:
    """Resolve SLIDE arguments to slides, in the order given (folders and globs sorted by name).

    Parameters
    ----------
    inputs
        Files, folders, globs or manifests.
    cohort, mpp, tissue_mask
        Values for slides whose manifest row gives none. ``tissue_mask`` is a file for one slide, or a folder that holds
        ``<slide_id>.png`` or ``<slide_id>.geojson``.
    frame
        Where coordinates of the tissue masks lie, for slides whose manifest row gives none (see ``wsiseg.coordinates``).

    Raises
    ------
    InputError
        Nothing is there, or a name matches no slide.
    DuplicateSlideError
        Two slides share one stem: their outputs would overwrite each other.
    ManifestError
        A manifest without a ``path`` column, or with an unusable value.
    """
    found: list[SlideInput] = []
    for name in inputs:
        found.extend(_expand(name, cohort=cohort, mpp=mpp))
    if not found:
        raise InputError(f"No slide found in {', '.join(inputs) or 'an empty list'}. Name a file, folder, glob or manifest.")
    require_plain_names(found)
    _refuse_duplicates(found)
    if tissue_mask:
        found = [_with_mask(s, tissue_mask, n_slides=len(found)) for s in found]
    found = [replace(s, frame=s.frame or frame) if s.tissue_mask else s for s in found]
    for s in found:
        parse_frame(s.frame)
    return found


def require_plain_names(slides: Iterable[SlideInput]) -> None:
    """Raise ``InputError`` where a slide's id cannot be the name of a file in a run folder: ``..`` would lead out of it."""
    for s in slides:
        name = s.slide_id
        if name in ("", ".", "..") or len(name.encode(errors="replace")) > 200 or any(c in "/\\" or ord(c) < 32 for c in name):
            raise InputError(f"{s.path[:200]}: expected a plain name of at most 200 bytes for the slide, got {name[:80]!r}.")


def _expand(name: str, *, cohort: str, mpp: float | None) -> list[SlideInput]:
    if not name.strip():
        raise InputError("An empty SLIDE argument (an unset shell variable?). Name a file, folder, glob or manifest.")
    path = Path(name)
    if path.is_dir() and not _is_dicom_folder(path):
        members = sorted(p for p in path.iterdir() if _looks_like_slide(p))
        if not members:
            raise InputError(
                f"Folder {name} holds no slide. Expected files ending in {', '.join(sorted(SLIDE_SUFFIXES))} "
                "(name a file outright to try another ending)."
            )
        return [SlideInput(slide_id_of(p), str(p), cohort, mpp) for p in members]
    if path.suffix.lower() in _MANIFEST_SUFFIXES and path.is_file():
        return _read_manifest(path, cohort=cohort, mpp=mpp)
    if path.exists():
        return [SlideInput(slide_id_of(path), str(path), cohort, mpp)]
    matches = sorted(glob.glob(name, recursive=True))
    if not matches:
        raise InputError(f"{name}: no such file, and no file matches it as a pattern.")
    return [SlideInput(slide_id_of(p), p, cohort, mpp) for p in matches if Path(p).is_file() or _is_dicom_folder(Path(p))]


def _is_dicom_folder(path: Path) -> bool:
    return path.is_dir() and any(p.suffix.lower() == ".dcm" for p in path.iterdir())


def _looks_like_slide(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return (path.is_file() and path.suffix.lower() in SLIDE_SUFFIXES) or _is_dicom_folder(path)


def _read_manifest(path: Path, *, cohort: str, mpp: float | None) -> list[SlideInput]:
    rows = list(_manifest_rows(path))
    out: list[SlideInput] = []
    for number, raw in enumerate(rows, start=2):
        row = {_ALIASES.get(str(k).strip().lower(), str(k).strip().lower()): v for k, v in raw.items() if k is not None}
        if "path" not in row:
            raise ManifestError(f"Manifest {path}: expected a column 'path' (or 'wsi'), got {sorted(row)}.")
        text = str(row["path"] or "").strip()
        if not text:
            continue
        slide = Path(text)
        if not slide.is_absolute() and not slide.exists():
            slide = path.parent / slide
        where = f"Manifest {path}, line {number} ({text})"
        out.append(
            SlideInput(
                slide_id_of(slide),
                str(slide),
                str(row.get("cohort") or cohort or "").strip(),
                _mpp_value(row.get("mpp"), where) or mpp,
                str(row.get("tissue_mask") or "").strip(),
                str(row.get("frame") or "").strip(),
            )
        )
    if not out:
        raise ManifestError(f"Manifest {path} names no slide.")
    return out


def _manifest_rows(path: Path) -> Iterable[dict[str, Any]]:
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_table(path).to_pylist())
        except (pa.ArrowException, OSError) as err:
            raise ManifestError(f"Manifest {path} is not a readable Parquet file: {err}") from err
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as err:
        raise ManifestError(f"Manifest {path} is not UTF-8 text: {err}") from err
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        return list(csv.DictReader(text.splitlines(), delimiter=delimiter))
    except csv.Error as err:
        raise ManifestError(f"Manifest {path}: {err}") from err


def _mpp_value(value: object, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        mpp = float(str(value))
    except ValueError as err:
        raise ManifestError(f"{where}: expected mpp in um/px, got {value!r}.") from err
    if mpp != mpp:  # NaN: an empty cell of a float column
        return None
    if not 0.01 < mpp < 100:
        raise ManifestError(f"{where}: expected mpp between 0.01 and 100 um/px, got {value!r}.")
    return mpp


def _refuse_duplicates(slides: Sequence[SlideInput]) -> None:
    first: dict[str, str] = {}
    for s in slides:
        if s.slide_id in first:
            raise DuplicateSlideError(
                f"Two slides share the name {s.slide_id!r}: {first[s.slide_id]} and {s.path}. "
                "Outputs are named by slide: rename one, or run them into two output folders."
            )
        first[s.slide_id] = s.path


def _with_mask(slide: SlideInput, mask: str, *, n_slides: int) -> SlideInput:
    if slide.tissue_mask:
        return slide
    path = Path(mask)
    if path.is_dir():
        for suffix in (".png", "_mask_use.png", ".geojson", ".json", ".geojson.gz"):
            candidate = path / f"{slide.slide_id}{suffix}"
            if candidate.is_file():
                return replace(slide, tissue_mask=str(candidate))
        raise InputError(f"Slide {slide.slide_id}: --tissue-mask folder {mask} holds no {slide.slide_id}.png or .geojson.")
    if not path.is_file():
        raise InputError(f"--tissue-mask {mask}: no such file or folder.")
    if n_slides > 1:
        raise InputError(f"--tissue-mask {mask} is one file but {n_slides} slides are given. Give a folder of masks.")
    return replace(slide, tissue_mask=str(path))

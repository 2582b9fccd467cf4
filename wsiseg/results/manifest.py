"""Resolve the SLIDE arguments of the command line to a list of slides, and report what was left out.

A SLIDE argument is a file, a folder (searched with its subfolders), a glob, an address, or a manifest (``.csv``, ``.tsv``,
``.parquet``: see ``wsiseg.results.manifest_file``; of the GDC or IDC: ``wsiseg.results.remote_manifests``).
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsiseg.coordinates import parse_frame
from wsiseg.errors import DuplicateSlideError, InputError, plain_text
from wsiseg.fetch import is_address, local_of, shown
from wsiseg.read.dicom import dicom_facts, dicom_folder_series, may_be_dicom
from wsiseg.read.files import MAX_ID_BYTES, plain_name, slide_id_of
from wsiseg.results.listing import SLIDE_SUFFIXES, Listing, Skipped, group_skipped, list_files, list_folder
from wsiseg.results.manifest_file import MANIFEST_SUFFIXES, read_manifest
from wsiseg.results.naming import Listed, named_apart
from wsiseg.results.remote import slides_at
from wsiseg.results.remote_manifests import gdc_rows, idc_rows, is_gdc, is_idc, sniffed
from wsiseg.results.slide_input import ALL_TISSUE, SlideInput

__all__ = ["SLIDE_SUFFIXES", "Found", "SlideInput", "collect_slides", "find_slides", "require_plain_names"]


REMOTE_SUFFIXES = frozenset({"", ".txt", ".tsv", ".csv", ".s5cmd", ".manifest", ".sh"})
"""Suffixes of files that may be a manifest of an archive, which is decided by their first lines."""


@dataclass(slots=True)
class Found:
    """Result of resolving SLIDE arguments: slides, what was left out and why, and notes for the user."""

    slides: list[SlideInput] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def collect_slides(
    inputs: Sequence[str], *, cohort: str = "", mpp: float | None = None, tissue_mask: str = "", frame: str = ""
) -> list[SlideInput]:
    """Return the slides of ``find_slides``, with the same parameters and errors."""
    return find_slides(inputs, cohort=cohort, mpp=mpp, tissue_mask=tissue_mask, frame=frame).slides


def find_slides(
    inputs: Sequence[str],
    *,
    cohort: str = "",
    mpp: float | None = None,
    tissue_mask: str = "",
    frame: str = "",
    known: Mapping[str, str] | None = None,
) -> Found:
    """Resolve SLIDE arguments to slides, in the order given (folders and globs sorted by path).

    Every DICOM series is one slide. Slides of folders and globs with the same name get different ids, such as
    ``patientA__scan`` or ``scan.svs`` (see ``wsiseg.results.naming``).

    Parameters
    ----------
    inputs
        Files, folders, globs, addresses or manifests.
    cohort, mpp, tissue_mask
        Values for slides whose manifest row has none. ``tissue_mask`` is a file for one slide, a folder with
        ``<slide_id>.png`` or ``<slide_id>.geojson``, or ``all`` to segment whole slides.
    frame
        Frame of the coordinates of tissue masks, for slides whose manifest row has none (see ``wsiseg.coordinates``).
    known
        Ids of the slides in the run folder by absolute path; these slides keep their ids.

    Raises
    ------
    InputError
        There is no slide, or an argument matches none.
    DuplicateSlideError
        Two slides given by path or in a manifest have the same id, so their outputs would overwrite each other.
    ManifestError
        A manifest has no ``path`` column, or an unusable value.
    """
    found = Found()
    listed: list[SlideInput | Listed] = []
    for name in inputs:
        listed += _expand(name, found, cohort=cohort, mpp=mpp)
    if not listed:
        left = "".join(f"\n  left out: {group}" for group in group_skipped(found.skipped))
        raise InputError(
            f"No slide found in {', '.join(inputs) or 'an empty list'}. Name a file, folder, glob or manifest.{left}"
        )
    listed = _one_slide_a_series(listed, found)
    found.slides, notes = named_apart(listed, known)
    found.notes += notes
    require_plain_names(found.slides)
    _take_once(found)
    if tissue_mask:
        found.slides = [_with_mask(s, tissue_mask, n_slides=len(found.slides)) for s in found.slides]
    found.slides = [dataclasses.replace(s, frame=s.frame or frame) if s.tissue_mask else s for s in found.slides]
    for s in found.slides:
        parse_frame(s.frame)
    return found


def require_plain_names(slides: Iterable[SlideInput]) -> None:
    """Raise ``InputError`` if a slide's id cannot be a file name in the run folder (``..`` would be outside of it)."""
    for s in slides:
        name = s.slide_id
        if name in ("", ".", "..") or plain_name(name) != name:
            raise InputError(
                f"{plain_text(shown(s.path))[:200]}: expected a plain name of at most {MAX_ID_BYTES} bytes for the slide, got "
                f"{plain_text(name)[:80]!r}."
            )


def _expand(name: str, found: Found, *, cohort: str, mpp: float | None) -> list[SlideInput | Listed]:
    """Return the slides of one SLIDE argument."""
    if not name.strip():
        raise InputError("A SLIDE argument is empty, perhaps an unset shell variable. Name a file, folder, glob or manifest.")
    name = local_of(name)
    if is_address(name):
        return slides_at(name, found.skipped, cohort=cohort, mpp=mpp)
    path = Path(name)
    if path.is_file() and path.suffix.lower() in REMOTE_SUFFIXES:
        text = sniffed(path)
        if is_gdc(text) or is_idc(text):
            remote = (gdc_rows if is_gdc(text) else idc_rows)(path, cohort=cohort, mpp=mpp)
            require_plain_names(remote.slides)
            found.skipped += remote.skipped
            found.notes += remote.notes
            return list(remote.slides)
    if path.is_dir() and path.suffix.lower() != ".zarr":
        paths, base = _in_folder(path, found), path
    elif path.suffix.lower() in MANIFEST_SUFFIXES and path.is_file():
        manifest = read_manifest(path, cohort=cohort, mpp=mpp)
        require_plain_names(manifest.slides)
        found.notes += manifest.notes
        return [_one_of_folder(s) for s in manifest.slides]
    elif path.exists():
        return [SlideInput(slide_id_of(path), name, cohort, mpp)]
    else:
        paths = _matches(name, found)
        base = Path(os.path.commonpath([p.absolute().parent for p in paths])) if paths else path
    return [Listed(SlideInput(slide_id_of(p), str(p), cohort, mpp), base) for p in paths]


def _in_folder(folder: Path, found: Found) -> list[Path]:
    """Return the slides in a folder. Raises ``InputError`` if there is none."""
    listing = list_folder(folder)
    found.skipped += listing.skipped
    if not listing.slides:
        left = "".join(f"\n  left out: {group}" for group in group_skipped(listing.skipped))
        raise InputError(
            f"Folder {plain_text(str(folder))} and its subfolders have no slide. Expected files ending in "
            f"{', '.join(sorted(SLIDE_SUFFIXES))}, or DICOM files (give the path of a file to try another ending).{left}"
        )
    return listing.slides


def _matches(pattern: str, found: Found) -> list[Path]:
    """Return the slides that a glob matches.

    If the glob ends in a suffix, every matching file is a slide; otherwise the rules for folders apply. Matching folders are
    searched.
    """
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise InputError(f"{plain_text(pattern)}: no such file, and no file matches it as a pattern.")
    ending = os.path.splitext(pattern)[1]
    outright = bool(ending) and not glob.has_magic(ending) and not may_be_dicom(pattern)
    files = [m for m in matches if not os.path.isdir(m)]
    listings: list[Listing] = []
    if outright:
        listings.append(Listing([Path(f) for f in files]))
    elif files:
        listings.append(list_files(files))
    if "**" not in pattern.split(os.sep):  # otherwise the content of the folders matches too
        listings += [list_folder(Path(m)) for m in matches if os.path.isdir(m)]
    found.skipped += [s for listing in listings for s in listing.skipped]
    return [p for listing in listings for p in listing.slides]


def _one_of_folder(slide: SlideInput) -> SlideInput:
    """Return a manifest's slide; if it is a folder, the one slide in it. Raises ``InputError`` if there are several."""
    path = Path(slide.path)
    if not path.is_dir() or path.suffix.lower() == ".zarr" or len(dicom_folder_series(path)) == 1:
        return slide
    inside = list_folder(path).slides
    if len(inside) > 1:
        raise InputError(
            f"{slide.origin}: expected one slide in folder {plain_text(slide.path)}, got {len(inside)}. Give each its own row, "
            f"such as {plain_text(str(inside[0]))}."
        )
    return dataclasses.replace(slide, path=str(inside[0])) if inside else slide


def _one_slide_a_series(listed: Sequence[SlideInput | Listed], found: Found) -> list[SlideInput | Listed]:
    """Keep one file of each DICOM series, because ``*.dcm`` matches every level and the label."""
    of: dict[tuple[str, str], list[tuple[int, SlideInput]]] = {}
    slides = [s.slide if isinstance(s, Listed) else s for s in listed]
    for s in slides:
        facts = dicom_facts(s.path) if may_be_dicom(os.path.basename(s.path)) and os.path.isfile(s.path) else None
        if facts is not None and facts.whole_slide:
            rank = facts.columns_px * facts.rows_px if facts.is_volume else -1
            of.setdefault((os.path.dirname(os.path.abspath(s.path)), facts.series), []).append((rank, s))
    drop = set()
    for members in of.values():
        _, best = max(members, key=lambda m: m[0])
        for _, s in members:
            if s is not best and not s.origin:
                drop.add(id(s))
                found.skipped.append(Skipped(s.path, "file of a DICOM series that is already listed as one slide"))
    return [one for one, s in zip(listed, slides, strict=True) if id(s) not in drop]


def _take_once(found: Found) -> None:
    """Leave out slides that are listed twice. Raises ``DuplicateSlideError`` if two different slides have the same id."""
    first: dict[str, SlideInput] = {}
    for s in found.slides:
        one = first.setdefault(s.slide_id, s)
        if one is s:
            continue
        same = os.path.realpath(one.path) == os.path.realpath(s.path)
        if not same or (one.cohort, one.mpp, one.tissue_mask, one.frame) != (s.cohort, s.mpp, s.tissue_mask, s.frame):
            a, b = (f"{plain_text(shown(x.path))}{f' ({x.origin})' if x.origin else ''}" for x in (one, s))
            raise DuplicateSlideError(
                f"Two slides share the name {s.slide_id!r}: {a} and {b}. Outputs are named by slide: rename one, give each "
                "its own id in a manifest (column slide_id), or segment them into two output folders."
            )
        found.skipped.append(Skipped(shown(s.path), "named twice"))
    found.slides = list(first.values())


def _with_mask(slide: SlideInput, mask: str, *, n_slides: int) -> SlideInput:
    if slide.tissue_mask:
        return slide
    if mask == ALL_TISSUE:
        return dataclasses.replace(slide, tissue_mask=mask)
    path = Path(mask)
    if path.is_dir():
        for suffix in (".png", "_mask_use.png", ".geojson", ".json", ".geojson.gz"):
            candidate = path / f"{slide.slide_id}{suffix}"
            if candidate.is_file():
                return dataclasses.replace(slide, tissue_mask=str(candidate))
        raise InputError(f"Slide {slide.slide_id}: --tissue-mask folder {mask} contains no {slide.slide_id}.png or .geojson.")
    if not path.is_file():
        raise InputError(f"--tissue-mask {mask}: no such file or folder.")
    if n_slides > 1:
        raise InputError(f"--tissue-mask {mask} is one file but {n_slides} slides are given. Give a folder of masks.")
    return dataclasses.replace(slide, tissue_mask=str(path))

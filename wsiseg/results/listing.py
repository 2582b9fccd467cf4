"""List the slides in a folder and its subfolders, and everything that was left out, with the reasons.

Only files that cannot be classified by name are opened: possible DICOM files, and pictures that wsiseg may have drawn. Each
folder is visited once, links to folders last, so circular links are safe.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wsiseg.errors import plain_text
from wsiseg.read.dicom import DicomFile, dicom_facts, may_be_dicom, slide_series
from wsiseg.read.files import vms_parts

__all__ = ["SLIDE_SUFFIXES", "Listing", "Skipped", "SkippedGroup", "group_skipped", "list_files", "list_folder"]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})

SLIDE_SUFFIXES = (
    frozenset({".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".svslide", ".vms", ".vmu", ".bif", ".dcm", ".czi"})
    | PICTURES
)
"""Suffixes of slides that are searched for in folders (a file given on the command line may have any suffix)."""

_RASTERS = PICTURES | {".tif", ".tiff"}
_UNFINISHED = frozenset({".partial", ".part", ".crdownload", ".download", ".filepart", ".opdownload", ".aria2", ".tmp"})
_NO_READER = frozenset(
    {".vsi", ".isyntax", ".i2syntax", ".zvi", ".lif", ".lsm", ".nd2", ".oir", ".ets", ".mds", ".kfb", ".sdpc", ".tmap"}
    | {".ecw", ".ims", ".afi", ".ndpis", ".fsx"}
)
"""Suffixes of slides that neither OpenSlide nor Pillow can read."""

_MAY_OPEN = frozenset({".qptiff", ".btf", ".tf2", ".tf8", ".gif", ".jp2", ".j2k", ".ome", ".stk", ".flex", ".bigtiff"})
"""Suffixes of files that are not searched for in folders, but that a reader may be able to open."""

_SYSTEM_FOLDERS = frozenset({"@eadir", "#recycle", "$recycle.bin", "__macosx", "lost+found", "system volume information"})
_BESIDE = r"(thumb(nail)?|label(ed|s)?|macro|overview|preview|masks?|overlay|density|anno(tations?)?|tissue|gt)"
_COMPANION = re.compile(rf"^(.+?)[ ._-]+{_BESIDE}$", re.IGNORECASE)
_COMPANION_FOLDER = re.compile(rf"^({_BESIDE}s?|ground[ _-]?truth)$", re.IGNORECASE)
_RUN_FOLDERS = frozenset({"nuclei", "slides", "maps", "features", "parts", "workers", "progress", "qc", "shards"})
_OUR_PICTURE = b"wsiseg:"
"""First bytes of the text by which wsiseg marks its pictures."""

_NO_ENTRY = "no permission to read"
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was left out, and why; entries with equal reasons are reported together."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class SkippedGroup:
    """What was left out for one reason: the number of files or folders, and the first few paths as text."""

    reason: str
    n: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        """Return the group in one line."""
        return f"{self.reason}: {self.n} ({', '.join(self.examples)}{', ...' if self.n > len(self.examples) else ''})"


@dataclass(slots=True)
class Listing:
    """What was found: ``slides`` (files, and DICOM folders of one series) by path, and what was left out."""

    slides: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, path: str | Path, reason: str) -> None:
        """Record a file or folder as left out."""
        self.skipped.append(Skipped(str(path), reason))


def group_skipped(skipped: Iterable[Skipped]) -> list[SkippedGroup]:
    """Group what was left out by reason, in the order of first appearance."""
    groups: dict[str, list[str]] = {}
    for s in skipped:
        groups.setdefault(s.reason, []).append(s.path)
    return [
        SkippedGroup(reason, len(paths), tuple(plain_text(p).replace("\n", "%0A") for p in paths[:EXAMPLES]))
        for reason, paths in groups.items()
    ]


def list_folder(root: Path) -> Listing:
    """List the slides in a folder and its subfolders."""
    out = Listing()
    seen: set[tuple[int, int]] = set()
    real, links = [str(root)], list[str]()
    while real or links:
        folder = real.pop() if real else links.pop()
        try:
            facts = os.stat(folder)
            if (facts.st_dev, facts.st_ino) in seen:
                out.skip(folder, "link to a folder that is listed already")
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as entries:
                members = sorted(entries, key=lambda e: e.name)
        except OSError as err:
            out.skip(
                folder, _NO_ENTRY if isinstance(err, PermissionError) else f"folder that cannot be listed ({err.strerror})"
            )
            continue
        names = {e.name for e in members}
        ours = "run.json" in names and _is_run(folder)
        if ours and folder != str(root):
            out.skip(folder, "run folder of wsiseg: its pictures are not slides")
            continue
        folders = [e for e in members if _is_folder(e)]
        for e in folders:
            reason = "folder of a wsiseg run" if ours and e.name in _RUN_FOLDERS else _folder_refusal(e.name, names)
            if reason:
                out.skip(e.path, reason)
            else:
                (links if e.is_symlink() else real).append(e.path)
        _take_files(folder, [e for e in members if e not in folders], out)
    _leave_out_companions(out, root)
    out.slides.sort()
    out.skipped.sort(key=lambda s: s.path)
    return out


def list_files(paths: Sequence[str]) -> Listing:
    """List the slides among files, by the same rules as in a folder."""
    by_folder: dict[str, set[str]] = {}
    for path in paths:
        by_folder.setdefault(os.path.dirname(path), set()).add(os.path.basename(path))
    out = Listing()
    for folder, names in by_folder.items():
        with os.scandir(folder or ".") as entries:
            members = sorted((e for e in entries if e.name in names), key=lambda e: e.name)
        _take_files(folder, members, out, whole=False)
    _leave_out_companions(out)
    out.slides.sort()
    return out


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_run(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "run.json"), encoding="utf-8") as stream:
            record = json.load(stream)
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "results" in record and "digest" in record


def _folder_refusal(name: str, beside: set[str]) -> str:
    """Return why a folder is not searched; empty if it is."""
    lower = name.lower()
    if lower.startswith("."):
        return "hidden (its name begins with a dot)"
    if lower in _SYSTEM_FOLDERS:
        return "folder of the operating system or storage"
    if lower.endswith(".zarr"):
        return "Zarr folder (give its path if it is a slide)"
    if any(f"{name}{ending}" in beside for ending in (".mrxs", ".MRXS", ".Mrxs")):
        return "data folder of a Mirax slide"
    return ""


def _take_files(folder: str, members: Sequence[os.DirEntry[str]], out: Listing, *, whole: bool = True) -> None:
    """Sort the files of one folder (``whole``: all of them) into slides and what is left out."""
    names = {e.name for e in members}
    if "Slidedat.ini" in names and not any(n.lower().endswith(".mrxs") for n in names):
        out.skip(folder, "data folder of a Mirax slide whose .mrxs file is missing")
        return
    parts = set[str]().union(*(vms_parts(e.path) for e in members if e.name.lower().endswith((".vms", ".vmu"))))
    slides: list[str] = []
    dicom: list[str] = []
    for e in members:
        reason = "part of a Hamamatsu VMS slide" if e.name in parts else _file_refusal(e)
        if reason:
            out.skip(e.path, reason)
        elif may_be_dicom(e.name):
            dicom.append(e.path)
        else:
            slides.append(e.path)
    if dicom and folder.lower().endswith(".dicom"):  # a folder of one DICOM series: pictures in it are not slides
        for path in slides:
            out.skip(path, "not DICOM, in a DICOM folder")
        slides = []
    out.slides += map(Path, slides)
    _take_dicom(folder, dicom, out, alone=whole and not slides)


def _file_refusal(entry: os.DirEntry[str]) -> str:
    """Return why a file is not a slide, by its name and size; empty if it may be one."""
    name = entry.name
    ending = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden (its name begins with a dot)"
    try:
        facts = entry.stat()
    except OSError as err:
        return "broken link (its target does not exist)" if entry.is_symlink() else f"cannot be read ({err.strerror})"
    if not stat.S_ISREG(facts.st_mode):
        return "not a regular file"
    if ending in _UNFINISHED:
        return "unfinished download"
    if ending not in SLIDE_SUFFIXES and not may_be_dicom(name):
        if ending in _NO_READER:
            return f"ending {ending}, which cannot be read (convert to OME-TIFF or DICOM)"
        hint = "not searched for in folders (give the path of a file to try it)" if ending in _MAY_OPEN else "no slide"
        return f"ending {plain_text(ending)}, {hint}"
    if name.lower().endswith((".tissue.png", ".mask.jpg")):
        return "tissue mask of a wsiseg run"
    if facts.st_size == 0:
        return "zero bytes"
    if not os.access(entry.path, os.R_OK):
        return _NO_ENTRY
    if ending == ".png" and _is_wsiseg_output(entry.path):
        return "picture drawn by wsiseg"
    return ""


def _is_wsiseg_output(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            return _OUR_PICTURE in stream.read(512)
    except OSError:
        return False


def _take_dicom(folder: str, paths: Sequence[str], out: Listing, *, alone: bool) -> None:
    """Add every DICOM series among files as a slide; the slide is the folder if it has one series and nothing else."""
    files: list[DicomFile] = []
    unreadable: list[str] = []
    for path in paths:
        facts = dicom_facts(path)
        if facts is not None and facts.whole_slide:
            files.append(facts)
        elif facts is not None:
            out.skip(path, f"DICOM, but not a whole slide: {facts.kind}")
        elif path.lower().endswith((".dcm", ".dicom")):
            unreadable.append(path)
        else:
            out.skip(path, "no ending, and not DICOM (give the path of a file to try it)")
    series = slide_series(files)
    for f in files:
        if f.series not in series:
            out.skip(f.path, "DICOM label, overview or thumbnail without its slide")
    if alone and len(series) + bool(unreadable) == 1:
        out.slides.append(Path(folder))  # unreadable: listed as a slide, so that opening it reports the reason
    else:
        out.slides += [Path(members[0].path) for members in series.values()]
        out.slides += map(Path, unreadable)


def _leave_out_companions(out: Listing, root: Path | None = None) -> None:
    """Leave out pictures that belong to a slide: thumbnails, labels, masks and overlays with its name."""
    slides = {p.stem for p in out.slides if p.suffix.lower() not in PICTURES}
    stems = {p.stem for p in out.slides}
    kept = []
    for p in out.slides:
        ending, reason = p.suffix.lower(), ""
        if ending in _RASTERS:
            named = _COMPANION.match(p.stem)
            if root not in (None, p.parent) and _COMPANION_FOLDER.match(p.parent.name):
                reason = "picture in a folder of thumbnails, masks or similar (give the path of a file to use it)"
            elif (ending in PICTURES and p.stem in slides) or (named and named[1] in stems):
                reason = "thumbnail, label, mask or overlay of a slide of that name"
        if reason:
            out.skip(p, reason)
        else:
            kept.append(p)
    out.slides = kept

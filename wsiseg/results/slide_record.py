"""``RUN/slides/<slide_id>.json``: the record of a finished or failed slide. Only this module reads and writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from wsiseg.decode import OMITTED, encode, read_record
from wsiseg.errors import FormatError, InputError, first_names
from wsiseg.results.folder import RunFolder
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Stain

__all__ = [
    "SlideArguments",
    "FileFacts",
    "ImportFacts",
    "SlideRecord",
    "read_slide",
    "slide_or_none",
    "slide_record",
    "slide_records",
    "write_slide",
]


@dataclass(frozen=True, slots=True)
class SlideArguments:
    """What the user gave for one slide that changes its results and is not in the config."""

    mpp: float | None = None
    tissue_mask_sha256: str = ""
    frame: str = field(default="", metadata=OMITTED)
    other: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The file of a slide: absolute path, size, time of change, and digest (see ``wsiseg.read.slide.content_digest``).

    ``content`` (the digest) is empty in runs of earlier versions. For a slide that was fetched, ``path`` is its address,
    ``md5`` and ``version`` identify the object, and ``staged`` is the path of the kept file.
    """

    path: str = ""
    size_bytes: int | None = None
    mtime_ns: int | None = None
    content: str = ""
    md5: str = field(default="", metadata=OMITTED)
    version: str = field(default="", metadata=OMITTED)
    staged: str = field(default="", metadata=OMITTED)
    other: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImportFacts:
    """Source of an imported slide's table, and what was left out of it and why."""

    format: str
    sha256: str
    flags: Mapping[str, int]
    skipped: Mapping[str, int]
    notes: tuple[str, ...]
    other: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """The record of one slide.

    A slide that could not be used only has ``digest``, ``row`` and ``errors``; an imported slide has ``imported`` and no
    digest.

    Attributes
    ----------
    digest
        Digest of the run's settings.
    asked
        What the user gave for this slide; None: not recorded.
    table_bytes, table_sha256, tissue_sha256
        Size and checksums of the files when they were written.
    n_tiles, n_nuclei_of_tiles
        Number of tiles of the grid, and of nuclei in those done.
    tissue_png, mask_jpg
        Paths of the mask, and of the slide with its outline, relative to the run folder.
    other
        Fields of a newer version.
    """

    digest: str
    row: SlideRow
    errors: tuple[ErrorRow, ...] = ()
    asked: SlideArguments | None = field(default=None, metadata=OMITTED)
    file: FileFacts | None = field(default=None, metadata=OMITTED)
    table_bytes: int | None = field(default=None, metadata=OMITTED)
    table_sha256: str | None = field(default=None, metadata=OMITTED)
    n_nuclei_of_tiles: int | None = field(default=None, metadata=OMITTED)
    n_tiles: int | None = field(default=None, metadata=OMITTED)
    stain: Stain | None = field(default=None, metadata=OMITTED)
    tissue_png: str | None = field(default=None, metadata=OMITTED)
    tissue_sha256: str | None = field(default=None, metadata=OMITTED)
    mask_jpg: str | None = field(default=None, metadata=OMITTED)
    level_downsamples: tuple[float, ...] | None = field(default=None, metadata=OMITTED)
    objective_power: float | None = field(default=None, metadata=OMITTED)
    imported: ImportFacts | None = field(default=None, metadata=OMITTED)
    other: Mapping[str, object] = field(default_factory=dict)


def write_slide(folder: RunFolder, record: SlideRecord) -> None:
    """Write the record of a slide, complete or not at all."""
    plain = encode(record)
    if record.n_tiles is not None:
        plain["objective_power"] = record.objective_power  # null: the slide does not state it
    path = folder.slide_json(record.row.slide_id)
    atomic_write_bytes(path, json.dumps(plain, indent=1, sort_keys=True).encode())


def read_slide(folder: RunFolder, slide_id: str) -> SlideRecord:
    """Return the record of a slide.

    Raises
    ------
    FileNotFoundError
        There is no record.
    FormatError
        The record cannot be read, or a field is missing or of another type; the message names file and field.
    """
    path = folder.slide_json(slide_id)
    return read_record(SlideRecord, path, "slide record", "Remove it and run the same command again.")


def slide_or_none(folder: RunFolder, slide_id: str) -> SlideRecord | None:
    """Return the record of a slide; None if it is missing or cannot be read, so that the slide is segmented again."""
    try:
        return read_slide(folder, slide_id)
    except (FileNotFoundError, FormatError):
        return None


def slide_record(folder: RunFolder, slide_id: str) -> SlideRecord:
    """Return the record of a slide given by the user.

    Raises
    ------
    InputError
        The run has no such slide; the message lists its slides.
    FormatError
        The record is damaged.
    """
    try:
        return read_slide(folder, slide_id)
    except FileNotFoundError:
        known = sorted(p.stem for p in (folder.root / "slides").glob("*.json"))
        raise InputError(f"Run {folder.root} has no slide {slide_id!r}. It has: {first_names(known)}.") from None


def slide_records(folder: RunFolder) -> Iterator[tuple[str, SlideRecord | FormatError]]:
    """Yield (slide id, its record) of every slide that was decided; the error in place of one that cannot be read."""
    for path in sorted((folder.root / "slides").glob("*.json")):
        try:
            yield path.stem, read_slide(folder, path.stem)
        except FileNotFoundError:
            continue  # removed meanwhile
        except FormatError as err:
            yield path.stem, err

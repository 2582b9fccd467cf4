"""``RUN/slides/<slide_id>.json``: what a run knows of one slide that was decided. Read and written here only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from wsiseg.decode import OMITTED, encode, read_record
from wsiseg.errors import FormatError, InputError
from wsiseg.results.folder import RunFolder
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.tables import atomic_write_bytes
from wsiseg.types import Stain

__all__ = [
    "Asked",
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
class Asked:
    """What the user gave for one slide that changes its results and is in no config."""

    mpp: float | None = None
    tissue_mask_sha256: str = ""
    frame: str = field(default="", metadata=OMITTED)
    other: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """The file of a slide: whole path, size, time of change, and digest (see ``wsiseg.read.slide.content_digest``).

    Runs of earlier versions have no digest: ``content`` is empty. A slide that was fetched has an address for its path, and
    ``md5`` and ``version`` tell which object it was; ``staged`` is where it was kept.
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
    """Where an imported slide's table came from, and what was left out of it and why."""

    format: str
    sha256: str
    flags: Mapping[str, int]
    skipped: Mapping[str, int]
    notes: tuple[str, ...]
    other: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SlideRecord:
    """What a run stores of one slide.

    A slide that could not be used has ``digest``, ``row`` and ``errors`` alone; an imported one ``imported``, and no digest.

    Attributes
    ----------
    digest
        Of the run's settings.
    asked
        What was given for this slide; None: not recorded.
    table_bytes, table_sha256, tissue_sha256
        Of the files as they were written.
    n_tiles, n_nuclei_of_tiles
        All tiles of the grid, and the sum over those done.
    tissue_png, mask_jpg
        The mask, and the slide with its outline, relative to the run folder.
    other
        Fields of a newer version.
    """

    digest: str
    row: SlideRow
    errors: tuple[ErrorRow, ...] = ()
    asked: Asked | None = field(default=None, metadata=OMITTED)
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
        plain["objective_power"] = record.objective_power  # null says that the segmented slide does not state it
    path = folder.slide_json(record.row.slide_id)
    atomic_write_bytes(path, json.dumps(plain, indent=1, sort_keys=True).encode())


def read_slide(folder: RunFolder, slide_id: str) -> SlideRecord:
    """Return the record of a slide.

    Raises
    ------
    FileNotFoundError
        There is none.
    FormatError
        It cannot be read, or a field is missing or of another type; the message names file and field.
    """
    path = folder.slide_json(slide_id)
    return read_record(SlideRecord, path, "slide record", "Remove it and run the same command again.")


def slide_or_none(folder: RunFolder, slide_id: str) -> SlideRecord | None:
    """Return the record of a slide; None where there is none that can be read: the slide is then done again."""
    try:
        return read_slide(folder, slide_id)
    except (FileNotFoundError, FormatError):
        return None


def slide_record(folder: RunFolder, slide_id: str) -> SlideRecord:
    """Return the record of a slide that a user named.

    Raises
    ------
    InputError
        The run has no such slide; the message names those it has.
    FormatError
        Its record is damaged.
    """
    try:
        return read_slide(folder, slide_id)
    except FileNotFoundError:
        known = sorted(p.stem for p in (folder.root / "slides").glob("*.json"))
        names = ", ".join(known[:20]) or "none"
        raise InputError(f"Run {folder.root} has no slide {slide_id!r}. It has: {names}.") from None


def slide_records(folder: RunFolder) -> Iterator[tuple[str, SlideRecord | FormatError]]:
    """Yield (slide id, its record) of every slide that was decided; the error in place of one that cannot be read."""
    for path in sorted((folder.root / "slides").glob("*.json")):
        try:
            yield path.stem, read_slide(folder, path.stem)
        except FileNotFoundError:
            continue  # gone meanwhile
        except FormatError as err:
            yield path.stem, err

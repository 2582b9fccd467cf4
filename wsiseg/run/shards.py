"""Divide a run into shards for job arrays without a scheduler, and merge their tables.

Every shard gets the same list of slides and selects its own by the same rule, so that shards need not communicate. They may
share one run folder: each writes only files of its own slides, and ``RUN/shards/<I>-of-<N>.json`` with the ids of all slides.
The last one to end writes the tables of the whole run, as a run without shards would; ``wsiseg merge`` does the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiseg.decode import encode, read_record
from wsiseg.errors import FormatError, InputError, OutputInUseError, first_names
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.results.slide_record import SlideRecord, slide_or_none
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.summarize import write_errors_table, write_slides_table
from wsiseg.tables import atomic_write_bytes

__all__ = ["Shard", "merge_if_last", "merge_shards", "write_tables"]


@dataclass(frozen=True, slots=True)
class Shard:
    """The ``index``-th (from 1) of ``n`` shares."""

    index: int
    n: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard from the text ``I/N``, I from 1 to N. Raises ``InputError`` for any other text."""
        left, slash, right = text.partition("/")
        ok = slash and left.strip().isdecimal() and right.strip().isdecimal() and 1 <= int(left) <= int(right)
        if not ok:
            raise InputError(f"Expected --shard I/N with I from 1 to N, such as 3/8, got {text!r}.")
        return cls(int(left), int(right))

    @property
    def name(self) -> str:
        """Name of the shard in file names, such as ``3-of-8``."""
        return f"{self.index}-of-{self.n}"

    def take(self, slides: Sequence[SlideInput]) -> list[SlideInput]:
        """Return this shard's slides, in the order given.

        Slides are sorted by the SHA-256 of their ids and assigned to shards in turn: the sizes of shards differ by at most one
        slide, the assignment does not depend on the order of the arguments, and neighboring large slides are spread.
        """
        dealt = sorted(slides, key=lambda s: hashlib.sha256(s.slide_id.encode()).digest())
        own = {s.slide_id for s in dealt[self.index - 1 :: self.n]}
        return [s for s in slides if s.slide_id in own]

    def enter(self, folder: RunFolder, slides: Sequence[SlideInput]) -> None:
        """Write the ids of all slides of the run into the folder."""
        path = _shards_dir(folder) / f"{self.name}.json"
        path.parent.mkdir(exist_ok=True)
        record = _ShardRecord(self.index, self.n, tuple(s.slide_id for s in slides))
        atomic_write_bytes(path, json.dumps(encode(record), indent=1).encode())


@dataclass(frozen=True, slots=True)
class _ShardRecord:
    """``RUN/shards/<I>-of-<N>.json``: the slides of the whole run as given to one shard. Unknown fields are refused."""

    shard: int
    of: int
    slides: tuple[str, ...]


def write_tables(folder: RunFolder, rows: Sequence[SlideRow], errors: Sequence[ErrorRow]) -> None:
    """Write the tables of a whole run."""
    write_slides_table(rows, folder.root / "slides.parquet")
    write_errors_table(errors, folder.root / "errors.parquet")


def merge_shards(out: Path) -> tuple[list[SlideRow], list[ErrorRow]]:
    """Write the tables of a run whose shards have all ended; return their rows (slides, errors).

    Raises
    ------
    InputError
        The folder has no shards, or slides are not done yet; the message names these and the shards to run.
    FormatError
        The shards were not given the same slides.
    OutputInUseError
        A shard is running.
    """
    folder = RunFolder(out.absolute())
    record = folder.read_run()
    if record is None:
        raise InputError(f"{out} contains no wsiseg run (no run.json).")
    with folder.exclusive():
        slide_ids = _all_slides(folder)
        slides = [_slide_record(folder, slide_id, record.digest) for slide_id in slide_ids]
        missing = [slide_id for slide_id, found in zip(slide_ids, slides, strict=True) if found is None]
        if missing:
            raise InputError(_what_is_missing(folder, missing, len(slide_ids)))
        found = [s for s in slides if s is not None]
        rows = [s.row for s in found]
        errors = [e for s in found for e in s.errors]
        write_tables(folder, rows, errors)
        shutil.rmtree(_shards_dir(folder))
        for lock in folder.root.glob(".in-use-*"):
            lock.unlink(missing_ok=True)
    return rows, errors


def merge_if_last(folder: RunFolder) -> bool:
    """Merge if all shards have finished; return whether this was done. Otherwise a later shard merges."""
    try:
        merge_shards(folder.root)
    except (InputError, OutputInUseError):
        return False
    return True


def _shards_dir(folder: RunFolder) -> Path:
    return folder.root / "shards"


def _parts(folder: RunFolder) -> list[_ShardRecord]:
    paths = sorted(_shards_dir(folder).glob("*-of-*.json"))
    return [read_record(_ShardRecord, path, "record of a shard", "Run that shard again.") for path in paths]


def _all_slides(folder: RunFolder) -> list[str]:
    parts = _parts(folder)
    if not parts:
        raise InputError(f"{folder.root} contains no shards: there is nothing to merge.")
    first = parts[0]
    for part in parts[1:]:
        if part.slides != first.slides:
            differ = sorted(set(part.slides) ^ set(first.slides))
            what = f"{len(differ)} slides are in one list only, such as {differ[0]}" if differ else "their order differs"
            raise FormatError(
                f"Shards {first.shard}/{first.of} and {part.shard}/{part.of} of {folder.root} were given different "
                f"slides ({what}). Run both again with the same SLIDE arguments."
            )
    return list(first.slides)


def _slide_record(folder: RunFolder, slide_id: str, digest: str) -> SlideRecord | None:
    record = slide_or_none(folder, slide_id)
    return record if record is not None and record.digest == digest else None


def _what_is_missing(folder: RunFolder, missing: Sequence[str], n_slides: int) -> str:
    n = max(part.of for part in _parts(folder))
    dealt = [SlideInput(s, "") for s in _all_slides(folder)]
    open_shards = [k for k in range(1, n + 1) if {s.slide_id for s in Shard(k, n).take(dealt)} & set(missing)]
    shards = first_names([f"{k}/{n}" for k in open_shards], 10)
    names = first_names(missing, 5)
    return f"{len(missing)} of {n_slides} slides of {folder.root} are not done yet ({names}). Run --shard {shards} again."

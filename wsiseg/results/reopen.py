"""A slide of a run, opened once more: it must be the file that was segmented, wherever it lies now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from wsiseg.errors import InputError, SlideOpenError, plain_text
from wsiseg.fetch import is_address
from wsiseg.log import log
from wsiseg.read import Slide, fingerprint, open_slide
from wsiseg.read.slide import content_digest
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import local_path
from wsiseg.results.records import read_inputs
from wsiseg.results.slide_record import FileFacts, SlideRecord, slide_record

__all__ = ["file_facts", "other_content", "reopen_slide", "slide_of_table", "slide_place"]


def file_facts(path: str | Path) -> FileFacts:
    """Return what a run stores of a slide's file: whole path, size, time of change, and digest (see ``content_digest``).

    Raises
    ------
    SlideOpenError
        It cannot be read.
    """
    size_bytes, mtime_ns = fingerprint(path)
    whole = os.path.abspath(path)
    return FileFacts(whole, size_bytes, mtime_ns, content_digest(path))


def other_content(file: FileFacts, path: str | Path) -> str:
    """Return how a file differs from the one that ``file_facts`` was made of; empty: it is that one, or a copy of it.

    Raises
    ------
    SlideOpenError
        It cannot be read.
    """
    size_bytes, _ = fingerprint(path)
    content = content_digest(path)
    stored = (file.size_bytes, file.content)
    if (size_bytes, content) == stored:
        return ""
    if os.path.isfile(path) and (os.path.getsize(path), content_digest(path, alone=True)) == stored:
        return ""  # a slide of several files, of a run that knew the first one only
    if size_bytes != file.size_bytes:
        return f"it has {size_bytes} bytes, the one that was segmented had {file.size_bytes}"
    return f"its bytes have the digest {content}, those of the one that was segmented {file.content}"


def slide_place(folder: RunFolder, record: SlideRecord, path_map: Sequence[str] = ()) -> str:
    """Return where the slide of a record lies now: where it was, where ``path_map`` leads, or where a later run found it.

    Never a path that depends on the working folder: runs of older versions stored what was typed.

    Raises
    ------
    SlideOpenError
        It is not there.
    """
    slide_id, file = record.row.slide_id, record.file
    stored = (file.path if file is not None else "") or record.row.path
    if is_address(stored):
        return _fetched_place(slide_id, stored, file.staged if file is not None else "", path_map)
    listed = read_inputs(folder).get(slide_id)
    tried = [local_path(p, path_map) for p in (stored, listed.path if listed else "") if p]
    tried = list(dict.fromkeys(p for p in tried if os.path.isabs(p)))
    for path in tried:
        if os.path.exists(path):
            return path
    if not tried:
        raise SlideOpenError(
            f"Slide {slide_id}: run {folder.root} stores the path {plain_text(stored)!r} without the folder that it counts "
            f"from. Name its place with --path-map {plain_text(stored)}=/whole/path."
        )
    raise SlideOpenError(
        f"Slide {slide_id}: {plain_text(tried[0])} is not there. If slides were moved, name their place with "
        "--path-map FROM=TO."
    )


def _fetched_place(slide_id: str, address: str, staged: str, path_map: Sequence[str]) -> str:
    """Return where a slide that was fetched lies: where it was kept, or where ``path_map`` leads."""
    for path in (local_path(address, path_map), local_path(staged, path_map)):
        if path and not is_address(path) and os.path.exists(path):
            return path
    raise SlideOpenError(
        f"Slide {slide_id} was fetched from {plain_text(address)} and is not here any more. Fetch it again, and name its place "
        f"with --path-map {plain_text(address)}=/path/of/the/file (segment --keep-staged keeps slides)."
    )


def reopen_slide(folder: RunFolder, record: SlideRecord, path_map: Sequence[str] = ()) -> Slide:
    """Open the slide of a record (``RUN/slides/<slide_id>.json``).

    Raises
    ------
    InputError
        The run could not use the slide.
    SlideOpenError
        It is not there, cannot be opened, or is another file than the one that was segmented.
    """
    row = record.row
    slide_id = row.slide_id
    if row.mpp is None:
        raise InputError(f"Slide {slide_id} could not be used by the run: {row.error or 'no reason recorded'}.")
    path = slide_place(folder, record, path_map)
    file = record.file
    if file is None or not file.content:
        log.warning(
            "slide %s: the run stores no digest of it, so it cannot be checked that %s is the same file",
            slide_id,
            plain_text(path),
        )
    elif why := other_content(file, path):
        raise SlideOpenError(
            f"Slide {slide_id}: {plain_text(path)} is another file than the one that was segmented: {why}. Its pixels do not "
            "belong to this run's nuclei. Restore the slide, give its new path with --path-map FROM=TO, or segment it again."
        )
    return open_slide(path, mpp=row.mpp, cohort=row.cohort)


def slide_of_table(table: Path, path_map: Sequence[str] = ()) -> Slide:
    """Open the slide of ``RUN/nuclei/<slide_id>.parquet``.

    Raises
    ------
    InputError
        The table is in no run folder, or the run has no record of the slide.
    SlideOpenError
        As ``reopen_slide``.
    """
    folder = RunFolder(table.absolute().parent.parent)
    return reopen_slide(folder, slide_record(folder, table.stem), path_map)

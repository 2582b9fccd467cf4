"""Open a slide of a run again, after checking that it is the file that was segmented, even if it was moved."""

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
    """Return the facts of a slide's file that a run stores: absolute path, size, time of change, and ``content_digest``.

    Raises
    ------
    SlideOpenError
        The file cannot be read.
    """
    size_bytes, mtime_ns = fingerprint(path)
    whole = os.path.abspath(path)
    return FileFacts(whole, size_bytes, mtime_ns, content_digest(path))


def other_content(file: FileFacts, path: str | Path) -> str:
    """Return how the content of a file differs from that of ``file``; empty if it is the same file or a copy of it.

    Raises
    ------
    SlideOpenError
        The file cannot be read.
    """
    size_bytes, _ = fingerprint(path)
    content = content_digest(path)
    stored = (file.size_bytes, file.content)
    if (size_bytes, content) == stored:
        return ""
    if os.path.isfile(path) and (os.path.getsize(path), content_digest(path, alone=True)) == stored:
        return ""  # a slide of several files: an older run recorded only the first
    if size_bytes != file.size_bytes:
        return f"it has {size_bytes} bytes, but the segmented file had {file.size_bytes}"
    return f"its content has the digest {content}, but that of the segmented file was {file.content}"


def slide_place(folder: RunFolder, record: SlideRecord, path_map: Sequence[str] = ()) -> str:
    """Return the present path of a slide: the recorded path, mapped by ``path_map``, or as recorded by a later run.

    A relative path, as older versions recorded, is never used without ``path_map``.

    Raises
    ------
    SlideOpenError
        There is no such file.
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
            f"Slide {slide_id}: run {folder.root} recorded the relative path {plain_text(stored)!r}. Give the absolute path "
            f"with --path-map {plain_text(stored)}=/absolute/path."
        )
    raise SlideOpenError(
        f"Slide {slide_id}: {plain_text(tried[0])} does not exist. If slides were moved, give their new path with "
        "--path-map FROM=TO."
    )


def _fetched_place(slide_id: str, address: str, staged: str, path_map: Sequence[str]) -> str:
    """Return the path of a slide that was fetched: the kept file, or as mapped by ``path_map``."""
    for path in (local_path(address, path_map), local_path(staged, path_map)):
        if path and not is_address(path) and os.path.exists(path):
            return path
    raise SlideOpenError(
        f"Slide {slide_id} was fetched from {plain_text(address)} and then removed. Download it, and give its path with "
        f"--path-map {plain_text(address)}=/path/of/the/file (segment --keep-staged keeps slides)."
    )


def reopen_slide(folder: RunFolder, record: SlideRecord, path_map: Sequence[str] = ()) -> Slide:
    """Open the slide of a record (``RUN/slides/<slide_id>.json``).

    Raises
    ------
    InputError
        The run could not use the slide.
    SlideOpenError
        The file is missing, cannot be opened, or is not the file that was segmented.
    """
    row = record.row
    slide_id = row.slide_id
    if row.mpp is None:
        raise InputError(f"Slide {slide_id} could not be used by the run: {row.error or 'no reason recorded'}.")
    path = slide_place(folder, record, path_map)
    file = record.file
    if file is None or not file.content:
        log.warning(
            "slide %s: the run has no digest of it, so wsiseg cannot check that %s is the same file",
            slide_id,
            plain_text(path),
        )
    elif why := other_content(file, path):
        raise SlideOpenError(
            f"Slide {slide_id}: {plain_text(path)} is not the file that was segmented: {why}. Its pixels do not belong to this "
            "run's nuclei. Restore the slide, give its new path with --path-map FROM=TO, or segment it again."
        )
    return open_slide(path, mpp=row.mpp, cohort=row.cohort)


def slide_of_table(table: Path, path_map: Sequence[str] = ()) -> Slide:
    """Open the slide of ``RUN/nuclei/<slide_id>.parquet``.

    Raises
    ------
    InputError
        The table is in no run folder, or the run has no record of the slide.
    SlideOpenError
        See ``reopen_slide``.
    """
    folder = RunFolder(table.absolute().parent.parent)
    if table.absolute().parent != folder.table(table.stem).parent:
        raise InputError(
            f"{table}: the slide of a table is only known within its run folder. Name the run, or RUN/nuclei/SLIDE_ID.parquet."
        )
    return reopen_slide(folder, slide_record(folder, table.stem), path_map)

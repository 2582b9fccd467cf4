"""Upload the finished slides of a run to a bucket: each object complete or absent, resumable, nothing sent twice.

::

    PREFIX/nuclei/<slide_id>.parquet, features/<slide_id>.parquet, slides/<slide_id>.json, slides/<slide_id>.tissue.png
    PREFIX/qc/...                       grades, outliers, reports
    PREFIX/slides.parquet, slides.csv, errors.parquet, run.json

An object appears when its upload is complete (S3 and Google Cloud Storage replace objects atomically). Objects with the size
and MD5 of the local file are not sent again. Tables of slides are sent before the tables that list them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wsiseg.atomic import atomic_write_bytes
from wsiseg.errors import FetchDamagedError, FetchError, FormatError, InputError
from wsiseg.fetch import list_address, shown
from wsiseg.fetch.stores import send_file
from wsiseg.results.folder import RunFolder
from wsiseg.results.slide_record import read_slide
from wsiseg.schema import FINISHED_STATUSES

__all__ = ["Published", "publish_run"]

SCHEMES = ("s3", "s3a", "gs", "gcs", "memory")
"""Stores that replace objects atomically."""

PART_BYTES = 50 * 2**20
"""Files above twice this size are sent in parts of this size, on which the ETag of the object depends."""

AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Published:
    """Result of an upload: objects and bytes sent, objects that existed already, and ids of slides that are not finished."""

    sent: int
    sent_bytes: int
    there: int
    unfinished: tuple[str, ...]


def publish_run(run: Path, address: str, on_sent: Callable[[str, int], None] = lambda name, n_bytes: None) -> Published:
    """Upload the finished slides of a run, its statistics and QC to a bucket.

    Parameters
    ----------
    address
        ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
    on_sent
        Called with name and bytes of each object that was sent.

    Raises
    ------
    InputError
        There is no run, no slide is finished, or the address is not of a supported kind.
    FormatError
        A table does not have the size in its record.
    FetchError
        The bucket refuses access or does not exist, or an uploaded object has the wrong size.
    """
    address = address.rstrip("/")
    if urlsplit(address).scheme not in SCHEMES or not urlsplit(address).netloc:
        raise InputError(f"{shown(address)}: expected s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.")
    folder = RunFolder(run.absolute())
    if folder.read_run() is None:
        raise InputError(f"{run} contains no wsiseg run (no run.json).")
    slides, unfinished = _finished(folder)
    if not slides:
        raise InputError(f"{run}: no slide is finished, so there is nothing to publish.")
    notes = _Notes(folder.root / "progress" / f"published-{hashlib.sha256(address.encode()).hexdigest()[:12]}.json")
    there = {w.address: (w.size_bytes, w.version) for w in _listed(address)}
    sent, sent_bytes, kept = 0, 0, 0
    for group in (_of_slides(folder, slides), _of_qc(folder), _of_run(folder)):  # each group is complete before the next starts
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for name, n_bytes in pool.map(lambda path: _send(path, folder, address, there, notes), group):
                if n_bytes < 0:
                    kept += 1
                    continue
                sent, sent_bytes = sent + 1, sent_bytes + n_bytes
                on_sent(name, n_bytes)
    return Published(sent, sent_bytes, kept, tuple(unfinished))


def _finished(folder: RunFolder) -> tuple[list[str], list[str]]:
    """Return the ids of finished slides with complete tables, and of the others."""
    done, others = [], []
    for path in sorted((folder.root / "slides").glob("*.json")):
        record = read_slide(folder, path.stem)
        table = folder.table(path.stem)
        if record.row.status not in FINISHED_STATUSES or not table.is_file():
            others.append(path.stem)
            continue
        if record.table_bytes not in (None, table.stat().st_size):
            raise FormatError(
                f"{table}: expected {record.table_bytes} bytes, got {table.stat().st_size}. Check the run: wsiseg verify."
            )
        done.append(path.stem)
    return done, others


def _of_slides(folder: RunFolder, slides: list[str]) -> Iterator[Path]:
    for slide_id in slides:
        of_slide = (folder.table(slide_id), folder.root / "features" / f"{slide_id}.parquet", folder.tissue_png(slide_id))
        yield from (p for p in of_slide if p.is_file())
        yield folder.slide_json(slide_id)


def _of_qc(folder: RunFolder) -> Iterator[Path]:
    yield from (p for p in sorted((folder.root / "qc").rglob("*")) if p.is_file() and not p.name.startswith("."))


def _of_run(folder: RunFolder) -> Iterator[Path]:
    names = ("errors.parquet", "slides.csv", "run.json", "slides.parquet")
    yield from (folder.root / name for name in names if (folder.root / name).is_file())


class _Notes:
    """Record of the uploaded files, for stores whose ETags are not checksums."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            self._notes: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._notes = {}

    def same(self, name: str, md5: str, version: str) -> bool:
        """Return whether the object of this version was uploaded from a file with this MD5."""
        return bool(version) and self._notes.get(name) == [md5, version]

    def add(self, name: str, md5: str, version: str) -> None:
        """Record an uploaded file."""
        with self._lock:
            self._notes[name] = [md5, version]
            self._path.parent.mkdir(exist_ok=True)
            atomic_write_bytes(self._path, json.dumps(self._notes).encode())


def _send(path: Path, folder: RunFolder, address: str, there: dict[str, tuple[int, str]], notes: _Notes) -> tuple[str, int]:
    """Upload one file unless it exists; return its name and the bytes sent (-1 if it existed)."""
    name = path.relative_to(folder.root).as_posix()
    size, md5, tag = _checksums(path)
    found = there.get(f"{address}/{name}")
    if found is not None and found[0] == size and (found[1] in (md5, tag) or notes.same(name, md5, found[1])):
        return name, -1
    stored, version = send_file(path, f"{address}/{name}", PART_BYTES)
    if stored != size:
        raise FetchDamagedError(f"{shown(address)}/{name}: sent {size} bytes, the bucket has {stored}. Run the command again.")
    notes.add(name, md5, version)
    return name, size


def _checksums(path: Path) -> tuple[int, str, str]:
    """Return size, MD5, and the ETag of S3 for a file sent in parts of ``PART_BYTES``."""
    whole, parts, size = _md5(), [], 0
    with path.open("rb") as stream:
        while piece := stream.read(PART_BYTES):
            size += len(piece)
            whole.update(piece)
            parts.append(_md5(piece).digest())
    return size, whole.hexdigest(), f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _listed(address: str) -> list[Any]:
    try:
        return list_address(address + "/")
    except FetchError as err:
        if "no such object" in str(err):
            return []
        raise

"""The staging folder: completely fetched slides, ``ROOT/<slide_id>/<name>``, each with a record of its source.

The record, ``ROOT/<slide_id>/fetched.json``, is written when the slide is complete and verified; a slide with a record is not
fetched again. If several processes need a slide, one fetches it (under a file lock) and the others wait.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from wsiseg.atomic import atomic_write_bytes
from wsiseg.errors import FetchError
from wsiseg.fetch.address import HIDDEN, Wanted, name_in, shown
from wsiseg.fetch.download import FetchOptions, download, partial_of, request_facts, source_of
from wsiseg.fetch.listing import headers_of, list_address

__all__ = ["Choose", "NoSpace", "StagedSlide", "fetch_to_staging", "find_staged", "slide_size_bytes", "staged_sizes"]

RECORD = "fetched.json"
Choose = Callable[[Sequence[tuple[str, bytes]]], list[str]]
"""Function that selects the needed files of a folder, by name, from their names and first bytes."""


class NoSpace(Exception):  # noqa: N818 - not an error: the caller tries again when there is space
    """The slide has ``size_bytes``, more than the space available now."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the slide has {size_bytes} bytes, more than the space available")
        self.size_bytes = size_bytes


@dataclass(frozen=True, slots=True)
class StagedSlide:
    """A slide in the staging folder: its path, its size on disk, and its version (MD5 or the server's tag)."""

    path: Path
    size_bytes: int
    version: str


def find_staged(want: Wanted, slide_id: str, root: Path) -> StagedSlide | None:
    """Return a slide that is completely staged and matches ``want``; ``None`` if it must be fetched."""
    folder = root / slide_id
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        files = [(folder / str(name), int(size)) for name, size in record["files"]]
        same = record["address"] == shown(want.address) and all(f.stat().st_size == size for f, size in files)
        same &= not want.md5 or record["version"] == want.md5.lower()
        found = StagedSlide(folder / str(record["name"]), sum(size for _, size in files), str(record["version"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if same and found.path.exists() else None


def staged_sizes(root: Path) -> dict[str, int]:
    """Return the size on disk of every completely or partly fetched slide in a staging folder, by slide id."""
    found: dict[str, int] = {}
    with contextlib.suppress(OSError):
        for folder in root.iterdir():
            if folder.is_dir():
                found[folder.name] = sum(_bytes_on_disk(p) for p in folder.rglob("*"))
    return found


def fetch_to_staging(
    want: Wanted,
    slide_id: str,
    root: Path,
    options: FetchOptions,
    *,
    choose: Choose | None = None,
    room_bytes: int | None = None,
    way: tuple[AbstractContextManager[object], Callable[[], bool]] = (contextlib.nullcontext(), lambda: False),
) -> StagedSlide:
    """Fetch a slide into the staging folder, unless it is already there, and return it.

    Parameters
    ----------
    choose
        Selects the needed files of a folder; None: all.
    room_bytes
        Space available, bytes; None: not limited.
    way
        ``turn`` and ``stop`` of ``download``.

    Raises
    ------
    NoSpace
        The slide is larger than ``room_bytes``.
    FetchError, FetchStopped, OSError
        As for ``download``.
    """
    found = find_staged(want, slide_id, root)
    if found is not None:
        return found
    if HIDDEN in want.address:
        raise FetchError(
            f"{want.address}: the run folder has this address without its secrets. Name the slide again, with its full address."
        )
    with _one_at_a_time(root, slide_id):
        found = find_staged(want, slide_id, root)
        if found is None:
            fetch = _stage_series if want.is_series else _stage_file
            fetch(want, root / slide_id, options, choose, room_bytes, way)
            found = find_staged(want, slide_id, root)
    if found is None:
        raise FetchError(f"{shown(want.address)}: the files in {root / slide_id} changed during the fetch. Run again.")
    return found


def slide_size_bytes(want: Wanted, options: FetchOptions, choose: Choose | None = None) -> int:
    """Return the size of a slide in bytes, from the manifest or else from the server. Raises ``FetchError``."""
    if want.is_series:
        return sum(part.size_bytes for part in _needed(want, choose))
    if want.size_bytes:
        return want.size_bytes
    source = source_of(want.address, options)
    try:
        size = request_facts(source, dataclasses.replace(options, patience_s=60.0)).size_bytes
    finally:
        source.close()
    if size < 0:
        raise FetchError(f"{shown(want.address)}: the server does not state the size. Give it in a manifest.")
    return size


def _stage_file(
    want: Wanted, folder: Path, options: FetchOptions, choose: Choose | None, room_bytes: int | None,
    way: tuple[AbstractContextManager[object], Callable[[], bool]],
) -> None:  # fmt: skip
    turn, stop = way
    source = source_of(want.address, options)
    try:
        facts = request_facts(source, options, stop)
        size = max(facts.size_bytes, 0) or want.size_bytes
        name = safe_name(want.filename or _best_name(name_in(want.address), facts.filename))
        target = folder / name
        _require_room(size, room_bytes, target, want.address)
        md5 = download(source, facts, target, want, options, turn=turn, stop=stop)
    finally:
        source.close()
    _write_record(folder, want, name, [(name, target.stat().st_size)], md5 or facts.version)


def _stage_series(
    want: Wanted, folder: Path, options: FetchOptions, choose: Choose | None, room_bytes: int | None,
    way: tuple[AbstractContextManager[object], Callable[[], bool]],
) -> None:  # fmt: skip
    turn, stop = way
    parts = _needed(want, choose)
    name = safe_name(want.filename or name_in(want.address))
    _require_room(sum(p.size_bytes for p in parts), room_bytes, folder / name, want.address)
    files, versions = [], []
    for part in parts:
        target = folder / name / safe_name(name_in(part.address))
        source = source_of(part.address, options)
        try:
            facts = request_facts(source, options, stop)
            if not (target.is_file() and target.stat().st_size == facts.size_bytes):
                download(source, facts, target, part, options, turn=turn, stop=stop)
        finally:
            source.close()
        files.append((f"{name}/{target.name}", target.stat().st_size))
        versions.append(f"{target.name} {facts.size_bytes} {facts.md5 or facts.version}")
    version = hashlib.md5("\n".join(sorted(versions)).encode(), usedforsecurity=False).hexdigest()
    _write_record(folder, want, name, files, version)


def _needed(want: Wanted, choose: Choose | None) -> list[Wanted]:
    """Return the needed files of a folder; only their headers are read."""
    parts = list_address(want.address)
    if not parts:
        raise FetchError(f"{shown(want.address)}: there is no object below this address.")
    if choose is None:
        return parts
    names = set(choose(headers_of(parts)))
    return [p for p in parts if name_in(p.address) in names]


def _write_record(folder: Path, want: Wanted, name: str, files: list[tuple[str, int]], version: str) -> None:
    record = {"address": shown(want.address), "name": name, "files": files, "version": version}
    atomic_write_bytes(folder / RECORD, json.dumps(record, indent=1).encode())


def _require_room(size: int, room_bytes: int | None, target: Path, address: str) -> None:
    if room_bytes is not None and size > room_bytes:
        raise NoSpace(size)
    target.parent.mkdir(parents=True, exist_ok=True)
    there = _bytes_on_disk(partial_of(target))
    free = shutil.disk_usage(target.parent).free
    if size - there > free:
        raise FetchError(
            f"{shown(address)}: {size / 1e9:.3f} GB do not fit into {target.parent}, which has {free / 1e9:.3f} GB free. "
            "Choose another --stage, or a smaller --stage-gb, so that fewer slides are there at a time."
        )


def safe_name(name: str) -> str:
    """Return a file name without separators, a leading dot or excess length, so that it stays in its folder and visible."""
    plain = "".join("_" if c in "/\\\x00" or ord(c) < 32 else c for c in name).strip()
    plain = f"_{plain}" if plain.startswith(".") or not plain else plain
    head, dot, ending = plain.rpartition(".")
    return plain if len(plain.encode()) <= 200 else f"{head.encode()[:150].decode(errors='ignore')}{dot}{ending[:20]}"


def _best_name(in_address: str, by_server: str) -> str:
    """Return the file name in the address, or the one that the server suggests if the address has none."""
    return in_address if "." in in_address or not by_server else by_server


def _bytes_on_disk(path: Path) -> int:
    try:
        facts = path.lstat()
    except OSError:
        return 0
    return 0 if path.is_dir() else facts.st_blocks * 512


@contextlib.contextmanager
def _one_at_a_time(root: Path, slide_id: str) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / f".{slide_id[:180]}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as err:
        raise FetchError(f"Staging folder {root}: {err.strerror or err}. Choose another --stage.") from err
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def as_dict(want: Wanted) -> dict[str, object]:
    """Return the fields of ``want`` as plain values, without secrets."""
    return {**dataclasses.asdict(want), "address": shown(want.address)}

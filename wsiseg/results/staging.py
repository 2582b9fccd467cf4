"""Copy slides on slow storage to the worker's disk while they are processed.

There is one copy per host: its first worker makes it under a file lock, and the others wait. One copy is made at a time, so
that the folder never exceeds its limit. Slides that do not fit are read in place. A copy is removed when its slide is finished,
and all of them when the run ends. Slides of several files (VMS, a single file of a DICOM series) are read in place; a Mirax
slide is copied with its folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from wsiseg.errors import SlideOpenError
from wsiseg.log import log
from wsiseg.read.dicom import dicom_facts, may_be_dicom
from wsiseg.read.slide import fingerprint

__all__ = ["drop_finished", "drop_staged", "prefetch", "staged"]

NOT_COPIED = frozenset({".vms", ".vmu", ".dcm"})
"""Suffixes of slides that have further files of other names in the same folder."""

TIME_GRAIN_NS = 2_000_000_000
"""Coarsest resolution of file times (FAT)."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def staged(source: Path, slide_id: str, root: Path, bound_bytes: int) -> Path:
    """Return the copy of ``source`` in ``root``, making it if necessary; or ``source`` itself if it does not fit.

    Parameters
    ----------
    source
        Path of the slide on this machine, a file or a folder.
    slide_id
        Name of the copy's folder in ``root``.
    bound_bytes
        Maximum size of all copies in ``root``.

    Raises
    ------
    SlideOpenError
        The slide is missing, or could not be read during the copy.
    """
    if source.suffix.lower() in NOT_COPIED or (may_be_dicom(source.name) and source.is_file() and dicom_facts(source)):
        return source
    target = root / slide_id / source.name
    if _is_copy(target, source):
        return target
    with _one_copier(root):
        if _is_copy(target, source):
            return target
        shutil.rmtree(target.parent, ignore_errors=True)
        needed = _bytes_of(source)
        if _bytes_of(root) + needed > bound_bytes:
            return source
        try:
            _copy(source, target)
        except OSError as err:
            if err.errno in _NO_ROOM:
                log.warning("slide %s: no space for a copy in %s, it is read in place", slide_id, root)
                return source
            raise SlideOpenError(f"{source}: could not be copied to {root}: {err.strerror or err}") from err
        if not _is_copy(target, source):
            shutil.rmtree(target.parent, ignore_errors=True)
            raise SlideOpenError(f"{source}: changed during its copy to {root}. Run the same command again.")
    return target


def prefetch(source: Path, slide_id: str, root: Path, bound_bytes: int) -> None:
    """Start to copy the next slide in the background. Errors are ignored, because ``staged`` will copy it again."""

    def copy() -> None:
        with contextlib.suppress(SlideOpenError, OSError):
            staged(source, slide_id, root, bound_bytes)

    threading.Thread(target=copy, name=f"prefetch {slide_id}", daemon=True).start()


def drop_finished(root: Path, finished_dir: Path) -> None:
    """Remove the copies of slides whose JSON in ``finished_dir`` is no older than the copy."""
    with contextlib.suppress(OSError):
        for copy in root.iterdir():
            with contextlib.suppress(OSError):
                if copy.is_dir() and (finished_dir / f"{copy.name}.json").stat().st_mtime_ns >= copy.stat().st_mtime_ns:
                    drop_staged(root, copy.name)


def drop_staged(root: Path, slide_id: str = "") -> None:
    """Remove one slide's copy, or the whole folder."""
    if not slide_id:
        shutil.rmtree(root, ignore_errors=True)
        return
    shutil.rmtree(root / slide_id, ignore_errors=True)


def _is_copy(target: Path, source: Path) -> bool:
    """Return whether the copy is complete and up to date, by size and time; a local disk may store times less precisely."""
    if not target.exists():
        return False
    (copied, copied_ns), (size, time_ns) = fingerprint(target), fingerprint(source)
    return copied == size and abs(copied_ns - time_ns) < TIME_GRAIN_NS


def _copy(source: Path, target: Path) -> None:
    partial = target.parent.with_name(f".{target.parent.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if source.is_dir():
            shutil.copytree(source, partial / source.name)  # copy2 keeps times, by which a changed slide is detected
        else:
            shutil.copy2(source, partial / source.name)
            beside = source.with_suffix("")
            if source.suffix.lower() == ".mrxs" and beside.is_dir():
                shutil.copytree(beside, partial / beside.name)
        os.replace(partial, target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _bytes_of(path: Path) -> int:
    if path.is_file():
        beside = path.with_suffix("")
        return path.stat().st_size + (_bytes_of(beside) if path.suffix.lower() == ".mrxs" and beside.is_dir() else 0)
    total = 0
    for entry in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another worker removes its copy
            total += entry.stat().st_size if entry.is_file() else 0
    return total


@contextlib.contextmanager
def _one_copier(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".copying", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as err:
        raise SlideOpenError(f"Staging folder {root}: {err.strerror or err}. Choose another --stage.") from err
    try:
        with contextlib.suppress(OSError):  # a file system without locks, where two complete copies may be made
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

"""Slides on slow storage -> copies on the worker's own disk while they are processed.

One copy per host: its first worker makes it (a lock on a file), the others wait; one copy at a time, so that
the folder never holds more than its bound. What does not fit is read where it is. A copy is dropped when its slide is finished,
and all of them when the run ends. Slides of several files (VMS, a single file of a DICOM series) are read where they are; Mirax
is copied with its folder.
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
"""Endings of slides whose other files stand beside them under names of their own."""

TIME_GRAIN_NS = 2_000_000_000
"""Coarsest grain of file times (FAT)."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def staged(source: Path, slide_id: str, root: Path, bound_bytes: int) -> Path:
    """Return the copy of ``source`` in ``root``, made now if it is not there; ``source`` itself where it does not fit.

    Parameters
    ----------
    source
        The slide as this machine has it: a file or a folder.
    slide_id
        Names the copy's folder in ``root``.
    bound_bytes
        Most that all copies in ``root`` may take.

    Raises
    ------
    SlideOpenError
        The slide is missing or could not be read while it was copied.
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
            raise SlideOpenError(f"{source}: changed while it was copied to {root}. Run the same command again.")
    return target


def prefetch(source: Path, slide_id: str, root: Path, bound_bytes: int) -> None:
    """Begin to copy a slide that comes next, without waiting; what fails is tried again, and reported, when it is its turn."""

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
    """Return whether the copy is complete and of the file as it is now; a local disk may keep times less finely."""
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
            shutil.copytree(source, partial / source.name)  # copy2: times are kept, they are how a changed slide is noticed
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
        with contextlib.suppress(FileNotFoundError):  # another worker drops its copy
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
        with contextlib.suppress(OSError):  # a file system without locks: two copies may be made, each whole
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

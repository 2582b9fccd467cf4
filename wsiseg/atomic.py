"""Files that appear complete or not at all: a temporary name in the same folder, fsync, ``os.replace``."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from wsiseg.errors import InputError

__all__ = ["atomic_create_bytes", "atomic_file", "atomic_folder", "atomic_path", "atomic_write_bytes", "sweep_partials"]

PARTIAL_SUFFIX = ".partial"

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES)
"""Errors of file systems that cannot sync folders (some network mounts); the rename itself is still atomic there."""

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""Errors of file systems without hard links."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; if the block succeeds its file becomes ``path`` in one step, otherwise it is removed.

    Parameters
    ----------
    path
        Path of the finished file; its folder must exist. An existing file is replaced.

    Yields
    ------
    Path
        ``.<name>.<pid>-<random>.partial`` in the same folder, for the block to write.

    Raises
    ------
    OSError
        The operating system's own error (disk full, read-only, ...); ``path`` is then unchanged.
    """
    final = Path(path)
    partial = _partial_of(final)
    try:
        yield partial
        _sync_file(partial)
        os.replace(partial, final)
    finally:
        with contextlib.suppress(OSError):  # already renamed, or the error being raised is more informative
            partial.unlink()
    _sync_folder(final.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``, complete or not at all (see ``atomic_path`` for errors)."""
    with atomic_path(path) as partial, partial.open("wb") as stream:
        stream.write(data)


def atomic_create_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> bool:
    """Write ``data`` to ``path`` unless the file exists; return whether this call created it.

    If several processes, also on several hosts, call this at the same time, exactly one creates the file, complete (a hard link
    cannot replace a file). Without hard links in the file system the last one wins. Raises ``OSError``.
    """
    final = Path(path)
    partial = _partial_of(final)
    try:
        with partial.open("wb") as stream:
            stream.write(data)
        _sync_file(partial)
        os.link(partial, final)
    except FileExistsError:
        return False
    except OSError as err:
        if err.errno not in _NO_HARD_LINKS:
            raise
        os.replace(partial, final)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    _sync_folder(final.parent)
    return True


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder; if the block succeeds it becomes ``path`` in one step, otherwise it is removed.

    Raises
    ------
    InputError
        ``path`` exists and must not be overwritten.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} already exists. Remove it, choose another output, or add --overwrite.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial_of(path)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            old = partial.with_suffix(".old")
            os.replace(path, old)
            os.replace(partial, path)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that ends in the same file name, for writers that check the suffix; else like ``atomic_path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = _partial_of(path)
    folder.mkdir()
    try:
        yield folder / path.name
        _sync_file(folder / path.name)
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_partials(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files of killed processes in ``folder`` and its subfolders; return their number.

    Call it only while no process writes there. The folder need not exist.
    """
    stale = [p for p in Path(folder).rglob(f".*{PARTIAL_SUFFIX}") if p.is_file()]
    for partial in stale:
        partial.unlink(missing_ok=True)
    return len(stale)


def _partial_of(final: Path) -> Path:
    # The process id alone is not enough: processes on two hosts, or in two containers, may have the same one.
    return final.with_name(f".{final.name}.{os.getpid()}-{secrets.token_hex(3)}{PARTIAL_SUFFIX}")


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as err:
        if err.errno not in _NO_FOLDER_SYNC:
            raise

"""A folder of files that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsiseg.errors import InputError

__all__ = ["atomic_folder"]


@contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Lend an empty folder; when the block ends well it becomes ``path`` in one step, otherwise it is removed.

    Raises
    ------
    InputError
        ``path`` is there already and shall not be overwritten.
    """
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already. Remove it, choose another output, or ask to overwrite.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            old = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, old)
            os.replace(partial, path)
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        else:
            os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

"""What several exports need: outputs that appear complete or not at all, and libraries that may not be installed."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from wsiseg.errors import BackendUnavailableError, InputError

__all__ = ["atomic_file", "atomic_folder", "optional"]


def optional(name: str, extra: str) -> ModuleType:
    """Import a library that an extra of wsiseg brings.

    Raises
    ------
    BackendUnavailableError
        It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as err:
        raise BackendUnavailableError(
            f"This needs {name}, which is not installed ({err}): pip install 'wsiseg[{extra}]'."
        ) from err


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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Lend a path of the same name in a folder of its own, for writers that look at the ending; then as ``atomic_path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)

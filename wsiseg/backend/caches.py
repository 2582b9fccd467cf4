"""Decide where compiled machine code is kept, for numba, CuPy and libraries that follow XDG.

The first writable one of these is used: the folder in the library's variable (``NUMBA_CACHE_DIR``, ``CUPY_CACHE_DIR``); the
library's own choice (numba: ``__pycache__`` next to the source, else the user's cache folder; CuPy: the home folder); a folder
of this user in the temporary folder. Caches contain code that is run, so that folder is used only if it belongs to this user
and nobody else can write to it. Without a home folder and an entry in passwd ``~`` is not expanded, and libraries would make a
folder of that name in the current folder, so their variables are set first.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
from collections.abc import MutableMapping
from functools import cache
from pathlib import Path

__all__ = ["place_caches", "private_folder", "writable"]


def place_caches(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables of libraries that would otherwise have no cache, or one in a folder named ``~``.

    Call it before numba, CuPy or matplotlib is imported; child processes inherit the variables. Nothing is changed if the user
    has a home folder.
    """
    user_cache = Path(environment.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")))
    if not user_cache.is_absolute():
        _set(environment, "XDG_CACHE_HOME", "xdg")
    if "CUPY_CACHE_DIR" not in environment and not writable(Path(os.path.expanduser("~/.cupy/kernel_cache"))):
        _set(environment, "CUPY_CACHE_DIR", "cupy")
    if "MPLCONFIGDIR" not in environment and not writable(Path(os.path.expanduser("~/.config/matplotlib"))):
        _set(environment, "MPLCONFIGDIR", "matplotlib")


def writable(folder: Path) -> bool:
    """Return whether ``folder`` is an absolute path of a folder in which this user can make files; it may not exist yet."""
    if not folder.is_absolute():
        return False
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def private_folder() -> Path | None:
    """Return a folder for code of this user in the temporary folder, mode 700; ``None`` if there is no temporary folder.

    Its name is the same in every process of the user, so that kernels compiled by one are found by the next. If that name
    belongs to somebody else, a new folder is made instead and removed when this process ends.
    """
    try:
        return _private_folder(tempfile.gettempdir())
    except OSError:
        return None


@cache
def _private_folder(root: str) -> Path:
    folder = Path(root) / f"wsiseg-cache-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        found = None
    if found is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return folder
    own = Path(tempfile.mkdtemp(prefix="wsiseg-cache-", dir=root))
    atexit.register(_remove, own, os.getpid())
    return own


def _remove(folder: Path, pid: int) -> None:
    if os.getpid() == pid:  # not in a fork
        shutil.rmtree(folder, ignore_errors=True)


def _set(environment: MutableMapping[str, str], name: str, sub: str) -> None:
    folder = private_folder()
    if folder is not None:
        environment[name] = str(folder / sub)

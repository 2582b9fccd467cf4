"""One compiler setting for all CPU kernels: numba, no interpreter lock, no fast math, machine code kept on disk if possible."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
from llvmlite.binding import get_host_cpu_features, get_host_cpu_name

from wsiseg.backend.caches import private_folder

__all__ = ["Compiled", "compiled_so_far", "jit", "one_at_a_time"]

F = TypeVar("F", bound=Callable[..., Any])

_KERNELS: list[Any] = []

WAIT_S = 300.0
"""How long a process waits for another process of this machine to compile the same kernels, s."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The CPU kernels of this process: signatures compiled here, signatures loaded from disk, and the folder of the cache.

    ``folder`` is empty if there is no writable folder: every process then compiles its own.
    """

    compiled: int
    loaded: int
    folder: str


def jit(function: F) -> F:
    """Compile ``function`` on first use; ``wsiseg.backend.caches`` decides where its machine code is kept.

    If there is no such folder it is compiled once in every process.
    """
    try:
        kernel: Any = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder that it may write to
        kernel = _kept_in_private(function)
    _KERNELS.append(kernel)
    compiled: F = kernel
    return compiled


def _kept_in_private(function: Callable[..., Any]) -> Any:
    folder = private_folder()
    if folder is not None:
        numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = str(folder / "numba")
        with contextlib.suppress(RuntimeError):
            return numba.njit(cache=True, nogil=True)(function)
    return numba.njit(nogil=True)(function)


def compiled_so_far() -> Compiled:
    """Return what was compiled and loaded in this process since its start."""
    stats = [kernel.stats for kernel in _KERNELS]
    folder = next((str(s.cache_path) for s in stats if s.cache_path), "")
    return Compiled(sum(sum(s.cache_misses.values()) for s in stats), sum(sum(s.cache_hits.values()) for s in stats), folder)


@contextlib.contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one of a machine's processes compile while the others wait; then all others load at the same time.

    If that is not possible (no folder, a file system without locks, a hanging process) the block runs without waiting.
    """
    folder = compiled_so_far().folder
    done = os.path.join(folder, f".wsiseg-compiled-{_fingerprint()}")
    handle = -1 if not folder or os.path.exists(done) else _lock(folder, done)
    try:
        yield
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(os.open(done, os.O_WRONLY | os.O_CREAT, 0o666))
    finally:
        if handle >= 0:
            os.close(handle)


def _fingerprint() -> str:
    """Return a hash (16 hex digits) of what machine code depends on: the sources, the compiler and the processor."""
    found = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    found.update(f"{get_host_cpu_name()} {get_host_cpu_features().flatten()}".encode())
    for source in sorted(Path(__file__).parents[1].glob("*/_cpu*.py")):
        found.update(source.read_bytes())
    return found.hexdigest()[:16]


def _lock(folder: str, done: str) -> int:
    """Return a file descriptor that holds the folder's lock; -1 if ``done`` exists by then or locking fails."""
    handle = -1
    with contextlib.suppress(OSError):
        handle = os.open(os.path.join(folder, ".wsiseg-compiling"), os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + WAIT_S
    while handle >= 0 and time.monotonic() < end:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
            continue
        except OSError:
            break
        if not os.path.exists(done):
            return handle
        break
    if handle >= 0:
        os.close(handle)
    return -1

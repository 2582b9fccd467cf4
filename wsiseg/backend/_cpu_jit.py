"""One compiler setting for all CPU kernels: numba, no interpreter lock, no fast math, machine code kept on disk if possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

__all__ = ["jit"]

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compile ``function`` on first use. A read-only installation without a writable cache folder compiles once per process."""
    try:
        compiled: F = numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # numba found no folder that it may write to
        compiled = numba.njit(nogil=True)(function)
    return compiled

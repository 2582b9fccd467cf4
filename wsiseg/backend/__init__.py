"""An array in -> the library that owns it out (NumPy or CuPy): stages ask here, never ``if cupy``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["array_namespace", "is_cupy_array"]


def is_cupy_array(array: Any) -> bool:
    """Return whether ``array`` is a CuPy array; never imports CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def array_namespace(*arrays: Any) -> ModuleType:
    """Return the module (numpy or cupy) that owns all of ``arrays``.

    Raises
    ------
    TypeError
        Host and device arrays are mixed: nothing is copied between them silently.
    """
    kinds = {is_cupy_array(a) for a in arrays}
    if len(kinds) > 1:
        raise TypeError("Expected all arrays on the host or all on the device, got both.")
    if kinds == {True}:
        return sys.modules["cupy"]
    import numpy

    return numpy

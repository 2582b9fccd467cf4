"""Choose the code for an array: host functions for NumPy, kernels for CuPy. Stages use this and do not test for CuPy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from wsiseg.backend.caches import place_caches
from wsiseg.backend.faults import device_fault
from wsiseg.backend.interface import BLOCK, BLOCK_2D, Backend, DeviceTimer, blocks_for, blocks_over

__all__ = [
    "BLOCK",
    "BLOCK_2D",
    "Backend",
    "DeviceTimer",
    "array_namespace",
    "backend_of",
    "blocks_for",
    "blocks_over",
    "device_fault",
    "device_number",
    "device_timer",
    "is_cupy_array",
    "memory_errors",
    "pinned_empty",
    "register_backend",
    "to_device",
    "to_host",
]

place_caches()  # before anything of this package imports numba or CuPy

_MAKERS: dict[type, Callable[[Any], Backend]] = {}


def is_cupy_array(array: Any) -> bool:
    """Return whether ``array`` is a CuPy array; never imports CuPy."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(array, cupy.ndarray)


def register_backend(kind: type, make: Callable[[Any], Backend]) -> None:
    """Register ``make(array)``, which returns the backend for arrays of exactly the type ``kind``."""
    _MAKERS[kind] = make


def backend_of(array: Any) -> Backend | None:
    """Return the backend whose kernels work on ``array``; ``None`` for a host array, which the CPU code processes.

    Raises
    ------
    BackendUnavailableError
        ``array`` is a CuPy array and kernels cannot be loaded.
    """
    make = _MAKERS.get(type(array))
    if make is not None:
        return make(array)
    if is_cupy_array(array):
        from wsiseg.backend.cuda import cuda_backend

        return cuda_backend(array.device.id)
    return None


def to_device(array: Any, device: str) -> Any:
    """Copy an array to the device where a worker computes; an array that is already there is returned.

    Parameters
    ----------
    array
        NumPy array, or a CuPy array of the device.
    device
        ``cpu`` (the array is returned unchanged), ``cuda`` or ``cuda:1``, as PyTorch names devices.

    Raises
    ------
    BackendUnavailableError
        CuPy or the device is missing; the message names it and what to do.
    """
    if device == "cpu" or is_cupy_array(array):
        return array
    from wsiseg.backend.cuda import cuda_backend

    return cuda_backend(device_number(device)).upload(array)


def to_host(array: Any) -> Any:
    """Copy an array to the host; a NumPy array is returned as it is."""
    backend = backend_of(array)
    return array if backend is None else backend.to_host(array)


def pinned_empty(shape: tuple[int, ...], dtype: str, device: str) -> Any:
    """Return an uninitialized host array from which ``to_device`` copies fast: page-locked memory if ``device`` is a GPU.

    Raises
    ------
    BackendUnavailableError
        See ``to_device``.
    """
    if device == "cpu":
        import numpy

        return numpy.empty(shape, dtype)
    from wsiseg.backend.cuda import cuda_backend

    return cuda_backend(device_number(device)).pinned(shape, dtype)


def device_timer(device: str) -> DeviceTimer | None:
    """Return a timer of a GPU's current stream; ``None`` for the CPU, where the clock is used."""
    if device == "cpu":
        return None
    from wsiseg.backend.cuda import CudaTimer

    return CudaTimer(device_number(device))


def device_number(device: str) -> int:
    """Return the number of a GPU from PyTorch's name for it: 1 for ``cuda:1``, 0 for ``cuda``."""
    return int(device.partition(":")[2] or 0)


def memory_errors() -> tuple[type[BaseException], ...]:
    """Return the classes that PyTorch and CuPy raise if a device's memory is full; empty if neither is loaded."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    found: list[type[BaseException]] = [] if torch is None else [torch.OutOfMemoryError]
    return tuple(found) if cupy is None else (*found, cupy.cuda.memory.OutOfMemoryError)


def array_namespace(*arrays: Any) -> ModuleType:
    """Return the module (numpy or cupy) of all ``arrays``.

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

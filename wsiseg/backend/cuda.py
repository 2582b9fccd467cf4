"""The CuPy backend: kernels compiled once per device, arrays, streams shared with PyTorch. No other module imports CuPy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend.faults import device_fault
from wsiseg.backend.source import NVRTC_OPTIONS, kernel_source
from wsiseg.errors import BackendUnavailableError

__all__ = ["CudaBackend", "CudaTimer", "cuda_backend", "cuda_report", "free_bytes", "shared_stream", "use_allocator"]

Array = Any

STAGED_BYTES = 64 * 1024
"""Largest array of pageable memory that CUDA copies to an internal buffer before an asynchronous copy returns, bytes."""


class CudaBackend:
    """``wsiseg.backend.Backend`` with CuPy; work goes to CuPy's current stream."""

    def __init__(self, device_id: int) -> None:
        self._cupy = _cupy()
        self._device_id = device_id
        self._kernels: dict[str, Any] = {}
        self._kept: dict[str, Array] = {}
        self._keeping = threading.Lock()
        with self._device():
            self._module = self._cupy.RawModule(code=kernel_source(), options=NVRTC_OPTIONS)
            self._module.compile()

    def _device(self) -> Any:
        """Return a context that makes the device current; a new one each time, since threads must not share it."""
        return self._cupy.cuda.Device(self._device_id)

    def empty(self, shape: int | Sequence[int], dtype: str) -> Array:
        """Return an uninitialized array."""
        with self._device():
            return self._cupy.empty(shape, dtype)

    def full(self, shape: int | Sequence[int], value: int, dtype: str) -> Array:
        """Return an array filled with ``value``."""
        with self._device():
            return self._cupy.zeros(shape, dtype) if value == 0 else self._cupy.full(shape, value, dtype)

    def contiguous(self, array: Array) -> Array:
        """Return ``array`` in C order, copied on the device if it is not."""
        with self._device():
            return self._cupy.ascontiguousarray(array)

    def upload(self, array: npt.NDArray[Any]) -> Array:
        """Copy to the device; memory of ``pinned`` is copied at the bus's full speed. ``array`` may be reused on return.

        A small array, such as a table, is copied from pageable memory, which CUDA has read on return, so there is no wait.
        """
        with self._device():
            out = self._cupy.empty(array.shape, array.dtype)
            if out.size:
                stream = self._cupy.cuda.get_current_stream()
                small = array.nbytes <= STAGED_BYTES
                out.set(np.array(array, order="C") if small else np.ascontiguousarray(array), stream=stream)
                if not small:
                    stream.synchronize()
            return out

    def kept(self, name: str, array: npt.NDArray[Any]) -> Array:
        """Return a table that is the same for all tiles, copied at the first call for its name. Every stream may read it."""
        with self._keeping:
            table = self._kept.get(name)
            if table is None:
                table = self._kept[name] = self.upload(array)
                self._cupy.cuda.get_current_stream().synchronize()  # others' streams do not wait for this one
            return table

    def pinned(self, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
        """Return an uninitialized host array in page-locked memory; CuPy's pool reuses it when the array is freed."""
        with self._device():
            return _pinned(self._cupy, shape, np.dtype(dtype))

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """Copy to the host through pinned memory, after all work launched before."""
        with self._device():
            out = _pinned(self._cupy, array.shape, array.dtype)
            array.get(out=out)
            self._cupy.cuda.get_current_stream().synchronize()
            return out

    def nonzero(self, flags: Array) -> Array:
        """Return the ascending flat indices, int32, of nonzero elements (waits for their number)."""
        with self._device():
            return self._cupy.flatnonzero(flags).astype(np.int32)

    def running_sum(self, array: Array) -> Array:
        """Return the inclusive running sums of a 1-D array, with its dtype."""
        with self._device():
            return self._cupy.cumsum(array, dtype=array.dtype)

    def launch(self, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> None:
        """Run a kernel on the current stream."""
        kernel = self._kernels.get(name)
        if kernel is None:
            kernel = self._kernels[name] = self._module.get_function(name)
        with self._device():
            kernel(tuple(grid), tuple(block), tuple(np.int32(a) if isinstance(a, int) else a for a in args))


class CudaTimer:
    """``wsiseg.backend.DeviceTimer`` with CUDA events."""

    def __init__(self, device_id: int) -> None:
        self._cupy = _cupy()
        self._device_id = device_id

    def mark(self) -> Any:
        """Record an event after all work launched so far on the current stream."""
        with self._cupy.cuda.Device(self._device_id):
            event = self._cupy.cuda.Event()
            event.record()
            return event

    def wait(self, mark: Any) -> None:
        """Wait until the device has reached a mark."""
        mark.synchronize()

    def seconds(self, before: Any, after: Any) -> float:
        """Return the time between two marks that the device has reached."""
        return float(self._cupy.cuda.get_elapsed_time(before, after)) / 1e3


def cuda_backend(device_id: int) -> CudaBackend:
    """Return the device's backend; the kernels are compiled at the first call (CuPy keeps the machine code on disk).

    Raises
    ------
    BackendUnavailableError
        CuPy is not installed, or there is no such device.
    """
    with _making:  # up to 16 threads call this at once, and the first of them compiles
        return _made(device_id)


_making = threading.Lock()


@cache
def _made(device_id: int) -> CudaBackend:
    cupy = _cupy()
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as err:
        raise BackendUnavailableError(f"CuPy {cupy.__version__} finds no GPU: {err}. Use --device cpu.") from err
    if device_id >= count:
        raise BackendUnavailableError(f"Expected a GPU number below {count}, got {device_id}.")
    return CudaBackend(device_id)


def cuda_report() -> tuple[bool, str]:
    """Return whether kernels can run here and the names of the GPUs, or what is missing, for ``wsiseg doctor``."""
    try:
        cupy = _cupy()
        count = cupy.cuda.runtime.getDeviceCount()
    except BackendUnavailableError as err:
        return False, str(err)
    except cupy.cuda.runtime.CUDARuntimeError as err:
        return False, f"CuPy {cupy.__version__} is installed but finds no GPU: {err}"
    names = [cupy.cuda.runtime.getDeviceProperties(k)["name"].decode() for k in range(count)]
    return count > 0, f"CuPy {cupy.__version__}, {', '.join(names)}" if names else "no GPU"


@contextmanager
def shared_stream(pointer: int, device_id: int = 0) -> Iterator[None]:
    """Run CuPy's work in the stream of another library (``torch.cuda.current_stream().cuda_stream``), so that neither waits."""
    cupy = _cupy()
    with cupy.cuda.Device(device_id), cupy.cuda.Stream.from_external(_Pointer(pointer)):
        yield


class _Pointer:
    """A stream of another library, as an object of the CUDA stream protocol."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


def free_bytes(device_id: int) -> int:
    """Return the free memory of a GPU in bytes."""
    cupy = _cupy()
    with cupy.cuda.Device(device_id):
        return int(cupy.cuda.runtime.memGetInfo()[0])


def use_allocator(allocate: Callable[[int, int], int], free: Callable[[int], None]) -> None:
    """Make CuPy allocate through another library: ``allocate(bytes, device) -> pointer``, ``free(pointer)``."""
    cuda = _cupy().cuda
    cuda.set_allocator(cuda.PythonFunctionAllocator(allocate, lambda pointer, device_id: free(pointer)).malloc)


def _pinned(cupy: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return a host array in page-locked memory of CuPy's pool, which reuses it when the array is freed."""
    count = int(np.prod(shape))
    if count == 0:
        return np.empty(shape, dtype)
    try:
        memory = cupy.cuda.alloc_pinned_memory(count * dtype.itemsize)
    except cupy.cuda.runtime.CUDARuntimeError as err:
        if device_fault(err):
            raise
        return np.empty(shape, dtype)  # no more memory can be page-locked: slower, with the same result
    return np.frombuffer(memory, dtype, count).reshape(shape)


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as err:
        raise BackendUnavailableError("CuPy is not installed: pip install 'wsiseg[gpu]' for kernels on an NVIDIA GPU.") from err
    return cupy

"""A stand-in for CuPy made of NumPy and the host's kernels: enough of it for the package's device path to run on it."""

from __future__ import annotations

import contextlib
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.kernels.host import DeviceArray, HostBackend


class FakeOutOfMemoryError(Exception):
    """What the stand-in calls ``cupy.cuda.memory.OutOfMemoryError``."""


class FakeRuntimeError(RuntimeError):
    """What the stand-in calls ``cupy.cuda.runtime.CUDARuntimeError``."""


FakeRuntimeError.__name__ = "CUDARuntimeError"


class FakeArray(DeviceArray):
    """What the stand-in calls ``cupy.ndarray``."""

    number = 1

    @property
    def device(self) -> Any:
        return SimpleNamespace(id=self.number)

    def get(self, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return np.array(self, subok=False)
        assert out.dtype == self.dtype
        assert out.flags.c_contiguous
        out[...] = self
        return out

    def set(self, array: np.ndarray, stream: Any) -> None:
        assert array.dtype == self.dtype
        assert array.flags.c_contiguous
        stream.copies += 1
        self[...] = array


class FakeStream:
    """Counts copies that were not waited for."""

    copies = 0

    def synchronize(self) -> None:
        self.copies = 0


class FakeEvent:
    """A mark on a stream; reading it without waiting is an error."""

    def __init__(self) -> None:
        self.at, self.reached = -1.0, False

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at >= 0
        self.reached = True
        FakeEvent.latest = max(FakeEvent.latest, self.at)

    latest = -1.0


def elapsed_ms(before: FakeEvent, after: FakeEvent) -> float:
    assert before.at <= after.at <= FakeEvent.latest, "not recorded in this order, or nobody waited for it"
    return 1e3 * (after.at - before.at)


def fake_cupy(host: HostBackend, number: int = 1) -> ModuleType:
    """Return the stand-in; its arrays are on the GPU of that number."""
    FakeArray.number = number
    module = ModuleType("cupy")

    def made(function: Any) -> Any:
        return lambda *args, **options: function(*args, **options).view(FakeArray)

    class RawModule:
        def __init__(self, code: str, options: tuple[str, ...]) -> None:
            assert "flood_round" in code
            assert "--fmad=false" in options

        def compile(self) -> None: ...

        def get_function(self, name: str) -> Any:
            def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
                assert all(isinstance(a, FakeArray | np.int32) for a in args)
                plain = [int(a) if isinstance(a, np.int32) else np.asarray(a).view(DeviceArray) for a in args]
                host.launch(name, grid, block, plain)

            return kernel

    def device(k: int) -> Any:
        assert k == number
        return contextlib.nullcontext()

    stream = FakeStream()
    cuda_module = SimpleNamespace(
        Device=device,
        alloc_pinned_memory=lambda size: bytearray((size // 512 + 1) * 512),
        get_current_stream=lambda: stream,
        Event=FakeEvent,
        get_elapsed_time=elapsed_ms,
        memory=SimpleNamespace(OutOfMemoryError=FakeOutOfMemoryError),
        runtime=SimpleNamespace(getDeviceCount=lambda: 2, CUDARuntimeError=FakeRuntimeError),
    )
    for name in ("empty", "zeros", "full", "ascontiguousarray", "asarray", "flatnonzero", "cumsum", "from_dlpack", "take"):
        setattr(module, name, made(getattr(np, name)))
    module.__dict__.update(ndarray=FakeArray, cuda=cuda_module, RawModule=RawModule, __version__="stand-in")
    return module

"""``wsiseg.backend.cuda`` with a stand-in for CuPy made of NumPy and the host's kernels.

It proves that the module's own logic holds together (types of arguments, pinned copies, device numbers), not that CuPy and
a GPU do what is asked of them: that is what ``pytest -m gpu`` is for.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.kernels.conftest import Machine
from tests.kernels.host import DeviceArray, HostBackend, on_host
from tests.kernels.parity import LOOSE, check_map
from tests.oracles.maps import adversarial
from wsiseg.backend import cuda, pinned_empty, register_backend, to_device, to_host
from wsiseg.errors import BackendUnavailableError


class FakeArray(DeviceArray):
    """What the stand-in calls ``cupy.ndarray``."""

    @property
    def device(self) -> Any:
        return SimpleNamespace(id=1)

    def get(self, out: np.ndarray) -> np.ndarray:
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
    """Counts copies that nobody has waited for."""

    copies = 0

    def synchronize(self) -> None:
        self.copies = 0


def fake_cupy(host: HostBackend) -> ModuleType:
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
        assert k == 1
        return contextlib.nullcontext()

    stream = FakeStream()
    cuda_module = SimpleNamespace(
        Device=device,
        alloc_pinned_memory=lambda size: bytearray((size // 512 + 1) * 512),
        get_current_stream=lambda: stream,
        runtime=SimpleNamespace(getDeviceCount=lambda: 2, CUDARuntimeError=RuntimeError),
    )
    for name in ("empty", "zeros", "full", "ascontiguousarray", "asarray", "flatnonzero", "cumsum"):
        setattr(module, name, made(getattr(np, name)))
    module.__dict__.update(ndarray=FakeArray, cuda=cuda_module, RawModule=RawModule, __version__="stand-in")
    return module


@pytest.fixture
def machine_like_cupy(kernel_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with on_host(kernel_library, seed=4) as host:
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy(host))
        cuda.cuda_backend.cache_clear()
        backend = cuda.cuda_backend(1)
        register_backend(FakeArray, lambda array: cuda.cuda_backend(array.device.id))
        yield Machine(lambda array: array.copy().view(FakeArray), lambda array: np.array(array, subok=False), backend)
        cuda.cuda_backend.cache_clear()


@pytest.mark.parametrize("name", ["bridge", "noise_65", "empty"])
def test_backend_holds_together(machine_like_cupy: Machine, name: str) -> None:
    check_map(machine_like_cupy, adversarial()[name], LOOSE)


def test_device_numbers(machine_like_cupy: Machine) -> None:
    there = to_device(np.arange(6, dtype=np.uint8), "cuda:1")
    assert sys.modules["cupy"].cuda.get_current_stream().copies == 0, "the host's memory is free again when upload returns"
    np.testing.assert_array_equal(to_host(there), np.arange(6))
    pinned = pinned_empty((3, 5), "uint16", "cuda:1")
    assert (pinned.shape, pinned.dtype) == ((3, 5), np.uint16)
    with pytest.raises(BackendUnavailableError, match="a GPU number below 2, got 5"):
        to_device(np.zeros(1), "cuda:5")

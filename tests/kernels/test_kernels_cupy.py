"""``wsiseg.backend.cuda`` with a stand-in for CuPy made of NumPy and the host's kernels.

It proves that the module's own logic holds together (types of arguments, pinned copies, device numbers), not that CuPy and
a GPU do what is asked of them: that is what ``pytest -m gpu`` is for.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.kernels.conftest import Machine
from tests.kernels.fake_cupy import FakeArray, fake_cupy
from tests.kernels.host import on_host
from tests.kernels.parity import LOOSE, check_map
from tests.oracles.maps import adversarial
from wsiseg.backend import cuda, pinned_empty, register_backend, to_device, to_host
from wsiseg.errors import BackendUnavailableError
from wsiseg.pipeline import StageClock
from wsiseg.read import TissueMask, tissue_view, tissue_window, unscanned_view, unscanned_window
from wsiseg.types import Box


@pytest.fixture
def machine_like_cupy(kernel_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    with on_host(kernel_library, seed=4) as host:
        monkeypatch.setitem(sys.modules, "cupy", fake_cupy(host))
        cuda._made.cache_clear()
        backend = cuda.cuda_backend(1)
        register_backend(FakeArray, lambda array: cuda.cuda_backend(array.device.id))
        yield Machine(lambda array: array.copy().view(FakeArray), lambda array: np.array(array, subok=False), backend)
        cuda._made.cache_clear()


@pytest.mark.parametrize("name", ["bridge", "noise_65", "empty"])
def test_backend_holds_together(machine_like_cupy: Machine, name: str) -> None:
    check_map(machine_like_cupy, adversarial()[name], LOOSE)


def test_device_numbers(machine_like_cupy: Machine) -> None:
    host = np.arange(70_000, dtype=np.int32)  # more than CUDA stages by itself
    there = to_device(host, "cuda:1")
    assert sys.modules["cupy"].cuda.get_current_stream().copies == 0, "the host's memory is free again when upload returns"
    np.testing.assert_array_equal(to_host(there), host)
    pinned = pinned_empty((3, 5), "uint16", "cuda:1")
    assert (pinned.shape, pinned.dtype) == ((3, 5), np.uint16)
    with pytest.raises(BackendUnavailableError, match="a GPU number below 2, got 5"):
        to_device(np.zeros(1), "cuda:5")


def test_kernels_are_compiled_once_however_many_threads_ask(
    machine_like_cupy: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def slow(self: object) -> None:
        compiled.append(threading.get_ident())
        time.sleep(0.05)

    monkeypatch.setattr(sys.modules["cupy"].RawModule, "compile", slow)
    cuda._made.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        backends = set(pool.map(lambda _: cuda.cuda_backend(1), range(8)))
    assert len(backends) == len(compiled) == 1


def test_no_memory_to_lock_is_slower_and_a_broken_gpu_is_reported(
    machine_like_cupy: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["cupy"].cuda

    def fails(text: str) -> None:
        def allocate(size: int) -> None:
            raise module.runtime.CUDARuntimeError(text)

        monkeypatch.setattr(module, "alloc_pinned_memory", allocate)

    fails("cudaErrorMemoryAllocation: out of memory")
    assert pinned_empty((3, 5), "uint16", "cuda:1").shape == (3, 5)
    fails("cudaErrorECCUncorrectable: uncorrectable ECC error encountered")
    with pytest.raises(RuntimeError, match="ECC"):
        pinned_empty((3, 5), "uint16", "cuda:1")


@pytest.mark.parametrize("seed", range(12))
def test_tissue_expanded_on_the_device_is_the_hosts(machine_like_cupy: Machine, seed: int) -> None:
    """Against the rule written out px by px: the mask px under the center of each px; beside the mask, no tissue."""
    rng = np.random.default_rng(seed)
    mask = TissueMask(
        (rng.random((9, 7)) < 0.5).astype(np.uint8), *rng.uniform(5, 40, 2).tolist(), *rng.uniform(-30, 30, 2).tolist()
    )
    scale = float(rng.choice([1.0, 0.5, 1.7]))
    box = Box(*(int(v) for v in rng.integers(-120, 200, 2)), 90, 70)
    expected = np.zeros((box.h, box.w), bool)
    for row in range(box.h):
        for column in range(box.w):
            y = int(((box.y + row + 0.5) / scale - mask.y0) // mask.px_h)
            x = int(((box.x + column + 0.5) / scale - mask.x0) // mask.px_w)
            if 0 <= y < 9 and 0 <= x < 7:
                expected[row, column] = mask.mask[y, x] > 0
    view = tissue_view(mask, box, scale)
    there = view.on("cuda:1")
    assert isinstance(there, FakeArray)
    np.testing.assert_array_equal(np.asarray(there), expected)
    np.testing.assert_array_equal(tissue_window(mask, box, scale), expected)
    black = TissueMask(mask.mask, mask.px_w, mask.px_h, mask.x0, mask.y0, has_unscanned=True)
    unscanned = unscanned_view(black, box, scale)
    assert unscanned is not None
    np.testing.assert_array_equal(np.asarray(unscanned.on("cuda:1")), unscanned_window(black, box, scale))
    assert unscanned.mask.size <= 15 * 13, "nor this"
    assert unscanned_view(mask, box, scale) is None
    part = Box(8, 16, 60, 31)
    assert view.count(part) == expected[16:47, 8:68].sum()
    assert view.mask.size <= 11 * 9, "what goes to the device is a small mask"


class LaggingTimer:
    """A device that comes to its marks a given time after the host has put them."""

    def __init__(self, lags_s: list[float]) -> None:
        self.lags_s, self.waited, self.n = lags_s, -1, 0

    def mark(self) -> tuple[int, float]:
        self.n += 1
        return self.n - 1, sum(self.lags_s[: self.n])

    def wait(self, mark: tuple[int, float]) -> None:
        self.waited = mark[0]

    def seconds(self, before: tuple[int, float], after: tuple[int, float]) -> float:
        assert after[0] <= self.waited, "read before the device came to it"
        return after[1] - before[1]


def test_stages_get_the_devices_time_not_the_hosts() -> None:
    clock = StageClock()
    clock.lap("read")
    with clock.on_device(LaggingTimer([0.0, 2.0, 30.0, 0.5, 0.25])):
        clock.lap("normalize")
        clock.lap("predict")  # launched at once, done after 30 s
        clock.lap("separate")
        clock.lap("predict")
    clock.lap("write")
    assert {k: v for k, v in clock.seconds.items() if k not in ("read", "write")} == {
        "normalize": 2.0,
        "predict": 30.25,
        "separate": 0.5,
    }
    assert clock.seconds["write"] < 1, "the host's clock goes on from the end of the block"
    with pytest.raises(ValueError, match="x"), clock.on_device(LaggingTimer([0.0, 1.0])):
        raise ValueError("x")
    clock.lap("write")
    assert clock.seconds["write"] < 1

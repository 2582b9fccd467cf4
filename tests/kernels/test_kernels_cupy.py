"""``wsiseg.backend.cuda`` with a stand-in for CuPy made of NumPy and the host's kernels.

It proves that the module's own logic holds together (types of arguments, pinned copies, device numbers), not that CuPy and
a GPU do what is asked of them: that is what ``pytest -m gpu`` is for.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.kernels.conftest import Machine
from tests.kernels.fake_cupy import FakeArray, fake_cupy
from tests.kernels.host import on_host
from tests.kernels.parity import LOOSE, check_map
from tests.oracles.maps import adversarial
from wsiseg.backend import cuda, pinned_empty, register_backend, to_device, to_host
from wsiseg.errors import BackendUnavailableError


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

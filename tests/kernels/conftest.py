"""Machines that run the kernels: the host under several schedules, and a GPU where there is one."""

from __future__ import annotations

import ctypes
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.kernels.host import build, device_array, on_host

SCHEDULES = {"in_order": (0, 1), "seed1": (1, 1), "seed7_2threads": (7, 2), "seed3_7threads": (3, 7)}


@dataclass
class Machine:
    """``put`` an array on it, ``get`` it back."""

    put: Callable[[np.ndarray], Any]
    get: Callable[[Any], np.ndarray]
    backend: Any


@pytest.fixture(scope="session")
def kernel_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("no g++ (with OpenMP): the kernels cannot be compiled for the host")
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("kernels"))))


@pytest.fixture(scope="session")
def gpu() -> Machine:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    from wsiseg.backend.cuda import cuda_backend
    from wsiseg.errors import BackendUnavailableError

    try:
        backend = cuda_backend(0)
    except BackendUnavailableError as err:
        pytest.skip(str(err))
    return Machine(cupy.asarray, cupy.asnumpy, backend)


@contextmanager
def machine_of(request: pytest.FixtureRequest, name: str) -> Iterator[Machine]:
    """Yield the machine called ``gpu`` or by a schedule's name."""
    if name == "gpu":
        yield request.getfixturevalue("gpu")
        return
    with on_host(request.getfixturevalue("kernel_library"), *SCHEDULES[name]) as backend:
        yield Machine(device_array, backend.to_host, backend)


def machines(*schedules: str) -> list[Any]:
    """Return parameters of the fixture ``machine``: the schedules, then the GPU."""
    return [*schedules, pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(params=machines(*SCHEDULES))
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with machine_of(request, request.param) as made:
        yield made


@pytest.fixture(params=machines("in_order", "seed1"))
def quick_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """Two schedules only, for what runs many maps."""
    with machine_of(request, request.param) as made:
        yield made


@pytest.fixture(params=machines("seed1"))
def one_machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """One shuffled schedule."""
    with machine_of(request, request.param) as made:
        yield made

"""Kernels share words only by atomics (or volatile accesses that the design allows), seen access by access."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.kernels.conftest import Machine
from tests.kernels.host import build_watched, device_array, on_host
from tests.kernels.parity import ALL_PARAMS, check_map
from tests.oracles.maps import adversarial
from wsiseg.backend.source import kernel_folder
from wsiseg.separate import separate


@pytest.fixture(scope="module")
def watched_library(tmp_path_factory: pytest.TempPathFactory, kernel_library: ctypes.CDLL) -> ctypes.CDLL:
    assert kernel_library is not None  # skips where there is no g++
    return ctypes.CDLL(str(build_watched(tmp_path_factory.mktemp("watched"), kernel_folder())))


@pytest.mark.parametrize("params", ["loose", "strict"])
@pytest.mark.parametrize("name", ["noise_65", "spiral", "plateaus", "nested"])
def test_no_plain_write_is_shared(watched_library: ctypes.CDLL, name: str, params: str) -> None:
    before = watched_library.race_count()
    with on_host(watched_library, seed=3) as backend:
        check_map(Machine(device_array, backend.to_host, backend), adversarial()[name], ALL_PARAMS[params])
    assert watched_library.race_count() == before


def broken_library(folder: Path, changes: dict[str, tuple[str, str]]) -> ctypes.CDLL:
    """Compile the kernels, watched, with a text of each file replaced by a wrong one."""
    kernels = folder / "kernels"
    shutil.copytree(kernel_folder(), kernels)
    for name, (right, wrong) in changes.items():
        text = (kernels / name).read_text()
        assert right in text
        (kernels / name).write_text(text.replace(right, wrong))
    return ctypes.CDLL(str(build_watched(folder, kernels)))


def races_by_kernel(library: ctypes.CDLL, prob: np.ndarray) -> set[str]:
    """Return the kernels in which the detector sees races while a map is separated."""
    races: dict[str, int] = {}
    with on_host(library, seed=3) as backend:
        launch = backend.launch

        def counted(name: str, *rest: object) -> None:
            before = library.race_count()
            launch(name, *rest)  # type: ignore[arg-type]
            races[name] = races.get(name, 0) + library.race_count() - before
            if races[name] and name == "flood_round":
                raise StopIteration  # what was read too early may never come to rest

        backend.launch = counted  # type: ignore[method-assign]
        with contextlib.suppress(StopIteration):
            separate(device_array(prob), ALL_PARAMS["loose"])
    return {name for name, n in races.items() if n}


def test_a_lost_atomic_is_noticed(tmp_path: Path, kernel_library: ctypes.CDLL) -> None:
    """The detector itself: sums and joins without their atomics, which the results rarely show."""
    assert kernel_library is not None
    changes = {
        "measure.cu": ("atomicAdd(&area[k], end - x);", "area[k] += end - x;"),
        "label.cu": ("const int before = atomicMin(&root[high], low);", "const int before = high;\n    root[high] = low;"),
    }
    assert races_by_kernel(broken_library(tmp_path, changes), adversarial()["spiral"]) == {"label_join", "label_sums"}


FILLED = "const u32 height = inside ? f[(i64)y * W + x] : (u32)WALL;\n  __syncthreads();"
READ = "const int falls = least < tile[ty + 1][tx + 1];\n    __syncthreads();"


@pytest.mark.parametrize("barrier", [FILLED, READ], ids=["after_filling", "between_reading_and_writing"])
def test_a_lost_barrier_is_noticed(tmp_path: Path, kernel_library: ctypes.CDLL, barrier: str) -> None:
    """Without either barrier of the flood a thread meets what another of its block writes; states only fall, so that the
    result is mostly right all the same."""
    assert kernel_library is not None
    lost = broken_library(tmp_path, {"watershed.cu": (barrier, barrier.replace("__syncthreads();", ""))})
    assert races_by_kernel(lost, adversarial()["plateaus"]) == {"flood_round"}

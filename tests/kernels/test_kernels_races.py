"""Kernels share words only by atomics (or volatile accesses that the design allows), seen access by access."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

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


def test_a_lost_atomic_is_noticed(tmp_path: Path, kernel_library: ctypes.CDLL) -> None:
    """The detector itself: sums and joins without their atomics, which the results rarely show."""
    assert kernel_library is not None
    broken = {
        "measure.cu": ("atomicAdd(&area[k], end - x);", "area[k] += end - x;"),
        "label.cu": ("const int before = atomicMin(&root[high], low);", "const int before = high;\n    root[high] = low;"),
    }
    kernels = tmp_path / "kernels"
    shutil.copytree(kernel_folder(), kernels)
    for name, (right, wrong) in broken.items():
        text = (kernels / name).read_text()
        assert right in text
        (kernels / name).write_text(text.replace(right, wrong))
    library = ctypes.CDLL(str(build_watched(tmp_path, kernels)))
    races: dict[str, int] = {}
    with on_host(library, seed=3) as backend:
        launch = backend.launch

        def counted(name: str, *rest: object) -> None:
            before = library.race_count()
            launch(name, *rest)  # type: ignore[arg-type]
            races[name] = races.get(name, 0) + library.race_count() - before

        backend.launch = counted  # type: ignore[method-assign]
        separate(device_array(adversarial()["spiral"]), ALL_PARAMS["loose"])
    assert {name for name, n in races.items() if n} == {"label_join", "label_sums"}

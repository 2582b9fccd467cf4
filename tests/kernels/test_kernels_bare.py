"""What ``scripts/on_gpu.sh`` relies on: the GPU path needs NumPy alone, and its comparison finds what differs."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu_expectations import REINHARD, STAIN, answers
from benchmarks.gpu_stages import parity
from tests.kernels.host import device_array, on_host
from tests.kernels.parity import ALL_PARAMS
from tests.oracles.maps import adversarial
from wsiseg.normalize import normalize
from wsiseg.types import Stain

ROOT = Path(__file__).parents[2]
WITHOUT = ("numba", "torch", "scipy", "pyarrow", "openslide", "shapely", "dask", "zarr", "skimage", "pandas")
CODE = """
import ctypes, sys
sys.modules.update(dict.fromkeys({without!r}))  # importing any of them now fails
import numpy as np
from benchmarks import gpu_stages
from pathlib import Path
from tests.kernels.host import device_array, on_host
gpu_stages.EXPECTATIONS = Path({answers!r})
with on_host(ctypes.CDLL({library!r}), seed=2) as backend:
    wrong = gpu_stages.parity(gpu_stages.load_cases(), device_array, backend.to_host)
assert wrong == {{}}, wrong
"""


@pytest.fixture(scope="module")
def cases() -> dict[str, dict[str, np.ndarray]]:
    maps = adversarial()
    out = {name: answers(maps[name], ALL_PARAMS["loose"]) for name in ("bridge", "noise_65", "empty")}
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    out["stain"] = {"rgb": rgb, "params": np.array(STAIN), "out": normalize(rgb, Stain("macenko", STAIN))}
    out["stain"] |= {"reinhard": np.array(REINHARD), "reinhard_out": normalize(rgb, Stain("reinhard", REINHARD))}
    return out


def test_no_more_than_numpy_is_needed(
    tmp_path: Path, kernel_library: ctypes.CDLL, cases: dict[str, dict[str, np.ndarray]]
) -> None:
    path = tmp_path / "answers.npz"
    np.savez(path, **{f"{case}|{name}": values for case, parts in cases.items() for name, values in parts.items()})
    code = CODE.format(without=WITHOUT, answers=str(path), library=kernel_library._name)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


def test_differences_are_named(kernel_library: ctypes.CDLL, cases: dict[str, dict[str, np.ndarray]]) -> None:
    labels = cases["bridge"]["labels"].copy()
    labels[11, 12] += 1
    bad = {**cases, "bridge": {**cases["bridge"], "labels": labels}}
    with on_host(kernel_library) as backend:
        assert parity(bad, device_array, backend.to_host) == {"bridge": ["labels"]}

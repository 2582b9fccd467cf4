"""``wsiseg.backend.Backend`` on the host: kernels compiled by g++, arrays of a NumPy subclass that the doors recognize.

Stricter than a GPU: memory is filled with rubbish before use, has guard zones around it, and every argument's type must be the
one that the kernel's text names.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.backend import register_backend
from wsiseg.backend.source import KERNEL_FILES, kernel_folder

HERE = Path(__file__).parent
GUARD = 256
RUBBISH, FENCE = 0xCD, 0xA5
C_TYPES = {
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "i64": "int64",
    "int": "int32",
    "float": "float32",
}


class DeviceArray(np.ndarray):
    """Stands for memory that only kernels may touch."""


def build(folder: Path) -> Path:
    """Compile the kernels with the shim; return the library."""
    library = folder / "kernels.so"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fopenmp", f"-I{kernel_folder()}"]
    flags.append("-ffp-contract=off")  # as --fmad=false for the GPU
    subprocess.run(["g++", *flags, str(HERE / "host_entry.cpp"), "-o", str(library)], check=True, timeout=300)
    return library


def build_watched(folder: Path, kernels: Path) -> Path:
    """Compile the kernels so that ``races.cpp`` sees every memory access; return the library."""
    library, watched = folder / "watched.so", folder / "watched.o"
    flags = ["-std=c++17", "-O1", "-fPIC", f"-I{kernels}"]
    watch = ["-DFIND_RACES", "-fsanitize=thread", "--param", "tsan-distinguish-volatile=1", "-Wno-tsan", "-c"]
    subprocess.run(["g++", *flags, *watch, str(HERE / "host_entry.cpp"), "-o", str(watched)], check=True, timeout=300)
    subprocess.run(
        ["g++", *flags, "-shared", str(HERE / "races.cpp"), str(watched), "-o", str(library)], check=True, timeout=300
    )
    return library


def signatures() -> dict[str, list[str]]:
    """Return for each kernel the types of its parameters: ``uint16*`` for pointers, ``int`` for numbers."""
    out = {}
    for name in KERNEL_FILES:
        text = (kernel_folder() / name).read_text(encoding="utf-8")
        for kernel, parameters in re.findall(r"KERNEL (\w+)\(([^)]*)\)", text):
            kinds = [re.sub(r"\bconst\b|\w+$", "", p.strip()).replace(" ", "") for p in parameters.split(",")]
            out[kernel] = [C_TYPES[k[:-1]] + "*" if k.endswith("*") else k for k in kinds]
    return out


@dataclass
class HostBackend:
    """One schedule: ``seed`` 0 runs blocks and threads in order, others shuffle them; blocks are spread over ``os_threads``."""

    library: ctypes.CDLL
    seed: int = 0
    os_threads: int = 1
    launches: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    _kinds: dict[str, list[str]] = field(default_factory=signatures)
    _fenced: list[tuple[np.ndarray, int]] = field(default_factory=list)

    def empty(self, shape: int | Sequence[int], dtype: str) -> DeviceArray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * GUARD, RUBBISH, np.uint8)
        memory[:GUARD] = memory[GUARD + size :] = FENCE
        self._fenced.append((memory, size))
        return memory[GUARD : GUARD + size].view(dtype).reshape(shape).view(DeviceArray)

    def full(self, shape: int | Sequence[int], value: int, dtype: str) -> DeviceArray:
        out = self.empty(shape, dtype)
        out[...] = value
        return out

    def contiguous(self, array: DeviceArray) -> DeviceArray:
        assert type(array) is DeviceArray
        return np.ascontiguousarray(array).view(DeviceArray)

    def upload(self, array: np.ndarray) -> DeviceArray:
        assert type(array) is np.ndarray
        out = self.empty(array.shape, str(array.dtype))
        out[...] = array
        return out

    def kept(self, name: str, array: np.ndarray) -> DeviceArray:
        return self.upload(array)

    def to_host(self, array: DeviceArray) -> np.ndarray:
        assert type(array) is DeviceArray
        return np.array(array, copy=True, subok=False)

    def nonzero(self, flags: DeviceArray) -> DeviceArray:
        return self.upload(np.flatnonzero(self.to_host(flags)).astype(np.int32))

    def running_sum(self, array: DeviceArray) -> DeviceArray:
        return self.upload(np.cumsum(self.to_host(array), dtype=array.dtype))

    def launch(self, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> None:
        kinds = self._kinds[name]
        assert len(kinds) == len(args), f"{name}: {len(args)} arguments for {kinds}"
        assert 0 < np.prod(block) <= 1024
        assert all(0 < g < (2**31, 65536, 65536)[k] for k, g in enumerate(grid)), f"{name}: grid {grid}"
        values = []
        for k, (kind, arg) in enumerate(zip(kinds, args, strict=True)):
            if kind == "int":
                assert isinstance(arg, int), f"{name}: argument {k} is {arg!r}"
                assert -(2**31) <= arg < 2**31, f"{name}: argument {k} is {arg!r}"
                values.append(ctypes.c_int(arg))
            else:
                assert type(arg) is DeviceArray, f"{name}: argument {k} is no device array"
                assert arg.flags.c_contiguous, f"{name}: argument {k} is not in C order"
                assert f"{arg.dtype}*" == kind, f"{name}: argument {k} is {arg.dtype}, expected {kind}"
                values.append(ctypes.c_void_p(arg.ctypes.data))
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        size = (ctypes.c_uint * 6)(*grid, *[1] * (3 - len(grid)), *block, *[1] * (3 - len(block)))
        turn = sum(self.launches.values())
        self.launches[name] = self.launches.get(name, 0) + 1
        seed = self.seed * 1000003 + turn if self.seed else 0
        assert self.library.host_launch(name.encode(), size, ctypes.c_uint(seed % 2**32), self.os_threads, pointers) == 0, name

    def check_fences(self) -> None:
        """Fail if a kernel wrote outside its arrays."""
        for memory, size in self._fenced:
            assert (memory[:GUARD] == FENCE).all(), "written before an array"
            assert (memory[GUARD + size :] == FENCE).all(), "written behind an array"
        self._fenced.clear()


@contextmanager
def on_host(library: ctypes.CDLL, seed: int = 0, os_threads: int = 1) -> Iterator[HostBackend]:
    """Let the package's doors send ``DeviceArray`` values to the kernels under one schedule."""
    backend = HostBackend(library, seed, os_threads)
    register_backend(DeviceArray, lambda _: backend)
    yield backend
    backend.check_fences()


def device_array(array: np.ndarray) -> DeviceArray:
    return array.copy().view(DeviceArray)

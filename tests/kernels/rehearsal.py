"""The real CuPy on a GPU that is this host (``driver/stand_in.cpp``): its calls are real, its kernels are compiled by g++.

CuPy holds the CUDA runtime as a static library. Its functions are made to jump to the stand-in's of the same name, and the
driver library that CuPy loads is the stand-in too. What CuPy gives to NVRTC goes to g++ behind the tests' header instead. That
cannot be undone, so it is done in processes of their own.

Not rehearsed: CUB, which CuPy takes for sums where it can (machine code; here CuPy's own kernels take its place), cuDNN, and
all that PyTorch does on a GPU (``torch_stand_in.py`` does what its documentation says).
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DRIVER = HERE / "driver"
NOT_HERE = re.compile(r"^#include <cupy/(complex|atomics|math_constants)\.\w+>$", re.MULTILINE)
JUMP = b"\x48\xb8%b\xff\xe0"
"""x86-64: put an address into rax and go there."""


def build_driver(folder: Path) -> Path:
    """Compile the stand-in; a library of that name is what CuPy looks for."""
    library = folder / "libcuda.so.1"
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["g++", *flags, str(DRIVER / "stand_in.cpp"), "-o", str(library), "-ldl"], check=True, timeout=120)
    return library


class StandIn:
    """The GPU that CuPy sees, and what has happened on it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._functions: dict[int, Callable[[], None]] = {}
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda number: self._functions[number]())

    def seed(self, number: int) -> None:
        """Draw another order for what has none."""
        self._library.stand_in_seed(number)

    def waiting(self) -> int:
        """Return how many launches and copies wait for somebody to wait for them."""
        return int(self._library.stand_in_waiting())

    def number(self, stream: int) -> int:
        """Return a stream's number; 0: the default stream."""
        return int(self._library.stand_in_stream(ctypes.c_void_p(stream)))

    def log(self) -> list[list[str]]:
        """Return and forget what was asked of the driver, in its order: words of each line."""
        text = ctypes.create_string_buffer(1 << 20)
        assert self._library.stand_in_log(text, len(text)) == 0
        return [line.split() for line in text.value.decode().splitlines()]

    def allocate(self, n_bytes: int) -> int:
        """Take memory of the device; the pointer."""
        out = ctypes.c_void_p()
        if self._library.cudaMalloc(ctypes.byref(out), ctypes.c_size_t(n_bytes)) != 0:
            raise MemoryError(n_bytes)
        return int(out.value or 0)

    def create_stream(self) -> int:
        """Return a stream as PyTorch makes them: one that does not wait for the default stream."""
        out = ctypes.c_void_p()
        assert self._library.cudaStreamCreateWithFlags(ctypes.byref(out), 1) == 0
        return int(out.value or 0)

    def free(self, pointer: int) -> None:
        """Give memory back."""
        assert self._library.cudaFree(ctypes.c_void_p(pointer)) == 0

    @property
    def total_bytes(self) -> int:
        """Size of the device's memory."""
        return 8 << 30

    def free_bytes(self) -> int:
        """Return what is left of the device's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._library.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
        return free.value

    def call(self, stream: int, function: Callable[[], None]) -> None:
        """Put a function of the host behind what was launched on a stream."""
        self._library.stand_in_call(ctypes.c_void_p(stream), self._callback, ctypes.c_void_p(self._keep(function)))

    def _keep(self, function: Callable[[], None]) -> int:
        self._functions[len(self._functions) + 1] = function
        return len(self._functions)

    def synchronize(self, stream: int) -> None:
        """Wait for a stream."""
        self._library.cudaStreamSynchronize(ctypes.c_void_p(stream))


def install(folder: Path) -> StandIn:
    """Give this process's CuPy the stand-in for a GPU, and a kernel cache of its own."""
    library = ctypes.CDLL(str(build_driver(folder)), ctypes.RTLD_GLOBAL)
    runtime = importlib.import_module("cupy_backends.cuda.api.runtime")
    _redirect(str(runtime.__file__), library)
    compiler: Any = importlib.import_module("cupy.cuda.compiler")
    compiler._set_kernel_cache_backend(type(compiler._kernel_cache_backend)(str(folder / "cache")))
    compiler._get_nvrtc_version = lambda: (13, 0)
    compiler._preprocess = lambda *_: ""
    core: Any = importlib.import_module("cupy._core")
    core.set_routine_accelerators([])  # CUB's kernels are machine code already: CuPy's own take their place
    core.set_reduction_accelerators([])
    includes = Path(str(importlib.import_module("cupy").__file__)).parent / "_core" / "include"

    def compile_here(source: str, options: tuple[str, ...] = (), *_: Any) -> tuple[bytes, None]:
        return b"host:" + str(_compiled(source, folder, includes)).encode() + b"\0", None

    compiler._compile_using_nvrtc_no_warning = compile_here
    return StandIn(library)


def _redirect(path: str, library: ctypes.CDLL) -> None:
    """Make functions of the CUDA runtime inside a loaded library jump to the stand-in's."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    base = int(next(line for line in maps if line.endswith(path)).split("-")[0], 16)
    symbols = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    protect = ctypes.CDLL(None).mprotect
    for address, name in re.findall(r"^([0-9a-f]+) [tT] (cuda[A-Z]\w+)$", symbols, re.MULTILINE):
        at = base + int(address, 16)
        target = ctypes.cast(getattr(library, name, library.stand_in_missing), ctypes.c_void_p).value or 0
        assert protect(ctypes.c_void_p(at & ~4095), ctypes.c_size_t(8192), 7) == 0
        ctypes.memmove(at, JUMP % target.to_bytes(8, "little"), 12)


@cache
def _compiled(source: str, folder: Path, includes: Path) -> Path:
    """Compile a text of kernels for this host; return the library."""
    text = NOT_HERE.sub("", source)
    library = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        kernels = list(re.finditer(r'(?:KERNEL|extern "C" __global__ void) (\w+)\(', text))
        ends = [*(k.start() for k in kernels[1:]), len(text)]
        binds = [
            f"BIND({k.group(1)}, {'true' if '_sync' in text[k.start() : end] else 'false'})"
            for k, end in zip(kernels, ends, strict=True)
        ]
        unit = library.with_suffix(".cpp")
        unit.write_text(f'#include "{DRIVER / "cupy_host.h"}"\n{text}\n' + "\n".join(binds) + "\n")
        flags = ["-std=c++17", "-O1", "-w", "-fPIC", "-shared", "-ffp-contract=off", f"-I{includes}"]
        subprocess.run(["g++", *flags, str(unit), "-o", str(library)], check=True, timeout=120)
    return library

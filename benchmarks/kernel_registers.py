"""Registers, spilled bytes and memory of every kernel, as NVRTC compiles them with CuPy's options; no GPU is needed.

    python -m benchmarks.kernel_registers     # needs cuda-bindings and nvidia-cuda-nvrtc

Writes ``benchmarks/results/kernel_registers.json``: by architecture and kernel. ``threads_by_registers`` is how many threads a
multiprocessor's 65,536 registers allow, in whole warps, of at most 2048.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from benchmarks._machine import save
from wsiseg.backend.source import NVRTC_OPTIONS, kernel_source

ARCHITECTURES = (80, 90, 100)
CUPY_ADDS = ("-ftz=true",)
"""What CuPy 14 gives NVRTC besides our own options."""
WARP, MAX_THREADS, REGISTERS = 32, 2048, 65536


def compiled(architecture: int) -> tuple[bytes, str]:
    """Compile the kernels; return the machine code and the compiler's output."""
    from cuda.bindings import nvrtc

    _, program = nvrtc.nvrtcCreateProgram(kernel_source().encode(), b"wsiseg.cu", 0, [], [])
    options = [*NVRTC_OPTIONS, *CUPY_ADDS, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
    (error,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.decode(errors="replace").strip("\0 ")
    if error != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(text)
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    code = b" " * size
    nvrtc.nvrtcGetCUBIN(program, code)
    return code, text


def table(log: str) -> dict[str, dict[str, int]]:
    """Read the assembler's words on each kernel."""
    entry = re.compile(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    out = {}
    for name, stack, stores, loads, registers, rest in entry.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        by_warp = -(-int(registers) * WARP // 256) * 256  # the hardware gives registers to warps in units of 256
        out[name] = {
            "registers": int(registers),
            "spill_bytes": int(stores) + int(loads),
            "stack_bytes": int(stack),
            "shared_bytes": int(shared.group(1)) if shared else 0,
            "threads_by_registers": min(MAX_THREADS, REGISTERS // by_warp * WARP),
        }
    return dict(sorted(out.items()))


def version() -> str:
    """Return NVRTC's version."""
    from cuda.bindings import nvrtc

    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"


def main() -> int:
    """Compile, print, write; nonzero if a kernel spills."""
    found: dict[str, Any] = {}
    for architecture in ARCHITECTURES:
        found[f"sm_{architecture}"] = table(compiled(architecture)[1])
    spilling = [f"{a}: {k}" for a, kernels in found.items() for k, row in kernels.items() if row["spill_bytes"]]
    print(save("kernel_registers", {"command": "python -m benchmarks.kernel_registers", "nvrtc": version(), "kernels": found}))
    print("spills:", ", ".join(spilling) or "none")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())

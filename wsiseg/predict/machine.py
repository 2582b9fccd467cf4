"""What this machine computes fast: the precision that pays, memory that is kept, a report for the user."""

from __future__ import annotations

import ctypes
import shutil
import sys
import time
from functools import cache
from typing import Literal

import torch
from torch import nn

from wsiseg.errors import BackendUnavailableError

__all__ = ["Engine", "Precision", "device_report", "resolve_engine", "resolve_precision", "tune_malloc"]

Precision = Literal["fp32", "bf16", "int8"]
Engine = Literal["eager", "inductor", "graph"]


def resolve_precision(wanted: Literal["auto", "fp32", "bf16", "int8"], device: str, *, int8: bool = False) -> Precision:
    """Return the precision to compute in.

    ``auto`` is, on a CPU, int8 where the weights have it (``int8``) and the processor multiplies bytes natively (VNNI, AMX);
    else bf16 with native bf16 arithmetic (AMX or AVX512_BF16; in emulation it is up to 12 times slower); else fp32. On a GPU it
    is bf16, else fp32. It goes by what the processor is, not by a timing: two runs on one machine must agree, however busy it
    is. ``wsiseg doctor`` shows the gain.

    Raises
    ------
    BackendUnavailableError
        When ``device`` is ``cuda`` and there is none, or int8 is asked for and the device, the torch or the weights have none.
    """
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise BackendUnavailableError("device is cuda, but torch finds no CUDA device here. Use --device cpu.")
        if wanted == "int8":
            raise BackendUnavailableError("precision int8 runs on the CPU only. Use --precision bf16 with --device cuda.")
        if wanted == "auto":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
        return wanted
    if wanted == "int8" and not (int8 and _can_int8()):
        lacks = "this torch has no quantized convolution" if int8 else "these weights have no int8 ranges"
        raise BackendUnavailableError(f"precision is int8, but {lacks}. Use --precision bf16 or fp32.")
    if wanted == "auto":
        return "int8" if int8 and _can_int8() and _native_int8() else "bf16" if _native_bf16() else "fp32"
    return wanted


def resolve_engine(wanted: Literal["auto", "eager", "inductor", "graph"], precision: Precision, device: str) -> Engine:
    """Return how the network is run.

    ``auto`` on a CPU is torch's compiled and frozen graph (inductor) where the processor has AMX and a C++ compiler is there:
    on such a machine it is up to 1.3 times as fast as eager bf16 (``benchmarks/results/network_amx.json``), because it fuses
    activations and lays weights out once. Elsewhere it gains a few per cent, which its compilation (10 to 20 s a process) does
    not repay, so ``auto`` is eager. int8 is always eager: its convolutions are already fused. On a GPU ``auto`` is eager;
    ``graph`` (CUDA graphs) and ``inductor`` there are choices that ``benchmarks/gpu_stages.py`` times side by side.

    Raises
    ------
    BackendUnavailableError
        ``inductor`` is asked for with int8, or there is no C++ compiler; ``graph`` is asked for on a CPU.
    """
    if wanted == "graph" and not device.startswith("cuda"):
        raise BackendUnavailableError("engine graph records CUDA graphs, and the device is a CPU. Use --engine eager.")
    compiler = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    if wanted == "inductor" and not compiler:
        raise BackendUnavailableError("engine is inductor, which needs a C++ compiler (g++) at run time. Use --engine eager.")
    if precision == "int8":
        if wanted == "inductor":
            raise BackendUnavailableError("engine inductor does not run int8. Use --engine eager, or --precision bf16.")
        return "eager"
    if wanted != "auto":
        return wanted
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "inductor" if amx and compiler and precision == "bf16" and device == "cpu" else "eager"


def tune_malloc() -> bool:
    """Keep freed memory in this process; return whether the C library took it.

    glibc gives large blocks back to the system after every layer and faults them in again for the next, which costs up to
    half of the time on large windows. Call once at the start of a worker.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_* of malloc.h
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 256 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in settings)


def device_report() -> list[tuple[str, bool, str]]:
    """Return one (name, usable, detail) per way of computing, for ``wsiseg doctor``."""
    cpu = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    if _native_bf16():
        cpu += f", native bf16 ({_bf16_gain():.1f} times fp32)"
    else:
        cpu += ", no native bf16: fp32"
    cpu += ", native int8" if _native_int8() else ", no native int8"
    rows = [("device cpu", True, cpu)]
    if torch.cuda.is_available():
        rows += [(f"device cuda:{i}", True, torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    else:
        rows.append(("device cuda", False, "torch finds no CUDA device; the CPU is used"))
    return rows


def _can_int8() -> bool:
    return hasattr(torch.ops.onednn, "qconv2d_pointwise") and torch.backends.mkldnn.is_available()


def _native_int8() -> bool:
    """Whether bytes are multiplied and summed to 32 bits in one instruction; without it sums of pairs saturate at 16 bits."""
    return bool(getattr(torch.cpu, "_is_vnni_supported", lambda: False)())


def _native_bf16() -> bool:
    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


@cache
def _bf16_gain() -> float:
    """Time of a typical layer in fp32 over its time in bf16, the best of a few runs each; resolved once a process."""
    times: dict[torch.dtype, float] = {}
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            layer = nn.Conv2d(48, 48, 3, padding=1).to(dtype=dtype, memory_format=torch.channels_last)
            x = torch.zeros(1, 48, 128, 128, dtype=dtype).contiguous(memory_format=torch.channels_last)
            layer(x)
            best = float("inf")
            for _ in range(7):
                start = time.perf_counter()
                layer(x)
                best = min(best, time.perf_counter() - start)
            times[dtype] = best
    return times[torch.float32] / times[torch.bfloat16]

"""Choose precision, engine and memory settings for this machine, and report them to the user."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import sys
import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from wsiseg.errors import BackendUnavailableError
from wsiseg.predict.quantize import sums_are_exact

__all__ = [
    "Engine",
    "Precision",
    "cpu_has",
    "device_report",
    "processor_name",
    "resolve_engine",
    "resolve_precision",
    "tune_malloc",
]

Precision = Literal["fp32", "bf16", "int8"]
Engine = Literal["eager", "inductor", "graph"]
Feature = Literal["avx2", "avx512", "vnni", "bf16", "amx"]

_CAPS = {
    "avx2": ("AVX2", "AVX512", "AVX10"),
    "avx512": ("AVX512", "AVX10"),
    "vnni": ("VNNI", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AMX", "AVX10"),
    "bf16": ("AVX512_CORE_BF16", "AVX512_CORE_FP16", "AMX", "AVX10"),
    "amx": ("AMX",),
}
"""Texts that a value of ONEDNN_MAX_CPU_ISA must contain to allow a feature."""


def resolve_precision(wanted: Literal["auto", "fp32", "bf16", "int8"], device: str, *, int8: bool = False) -> Precision:
    """Return the precision to compute in.

    ``auto`` is, on a CPU, int8 if the weights have it (``int8``) and the processor multiplies bytes natively (VNNI, AMX);
    else bf16 with native bf16 arithmetic (AMX or AVX512_BF16; in emulation it is up to 12 times slower); else fp32. On a GPU it
    is bf16, else fp32. The choice depends on the processor, not on a timing, so that runs on one machine agree whatever its
    load. ``wsiseg doctor`` shows the gain. int8 can be requested on every processor where a test finds its sums exact: without
    VNNI it gives the same maps; with AVX2 alone it runs at a third to two thirds of the speed of fp32.

    Raises
    ------
    BackendUnavailableError
        ``device`` is ``cuda`` and there is none, or int8 is requested and the device, torch or the weights do not support it,
        or the processor would round its sums.
    """
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise BackendUnavailableError("device is cuda, but torch finds no CUDA device here. Use --device cpu.")
        if wanted == "int8":
            raise BackendUnavailableError("precision int8 runs on the CPU only. Use --precision bf16 with --device cuda.")
        if wanted == "auto":
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
        return wanted
    if wanted == "int8":
        lacks = _int8_obstacle() if int8 else "these weights have no int8 ranges"
        if lacks:
            raise BackendUnavailableError(f"precision is int8, but {lacks}. Use --precision bf16 or fp32.")
    if wanted == "auto":
        return "int8" if int8 and cpu_has("vnni") and not _int8_obstacle() else "bf16" if cpu_has("bf16") else "fp32"
    return wanted


def resolve_engine(wanted: Literal["auto", "eager", "inductor", "graph"], precision: Precision, device: str) -> Engine:
    """Return the engine that runs the network.

    ``auto`` on a CPU is torch's compiled and frozen graph (inductor) if the processor has AMX and a C++ compiler is installed:
    on such a machine it is up to 1.3 times as fast as eager bf16 (``benchmarks/results/network_amx.json``), because it fuses
    activations and arranges weights once. On others it gains a few per cent, less than its compilation costs (10 to 20 s per
    process), so ``auto`` is eager. int8 is always eager: its convolutions are already fused. On a GPU ``auto`` is ``graph``:
    windows of one size are recorded once per stream as a CUDA graph, the same kernels in the same order; if that fails the
    network runs eagerly. ``benchmarks/gpu_stages.py`` compares it with ``eager`` and ``inductor``.

    Raises
    ------
    BackendUnavailableError
        ``inductor`` is requested with int8, or there is no C++ compiler; ``graph`` is requested on a CPU.
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
    if device.startswith("cuda"):
        return "graph"
    return "inductor" if cpu_has("amx") and compiler and precision == "bf16" else "eager"


def tune_malloc() -> bool:
    """Make malloc keep freed memory in this process; return whether the C library accepted the setting.

    glibc returns large blocks to the system after every layer and faults them in again for the next, which costs up to half of
    the time on large windows. Call it once at the start of a worker.
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


def cpu_has(feature: Feature) -> bool:
    """Return whether this processor has a feature and oneDNN may use it: ONEDNN_MAX_CPU_ISA can forbid it.

    ``vnni`` means any instruction that multiplies bytes and sums to 32 bits, ``bf16`` bf16 dot products.
    """
    cap = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if cap not in ("", "ALL", "DEFAULT") and not any(part in cap for part in _CAPS[feature]):
        return False
    probes = {
        "avx2": ("_is_avx2_supported",),
        "avx512": ("_is_avx512_supported",),
        "vnni": ("_is_vnni_supported", "_is_amx_tile_supported"),
        "bf16": ("_is_avx512_bf16_supported", "_is_amx_tile_supported"),
        "amx": ("_is_amx_tile_supported",),
    }
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if feature == "vnni" and capabilities.get("avx_vnni"):
        return True  # the same instructions on processors without AVX-512
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes[feature])


def processor_name(device: str = "cpu") -> str:
    """Return the processor's name, the features of it that torch uses, and torch's version, for messages."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "no CUDA device"
        return f"{name} (torch {torch.__version__})"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    features: tuple[Feature, ...] = ("avx2", "avx512", "vnni", "bf16", "amx")
    used = " ".join(f.upper() for f in features if cpu_has(f)) or "no AVX2"
    capped = "" if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else ", ATen without AVX"
    return f"{name} ({used}{capped}; torch {torch.__version__})"


def device_report() -> list[tuple[str, bool, str]]:
    """Return (name, usable, detail) of each device and of int8, for ``wsiseg doctor``."""
    cpu = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    if cpu_has("bf16"):
        cpu += f", native bf16 ({_bf16_gain():.1f} times fp32)"
    else:
        cpu += ", no native bf16"
    rows = [("device cpu", True, f"{cpu}: auto is {resolve_precision('auto', 'cpu', int8=True)}"), _int8_report()]
    if torch.cuda.is_available():
        rows += [(f"device cuda:{i}", True, torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    else:
        rows.append(("device cuda", False, "torch finds no CUDA device; the CPU is used"))
    return rows


def _int8_report() -> tuple[str, bool, str]:
    obstacle = _int8_obstacle()
    if obstacle:
        return "int8", False, f"{obstacle}: a run in int8 refuses this machine"
    speed = "native, fast" if cpu_has("vnni") else "not native: slower than fp32 with AVX2 alone, for runs that must agree"
    return "int8", True, f"exact: the same maps as on other processors; {speed}"


def _int8_obstacle() -> str:
    """Return why int8 maps of this machine would differ from those of others; empty if they would not."""
    if not (hasattr(torch.ops.onednn, "qconv2d_pointwise") and torch.backends.mkldnn.is_available()):
        return "this torch has no quantized convolution"
    return "" if sums_are_exact() else f"this processor rounds its sums ({processor_name()})"


@cache
def _bf16_gain() -> float:
    """Return the time of a typical layer in fp32 divided by that in bf16, best of a few runs; measured once per process."""
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

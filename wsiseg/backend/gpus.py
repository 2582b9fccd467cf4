"""List the GPUs of this machine through the NVIDIA driver, without PyTorch or CuPy: fast, and using no GPU memory."""

from __future__ import annotations

import ctypes
import importlib.util
from typing import Any, NamedTuple

__all__ = ["DriverReport", "driver_report", "missing_packages"]

_LIBRARY = "libcuda.so.1"
_NAME_BYTES = 128
_MEANINGS = {100: ", no GPU is visible", 803: ", driver and its library differ in version"}


class DriverReport(NamedTuple):
    """Names and memory (bytes) of the visible GPUs in the driver's order; ``reason``: why there are none."""

    names: tuple[str, ...]
    memory_bytes: tuple[int, ...]
    reason: str


def driver_report() -> DriverReport:
    """Return the GPUs that the driver shows to this process (it applies ``CUDA_VISIBLE_DEVICES``)."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return DriverReport((), (), f"no NVIDIA driver here ({_LIBRARY} is missing)")
    code = driver.cuInit(0)
    if code != 0:
        return DriverReport((), (), f"the NVIDIA driver does not start: error {code}{_MEANINGS.get(code, '')}")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return DriverReport((), (), "the NVIDIA driver shows no GPU (is CUDA_VISIBLE_DEVICES empty?)")
    facts = [_facts(driver, k) for k in range(count.value)]
    return DriverReport(tuple(name for name, _ in facts), tuple(size for _, size in facts), "")


def missing_packages() -> str:
    """Return which packages for GPUs are not installed, and how to install them; empty if all are installed."""
    missing = [name for name in ("torch", "cupy") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)} (pip install 'wsiseg[gpu]')" if missing else ""


def _facts(driver: Any, number: int) -> tuple[str, int]:
    device, name, size = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES), ctypes.c_size_t()
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(size), device)
    return name.value.decode(errors="replace"), size.value

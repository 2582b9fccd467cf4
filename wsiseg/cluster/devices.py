"""Choose the CPU or GPUs of a run, and the number of workers and threads that share them."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache

from wsiseg.backend import device_number
from wsiseg.backend.gpus import driver_report, missing_packages
from wsiseg.config import RunConfig, ScheduleConfig
from wsiseg.errors import BackendUnavailableError, InputError
from wsiseg.log import log

__all__ = [
    "compute_device",
    "device_label",
    "gpu_environments",
    "gpu_obstacle",
    "on_device",
    "threads_of_worker",
    "workers_of_gpu",
]

MAX_THREADS = 16
"""Maximum number of tiles that a GPU worker computes at once; each needs 60 MB for its pixels, and more are not faster."""

MAX_WORKERS = 3
CORES_OF_WORKER, BYTES_OF_WORKER = 4, 16 * 2**30
"""Cores for reading and writing, and GPU memory for context, libraries and three tiles (3 GiB each with the installed network,
by ``wsiseg.predict.memory``), that each of several workers of a GPU needs."""


def compute_device(config: RunConfig) -> str:
    """Return the device of a run on this machine, ``cpu`` or ``cuda``, from ``schedule.device``."""
    if config.schedule.device != "auto":
        return config.schedule.device
    obstacle = gpu_obstacle()
    if obstacle and driver_report().names:
        log.warning("the GPU is not used: %s", obstacle)
    return "cpu" if obstacle else "cuda"


@cache
def gpu_obstacle() -> str:
    """Return why this machine cannot compute on a GPU; empty if it can.

    PyTorch and CuPy are tried in a separate process, because in this one they would occupy memory on the GPU.
    """
    driver = driver_report()
    reason = driver.reason or missing_packages()
    if reason:
        return reason
    code = "from wsiseg.predict.gpu import cuda_obstacle; print(cuda_obstacle())"
    try:
        asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "PyTorch and CuPy did not find the GPU within 120 s"
    lines = (asked.stdout if asked.returncode == 0 else asked.stderr).strip().splitlines()
    return lines[-1] if lines else ("" if asked.returncode == 0 else f"PyTorch or CuPy ended with {asked.returncode}")


def gpu_environments(config: ScheduleConfig, environment: Mapping[str, str] = os.environ) -> list[dict[str, str]]:
    """Return for each GPU worker the environment variables that restrict it to its own GPU, as number 0.

    Parameters
    ----------
    config
        ``gpus`` (numbers among the visible ones; empty: all) and ``workers_per_gpu`` (0: ``workers_of_gpu``).
    environment
        Environment of this process, whose ``CUDA_VISIBLE_DEVICES`` may restrict, renumber or name GPUs by UUID.

    Raises
    ------
    BackendUnavailableError
        The driver reports no GPU.
    InputError
        ``gpus`` has a number that the machine does not have.
    """
    driver = driver_report()
    n = len(driver.names)
    if n == 0:
        raise BackendUnavailableError(f"Expected a GPU for --device cuda: {driver.reason}. Use --device cpu.")
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    ids = [part.strip() for part in shown.split(",")][:n] if shown else [str(k) for k in range(n)]
    wanted = _wanted(config, n)
    wrong = [k for k in wanted if k >= n]
    if wrong:
        raise InputError(f"Expected --gpus to name GPUs 0 to {n - 1} ({', '.join(driver.names)}), got {config.gpus!r}.")
    return [{"CUDA_VISIBLE_DEVICES": ids[k]} for _ in range(workers_of_gpu(config, usable_cores())) for k in wanted]


def workers_of_gpu(config: ScheduleConfig, cores: int) -> int:
    """Return the number of workers that share each GPU of this machine: ``workers_per_gpu``, or if 0 the number that fits.

    Several processes are used because each has one interpreter lock for all its threads; the number that a GPU needs was
    estimated (docs/gpu.md), not measured.
    """
    if config.workers_per_gpu or config.dask_cuda:
        return config.workers_per_gpu or 1
    memory = driver_report().memory_bytes
    wanted = [k for k in _wanted(config, len(memory)) if k < len(memory)]
    if not wanted:
        return 1
    by_memory = min(memory[k] for k in wanted) // BYTES_OF_WORKER
    return max(1, min(MAX_WORKERS, by_memory, cores // len(wanted) // CORES_OF_WORKER))


def usable_cores() -> int:
    """Return the number of cores that this process may use; psutil is imported here because GPU machines may lack it."""
    from wsiseg.cluster import limits

    return limits.usable_cores()


def on_device(config: RunConfig, device: str) -> RunConfig:
    """Return the config of a run with the device of this machine and the number of workers per GPU."""
    schedule = config.schedule
    n = workers_of_gpu(schedule, usable_cores()) if device == "cuda" else schedule.workers_per_gpu
    schedule = dataclasses.replace(schedule, device=device, workers_per_gpu=n)  # type: ignore[arg-type]
    return dataclasses.replace(config, schedule=schedule)


def _wanted(config: ScheduleConfig, n: int) -> list[int]:
    return [int(part) for part in config.gpus.split(",")] if config.gpus else list(range(n))


def device_label(device: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the name of a GPU in messages, the same in every process of this machine; empty for the CPU.

    It is the number of the GPU, or its name in ``CUDA_VISIBLE_DEVICES`` if that variable restricts the process.
    """
    if device == "cpu":
        return ""
    number = device_number(device)
    shown = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    return f"GPU {shown[number] if number < len(shown) else number}"


def threads_of_worker(config: ScheduleConfig, device: str, n_workers: int, cores: int) -> int:
    """Return the number of tiles that a worker computes at once."""
    if config.threads_per_worker:
        return config.threads_per_worker
    return 1 if device == "cpu" else max(2, min(MAX_THREADS, cores // n_workers))

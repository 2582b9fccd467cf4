"""Start one or several worker processes for each GPU; each is restricted to its GPU before its imports."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from distributed import Nanny, Scheduler, SpecCluster

from wsiseg.cluster.devices import gpu_environments, threads_of_worker
from wsiseg.config import ScheduleConfig
from wsiseg.errors import InputError

__all__ = ["gpu_cluster"]

_HOST = "127.0.0.1"
_NO_DASHBOARD = {"dashboard": False, "dashboard_address": f"{_HOST}:0"}


def gpu_cluster(config: ScheduleConfig, cores: int) -> Any:
    """Return a Dask cluster on this machine's GPUs, of dask-cuda if ``schedule.dask_cuda`` is set.

    Raises
    ------
    BackendUnavailableError, InputError
        As for ``wsiseg.cluster.devices.gpu_environments``, or dask-cuda cannot be used.
    """
    environments = gpu_environments(config)
    threads = threads_of_worker(config, "cuda", len(environments), cores)
    if config.dask_cuda:
        if config.workers_per_gpu > 1 or importlib.util.find_spec("dask_cuda") is None:
            raise InputError("schedule.dask_cuda needs the package dask-cuda and one worker per GPU (--workers-per-gpu 1).")
        return _dask_cuda(environments, threads)
    workers = {
        k: {"cls": Nanny, "options": {"nthreads": threads, "env": env, "host": _HOST, "memory_limit": 0, "dashboard": False}}
        for k, env in enumerate(environments)
    }
    scheduler = {"cls": Scheduler, "options": {"host": _HOST, "port": 0, **_NO_DASHBOARD}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50)


def _dask_cuda(environments: list[dict[str, str]], threads: int) -> Any:
    """Return dask-cuda's cluster, which also binds workers to the cores near their GPU; memory limits are set by wsiseg."""
    return importlib.import_module("dask_cuda").LocalCUDACluster(
        CUDA_VISIBLE_DEVICES=[env["CUDA_VISIBLE_DEVICES"] for env in environments],
        threads_per_worker=threads,
        memory_limit=0,
        device_memory_limit=0,
        host=_HOST,
        scheduler_kwargs=_NO_DASHBOARD,
        silence_logs=50,
    )

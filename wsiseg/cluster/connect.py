"""Connect to a Dask scheduler, or start a local Dask cluster."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, LocalCluster

from wsiseg.cluster.exits import record_ends
from wsiseg.cluster.gpu_workers import gpu_cluster
from wsiseg.cluster.limits import usable_cores
from wsiseg.cluster.placement import place
from wsiseg.cluster.remote import QUIET_DASK, connect_remote
from wsiseg.config import RunConfig
from wsiseg.log import log

__all__ = ["connect"]


@contextlib.contextmanager
def connect(config: RunConfig) -> Iterator[Client]:
    """Yield a Dask client of ``schedule.scheduler``, or of a local cluster with a process per core or (``device`` cuda) GPU.

    On the CPU each process has one thread, because the stages of torch and numba scale with processes, and only one tile is
    lost if a process ends.
    """
    for name in ("", ".nanny", ".worker", ".scheduler", ".core", ".client", ".batched", ".comm"):
        # Dask's messages about workers are not for the user; failures are reported as outcomes
        logging.getLogger(f"distributed{name}").setLevel(logging.CRITICAL)
    if config.schedule.remote:
        with connect_remote(config.schedule) as client:
            yield client
        return
    settings = {
        "distributed.worker.memory.target": False,  # tiles keep no data in Dask, so there is nothing to spill
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.scheduler.allowed-failures": 0,  # the client counts failures itself
        "distributed.comm.timeouts.connect": "60s",
        # otherwise Dask closes a nanny this long after its worker ended, if the next worker has ended or is starting by then
        "distributed.deploy.lost-worker-timeout": "3650 days",
        **QUIET_DASK,
        # one thread per process, before torch and numba start in it
        "distributed.nanny.pre-spawn-environ": {
            "OMP_NUM_THREADS": 1,
            "MKL_NUM_THREADS": 1,
            "OPENBLAS_NUM_THREADS": 1,
            "NUMBA_NUM_THREADS": 1,
            "MALLOC_TRIM_THRESHOLD_": 2147483647,
        },
    }
    with dask.config.set(settings), record_ends(), contextlib.ExitStack() as stack:
        with _interrupts_held():
            cluster = stack.enter_context(_cluster(config))
        yield stack.enter_context(Client(cluster, set_as_default=False))


def _cluster(config: RunConfig) -> Any:
    placement = place(config)
    if placement.device == "cuda":
        return gpu_cluster(config.schedule, usable_cores())
    if placement.note:
        log.warning("%s", placement.note)
    return LocalCluster(
        n_workers=placement.workers,
        threads_per_worker=placement.threads_per_worker,
        processes=True,
        # no dashboard: a second run on the machine would warn that its port, 8787, is in use
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
        host="127.0.0.1",
        memory_limit=0,
    )


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Block Ctrl-C in this thread until the block ends; threads and processes started in it never receive it.

    A terminal sends Ctrl-C to every process, so workers would end with tracebacks instead of being closed by the client.
    """
    resource_tracker.ensure_running()  # if it were started later, it would unblock Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""Dask: a local cluster or an existing one, and what every worker holds."""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import os
import signal
import uuid
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, LocalCluster, Worker, WorkerPlugin, get_worker

from wsiseg.config import RunConfig
from wsiseg.errors import InputError
from wsiseg.run.context import WorkerContext
from wsiseg.run.folder import RunFolder

__all__ = ["WorkerSetup", "connect", "usable_cores", "worker_context"]


def usable_cores() -> int:
    """Return the cores that this process may really use (affinity and container limits, not the machine's total)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@contextlib.contextmanager
def connect(config: RunConfig) -> Iterator[Client]:
    """Yield a Dask client: of ``schedule.scheduler``, or of a local cluster with one single-threaded process per core.

    One process a core, one thread each: torch and numba stages scale by processes, and a dead worker loses one tile.
    """
    if config.schedule.scheduler:
        try:
            client = Client(config.schedule.scheduler, timeout="20s", set_as_default=False)
        except (OSError, TimeoutError, ValueError) as err:
            raise InputError(
                f"No Dask scheduler answers at {config.schedule.scheduler!r} ({err}). Start one with 'dask scheduler', "
                "or leave --scheduler away to use this machine."
            ) from err
        with client:
            yield client
        return
    n_workers = config.schedule.workers or usable_cores()
    for name in ("distributed", "distributed.nanny", "distributed.worker", "distributed.scheduler", "distributed.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its comings and goings are not the user's; failures are outcomes
    settings = {
        "distributed.worker.memory.target": False,  # tiles leave nothing in Dask's store: its spilling has nothing to do
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.memory.terminate": False,
        "distributed.scheduler.allowed-failures": config.schedule.retries,
        "distributed.comm.timeouts.connect": "60s",
        # one thread per process, before torch and numba start in it
        "distributed.nanny.pre-spawn-environ": {
            "OMP_NUM_THREADS": 1,
            "MKL_NUM_THREADS": 1,
            "OPENBLAS_NUM_THREADS": 1,
            "NUMBA_NUM_THREADS": 1,
            "MALLOC_TRIM_THRESHOLD_": 2147483647,
        },
    }
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        with _interrupts_held():
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=n_workers,
                    threads_per_worker=1,
                    processes=True,
                    # no dashboard; its port else would be 8787, and a second run on the machine would complain of the first
                    scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
                    silence_logs=50,
                    host="127.0.0.1",
                    memory_limit=0,
                )
            )
        yield stack.enter_context(Client(cluster, set_as_default=False))


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C in this thread until the block ends; threads and processes started in it never see one.

    A terminal sends Ctrl-C to every process: workers would die with tracebacks instead of being closed by the client.
    """
    resource_tracker.ensure_running()  # its start, with the first process otherwise, would let Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class WorkerSetup(WorkerPlugin):
    """Gives every worker, also one that is restarted or joins later, the context of this run.

    Its name is its own: runs of one config into two folders may share a cluster, at once or one after the other.
    """

    def __init__(self, folder: str, config: RunConfig, digest: str, device: str) -> None:
        self.name = f"wsiseg-{uuid.uuid4().hex}"
        self._args = (folder, config, digest, device)
        self.context: WorkerContext | None = None

    def setup(self, worker: Worker) -> None:
        """Make the (still closed) context in the worker process."""
        from pathlib import Path

        # Python collects garbage once more at exit: half a second over torch's objects, for nothing. On a busy machine Dask
        # would run out of patience and kill the worker.
        atexit.register(gc.freeze)
        folder, config, digest, device = self._args
        self.context = WorkerContext(RunFolder(Path(folder)), config, digest, device)

    def teardown(self, worker: Worker) -> None:
        """Close handles when the worker leaves or the run ends."""
        if self.context is not None:
            self.context.close()
            self.context = None


def worker_context(setup: str) -> WorkerContext:
    """Return this worker's context of a run by the name of its ``WorkerSetup`` (called inside a task)."""
    plugin: Any = get_worker().plugins[setup]
    context: WorkerContext | None = plugin.context
    if context is None:
        raise RuntimeError(f"worker setup {setup} is gone")
    return context

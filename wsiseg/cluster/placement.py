"""How a run is placed on this machine: device, workers, tiles at once. ``segment``, ``plan`` and ``doctor`` ask here alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsiseg.cluster.devices import compute_device, gpu_environments, threads_of_worker
from wsiseg.cluster.limits import default_workers, usable_cores
from wsiseg.config import RunConfig

__all__ = ["Placement", "place"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, worker processes, and tiles that each processes at once; ``note`` says why there are fewer than one a core."""

    device: Literal["cpu", "cuda"]
    workers: int
    threads_per_worker: int
    note: str = ""


def place(config: RunConfig) -> Placement:
    """Return how a run with this config is placed here.

    Raises
    ------
    BackendUnavailableError, InputError
        A GPU is asked for that is not there.
    """
    schedule = config.schedule
    if compute_device(config) == "cuda":
        workers = len(gpu_environments(schedule))
        return Placement("cuda", workers, threads_of_worker(schedule, "cuda", workers, usable_cores()))
    workers, note = default_workers(schedule.workers)
    return Placement("cpu", workers, threads_of_worker(schedule, "cpu", workers, usable_cores()), note)

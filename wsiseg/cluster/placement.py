"""Choose device, workers and tiles at once of a run on this machine; used by ``segment``, ``plan`` and ``doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wsiseg.cluster.devices import compute_device, gpu_environments, threads_of_worker
from wsiseg.cluster.limits import default_workers, usable_cores
from wsiseg.config import RunConfig

__all__ = ["Placement", "place"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, number of worker processes, and tiles that each computes at once.

    ``note`` is the reason if there is less than one worker per core, else empty.
    """

    device: Literal["cpu", "cuda"]
    workers: int
    threads_per_worker: int
    note: str = ""


def place(config: RunConfig) -> Placement:
    """Return the placement of a run with this config on this machine.

    Raises
    ------
    BackendUnavailableError, InputError
        The config requests a GPU that is not available.
    """
    schedule = config.schedule
    if compute_device(config) == "cuda":
        workers = len(gpu_environments(schedule))
        return Placement("cuda", workers, threads_of_worker(schedule, "cuda", workers, usable_cores()))
    workers, note = default_workers(schedule.workers)
    return Placement("cpu", workers, threads_of_worker(schedule, "cpu", workers, usable_cores()), note)

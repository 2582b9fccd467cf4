"""Distribute pieces of work over the workers of a config: in this process, on this machine's cores, or on a cluster."""

from __future__ import annotations

import dataclasses
import itertools
import queue
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from distributed import Client, KilledWorker
from distributed.client import Future

from wsiseg.cluster.connect import connect
from wsiseg.cluster.limits import default_workers
from wsiseg.cluster.remote import fitting_workers
from wsiseg.config import RunConfig
from wsiseg.errors import SchedulerLostError, WorkersLostError, one_line
from wsiseg.log import log

__all__ = ["spread"]

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 2
"""Pieces per thread of a worker: one in progress and one waiting."""

LOOK_S = 2.0


def spread(function: Callable[[T], R], pieces: Iterable[T], config: RunConfig, *, here: bool = False) -> Iterator[tuple[T, R]]:
    """Yield every piece of work with its result, as they finish; at most two pieces per thread are submitted at a time.

    Parameters
    ----------
    function
        A pure function that the workers can import; if a worker ends, its piece is computed again. An exception in it is raised
        here.
    pieces
        Read one at a time as workers become free.
    config
        Its ``schedule`` sets the workers; no GPU is used.
    here
        Compute in this process if ``config`` names no scheduler, since starting workers takes seconds.

    Raises
    ------
    WorkersLostError
        A piece was lost ``schedule.retries`` + 1 times because its worker ended.
    SchedulerLostError
        The connection to the scheduler is lost.
    """
    schedule = config.schedule
    if not schedule.remote and (here or default_workers(schedule.workers)[0] <= 1):
        for piece in pieces:
            yield piece, function(piece)
        return
    local = dataclasses.replace(config, schedule=dataclasses.replace(schedule, device="cpu"))
    with connect(config if schedule.remote else local) as client:
        allowed = {"workers": fitting_workers(client)} if schedule.remote else {}
        yield from _handed_out(function, iter(pieces), client, allowed, schedule.retries)


def _handed_out(
    function: Callable[[T], R], pieces: Iterator[T], client: Client, allowed: dict[str, Any], retries: int
) -> Iterator[tuple[T, R]]:
    again: list[tuple[T, int]] = []  # lost pieces, and how often each was lost
    out: dict[Future, tuple[T, int]] = {}
    ready: queue.SimpleQueue[Future] = queue.SimpleQueue()
    left = True
    while left or again or out:
        if client.status != "running":
            raise SchedulerLostError(
                f"The Dask scheduler is gone (connection {client.status}). What is done is kept: start a scheduler and run the "
                "same command again."
            )
        room = IN_FLIGHT * max(1, sum(client.nthreads().values())) - len(out)
        fresh = [(piece, 0) for piece in itertools.islice(pieces, max(0, room - len(again)))] if left else []
        left = left and len(fresh) == max(0, room - len(again))
        for piece, lost in [*again, *fresh]:
            future = client.submit(function, piece, pure=False, **allowed)
            out[future] = piece, lost
            future.add_done_callback(ready.put)
        again = []
        try:
            future = ready.get(timeout=LOOK_S)
        except queue.Empty:
            continue
        piece, lost = out.pop(future)
        error = future.exception()
        if isinstance(error, KilledWorker) or future.cancelled():
            if lost == retries:
                raise WorkersLostError(
                    f"A piece of work was lost {lost + 1} times with the worker that did it "
                    f"({one_line(error) if error else 'cancelled'}). If memory is short, use fewer --workers."
                )
            log.warning("a worker was lost during its work (%s); trying again", one_line(error) if error else "cancelled")
            again.append((piece, lost + 1))
            continue
        yield piece, future.result()

"""Calls done by processes, their results in the order of the calls, with few of them held at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

__all__ = ["in_order", "worker_pool"]

Call = TypeVar("Call")
Result = TypeVar("Result")

AHEAD_PER_WORKER = 2
"""Calls given to a worker before the result of the first is taken."""


@contextmanager
def worker_pool(workers: int) -> Iterator[Executor | None]:
    """Give a pool of processes; None for one worker, which is this process."""
    if workers <= 1:
        yield None
        return
    # spawn: a forked child would share thread pools of this process
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(
    function: Callable[[Call], Result], calls: Iterable[Call], pool: Executor | None, workers: int
) -> Iterator[Result]:
    """Yield ``function(call)`` of each call, in order; with a pool, at most ``AHEAD_PER_WORKER`` calls a worker are waiting."""
    if pool is None:
        yield from map(function, calls)
        return
    waiting: deque[Future[Result]] = deque()
    for call in calls:
        waiting.append(pool.submit(function, call))
        if len(waiting) >= AHEAD_PER_WORKER * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

"""Slides at addresses (URLs) in a run: its lanes, and the task that fetches a slide while the worker computes tiles."""

from __future__ import annotations

import dataclasses
import errno
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distributed import Status, get_worker, secede

from wsiseg.config import RunConfig
from wsiseg.errors import FetchError, WsisegError, one_line
from wsiseg.fetch import FetchStopped, fetch_to_staging, is_address, shown, staged_sizes
from wsiseg.fetch.staged import NoSpace
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import fetch_options, fetch_root
from wsiseg.results.remote import level_chooser
from wsiseg.results.slide_input import SlideInput, wanted_of
from wsiseg.results.staging import drop_staged
from wsiseg.run.failures import Failure, failure_kind
from wsiseg.run.feed import Feeder
from wsiseg.run.finish import finished_row
from wsiseg.run.lanes import FetchOrder, Lanes
from wsiseg.run.tasks import Answer
from wsiseg.run.worker import at_work
from wsiseg.run.worker_pool import FETCH_WAITS, WorkerPool

__all__ = ["FetchDone", "fetch_task", "lanes_of"]

_TURN = threading.Lock()
"""Held by the fetch that starts byte ranges. A host's fetches run in one process; the next starts when the last range of the
one before has started."""


@dataclass(frozen=True, slots=True)
class FetchDone:
    """Result of a fetch: the slide's size, the bytes that were transferred now, and the seconds it took.

    If ``no_room``, the slide was not fetched because the staging folder has less than ``size_bytes`` left.
    """

    size_bytes: int
    new_bytes: int = 0
    seconds: float = 0.0
    no_room: bool = False


def fetch_task(order: FetchOrder, setup: str, mpp_model: float) -> Answer:
    """Fetch a slide into this host's staging folder; return ``FetchDone``, or ``Failure`` with the address and the reason.

    The task secedes from the worker's thread pool at once, so it does not delay tiles.
    """
    worker = get_worker()
    context, _ = at_work(setup)
    secede()
    want = wanted_of(order.slide)
    assert want is not None
    root = fetch_root(context.config)
    start = time.perf_counter()

    def tell(text: str) -> None:
        worker.log_event(setup, {FETCH_WAITS: f"slide {order.slide.slide_id}: {text}"})

    result: FetchDone | Failure
    try:
        for slide_id in order.drop:
            if not context.config.schedule.keep_staged:
                drop_staged(root, slide_id)
        before = staged_sizes(root).get(order.slide.slide_id, 0)
        held = fetch_to_staging(
            want,
            order.slide.slide_id,
            root,
            dataclasses.replace(fetch_options(context.config), on_wait=tell),
            choose=level_chooser(mpp_model),
            room_bytes=order.room_bytes,
            way=(_TURN, lambda: worker.status in (Status.closing, Status.closed)),
        )
        result = FetchDone(held.size_bytes, max(0, held.size_bytes - before), time.perf_counter() - start)
    except NoSpace as err:
        result = FetchDone(err.size_bytes, no_room=True)
    except FetchStopped:
        raise InterruptedError("the worker is shutting down") from None
    except OSError as err:
        full = err.errno in (errno.ENOSPC, errno.EDQUOT)
        why = f"the staging folder {root} is full (see --stage, --stage-gb)" if full else one_line(err)
        kind = "fact" if full else failure_kind(err) or "fact"
        result = Failure(one_line(FetchError(f"{shown(want.address)}: {why}")), kind)
    except WsisegError as err:
        result = Failure(one_line(err)[:2000], "fact")
    if isinstance(result, Failure):
        drop_staged(root, order.slide.slide_id)
    return Answer(worker.address, result)


def lanes_of(slides: Sequence[SlideInput], pool: WorkerPool, folder: RunFolder, digest: str, config: RunConfig) -> Lanes:
    """Return the lanes of a run's slides, with what hosts still have staged from an earlier run."""
    schedule = config.schedule
    remote = [s for s in slides if is_address(s.path)]
    staged: dict[str, dict[str, int]] = {}
    if remote:
        where = pool.hosts.where
        asked = [pool.first_of(h) for h in sorted({where(a)[0] for a in pool.accepted})]
        found = pool.client.run(_staged_here, config, workers=asked, on_error="ignore")
        staged = {where(address)[0]: held for address, held in found.items()}

    def make(some: Iterable[SlideInput]) -> Feeder:
        return Feeder(some, limit=1, retries=schedule.retries, in_flight=schedule.in_flight_per_worker, task_s=schedule.task_s)

    def finished(slide: SlideInput) -> bool:
        try:
            return finished_row(folder, slide, digest) is not None
        except (WsisegError, OSError):
            return False  # preparing it will report the error

    local = [s for s in slides if not is_address(s.path)]
    return Lanes((local, remote), make, int(schedule.stage_gb * 1e9), staged, finished, one_host=not schedule.remote)


def _staged_here(config: RunConfig) -> dict[str, int]:
    return staged_sizes(fetch_root(config))

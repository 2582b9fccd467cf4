"""Decide which slide is fetched next and by which host: a state machine that does not depend on Dask.

Slides at addresses are fetched once per run, not once per host: one host fetches a slide and computes its tiles. So every host
has a *lane*: a feeder (``wsiseg.run.feed``) for the slides on its disk. Slides on shared storage are in the lane ``""``, whose
tasks any worker may run.

A host fetches slides in advance up to the limit of its staging folder. At the end of a run, an idle host takes over a slide of
a host with much work left, or shares one. Only then is a slide fetched twice, for at most ``MAX_COPIED_FRAC`` of the cohort's
bytes (without that limit if there are no more slides than hosts).
"""

from __future__ import annotations

import dataclasses
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from wsiseg.results.slide_input import SlideInput
from wsiseg.run.feed import Feeder

__all__ = ["FetchOrder", "Lane", "Lanes"]

FETCHING = 2
"""Maximum number of slides that a host fetches at a time: the second starts when the last range of the first has started."""

AHEAD = 4
"""Maximum number of fetched slides that wait on one of several hosts; hosts that connect later could not compute them."""

GONE_S = 120.0
"""If a host has no worker for this long, s, its slides go to another host. Restarting a worker takes less."""

MAX_COPIED_FRAC = 0.1
COPY_PAYS = 2.0
"""A slide is fetched a second time only if its remaining work takes at least this many times as long as fetching it."""


@dataclass(frozen=True, slots=True)
class FetchOrder:
    """An order to one host to remove the slides ``drop`` and fetch ``slide``, if it has at most ``room_bytes``.

    ``copy``: another host has already fetched it. ``share``: that host also continues with its tiles.
    """

    slide: SlideInput
    host: str
    room_bytes: int
    drop: tuple[str, ...] = ()
    copy: bool = False
    share: bool = False


@dataclass(slots=True)
class Lane:
    """A feeder and the hosts that have copies of its slides (none: any host)."""

    feeder: Feeder
    hosts: set[str] = field(default_factory=set)


class Lanes:
    """The lanes of a run, the slides still to be fetched, and the slides staged on each host.

    Parameters
    ----------
    local, remote
        Slides that need no fetching, and slides that do, in processing order.
    make_feeder
        Function that makes a feeder for slides.
    bound_bytes
        Maximum size of the unfinished slides on one host.
    staged
        What hosts have staged from an earlier run: for each host, bytes by slide id, of whole or partly fetched slides.
    done_before
        Function that returns whether an earlier run finished a slide; such a slide is prepared (which finds its row) and not
        fetched.
    one_host
        No other host will connect, so the number of slides that wait on this one is not limited.
    """

    def __init__(
        self,
        slides: tuple[Iterable[SlideInput], Iterable[SlideInput]],
        make_feeder: Callable[[Iterable[SlideInput]], Feeder],
        bound_bytes: int,
        staged: Mapping[str, Mapping[str, int]] | None = None,
        done_before: Callable[[SlideInput], bool] = lambda slide: False,
        *,
        one_host: bool = False,
    ) -> None:
        local, remote = slides
        self._make = make_feeder
        self.base = Lane(make_feeder(local))
        self._lanes: dict[str, Lane] = {}
        self._queue = OrderedDict((s.slide_id, s) for s in remote)
        self._inputs = dict(self._queue)
        self._bound = bound_bytes
        self._done_before = done_before
        self._one_host = one_host
        self.size: dict[str, int] = {s.slide_id: s.size_bytes for s in self._inputs.values() if s.size_bytes}
        self.holders: dict[str, set[str]] = {}
        self._threads: dict[str, int] = {}
        self._seen_s: dict[str, float] = {}
        self._used: Counter[str] = Counter()
        self._unclaimed: dict[str, dict[str, int]] = {h: dict(found) for h, found in (staged or {}).items()}
        self._fetching: dict[tuple[str, str], FetchOrder] = {}
        self._under_way: Counter[str] = Counter()
        self._not_done = ""  # first slide of the queue, if it is known to be unfinished
        self._unknown: set[str] = set()
        self._lane_of: dict[str, Lane] = {}
        self._drop: dict[str, list[str]] = {}
        self.fetched_bytes = self.copied_bytes = 0
        self._seconds = 0.0
        self.refused: list[tuple[SlideInput, str]] = []
        """Slides that are larger than the staging folder, with the reason; the caller records them as failed."""

    def __iter__(self) -> Iterator[Lane]:
        """Yield all lanes."""
        yield self.base
        yield from list(self._lanes.values())

    def done(self) -> bool:
        """Return whether nothing is left to fetch and no task is waiting or in flight."""
        return not (self._queue or self._fetching or self.refused) and all(lane.feeder.done() for lane in self)

    def lane_of(self, slide_id: str) -> Lane:
        """Return the lane in which a slide is."""
        return self._lane_of.get(slide_id, self.base)

    def set_hosts(self, threads: Mapping[str, int], in_flight: int, now_s: float = 0.0) -> None:
        """Set the number of tiles that each connected host computes at once, and with it the limits of the feeders."""
        self._threads = {h: n for h, n in threads.items() if n > 0}
        for host in self._threads:
            self._lanes.setdefault(host, Lane(self._make(()), {host}))
            self._seen_s[host] = now_s
        for lane in self._lanes.values():
            gone = self._threads and all(now_s - self._seen_s[h] > GONE_S for h in lane.hosts)
            if gone and not lane.feeder.done():
                lane.hosts = {min(self._threads, key=self._backlog)}  # another host fetches the slides again
        self.base.feeder.limit = max(1, sum(threads.values())) * in_flight
        for lane in self._lanes.values():
            lane.feeder.limit = max(1, sum(self._threads.get(h, 0) for h in lane.hosts)) * in_flight

    def working(self) -> Iterator[Lane]:
        """Yield the lanes whose tasks can be run now."""
        yield from (lane for lane in self if lane is self.base or lane.hosts & self._threads.keys())

    def places(self, slide_id: str) -> frozenset[str]:
        """Return the connected hosts that have a slide staged; empty: any host may compute it, and fetches it if necessary."""
        held = self.holders.get(slide_id, set())
        lane = self._lane_of.get(slide_id)
        return frozenset((held & self._threads.keys()) or (lane.hosts & self._threads.keys() if lane else ()))

    def next_fetch(self) -> FetchOrder | None:
        """Return the next slide to fetch, and on which host; ``None`` while no host can."""
        self._skip_finished()
        hosts = sorted((h for h in self._threads if self._may_fetch(h)), key=self._backlog)
        if not hosts or not self._queue:
            return self._copy_for_idle(hosts)
        for host in hosts:
            slide = self._next_for(host)
            order = self._order(FetchOrder(slide, host, 0)) if slide else None
            if slide and order is not None:
                del self._queue[slide.slide_id]
                return order
            if self.refused:
                return None
        return None

    def _skip_finished(self) -> None:
        """Move finished slides from the start of the queue to the lane of slides that need no fetching."""
        while self._queue:
            slide_id, slide = next(iter(self._queue.items()))
            if slide_id == self._not_done:
                return
            if not self._done_before(slide):
                self._not_done = slide_id
                return
            self.base.feeder.add(self._queue.pop(slide_id))

    def _next_for(self, host: str) -> SlideInput | None:
        """Return the next slide for a host to fetch: one that it has staged already, else the first that no host has."""
        for slide_id in [i for i in self._unclaimed.get(host, ()) if i in self._queue]:
            if not self._done_before(self._queue[slide_id]):
                return self._queue[slide_id]
            self.base.feeder.add(self._queue.pop(slide_id))  # its staged bytes are then removed
        elsewhere = {i for h, found in self._unclaimed.items() if h in self._threads for i in found}
        free = next((s for i, s in self._queue.items() if i not in elsewhere), None)
        idle = not self._under_way[host] and self._lanes[host].feeder.done()
        return free or (next(iter(self._queue.values())) if idle else None)

    def _may_fetch(self, host: str) -> bool:
        under_way = self._under_way[host]
        waiting = under_way + self._lanes[host].feeder.n_waiting_slides
        return under_way < FETCHING and host not in self._unknown and (self._one_host or waiting < AHEAD)

    def _order(self, order: FetchOrder) -> FetchOrder | None:
        """Reserve space for an order and return it with ``room_bytes``; None if there is no space now.

        A slide larger than the limit is added to ``refused``.
        """
        slide_id, host = order.slide.slide_id, order.host
        size = self.size.get(slide_id, 0)
        if size > self._bound:
            del self._queue[slide_id]
            need, bound = f"{size / 1e9:.3f}", f"{self._bound / 1e9:.3f}"
            self.refused.append((order.slide, f"{need} GB exceed the limit of the staging folder, {bound} GB (--stage-gb)."))
            return None
        mine = self._unclaimed.get(host, {})
        stale = [i for i in mine if i == slide_id or i in self.holders or i not in self._queue]
        room = self._bound - self._used[host] - sum(n for i, n in mine.items() if i not in stale)
        if size > room or (not size and (self._under_way[host] or room <= 0)):
            return None
        for i in stale:
            mine.pop(i)
        self._used[host] += size
        self._under_way[host] += 1
        if not size:
            self._unknown.add(host)
        drop = {i for i in (*self._drop.pop(host, ()), *stale) if i != slide_id and host not in self.holders.get(i, ())}
        self._fetching[host, slide_id] = dataclasses.replace(order, room_bytes=room, drop=tuple(sorted(drop)))
        return self._fetching[host, slide_id]

    def _backlog(self, host: str) -> float:
        """Return the bytes of a host's unfinished slides, per thread."""
        return self._used[host] / max(1, self._threads.get(host, 1))

    def fetched(self, order: FetchOrder, size_bytes: int, new_bytes: int, seconds: float) -> None:
        """Record that a slide was fetched, ``new_bytes`` of it over the network; the host then computes its tiles."""
        slide_id, host = order.slide.slide_id, order.host
        self._end(order, size_bytes)
        self.size[slide_id] = size_bytes
        self.fetched_bytes += new_bytes
        self._seconds += seconds
        self.holders.setdefault(slide_id, set()).add(host)
        if not order.share:
            self._lane_of[slide_id] = self._lanes[host]
            self._lanes[host].feeder.add(order.slide)
        elif slide_id not in self._lane_of:
            self.closed(slide_id)  # it was finished meanwhile
            return
        self._lane_of[slide_id].hosts.add(host)

    def no_room(self, order: FetchOrder, size_bytes: int) -> None:
        """Record that a slide is larger than was known and waits until there is space."""
        self._end(order, 0)
        self.size[order.slide.slide_id] = size_bytes
        self._put_back(order.slide)

    def again(self, order: FetchOrder) -> None:
        """Record that a fetch was lost with its worker; another worker continues it."""
        self._end(order, 0)
        self._drop.setdefault(order.host, []).extend(order.drop)
        if not order.share:
            self._put_back(order.slide)

    def failed(self, order: FetchOrder) -> None:
        """Record that a slide cannot be fetched; its staged bytes are removed."""
        self._end(order, 0)
        self._drop.setdefault(order.host, []).append(order.slide.slide_id)

    def closed(self, slide_id: str) -> None:
        """Record that a slide is finished or given up; its space is free."""
        for host in self.holders.pop(slide_id, ()):
            self._used[host] -= self.size.get(slide_id, 0)
            self._drop.setdefault(host, []).append(slide_id)
        self._lane_of.pop(slide_id, None)

    def _put_back(self, slide: SlideInput) -> None:
        self._queue[slide.slide_id] = slide
        self._queue.move_to_end(slide.slide_id, last=False)
        self._not_done = slide.slide_id

    def _end(self, order: FetchOrder, size_bytes: int) -> None:
        del self._fetching[order.host, order.slide.slide_id]
        self._under_way[order.host] -= 1
        self._unknown.discard(order.host)
        self._used[order.host] += size_bytes - self.size.get(order.slide.slide_id, 0)

    def _copy_for_idle(self, hosts: list[str]) -> FetchOrder | None:
        """Return an order for an idle host to fetch a slide of another host, if that saves time; else None."""
        if self._queue or not hosts or len(self._threads) < 2:
            return None
        idle = [
            h
            for h in hosts
            if not self._under_way[h] and all(lane.feeder.done() for lane in self._lanes.values() if h in lane.hosts)
        ]
        busy = [lane for lane in self._lanes.values() if lane.feeder.n_waiting_tiles or lane.feeder.n_waiting_slides]
        if not idle or not busy:
            return None
        lane = max(busy, key=self._seconds_left)
        whole = lane.feeder.take_back()
        if whole:
            lane.feeder.add(whole)
        slide_id = whole.slide_id if whole else lane.feeder.most_waiting()
        size = self.size.get(slide_id, 0)
        few = len(self._inputs) <= len(self._threads)
        cheap = few or self.copied_bytes + size <= MAX_COPIED_FRAC * sum(self.size.values())
        # of a slide that waits: when its host would begin it; of one in work: how long that host still needs
        left_s = self._seconds_left(lane, tiles_only=bool(whole))
        pays = left_s > (1.0 if whole else COPY_PAYS) * self._seconds * size / max(1, self.fetched_bytes)
        if not (size and cheap and pays) or idle[0] in self.holders.get(slide_id, ()):
            return None
        order = self._order(FetchOrder(self._inputs[slide_id], idle[0], 0, copy=True, share=not whole))
        if order is not None:
            self.copied_bytes += size
        if order is not None and whole:
            lane.feeder.take_back()
            self.closed(slide_id)
        return order

    def _seconds_left(self, lane: Lane, *, tiles_only: bool = False) -> float:
        """Return the seconds that a lane's hosts need for all waiting work, or only for the waiting tiles.

        Hosts that are fetching a slide of the lane to share it are counted.
        """
        seconds = lane.feeder.tile_seconds_left if tiles_only else lane.feeder.seconds_left
        sharing = {o.host for o in self._fetching.values() if o.share and self._lane_of.get(o.slide.slide_id) is lane}
        return seconds / max(1, sum(self._threads.get(h, 0) for h in lane.hosts | sharing))

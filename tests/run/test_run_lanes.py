"""Which host fetches what: once per cohort, within the bound, no host idle while another has much, whatever dies."""

from __future__ import annotations

import numpy as np
import pytest

from tests.run.lanes_simulation import SLIDE_S, Cohort, World
from wsiseg.results.manifest import SlideInput
from wsiseg.run.feed import Feeder
from wsiseg.run.lanes import GONE_S, Lanes

GB = 10**9


def cohort(n: int, seed: int = 0, tile_s: float = 4.0) -> Cohort:
    """Slides of 0.2 to 2 GB and some hundred tiles, as TCGA's are."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(GB // 5, 2 * GB, n)
    return Cohort(
        [int(s) for s in sizes],
        [int(s // 10_000_000 * f) + 1 for s, f in zip(sizes, rng.uniform(0.5, 1.5, n), strict=True)],
        tile_s,
    )


def least_s(c: Cohort, threads: int) -> float:
    return sum(n * c.tile_s + 2 * SLIDE_S for n in c.tiles) / threads


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [10e6, 20e6, 500e6], ids=["slow server", "as fast as the hosts", "fast server"])
def test_four_hosts_fetch_a_cohort_once_and_stay_busy(seed: int, rate: float) -> None:
    c = cohort(60, seed)
    world = World(c, [f"h{k}" for k in range(4)], 8, rate, 20 * GB)
    notes = world.run()
    assert notes.done == {s.slide_id: n for s, n in zip(world.slides, c.tiles, strict=True)}, "every tile, and once"
    assert notes.fetched_bytes <= 1.1 * notes.cohort_bytes
    assert notes.peak_bytes <= 20 * GB
    one_slide_s = max(c.sizes) / rate + max(c.tiles) * c.tile_s / 8 + 2 * SLIDE_S  # before the first tile, and at the end
    assert notes.wall_s <= max(sum(c.sizes) / rate / 4, least_s(c, 32)) + 2 * one_slide_s


def test_one_host_fetches_every_slide_once() -> None:
    c = cohort(20)
    notes = World(c, ["h"], 8, 100e6, 8 * GB).run()
    assert set(notes.fetches.values()) == {1}
    assert notes.fetched_bytes == notes.cohort_bytes
    assert notes.peak_bytes <= 8 * GB


def test_one_slide_is_shared_by_hosts_that_would_be_idle() -> None:
    c = Cohort([GB], [400])
    notes = World(c, [f"h{k}" for k in range(4)], 4, 200e6, 20 * GB).run()
    alone = World(c, ["h"], 4, 200e6, 20 * GB).run()
    assert notes.done == alone.done
    assert notes.wall_s < alone.wall_s / 2
    assert notes.fetched_bytes <= 4 * GB


@pytest.mark.parametrize("seed", range(3))
def test_hosts_that_die_lose_no_slide(seed: int) -> None:
    c = cohort(16, seed)
    rng = np.random.default_rng(seed)
    deaths = {f"h{k}": float(rng.uniform(0, 300)) for k in range(3)}
    world = World(c, [f"h{k}" for k in range(4)], 4, 100e6, 20 * GB, deaths)
    notes = world.run()
    assert notes.done == {s.slide_id: n for s, n in zip(world.slides, c.tiles, strict=True)}


def lanes(slides: list[SlideInput], bound: int, **more: object) -> Lanes:
    return Lanes(((), slides), lambda some: Feeder(some, limit=1, retries=0), bound, **more)  # type: ignore[arg-type]


def test_what_is_staged_stays_with_its_host_and_others_are_dropped() -> None:
    slides = [SlideInput(f"s{k}", f"https://x/{k}", size_bytes=10) for k in range(4)]
    run = lanes(slides, 100, staged={"a": {"s3": 10, "gone": 50}, "b": {"s0": 4}})
    run.set_hosts({"a": 1, "b": 1}, 2)
    orders = [run.next_fetch() for _ in range(4)]
    where = {o.slide.slide_id: o.host for o in orders if o}
    assert where["s3"] == "a"
    assert where["s0"] == "b"
    assert sorted(where) == ["s0", "s1", "s2", "s3"]
    assert next(o for o in orders if o and o.host == "a").drop == ("gone",)


def test_an_unknown_size_is_fetched_alone_and_found_too_large_waits_for_room() -> None:
    slides = [SlideInput("a", "https://x/a", size_bytes=60), SlideInput("b", "https://x/b"), SlideInput("c", "https://x/c")]
    run = lanes(slides, 100)
    run.set_hosts({"h": 1}, 2)
    a = run.next_fetch()
    assert a is not None
    assert run.next_fetch() is None, "b's size is not known"
    run.fetched(a, 60, 60, 1.0)
    b = run.next_fetch()
    assert b is not None
    assert b.room_bytes == 40
    run.no_room(b, 70)
    assert run.next_fetch() is None, "b waits until a is finished"
    run.closed("a")
    b = run.next_fetch()
    assert b is not None
    assert (b.slide.slide_id, b.room_bytes, b.drop) == ("b", 100, ("a",))


def test_a_slide_larger_than_the_bound_is_refused_and_the_others_continue() -> None:
    run = lanes([SlideInput("big", "https://x/big", size_bytes=101), SlideInput("b", "https://x/b", size_bytes=5)], 100)
    run.set_hosts({"h": 1}, 2)
    assert run.next_fetch() is None
    ((slide, why),) = run.refused
    assert slide.slide_id == "big"
    assert "exceed the limit" in why
    run.refused.clear()
    order = run.next_fetch()
    assert order is not None
    assert order.slide.slide_id == "b"


def test_a_host_that_is_gone_for_a_moment_keeps_its_slides() -> None:
    run = lanes([SlideInput("s", "https://x/s", size_bytes=10), SlideInput("t", "https://x/t", size_bytes=10)], 100)
    run.set_hosts({"a": 1, "b": 1}, 2, 0.0)
    for order in [run.next_fetch(), run.next_fetch()]:
        assert order is not None
        run.fetched(order, 10, 10, 1.0)
    (of_a,) = [s for s in ("s", "t") if run.places(s) == {"a"}]
    run.set_hosts({"b": 1}, 2, GONE_S / 2)
    assert run.lane_of(of_a) not in list(run.working()), "its tiles wait for it"
    run.set_hosts({"a": 1, "b": 1}, 2, GONE_S * 0.9)
    assert run.places(of_a) == {"a"}
    run.set_hosts({"b": 1}, 2, GONE_S * 3)
    assert run.lane_of(of_a) in list(run.working())
    assert run.places(of_a) == {"b"}, "given up: another fetches what it needs"

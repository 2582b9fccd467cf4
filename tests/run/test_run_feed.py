"""The feeder hands out every tile exactly once per try, finishes every slide once, and never has too much in the air."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.results.manifest import SlideInput
from wsiseg.run.feed import Feeder, PrepareDone, Task
from wsiseg.types import Box, Tile, TileOutcome


def make_tiles(slide_id: str, n: int) -> tuple[Tile, ...]:
    return tuple(Tile(slide_id, i, Box(0, 0, 1, 1), Box(0, 0, 1, 1), 1.0, 1.0) for i in range(n))


def outcome(tile: Tile, attempt: int, bad: bool, seconds: float) -> TileOutcome:
    return TileOutcome(tile.slide_id, tile.tile_id, "failed" if bad else "done", 0, {"predict": seconds}, "", attempt)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=0, max_size=8),
    st.integers(1, 7),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.3, 5.0]),
    st.integers(0, 10_000),
)
def test_everything_once_whatever_the_order(
    tiles_per_slide: list[int], limit: int, retries: int, task_s: float, seed: int
) -> None:
    rng = random.Random(seed)
    slides = [SlideInput(f"s{i}", f"s{i}.svs") for i in range(len(tiles_per_slide))]
    always_bad = {(f"s{i}", t) for i, n in enumerate(tiles_per_slide) for t in range(n) if rng.random() < 0.2}
    unusable = {s.slide_id for s in slides if rng.random() < 0.1}
    feeder = Feeder(slides, limit=limit, retries=retries, task_s=task_s)
    flying: list[Task] = []
    tries: dict[tuple[str, int], int] = {}
    finished: dict[str, set[int]] = {}
    while not feeder.done():
        while (task := feeder.next_task()) is not None:
            flying.append(task)
        assert 0 < len(flying) <= limit
        task = flying.pop(rng.randrange(len(flying)))
        if task.kind == "prepare":
            if task.slide_id in unusable:
                feeder.prepare_failed()
            else:
                n = tiles_per_slide[int(task.slide_id[1:])]
                feeder.prepared(PrepareDone(task.slide_id, todo=make_tiles(task.slide_id, n), seconds=rng.random()))
        elif task.kind == "tiles":
            if len(task.payload) > 1 and rng.random() < 0.1:
                assert feeder.tiles_lost(task, {}, "the worker left") == []
                continue
            outcomes = []
            for tile, attempt in task.payload:
                key = (tile.slide_id, tile.tile_id)
                tries[key] = tries.get(key, 0) + 1
                assert attempt == tries[key]
                assert attempt == 1 or len(task.payload) == 1, "a tile that failed once is tried alone"
                outcomes.append(outcome(tile, attempt, key in always_bad, 0.1))
            final = feeder.tiles_done(task, outcomes)
            assert final == [o.status == "done" or o.attempts > retries for o in outcomes]
        else:
            slide_id, failed = task.payload
            assert slide_id not in finished
            finished[slide_id] = {o.tile_id for o in failed}
            feeder.finished()
    assert not flying
    for i, n in enumerate(tiles_per_slide):
        slide_id = f"s{i}"
        if slide_id in unusable:
            assert slide_id not in finished
            continue
        assert finished[slide_id] == {t for t in range(n) if (slide_id, t) in always_bad}
        for t in range(n):
            assert tries[(slide_id, t)] == (retries + 1 if (slide_id, t) in always_bad else 1)


def simulated(n_slides: int, n_tiles: int, workers: int, tile_s: float, prepare_s: float, task_s: float) -> tuple[float, int]:
    """Run a feeder against a clock of our own; return the share of worker time spent on tiles, and the longest batch."""
    slides = [SlideInput(f"s{i}", "") for i in range(n_slides)]
    feeder = Feeder(slides, limit=2 * workers, retries=0, in_flight=2, task_s=task_s)
    queue: list[Task] = []
    free_at = [0.0] * workers
    ends: list[tuple[float, int, Task]] = []
    serial, busy, longest = 0, 0.0, 0
    now = 0.0
    while not feeder.done():
        while (task := feeder.next_task()) is not None:
            queue.append(task)
        queue.sort(key=lambda t: ("finish", "prepare", "tiles").index(t.kind))
        for k, at in enumerate(free_at):
            if at <= now and queue:
                task = queue.pop(0)
                seconds = prepare_s if task.kind == "prepare" else 0.0
                if task.kind == "tiles":
                    seconds = tile_s * len(task.payload)
                    busy += seconds
                    longest = max(longest, len(task.payload))
                free_at[k] = now + seconds
                serial += 1
                ends.append((free_at[k], serial, task))
        ends.sort()
        now, _, task = ends.pop(0)
        if task.kind == "prepare":
            feeder.prepared(PrepareDone(task.slide_id, todo=make_tiles(task.slide_id, n_tiles), seconds=prepare_s))
        elif task.kind == "tiles":
            feeder.tiles_done(task, [outcome(t, a, False, tile_s) for t, a in task.payload])
        else:
            feeder.finished()
    return (busy + n_slides * prepare_s) / (now * workers), longest


def test_slow_preparing_does_not_starve_other_slides() -> None:
    # 16 workers empty a slide of 40 tiles in 1.25 s, and the next one takes 4 s to prepare: several must be under way at once
    busy, _ = simulated(n_slides=150, n_tiles=40, workers=16, tile_s=0.5, prepare_s=4.0, task_s=1.0)
    assert busy > 0.93


def test_short_tiles_go_in_batches_of_the_requested_length_and_the_last_ones_are_shared() -> None:
    busy, longest = simulated(n_slides=20, n_tiles=400, workers=8, tile_s=0.05, prepare_s=0.2, task_s=1.0)
    assert 18 <= longest <= 20
    assert busy > 0.95
    _, alone = simulated(n_slides=3, n_tiles=20, workers=8, tile_s=3.0, prepare_s=0.2, task_s=1.0)
    assert alone == 1

"""A poisoned tile takes its worker with it, and whatever else ran there; nothing but the poison is given up."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.results.manifest import SlideInput
from wsiseg.run.feed import Feeder, PrepareDone, Task
from wsiseg.run.presence import Death
from wsiseg.types import Box, Tile, TileOutcome

Slots = dict[int, list[tuple[Task, int]]]  # worker -> tasks it has begun, and at which tile of its batch each is


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 3), st.integers(0, 25), st.integers(1, 3), st.integers(0, 10_000))
def test_only_the_poison_is_given_up(workers: int, threads: int, retries: int, n_tiles: int, n_poison: int, seed: int) -> None:
    rng = random.Random(seed)
    slides = [SlideInput(f"s{k}", f"s{k}.svs") for k in range(3)]
    keys = [(s.slide_id, t) for s in slides for t in range(n_tiles)]
    poison = set(rng.sample(keys, min(n_poison, len(keys))))
    feeder = Feeder(slides, limit=workers * threads, retries=retries, task_s=rng.choice((0.0, 2.0)))
    at: Slots = {w: [] for w in range(workers)}
    queued: list[Task] = []
    done: set[tuple[str, int]] = set()
    failed: dict[tuple[str, int], int] = {}
    while not feeder.done():
        while (task := feeder.next_task()) is not None:
            queued.append(task)
        for task in [t for t in queued if t.kind != "tiles"]:
            queued.remove(task)
            if task.kind == "prepare":
                tiles = tuple(Tile(task.slide_id, t, Box(0, 0, 1, 1), Box(0, 0, 1, 1), 1.0, 1.0) for t in range(n_tiles))
                feeder.prepared(PrepareDone(task.slide_id, todo=tiles))
            else:
                failed |= {(o.slide_id, o.tile_id): o.attempts for o in task.payload[1]}
                feeder.finished()
        for running in at.values():
            while queued and len(running) < threads:
                running.append((queued.pop(rng.randrange(len(queued))), 0))
        busy = [w for w, running in at.items() if running]
        if not busy:
            continue
        worker = rng.choice(busy)
        slot = rng.randrange(len(at[worker]))
        task, place = at[worker][slot]
        tile, _ = task.payload[place]
        if (tile.slide_id, tile.tile_id) in poison:
            lost, at[worker] = at[worker], []
            for other, where in lost:
                blamed = other.payload[where][0]
                feeder.tiles_lost(other, {blamed.tile_id: Death("tile", "", 0, "x", len(lost) == 1)}, "KilledWorker")
        elif place + 1 < len(task.payload):
            at[worker][slot] = (task, place + 1)
        else:
            del at[worker][slot]
            feeder.tiles_done(
                task, [TileOutcome(t.slide_id, t.tile_id, "done", 0, {"predict": 1.0}, "", n) for t, n in task.payload]
            )
            done |= {(t.slide_id, t.tile_id) for t, _ in task.payload}
    assert set(failed) == poison
    assert all(retries < attempts <= retries + 2 for attempts in failed.values())
    assert done >= set(keys) - poison


def test_a_slide_that_kills_its_opener_is_handed_out_again_until_the_client_gives_up() -> None:
    feeder = Feeder([SlideInput("a", "a.svs"), SlideInput("b", "b.svs")], limit=1, retries=2)
    for _ in range(3):
        task = feeder.next_task()
        assert task is not None
        assert (task.kind, task.slide_id) == ("prepare", "a")
        feeder.again(task)
    task = feeder.next_task()
    assert task is not None
    feeder.prepare_failed()
    after = feeder.next_task()
    assert after is not None
    assert after.slide_id == "b"


def test_tiles_that_are_lost_for_ever_without_a_reason_are_given_up_in_the_end() -> None:
    feeder = Feeder([SlideInput("a", "a.svs")], limit=1, retries=2)
    feeder.next_task()
    feeder.prepared(PrepareDone("a", todo=(Tile("a", 0, Box(0, 0, 1, 1), Box(0, 0, 1, 1), 1.0, 1.0),)))
    given_up: list[TileOutcome] = []
    for _ in range(100):
        task = feeder.next_task()
        assert task is not None
        if task.kind == "finish":
            break
        given_up += feeder.tiles_lost(task, {}, "no reason is known")
    assert [o.error for o in given_up] == ["no reason is known"]
    assert task.payload == ("a", tuple(given_up))

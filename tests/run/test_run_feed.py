"""The feeder hands out every tile exactly once per try, finishes every slide once, and never has too much in the air."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.run.feed import Feeder, PrepareDone, Task
from wsiseg.run.manifest import SlideInput
from wsiseg.types import Box, Tile, TileOutcome


def make_tiles(slide_id: str, n: int) -> tuple[Tile, ...]:
    return tuple(Tile(slide_id, i, Box(0, 0, 1, 1), Box(0, 0, 1, 1), 1.0, 1.0) for i in range(n))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=0, max_size=8),
    st.integers(1, 7),
    st.integers(0, 2),
    st.integers(0, 10_000),
)
def test_everything_once_whatever_the_order(tiles_per_slide: list[int], limit: int, retries: int, seed: int) -> None:
    rng = random.Random(seed)
    slides = [SlideInput(f"s{i}", f"s{i}.svs") for i in range(len(tiles_per_slide))]
    always_bad = {(f"s{i}", t) for i, n in enumerate(tiles_per_slide) for t in range(n) if rng.random() < 0.2}
    unusable = {s.slide_id for s in slides if rng.random() < 0.1}
    feeder = Feeder(slides, limit=limit, retries=retries)
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
                feeder.prepared(
                    PrepareDone(task.slide_id, todo=make_tiles(task.slide_id, tiles_per_slide[int(task.slide_id[1:])]))
                )
        elif task.kind == "tile":
            tile, attempt = task.payload
            key = (tile.slide_id, tile.tile_id)
            tries[key] = tries.get(key, 0) + 1
            assert attempt == tries[key]
            feeder.tile_done(tile, TileOutcome(*key, "failed" if key in always_bad else "done", attempts=attempt))
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

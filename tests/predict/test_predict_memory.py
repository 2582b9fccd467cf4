"""Windows that fit a device's memory: planned from what is free, halved where that was too much, with the same maps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.config import PredictConfig
from wsiseg.errors import TileComputeError
from wsiseg.predict import NETS, build_net, fold_batch_norm, model_from_net, predict
from wsiseg.predict.graphs import CapturedGraph
from wsiseg.predict.memory import (
    MAX_AT_ONCE,
    MIN_WINDOW_WPX,
    SEPARATE_BYTES_PER_PX,
    Window,
    activation_bytes_per_px,
    plan_device,
)
from wsiseg.types import Box

CARD = {"name": "t", "sha256": "0" * 64, "mpp": 0.25, "stain_method": "none", "licence": "none", "separate_defaults": {}}
GIB = 2**30


@pytest.mark.parametrize("name", sorted(NETS))
def test_estimate_is_near_what_torch_allocates(name: str) -> None:
    """The most bytes alive at once in a forward pass, as torch's profiler counts them on the CPU."""
    net, side = fold_batch_norm(build_net(name)).eval(), 256
    with (
        torch.inference_mode(),
        torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile,
    ):
        net(torch.zeros(1, 3, side, side))
    alive = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    estimate = activation_bytes_per_px(NETS[name], 4)
    assert 0.75 < estimate / (most / side**2) < 1.35


@given(free=st.integers(0, 200 * GIB), tile=st.integers(64, 8192), itemsize=st.sampled_from([2, 4]))
@settings(max_examples=60, deadline=None)
def test_plan_fits_and_grows_with_memory(free: int, tile: int, itemsize: int) -> None:
    spec, halo = NETS["lean"], 112
    plan = plan_device(free, spec, itemsize, tile, halo)
    need = SEPARATE_BYTES_PER_PX * tile**2 + activation_bytes_per_px(spec, itemsize) * (plan.window_wpx + 2 * halo) ** 2
    assert plan.window_wpx % 16 == 0
    assert plan.window_wpx >= min(MIN_WINDOW_WPX, tile)
    assert plan.window_wpx < tile + 16
    assert 1 <= plan.batch <= MAX_AT_ONCE
    if plan.window_wpx > MIN_WINDOW_WPX:
        assert plan.batch * need <= free
    more = plan_device(2 * free, spec, itemsize, tile, halo)
    assert more.window_wpx >= plan.window_wpx


def test_plan_of_known_cards() -> None:
    """A whole tile of the product's size several times over on an H200, one at a time on a card of 8 GiB, parts on one of 2."""
    spec = NETS["lean"]
    assert plan_device(120 * GIB, spec, 2, 4128, 112).batch == MAX_AT_ONCE
    assert plan_device(120 * GIB, spec, 2, 4128, 112).window_wpx == 4128
    assert plan_device(7 * GIB, spec, 2, 4128, 112).window_wpx == 4128
    assert 256 < plan_device(2 * GIB, spec, 2, 4128, 112).window_wpx < 4128


def test_window_is_halved_once_for_all_threads() -> None:
    window = Window(2048)
    assert window.halve(2048) == 1024
    assert window.halve(2048) == 1024  # another thread had tried the old side
    assert window.halve(1024) == 512
    assert window.halve(300) == MIN_WINDOW_WPX
    assert window.halve(MIN_WINDOW_WPX) is None


class SmallMemory:
    """A network whose device holds windows up to ``most`` px (halo included)."""

    def __init__(self, graph: Any, most: int) -> None:
        self.graph, self.most, self.sizes = graph, most, []

    def __call__(self, rgb: torch.Tensor, margin: int) -> torch.Tensor:
        self.sizes.append(max(rgb.shape[:2]))
        if self.sizes[-1] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return self.graph(rgb, margin)


def made(window_wpx: int) -> Any:
    torch.manual_seed(3)
    return model_from_net(build_net("tiny"), dict(CARD), PredictConfig(precision="fp32", window_wpx=window_wpx))


def short_of_memory(most: int) -> tuple[Any, SmallMemory]:
    import dataclasses

    model = made(1040)
    small = SmallMemory(model.graph, most)
    return dataclasses.replace(model, graph=small, window=Window(1040)), small


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (1300, 1300, 3)).astype(np.uint8)


def maps_of(model: Any, rgb: np.ndarray, events: Counter[str] | None = None, wanted: np.ndarray | None = None) -> np.ndarray:
    out_box = Box(48, 64, 1001, 870)
    box = model.input_box(out_box)
    return predict(model, rgb[: box.h, : box.w], box, out_box, wanted, events)


def test_out_of_memory_halves_the_window_and_changes_nothing(rgb: np.ndarray) -> None:
    whole = maps_of(made(1040), rgb)
    model, small = short_of_memory(600)
    events: Counter[str] = Counter()
    np.testing.assert_array_equal(maps_of(model, rgb, events), whole)
    assert events["window_halved"] >= 1
    assert model.window.side_wpx < 600
    tries = len(small.sizes)
    np.testing.assert_array_equal(maps_of(model, rgb, events), whole)  # the next tile begins with the smaller window
    assert all(size <= 600 for size in small.sizes[tries:])
    wanted = np.zeros((870, 1001), np.uint8)
    wanted[300:700, 200:900] = 1
    np.testing.assert_array_equal(maps_of(short_of_memory(500)[0], rgb, wanted=wanted), whole * wanted)


def test_smallest_window_that_does_not_fit_is_reported(rgb: np.ndarray) -> None:
    model, _ = short_of_memory(200)
    with pytest.raises(TileComputeError, match=r"is too small for a network window of .* --workers-per-gpu 1"):
        maps_of(model, rgb)


def test_recorded_graph_is_the_module(rgb: np.ndarray) -> None:
    """With a recorder that runs the function again at each replay, as a CUDA graph runs its kernels."""
    stream, recordings = 1, 0

    def record(function: Any) -> Any:
        nonlocal recordings
        recordings += 1
        out = function().clone()
        return lambda: out.copy_(function()), out

    model = made(256)
    captured = CapturedGraph(model.graph, record, lambda: stream)
    with torch.inference_mode():
        windows = [torch.from_numpy(rgb[k : k + 256, k : k + 320].copy()) for k in (0, 100, 300)]
        first = captured(windows[0], model.halo_wpx)
        kept = first.clone()
        for window in windows[1:]:
            assert torch.equal(captured(window, model.halo_wpx), model.graph(window, model.halo_wpx))
        assert torch.equal(first, kept), "an earlier result is the caller's own"
        assert recordings == 1
        stream = 2
        assert torch.equal(captured(windows[0], model.halo_wpx), kept)
        assert recordings == 2
        smaller = torch.from_numpy(rgb[:256, :256].copy())
        assert torch.equal(captured(smaller, model.halo_wpx), model.graph(smaller, model.halo_wpx))
        assert len(captured._recorded) == 2, "a stream whose windows shrank holds no memory for larger ones; the other does"
        stream = 1
        captured(windows[0], model.halo_wpx)
        assert recordings == 3, "the other stream's recording is still there"


def test_a_window_that_cannot_be_recorded_is_computed_all_the_same(rgb: np.ndarray) -> None:
    tries = 0

    def record(function: Any) -> Any:
        nonlocal tries
        tries += 1
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    model = made(256)
    captured = CapturedGraph(model.graph, record, lambda: 1)
    window = torch.from_numpy(rgb[:256, :320].copy())
    with torch.inference_mode():
        for _ in range(3):
            assert torch.equal(captured(window, model.halo_wpx), model.graph(window, model.halo_wpx))
    assert tries == 1, "not tried again for every tile"

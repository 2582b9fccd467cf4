"""The package's GPU path on the real CuPy and the stand-in driver; ``test_kernels_rehearsal.py`` runs it in its own process."""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.kernels.torch_stand_in as torch_stand_in
from tests.kernels.rehearsal import install

FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
GPU = install(FOLDER)
TORCH = torch_stand_in.install(GPU)

import cupy  # noqa: E402
import torch  # noqa: E402

from tests.kernels.conftest import Machine  # noqa: E402
from tests.kernels.parity import ALL_PARAMS, LOOSE, check_map  # noqa: E402
from tests.kernels.test_kernels_tile import same, segmented  # noqa: E402
from tests.oracles.maps import adversarial  # noqa: E402
from wsiseg.backend import cuda, device_fault, memory_errors, pinned_empty, to_device, to_host  # noqa: E402
from wsiseg.backend.dlpack import on_stream, pool_facts, share_pool, streams  # noqa: E402
from wsiseg.config import PredictConfig  # noqa: E402
from wsiseg.pipeline import StageClock  # noqa: E402
from wsiseg.predict import engine, load_model  # noqa: E402
from wsiseg.predict import gpu as predict_gpu  # noqa: E402
from wsiseg.predict.graphs import CapturedGraph, record_on_gpu  # noqa: E402
from wsiseg.read.view import tissue_view  # noqa: E402
from wsiseg.types import Box  # noqa: E402

BACKEND = cuda.cuda_backend(0)
MACHINE = Machine(BACKEND.upload, BACKEND.to_host, BACKEND)


@pytest.fixture(autouse=True)
def fresh_log() -> Iterator[None]:
    """Nothing waits and nothing is logged when a case begins; what the stand-in lacks fails it."""
    cupy.cuda.Device(0).synchronize()
    GPU.log()
    yield
    assert [line for line in GPU.log() if line[0] == "missing"] == []


@pytest.fixture
def pool() -> Iterator[torch_stand_in.Torch]:
    """CuPy's memory comes from PyTorch's pool."""
    share_pool(0, GPU.total_bytes // 2)
    yield TORCH
    TORCH.most = 1 << 60


def launched_on(lines: list[list[str]]) -> set[str]:
    """Return the streams that were given anything."""
    return {line[-2] for line in lines if line[0] == "launch"}


def test_what_is_launched_waits_until_somebody_waits() -> None:
    """The stand-in itself: without this the cases below would show nothing."""
    (stream,) = streams(0, 1)
    with on_stream(stream):
        array = cupy.full(1000, 7, "uint8")
        assert GPU.waiting() > 0
        assert (memory_of(array) == 0xCD).all(), "fresh memory holds rubbish until the kernel has run"
        assert (to_host(array) == 7).all()
        assert GPU.waiting() == 0


def memory_of(array: Any) -> np.ndarray:
    """The device's memory as it is at this moment."""
    return torch_stand_in.Tensor(TORCH, array.data.ptr, tuple(array.shape), array).view()


@pytest.mark.parametrize("params", list(ALL_PARAMS))
@pytest.mark.parametrize("name", ["bridge", "noise_65", "empty", "spiral", "nested"])
def test_kernels_through_cupy_give_the_cpus_answer(pool: Any, name: str, params: str) -> None:
    (stream,) = streams(0, 1)
    with on_stream(stream):
        check_map(MACHINE, adversarial()[name], ALL_PARAMS[params])
    lines = GPU.log()
    assert launched_on(lines) == {str(GPU.number(stream.cuda_stream))}, "all of it on the turn's stream"
    assert not [line for line in lines if line[:2] == ["synchronize", "device"]], "nobody waits for the whole device"


def test_turns_at_once_meet_nowhere(pool: Any) -> None:
    """Threads, each on its stream, with memory of one pool: every launch on its own stream, and the CPU's answers."""
    found = streams(0, 3)
    maps = [adversarial()[name] for name in ("bridge", "noise_65", "nested", "spiral", "plateaus", "empty")]

    def turn(k: int) -> None:
        with on_stream(found[k]):
            for j in range(4):
                check_map(MACHINE, maps[(k + j) % len(maps)], LOOSE)

    for seed in (1, 2):
        GPU.seed(seed)
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(turn, range(3)))
    assert launched_on(GPU.log()) == {str(GPU.number(stream.cuda_stream)) for stream in found}


def test_memory_that_is_freed_early_goes_to_its_own_stream_alone(pool: Any) -> None:
    """An array may go out of scope while kernels that read it wait: no other work may use its memory before."""
    one, other = streams(0, 2)
    with on_stream(one):
        given = to_device(np.arange(4096, dtype=np.int32), "cuda")
        taken = cupy.cumsum(given, dtype="int32")
        pointer = given.data.ptr
        del given
        assert GPU.waiting() > 0
    with on_stream(other):
        elsewhere = cupy.full(4096, 1, "int32")
        assert elsewhere.data.ptr != pointer
        to_host(elsewhere)
    with on_stream(one):
        again = cupy.full(4096, 2, "int32")
        assert again.data.ptr == pointer, "the pool hands it out again at once"
        np.testing.assert_array_equal(to_host(taken), np.cumsum(np.arange(4096, dtype=np.int32)))
        assert (to_host(again) == 2).all()


def test_one_bound_for_both_libraries() -> None:
    share_pool(0, 64 << 20)
    try:
        array = cupy.empty(16 << 20, "uint8")
        assert pool_facts(0)["used_bytes"] >= 16 << 20
        with pytest.raises(memory_errors()) as full:
            cupy.empty(80 << 20, "uint8")
        assert device_fault(full.value) == ""
        del array
        assert pool_facts(0)["held_bytes"] >= 16 << 20
        TORCH.empty_cache()
        assert pool_facts(0)["held_bytes"] < 16 << 20
        assert cupy.empty(0, "uint8").size == 0
    finally:
        TORCH.most = 1 << 60


@pytest.mark.parametrize("n", [5000, 100_000], ids=["staged_by_cuda", "larger"])
def test_copies_are_over_when_the_host_continues(pool: Any, n: int) -> None:
    (stream,) = streams(0, 1)
    with on_stream(stream):
        for host in (np.zeros(n, np.uint16), pinned_empty((n,), "uint16", "cuda")):
            host[:] = np.arange(n)
            there = to_device(host, "cuda")
            host[:] = 0  # the reader writes the next tile's pixels there
            back = to_host(there)
            there.fill(9)
            np.testing.assert_array_equal(back, np.arange(n).astype(np.uint16))
        to_host(there)


def test_tables_that_are_kept_are_ready_for_every_stream(pool: Any) -> None:
    one, other = streams(0, 2)
    with on_stream(one):
        table = BACKEND.kept("squares", np.arange(50, dtype=np.int32) ** 2)
    with on_stream(other):
        assert BACKEND.kept("squares", np.zeros(1, np.int32)) is table
        np.testing.assert_array_equal(to_host(cupy.cumsum(table, dtype="int32")), np.cumsum(np.arange(50) ** 2))


def test_stages_are_timed_on_their_stream(pool: Any) -> None:
    from wsiseg.backend import device_timer

    (stream,) = streams(0, 1)
    clock = StageClock()
    with on_stream(stream), clock.on_device(device_timer("cuda:0")):
        cupy.full(1000, 1, "uint8")
        clock.lap("normalize")
        cupy.full(1000, 1, "uint8")
        clock.lap("predict")
    events = [line for line in GPU.log() if line[:2] == ["record", "event"]]
    assert {line[2] for line in events} == {str(GPU.number(stream.cuda_stream))}, "marks lie behind the turn's work"
    assert len(events) == 3
    assert set(clock.seconds) == {"normalize", "predict"}
    assert all(seconds >= 0 for seconds in clock.seconds.values())


def test_arrays_pass_between_the_libraries_on_one_stream(pool: Any) -> None:
    """CuPy -> network -> CuPy: neither copies, neither waits, and the network reads what was written before."""
    (stream,) = streams(0, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    model = dataclasses.replace(
        load_model(PredictConfig(precision="fp32")), halo_wpx=4, graph=torch_stand_in.network(TORCH, small)
    )
    with on_stream(stream):
        there = to_device(pixels, "cuda")
        GPU.log()
        maps = engine._compute(model, there)
        lines = GPU.log()
        assert not [line for line in lines if line[0] in ("synchronize", "wait")]
        assert len([line for line in lines if line[0] == "allocate"]) == 1, "the maps themselves"
        assert isinstance(maps, cupy.ndarray)
        expected = small(torch.from_numpy(pixels), 4).numpy()
        np.testing.assert_array_equal(to_host(maps), expected)


def small(rgb: torch.Tensor, margin: int) -> torch.Tensor:
    """Stands for a network: two maps of the inside."""
    inside = rgb[margin : rgb.shape[0] - margin, margin : rgb.shape[1] - margin]
    return torch.stack([inside[..., 0], 255 - inside[..., 1]])


def test_graphs_are_recorded_on_the_turns_stream_and_replayed_on_it(pool: Any) -> None:
    (one, other) = streams(0, 2)
    graph = CapturedGraph(torch_stand_in.network(TORCH, small), record_on_gpu, lambda: torch.cuda.current_stream().cuda_stream)
    pictures = [np.random.default_rng(seed).integers(0, 256, (20, 24, 3)).astype(np.uint8) for seed in range(3)]
    for stream in (one, other, one):
        with on_stream(stream):
            maps = [cupy.from_dlpack(graph(torch.from_dlpack(to_device(pixels, "cuda")), 2)) for pixels in pictures]
            for got, pixels in zip(maps, pictures, strict=True):  # each is its caller's own: the next replay leaves it as it is
                np.testing.assert_array_equal(to_host(got), small(torch.from_numpy(pixels), 2).numpy())
    assert len(graph._recorded) == 2, "one recording for each stream"
    assert launched_on(GPU.log()) == {str(GPU.number(s.cuda_stream)) for s in (one, other)}


def test_a_device_is_claimed() -> None:
    most = predict_gpu.claim_device("cuda:0", 0.5)
    try:
        assert 0 < most <= GPU.total_bytes // 2
        assert TORCH.most == most
        assert torch.backends.cudnn.deterministic
        assert cuda.cuda_report() == (True, f"CuPy {cupy.__version__}, Stand-in for an H200")
        assert cuda.free_bytes(0) > 0
        assert predict_gpu.cuda_obstacle() == ""
    finally:
        TORCH.most = 1 << 60


def test_a_mask_is_expanded_on_the_stream(pool: Any) -> None:
    from wsiseg.read import TissueMask, tissue_window

    mask = TissueMask((np.random.default_rng(1).random((9, 7)) < 0.5).astype(np.uint8), 20.0, 20.0)
    box = Box(-10, 5, 90, 70)
    (stream,) = streams(0, 1)
    with on_stream(stream):
        np.testing.assert_array_equal(to_host(tissue_view(mask, box).on("cuda")), tissue_window(mask, box))
    assert launched_on(GPU.log()) == {str(GPU.number(stream.cuda_stream))}


def test_whole_tiles_give_the_cpus_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From slide to part file, two turns at once, the real network behind what waits on their streams."""

    def ready(config: Any, device: str, share: float, tile_wpx: int) -> tuple[Any, list[Any]]:
        predict_gpu.claim_device(device, share)
        model = load_model(config, "cpu")
        forward = CapturedGraph(
            torch_stand_in.network(TORCH, model.graph), record_on_gpu, lambda: torch.cuda.current_stream().cuda_stream
        )
        return dataclasses.replace(model, graph=forward, device=device), streams(0, 2)

    expected, header = segmented(tmp_path / "cpu", "cpu")
    monkeypatch.setattr(predict_gpu, "ready_device", ready)
    batch, there = segmented(tmp_path / "gpu", "cuda:0")
    same(batch, expected)
    assert there.stats == header.stats
    assert there.events["device_peak_bytes"] > 0
    lines = GPU.log()
    assert "0" not in launched_on(lines), "nothing on the default stream"
    assert not [line for line in lines if line[:2] == ["synchronize", "device"]]
    TORCH.most = 1 << 60


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))

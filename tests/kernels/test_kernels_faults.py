"""Broken GPUs: they are distinguished from other errors, the worker restarts, a GPU that breaks again gets no more work.

The GPUs are the stand-in in worker processes of their own (``gpu_worker.py``); the run, its nannies and its cluster are real.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import torch
from PIL import Image

import wsiseg.cluster.devices as devices
from tests.kernels.fake_cupy import FakeOutOfMemoryError, FakeRuntimeError
from wsiseg.backend import device_fault
from wsiseg.backend.gpus import DriverReport
from wsiseg.cluster.devices import device_label
from wsiseg.config import NormalizeConfig, PredictConfig, ReadConfig, RunConfig, ScheduleConfig
from wsiseg.errors import DeviceBrokenError, TileComputeError
from wsiseg.results.manifest import SlideInput
from wsiseg.run.context import WorkerContext
from wsiseg.run.hosts import Hosts
from wsiseg.run.kernels import probe_device
from wsiseg.run.segment import segment

PRELOAD = str(Path(__file__).with_name("gpu_worker.py"))
SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"


class AcceleratorError(RuntimeError):
    """As torch 2.8 and later name an error of the driver."""


def chained(cause: Exception) -> Exception:
    err = TileComputeError("a tile failed")
    err.__cause__ = cause
    return err


@pytest.mark.parametrize(
    ("err", "broken"),
    [
        (FakeRuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered"), True),
        (FakeRuntimeError("cudaErrorECCUncorrectable: uncorrectable ECC error encountered"), True),
        (FakeRuntimeError("cudaErrorMemoryAllocation: out of memory"), False),
        (FakeOutOfMemoryError("Out of memory allocating 64,000,000 bytes"), False),
        (AcceleratorError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB"), False),
        (ValueError("CUDA error: said by somebody else"), False),
        (OSError(28, "No space left on device"), False),
        (chained(FakeRuntimeError("cudaErrorHardwareStackError: hardware stack error")), True),
    ],
)
def test_a_broken_context_is_distinguished_from_what_passes(err: Exception, broken: bool) -> None:
    assert bool(device_fault(err)) == broken


def test_a_gpu_has_one_name_for_all_its_processes() -> None:
    assert device_label("cpu") == ""
    assert device_label("cuda", {}) == "GPU 0"
    assert device_label("cuda:1", {}) == "GPU 1"
    assert device_label("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-8f2a,3"}) == "GPU GPU-8f2a"


def tile(k: int) -> tuple[str, str, int]:
    return ("tile", "s", k)


def test_a_gpu_that_breaks_at_two_things_is_excluded_with_every_process_on_it() -> None:
    now = 0.0
    hosts = Hosts(lambda: now)
    for address, gpu in (("tcp://a:1", "GPU 0"), ("tcp://a:2", "GPU 1")):
        hosts.add(address, "a", "", gpu)
    hosts.gpu_stopped("tcp://a:1", [tile(1), tile(2)], "illegal address")
    hosts.add("tcp://a:3", "a", "", "GPU 0")
    assert hosts.choose([tile(9)], ["tcp://a:2", "tcp://a:3"]) is None, "once may be the tile's fault"
    hosts.gpu_stopped("tcp://a:3", [tile(3)], "illegal address")
    hosts.add("tcp://a:4", "a", "", "GPU 0")
    assert hosts.choose([tile(9)], ["tcp://a:2", "tcp://a:4"]) == {"tcp://a:2"}
    assert hosts.no_gpu_left(["tcp://a:2", "tcp://a:4"]) == ""
    assert "GPU 0 on a stopped computing 2 times" in hosts.no_gpu_left(["tcp://a:4"])
    assert "illegal address" in hosts.exclusions["GPU 0 on a"]
    now = 61.0
    assert hosts.no_gpu_left(["tcp://a:4"]) == ""
    hosts.gpu_stopped("tcp://a:4", [tile(3)], "illegal address")
    assert hosts.choose([tile(9)], ["tcp://a:2", "tcp://a:4"]) == {"tcp://a:2"}, "at once when it breaks again"


def test_a_tile_that_breaks_every_gpu_is_the_tiles_fault() -> None:
    hosts = Hosts()
    for k in range(4):
        hosts.add(f"tcp://a:{k}", "a", "", "GPU 0")
        hosts.gpu_stopped(f"tcp://a:{k}", [tile(7), tile(10 + k)], "illegal address")
    assert not hosts.exclusions
    hosts.add("tcp://a:8", "a", "", "GPU 0")
    hosts.succeeded("tcp://a:8", tile(20))
    hosts.gpu_stopped("tcp://a:8", [tile(21)], "illegal address")
    assert not hosts.exclusions, "a success in between: what was before counts no more"
    hosts.gpu_stopped("tcp://a:9", [tile(1)], "of a worker that nobody knows")
    hosts.add("tcp://b:1", "b")
    hosts.gpu_stopped("tcp://b:1", [tile(1)], "of a worker without a GPU")
    assert not hosts.exclusions


def test_probe_has_the_answer_and_refuses_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wsiseg.results.folder import RunFolder

    context = WorkerContext(RunFolder(tmp_path), RunConfig(predict=PredictConfig(precision="fp32")), "probe", "cpu")
    probe_device(context)
    monkeypatch.setattr("wsiseg.run.kernels.KNOWN", (3, 525))
    with pytest.raises(DeviceBrokenError, match="3 nuclei with 526 px, expected"):
        probe_device(context)
    context.close()


@pytest.fixture(scope="module")
def crop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import openslide

    path = tmp_path_factory.mktemp("slide") / "crop.png"
    with openslide.OpenSlide(SLIDE) as slide:
        Image.fromarray(np.asarray(slide.read_region((900, 1100), 0, (620, 540)).convert("RGB"))).save(path)
    return path


Run = Callable[..., Any]


@pytest.fixture
def run_on(kernel_library: ctypes.CDLL, crop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that segments the crop on stand-in GPUs, some of which break."""

    def run(n_gpus: int, faults: dict[str, Any]) -> Any:
        report = DriverReport(("NVIDIA H200",) * n_gpus, (150 * 2**30,) * n_gpus, "")
        monkeypatch.setattr(devices, "driver_report", lambda: report)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        (tmp_path / "fired").mkdir(exist_ok=True)
        for name, value in {
            "WSISEG_GPU_FAULTS": json.dumps(faults),
            "WSISEG_GPU_FAULTS_DIR": str(tmp_path / "fired"),
            "WSISEG_KERNELS": kernel_library._name,
            "OMP_NUM_THREADS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        config = RunConfig(
            read=ReadConfig(tile_wpx=300, mpp=0.499, reader="openslide"),
            normalize=NormalizeConfig("reinhard"),
            predict=PredictConfig(precision="fp32", window_wpx=256),
            schedule=ScheduleConfig(device="cuda", threads_per_worker=1),
        )
        with dask.config.set({"distributed.worker.preload": [PRELOAD]}):
            return segment([SlideInput(crop.stem, str(crop), mpp=0.499)], tmp_path / "out", config)

    return run


def processes_of(tmp_path: Path, gpu: int) -> int:
    return len({p.name.rsplit("-", 1)[1] for p in (tmp_path / "fired").glob(f"tile-{gpu}-*")})


def test_a_broken_context_ends_the_worker_and_no_tile_is_lost(run_on: Run, tmp_path: Path) -> None:
    summary = run_on(1, {"0": {"at": "tile", "tiles": [1], "times": 1}})
    assert summary.ok, summary.errors
    assert not summary.errors
    assert processes_of(tmp_path, 0) == 2, "one process until it broke, one after"
    events = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    (death,) = [e for e in events if e["event"] == "worker_death"]
    assert "cudaErrorIllegalAddress" in death["reason"]
    assert "its GPU stopped computing" in death["reason"]


def test_one_of_two_gpus_that_breaks_at_everything_is_excluded(run_on: Run) -> None:
    summary = run_on(2, {"1": {"at": "tile", "times": 99}})
    assert summary.ok, summary.errors
    assert not summary.errors


def test_one_of_two_gpus_that_is_broken_from_the_start_gets_no_tile(run_on: Run, tmp_path: Path) -> None:
    summary = run_on(2, {"0": {"at": "start", "times": 99}})
    assert summary.ok, summary.errors
    assert processes_of(tmp_path, 0) == 0
    assert any(name.startswith("GPU 0") and "cudaErrorIllegalAddress" in why for name, why in summary.hosts_aside.items())


def test_the_only_gpu_breaks_again_and_again(run_on: Run) -> None:
    with pytest.raises(DeviceBrokenError, match=r"No GPU is left to compute on: GPU 0 .*cudaErrorIllegalAddress.*same command"):
        run_on(1, {"0": {"at": "tile", "times": 99}})

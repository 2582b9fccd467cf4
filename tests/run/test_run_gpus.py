"""The device of a run, the GPU of each worker, and the messages without a GPU; the driver is a stand-in."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from distributed import Client, Scheduler, SpecCluster, Worker

import wsiseg.backend.gpus as gpus
import wsiseg.cluster.devices as devices
from wsiseg.backend.gpus import DriverReport, driver_report
from wsiseg.cli import main
from wsiseg.cluster.connect import connect
from wsiseg.cluster.devices import compute_device, gpu_environments, gpu_obstacle, threads_of_worker
from wsiseg.cluster.gpu_workers import gpu_cluster
from wsiseg.cluster.remote import fitting_workers
from wsiseg.config import RunConfig, ScheduleConfig
from wsiseg.errors import BackendUnavailableError, ConfigError, InputError

TWO = DriverReport(("NVIDIA H200", "NVIDIA H200"), (150 * 2**30, 150 * 2**30), "")
NONE = DriverReport((), (), "no NVIDIA driver here (libcuda.so.1 is missing)")


class Driver:
    """``libcuda.so.1`` as ctypes would call it: output parameters by reference."""

    def __init__(self, code: int = 0, names: tuple[bytes, ...] = ()) -> None:
        self.code, self.names = code, names

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = self.names[device.value][: length - 1]
        return 0

    def cuDeviceTotalMem_v2(self, size: Any, device: Any) -> int:
        size._obj.value = (device.value + 1) * 2**30
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(report: DriverReport) -> None:
        monkeypatch.setattr(devices, "driver_report", lambda: report)
        gpu_obstacle.cache_clear()

    yield install
    gpu_obstacle.cache_clear()


def test_driver_lists_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(names=(b"NVIDIA H200", b"NVIDIA L4")))
    assert driver_report() == DriverReport(("NVIDIA H200", "NVIDIA L4"), (2**30, 2**31), "")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(code=100))
    assert driver_report().reason == "the NVIDIA driver does not start: error 100, no GPU is visible"
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    assert "CUDA_VISIBLE_DEVICES" in driver_report().reason


def test_without_a_driver_auto_is_the_cpu_and_reports_nothing(
    driver: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(NONE)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("nothing is started to find out"))
    assert compute_device(RunConfig()) == "cpu"
    assert not caplog.records
    assert compute_device(RunConfig(schedule=ScheduleConfig(device="cuda"))) == "cuda"
    with pytest.raises(BackendUnavailableError, match="Expected a GPU for --device cuda: no NVIDIA driver here"):
        gpu_environments(ScheduleConfig(device="cuda"))


def test_with_a_gpu_that_cannot_be_used_the_reason_is_logged(
    driver: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(TWO)
    monkeypatch.setattr(devices, "missing_packages", lambda: "")
    assert compute_device(RunConfig()) == "cpu"  # this torch has no CUDA, asked in a process of its own
    assert "the GPU is not used: torch" in caplog.text
    assert "built without CUDA" in caplog.text


def test_with_a_usable_gpu_auto_is_cuda(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(TWO)
    monkeypatch.setattr(devices, "missing_packages", lambda: "")
    answer = subprocess.CompletedProcess([], 0, stdout="\n", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: answer)
    assert compute_device(RunConfig()) == "cuda"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.importlib.util, "find_spec", lambda name: None if name == "cupy" else object())
    assert gpus.missing_packages() == "not installed: cupy (pip install 'wsiseg[gpu]')"


def test_each_worker_sees_one_gpu(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(TWO)
    monkeypatch.setattr(devices, "usable_cores", lambda: 4)
    seen = [e["CUDA_VISIBLE_DEVICES"] for e in gpu_environments(ScheduleConfig(), {})]
    assert seen == ["0", "1"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in gpu_environments(ScheduleConfig(gpus="1"), {})] == ["1"]
    twice = gpu_environments(ScheduleConfig(workers_per_gpu=2), {})
    assert [e["CUDA_VISIBLE_DEVICES"] for e in twice] == ["0", "1", "0", "1"]
    renamed = gpu_environments(ScheduleConfig(gpus="0,1"), {"CUDA_VISIBLE_DEVICES": "5,GPU-8f2a"})
    assert [e["CUDA_VISIBLE_DEVICES"] for e in renamed] == ["5", "GPU-8f2a"]
    with pytest.raises(InputError, match=r"GPUs 0 to 1 .*got '0,3'"):
        gpu_environments(ScheduleConfig(gpus="0,3"), {})


def test_as_many_workers_share_a_gpu_as_its_memory_and_the_cores_feed(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def of(gib: tuple[int, ...], cores: int, **schedule: Any) -> int:
        driver(DriverReport(("GPU",) * len(gib), tuple(n * 2**30 for n in gib), ""))
        monkeypatch.setattr(devices, "usable_cores", lambda: cores)
        config = RunConfig(schedule=ScheduleConfig(**schedule))
        resolved = devices.on_device(config, "cuda").schedule.workers_per_gpu
        n_gpus = len(config.schedule.gpus.split(",")) if config.schedule.gpus else len(gib)
        assert len(gpu_environments(config.schedule, {})) == resolved * n_gpus
        return resolved

    assert of((141,), 16) == 3
    assert of((141,), 9) == 2
    assert of((141, 141), 16) == 2
    assert of((141, 141), 16, gpus="1") == 3
    assert of((141, 24), 64) == 1, "by the smallest"
    assert of((141,), 2) == 1
    assert of((8,), 64) == 1
    assert of((141,), 64, workers_per_gpu=5) == 5
    assert of((141,), 64, dask_cuda=True) == 1
    assert devices.on_device(RunConfig(), "cpu").schedule.workers_per_gpu == 0


@pytest.mark.parametrize("text", ["a", "0,0", "-1", "0,,1"])
def test_gpu_numbers_are_checked(text: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.gpus"):
        ScheduleConfig(gpus=text)


def test_threads() -> None:
    auto = ScheduleConfig()
    assert threads_of_worker(auto, "cpu", 8, 64) == 1
    assert [threads_of_worker(auto, "cuda", n, 16) for n in (1, 2, 16)] == [16, 8, 2]
    assert threads_of_worker(auto, "cuda", 1, 96) == 16
    assert threads_of_worker(ScheduleConfig(threads_per_worker=3), "cpu", 8, 64) == 3


def look() -> tuple[str | None, bool]:
    return os.environ.get("CUDA_VISIBLE_DEVICES"), "torch" in sys.modules


def test_worker_processes_start_with_their_gpu(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(TWO)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    monkeypatch.setattr("wsiseg.cluster.gpu_workers.importlib.util.find_spec", lambda name: None)
    config = RunConfig(schedule=ScheduleConfig(device="cuda", threads_per_worker=2))
    with connect(config) as client:
        assert isinstance(client, Client)
        assert set(client.nthreads().values()) == {2}
        seen = client.run(look)
    assert sorted(seen.values()) == [("0", False), ("1", False)]


def test_dask_cuda_is_used_only_where_requested(driver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(TWO)
    asked: dict[str, Any] = {}
    module = ModuleType("dask_cuda")
    module.__dict__["LocalCUDACluster"] = lambda **options: asked.update(options) or "cluster"
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    monkeypatch.setattr("wsiseg.cluster.gpu_workers.importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with gpu_cluster(ScheduleConfig(device="cuda", gpus="0"), 1) as plain:
        assert isinstance(plain, SpecCluster)
    assert not asked
    with pytest.raises(InputError, match=r"schedule\.dask_cuda needs"):
        gpu_cluster(ScheduleConfig(device="cuda", dask_cuda=True, workers_per_gpu=2), 16)
    assert gpu_cluster(ScheduleConfig(device="cuda", gpus="1,0", dask_cuda=True), 16) == "cluster"
    assert (asked["CUDA_VISIBLE_DEVICES"], asked["threads_per_worker"]) == (["1", "0"], 8)
    assert asked["memory_limit"] == asked["device_memory_limit"] == 0


def test_who_reads_only_decides_nothing() -> None:
    """Device and precision are asked of workers that compute, those with GPUs first, whoever joined first."""
    quiet = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    started = [{"CPU": 1}, {}, {"GPU": 1, "CPU": 1}, {"CPU": 2}]
    workers = {
        k: {"cls": Worker, "options": {"resources": r, "nthreads": 1, "dashboard_address": "127.0.0.1:0", "memory_limit": 0}}
        for k, r in enumerate(started)
    }
    with (
        SpecCluster(workers=workers, scheduler={"cls": Scheduler, "options": {"port": 0, **quiet}}, silence_logs=50) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(4, timeout=60)
        names = {address: w["name"] for address, w in client.scheduler_info()["workers"].items()}
        assert [names[address] for address in fitting_workers(client)] == [2, 1]


def test_doctor_states_what_a_gpu_run_lacks(driver: Any) -> None:
    gpu_obstacle.cache_clear()
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    if driver_report().names:
        pytest.skip("this machine has a GPU")
    reported = " ".join(result.output.split())
    assert "GPU driver" in reported
    assert "no NVIDIA driver here (libcuda.so.1 is missing)" in reported
    assert "device auto is the CPU here" in reported

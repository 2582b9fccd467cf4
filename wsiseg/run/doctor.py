"""``wsiseg doctor``: what is installed, which backend a run would use, and a self-test."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from wsiseg import __version__
from wsiseg.backend.cuda import cuda_report, free_bytes
from wsiseg.backend.gpus import driver_report
from wsiseg.cluster.devices import gpu_obstacle, workers_of_gpu
from wsiseg.cluster.limits import local_limits, usable_cores
from wsiseg.cluster.placement import place
from wsiseg.config import PredictConfig, ReadConfig, RunConfig, ScheduleConfig, SeparateConfig
from wsiseg.errors import BackendUnavailableError, WsisegError
from wsiseg.predict import device_report, load_model
from wsiseg.predict.memory import plan_device
from wsiseg.read.report import reader_report
from wsiseg.run.kernels import prepare_kernels
from wsiseg.run.resolve import resolve_here
from wsiseg.separate import resolve_params, separate
from wsiseg.types import Box
from wsiseg.vectorize import vectorize

__all__ = ["Check", "doctor"]

TILE_READ_WPX = ReadConfig().tile_wpx + 2 * ReadConfig().halo_wpx

_PACKAGES = (
    "numpy", "numba", "torch", "openslide-python", "cucim-cu13", "cucim-cu12", "dask", "pyarrow", "shapely", "zarr",
    "cupy-cuda13x", "cupy-cuda12x",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. Status ``note``: an optional part is missing; ``fail``: the command exits nonzero."""

    name: str
    status: Literal["ok", "note", "fail"]
    detail: str


def doctor() -> list[Check]:
    """Run all checks and return their results; a missing part is a result, not an exception."""
    checks: list[Check] = [Check("wsiseg", "ok", f"{__version__} on Python {platform.python_version()}, {platform.platform()}")]
    checks.append(_packages())
    checks += _machine()
    checks += [Check(f"reader {name}", "ok" if usable else "note", detail) for name, usable, detail in reader_report()]
    checks += [Check(name, "ok" if usable else "note", detail) for name, usable, detail in device_report()]
    checks += _gpu()
    checks += [_weights(name) for name in ("open", "research")]
    checks.append(_run())
    checks += [_kernels(), _self_test()]
    return checks


def _machine() -> list[Check]:
    limits = local_limits()
    memory = psutil.virtual_memory()
    free = min(memory.available, limits.memory_bytes)
    sizes = f"{free / 2**30:.1f} GiB memory free, {shutil.disk_usage('.').free / 2**30:.0f} GiB disk free here"
    found = [f"{limits.cores} cores: {limits.cores_by}"] if limits.cores_by else []
    found += [f"{limits.memory_bytes / 2**30:.1f} GiB memory: {limits.memory_by}"] if limits.memory_by else []
    placement = place(RunConfig(schedule=ScheduleConfig(device="cpu")))
    workers, why = placement.workers, placement.note
    checks = [Check("machine", "ok", f"{limits.cores} usable cores, {sizes}")]
    checks += [Check("limits", "ok", "; ".join(found))] if found else []
    return [*checks, Check("workers", "note" if why else "ok", why or f"{workers}, one a core")]


def _kernels() -> Check:
    """Compile the CPU kernels that ``segment`` needs, and report where they are cached."""
    prepared = prepare_kernels()
    done = f"{prepared.compiled} compiled, {prepared.loaded} loaded in {prepared.seconds:.1f} s"
    if prepared.folder:
        return Check("CPU kernels", "ok", f"{done}; kept in {prepared.folder}")
    why = "no cache folder is writable, so every worker of every run compiles them again. Set NUMBA_CACHE_DIR to a writable one"
    return Check("CPU kernels", "note", f"{done}; {why}")


def _packages() -> Check:
    found = []
    for name in _PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return Check("packages", "ok", ", ".join(found))


def _gpu() -> list[Check]:
    """Report what is missing for a GPU run, from the driver up to the kernels, or how a GPU run would be set up."""
    driver = driver_report()
    names = ", ".join(f"{n} ({b / 2**30:.0f} GiB)" for n, b in zip(driver.names, driver.memory_bytes, strict=True))
    checks = [Check("GPU driver", "ok" if driver.names else "note", names or driver.reason)]
    usable, detail = cuda_report()
    checks.append(Check("kernels", "ok" if usable else "note", detail))
    obstacle = gpu_obstacle()
    if obstacle:
        return [*checks, Check("GPU run", "note", f"device auto is the CPU here: {obstacle}")]
    placement = place(RunConfig())
    each = workers_of_gpu(ScheduleConfig(), usable_cores())
    at_once = f"{placement.threads_per_worker} tiles at once in each"
    how = f"device auto is cuda: {placement.workers} workers ({each} on each GPU), {at_once}"
    model = load_model(PredictConfig(precision="fp32"))
    plans = []
    for k, total in enumerate(driver.memory_bytes):
        free = free_bytes(k)
        most = int(free * ScheduleConfig().device_memory_frac / each)
        plan = plan_device(most, model.spec, 2, TILE_READ_WPX, model.halo_wpx)
        plans.append(f"GPU {k}: {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, windows of {plan.window_wpx} px, "
                     f"{plan.batch} tiles of each worker on it at once")  # fmt: skip
    return [*checks, Check("GPU run", "ok", how), Check("GPU memory", "ok", "; ".join(plans))]


def _run() -> Check:
    """Report what ``segment`` without options would compute with."""
    try:
        return Check("segment", "ok", resolve_here(RunConfig()).record.words)
    except (WsisegError, BackendUnavailableError) as err:
        return Check("segment", "fail", str(err))


def _weights(name: str) -> Check:
    try:
        model = load_model(PredictConfig(weights=name, precision="fp32"))
    except (WsisegError, BackendUnavailableError) as err:
        return Check(f"weights {name}", "fail", str(err))
    return Check(
        f"weights {name}", "ok", f"{model.name}, licence {model.licence}, sha256 {model.sha256[:12]}, {model.mpp} um/px"
    )


def _self_test() -> Check:
    """Separate and vectorize three painted discs, two of them touching, and compare with the known number and areas."""
    height = width = 128
    y, x = np.mgrid[:height, :width]
    centers = ((30, 30), (47, 30), (90, 90))
    prob = np.zeros((2, height, width), np.uint8)
    painted = np.zeros((height, width), bool)
    for cx, cy in centers:
        distance = np.hypot(x - cx, y - cy)
        prob[0] = np.maximum(prob[0], np.clip(255 - 40 * distance, 0, 255).astype(np.uint8))
        prob[1] = np.maximum(prob[1], np.where(distance <= 9, 230, 0).astype(np.uint8))
        painted |= distance <= 9
    try:
        params = resolve_params(SeparateConfig(min_area_um2=1.0), {}, 0.25)
        instances = separate(prob, params)
        box = Box(0, 0, width, height)
        batch = vectorize(instances, prob, box, box)
    except WsisegError as err:
        return Check("self-test", "fail", str(err))
    area = int(np.sum(batch.columns["area_wpx"]))
    good = len(batch) == 3 and abs(area - int(painted.sum())) <= 0.1 * painted.sum()
    detail = f"3 painted nuclei, {len(batch)} found, {area} of {int(painted.sum())} px"
    return Check("self-test", "ok" if good else "fail", detail)


def demo_slide() -> Path:
    """Return the real slide that ships with the package."""
    import wsiseg

    folder = Path(wsiseg.__file__).parent / "demo"
    slides = sorted(folder.glob("*.svs"))
    if not slides:
        raise BackendUnavailableError(f"The demo slide is missing from {folder}: reinstall wsiseg from its source tree.")
    return slides[0]

"""Compile the CPU kernels of a run (or load them from a cache) before the first tile.

The functions of a tile are called on a picture of 64 px with the same types of arrays, so that each kernel is compiled for the
types that tiles use. ``tests/run/test_run_kernels.py`` checks that whole runs compile nothing afterwards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend import to_device, to_host
from wsiseg.errors import DeviceBrokenError
from wsiseg.normalize import normalize
from wsiseg.pipeline import with_densities
from wsiseg.read import read_working
from wsiseg.separate import SeparateParams, separate
from wsiseg.summarize import RUIFROK_JOHNSTON, neighbors, od_tables, solidity
from wsiseg.tables import wkb_polygons
from wsiseg.types import Box, PolygonBatch, SlideMeta, Stain
from wsiseg.vectorize import tile_stats, vectorize

if TYPE_CHECKING:
    from wsiseg.run.context import WorkerContext

__all__ = ["Prepared", "prepare_kernels", "probe_device"]

SIDE_PX = 64

KNOWN = (3, 526)
"""Number of nuclei in ``_picture`` and the sum of their areas, px: integers, equal on every machine."""

_PARAMS = SeparateParams(
    center_threshold=16000,
    material_threshold=2000,
    marker_radius_px=3,
    compactness_q256=512,
    merge_depth=1,
    seed_recall=True,
    min_area_px=20,
    max_area_px=2000,
)

_STAINS = (
    Stain("reinhard", (0.0, 0.1, 0.0, 1.0, 1.0, 1.0)),
    Stain("macenko", (0.65, 0.70, 0.29, 0.07, 0.99, 0.11, 1.9, 1.0)),
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Result of the preparation: seconds, number of signatures compiled and loaded from disk, the cache folder (or "")."""

    seconds: float = 0.0
    compiled: int = 0
    loaded: int = 0
    folder: str = ""


def prepare_kernels(device: str = "cpu", *, features: bool = False) -> Prepared:
    """Compile the kernels that tiles need in this process, or load those that an earlier process compiled.

    ``features``: also those that ``segment --features`` needs.

    If several processes of a machine share a cache, one compiles while the others wait. For a GPU, only the kernel that
    resamples pixels runs on the host.
    """
    start = time.perf_counter()
    try:
        from wsiseg.backend import _cpu_jit
    except ImportError:  # without numba, NumPy is used where possible
        return Prepared()
    from wsiseg.read import _cpu_resample  # noqa: F401 - the first kernel; its import sets the cache folder

    before = _cpu_jit.compiled_so_far()
    with _cpu_jit.one_at_a_time():
        rgb = read_working(_Slide(), Box(0, 0, SIDE_PX, SIDE_PX), 0.5)  # type: ignore[arg-type]
        if device == "cpu":
            _compute(rgb)
        if features:
            _measure(rgb)
    now = _cpu_jit.compiled_so_far()
    seconds = time.perf_counter() - start
    return Prepared(round(seconds, 3), now.compiled - before.compiled, now.loaded - before.loaded, now.folder)


def probe_device(context: WorkerContext) -> None:
    """Check a worker's device with computations of known result, before it gets a tile.

    Raises
    ------
    DeviceBrokenError
        A result is wrong, or two computations differ. If the device does not compute at all, the library's error is raised.
    """
    from wsiseg.predict import predict

    model = context.model
    read = Box(0, 0, SIDE_PX, SIDE_PX)
    window = model.input_box(read)
    rgb = np.full((window.h, window.w, 3), 230, np.uint8)
    rgb[window.h // 4 : window.h // 2 : 3, window.w // 4 : window.w // 2] = (90, 60, 140)
    with context.turn():
        prob = to_device(_picture(), context.device)
        batch = vectorize(separate(prob, _PARAMS), prob, read, read)
        there = to_device(rgb, context.device)
        maps = [to_host(predict(model, there, window, read)) for _ in range(2)]
    found = len(batch), int(batch.columns["area_wpx"].sum())
    if found != KNOWN:
        raise DeviceBrokenError(f"in a test picture it finds {found[0]} nuclei with {found[1]} px, expected {KNOWN}")
    if not np.array_equal(*maps):
        raise DeviceBrokenError("its network gives two different maps for the same picture")


def _compute(rgb: npt.NDArray[np.uint8]) -> None:
    for stain in _STAINS:
        normalize(rgb, stain)
    prob = _picture()
    read = Box(0, 0, SIDE_PX, SIDE_PX)
    instances = separate(prob, _PARAMS)
    vectorize(instances, prob, read, read)
    for core in (read, read.padded(-8)):  # with and without a halo: arrays of two layouts
        tile_stats(prob, instances, read, core)


def _measure(rgb: npt.NDArray[np.uint8]) -> None:
    read = Box(0, 0, SIDE_PX, SIDE_PX)
    xy = np.array([[10, 10], [20, 10], [20, 20], [10, 20], [10, 10]], np.int32)
    with_densities(
        PolygonBatch(xy, np.array([0, 5]), {"area_wpx": np.array([100], np.int32)}),
        rgb,
        read,
        read,
        od_tables(RUIFROK_JOHNSTON),
    )
    neighbors(xy.astype(np.float64))
    solidity(wkb_polygons(xy.astype(np.float64), np.array([0, 5])))


def _picture() -> npt.NDArray[np.uint8]:
    """Return maps of two touching nuclei, one that is too small, and one without a peak, so that every step is needed."""
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX]
    prob = np.zeros((2, SIDE_PX, SIDE_PX), np.uint8)
    for cx, cy, radius, peak in ((18, 18, 8, 250), (32, 18, 8, 250), (50, 50, 2, 250), (16, 48, 7, 0)):
        distance = np.hypot(x - cx, y - cy)
        prob[0] = np.maximum(prob[0], np.clip(peak - 20 * distance, 0, 255).astype(np.uint8))
        prob[1] = np.maximum(prob[1], np.where(distance <= radius, 230, 0).astype(np.uint8))
    return prob


class _Slide:
    """A white slide without a file."""

    meta = SlideMeta("kernels", "", 4 * SIDE_PX, 4 * SIDE_PX, 0.25, "user", level_downsamples=(1.0,))

    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> Any:
        """Return white pixels."""
        return np.full((h, w, 3), 255, np.uint8)

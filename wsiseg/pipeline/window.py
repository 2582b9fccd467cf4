"""Process one window of a slide, from pixels to probability maps to nuclei, on the host or on a device."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from wsiseg.backend import DeviceTimer, memory_errors, to_device, to_host
from wsiseg.config import RunConfig
from wsiseg.log import log
from wsiseg.normalize import normalize
from wsiseg.read import UNSCANNED_MAX, TissueView
from wsiseg.separate import SeparateParams, separate
from wsiseg.types import Box, Instances, PolygonBatch, Stain, TileStats
from wsiseg.vectorize import tile_stats, vectorize

if TYPE_CHECKING:
    from wsiseg.predict import Model

__all__ = ["StageClock", "WindowNuclei", "WindowPixels", "stain_aim", "window_maps", "window_nuclei", "window_stats"]

Array = Any


@dataclass(slots=True)
class StageClock:
    """Seconds of consecutive stages: by the wall clock, and for asynchronous work of a device by the device's clock."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)
    _marks: list[tuple[str, Any]] = field(default_factory=list)
    _timer: DeviceTimer | None = None

    @contextmanager
    def on_device(self, timer: DeviceTimer | None) -> Iterator[None]:
        """Measure the laps in the block on the device, by marks on its stream that are read after all work is done.

        The host runs ahead of a device, so by its clock a stage that waits would get the time of the stages before it.
        """
        if timer is None:
            yield
            return
        self._timer, self._marks = timer, [("", timer.mark())]
        try:
            yield
            timer.wait(self._marks[-1][1])
            for (_, before), (stage, after) in pairwise(self._marks):
                self.seconds[stage] = self.seconds.get(stage, 0.0) + timer.seconds(before, after)
        finally:
            self._timer, self._marks = None, []
            self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to ``stage``."""
        if self._timer is not None:
            self._marks.append((stage, self._timer.mark()))
            return
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


@dataclass(frozen=True, slots=True, eq=False)
class WindowNuclei:
    """The results of a window: the polygons that its core owns, and all instances with the maps that they come from.

    Attributes
    ----------
    batch
        Polygons of nuclei whose marker is in the core.
    instances
        Label image of the whole window.
    prob : uint8 (2, H, W)
        Maps of the window, on the host or the device; 0 center, 1 material.
    """

    batch: PolygonBatch
    instances: Instances
    prob: Array


def stain_aim(model: Model, config: RunConfig) -> Stain:
    """Return the method and reference of stain normalization: from the config, or with ``auto`` those of the weights."""
    method = config.normalize.method
    return model.stain_aim if method == "auto" else Stain(method)


@dataclass(frozen=True, slots=True, eq=False)
class WindowPixels:
    """Pixels of a window and what is known of them, on the host or on a device.

    Attributes
    ----------
    rgb : uint8 (h, w, 3)
        Pixels of ``model.input_box(box)``, white outside the slide.
    tissue : bool (H, W), TissueView or None
        Where maps of ``box`` are wanted; elsewhere they may be 0. ``None``: everywhere.
    unscanned : bool (h, w), TissueView or None
        Where plain black px were not scanned (``wsiseg.read.unscanned_view``); they are processed as white, like px outside the
        slide. ``None``: nowhere.
    """

    rgb: Array
    tissue: Array | TissueView | None = None
    unscanned: Array | TissueView | None = None


def window_maps(
    model: Model,
    pixels: WindowPixels,
    box: Box,
    stain: Stain,
    device: str = "cpu",
    *,
    clock: StageClock | None = None,
    events: Counter[str] | None = None,
) -> Array:
    """Return the probability maps of a window.

    Parameters
    ----------
    box
        The window, working px.
    stain
        The slide's stain transformation.
    clock, events
        Receive the seconds of ``normalize`` and ``predict``, and counts of fallbacks because memory was full.

    Returns
    -------
    uint8 (2, H, W)
        0 center, 1 material.
    """
    clock = clock or StageClock()
    events = Counter() if events is None else events
    try:
        there = _on_white(pixels.rgb, pixels.unscanned, device)
        return _maps(model, there, box, stain, _there(pixels.tissue, device), clock, events)
    except memory_errors():
        if device == "cpu":
            raise
    # outside the handler, because the exception keeps the attempt's device memory alive
    log.warning("window %s: the memory of %s is full, only the network runs there", box, device)
    events["kept_on_host"] += 1
    there = _on_white(to_host(pixels.rgb), pixels.unscanned, "cpu")
    return _maps(model, there, box, stain, _there(pixels.tissue, "cpu"), clock, events)


def _there(where: Array | TissueView | None, device: str) -> Array | None:
    if isinstance(where, TissueView):
        return where.on(device)
    return None if where is None else to_device(where, device)


def _maps(
    model: Model, rgb: Array, box: Box, stain: Stain, wanted: Array | None, clock: StageClock, events: Counter[str]
) -> Array:
    from wsiseg.predict import predict  # imports torch, which the client that imports this module does not need

    rgb = normalize(rgb, stain)
    clock.lap("normalize")
    prob = predict(model, rgb, model.input_box(box), box, wanted, events)
    clock.lap("predict")
    return prob


def _on_white(rgb: Array, unscanned: Array | TissueView | None, device: str) -> Array:
    rgb, where = to_device(rgb, device), _there(unscanned, device)
    return rgb if where is None else _white_for_black(rgb, where)


def _white_for_black(rgb: Array, where: Array) -> Array:
    """Return uint8 (h, w, 3) with white for plain black where ``where`` bool (h, w): near black the network finds less."""
    for k in range(3):
        where = where & (rgb[..., k] <= UNSCANNED_MAX)
    rgb = rgb.copy()
    rgb[where] = 255
    return rgb


def window_nuclei(
    prob: Array,
    box: Box,
    core: Box,
    params: SeparateParams,
    *,
    clock: StageClock | None = None,
    events: Counter[str] | None = None,
) -> WindowNuclei:
    """Separate maps into instances and trace those that the core owns; on the CPU if the device has no memory left.

    Parameters
    ----------
    prob : uint8 (2, H, W)
        Maps of ``box``.
    box, core
        Window and the part of it that owns nuclei, working px.
    params
        Thresholds and limits, working px.
    clock, events
        Receive the seconds of ``separate`` and ``vectorize``, and counts of fallbacks to the CPU.
    """
    clock = clock or StageClock()
    try:
        return _nuclei(prob, box, core, params, clock)
    except memory_errors():
        pass  # the exception's frames keep the attempt's device memory alive, so continue outside the handler
    log.warning("window %s: the memory of the device is full, separated on the CPU", box)
    if events is not None:
        events["separated_on_cpu"] += 1
    return _nuclei(to_host(prob), box, core, params, clock)


def window_stats(found: WindowNuclei, read: Box, core: Box, tissue: TissueView, events: Counter[str]) -> TileStats:
    """Sum maps, labels and tissue of a window over its core; on the CPU if the device has no memory left."""
    try:
        stats = tile_stats(found.prob, found.instances, read, core)
    except memory_errors():
        events["summed_on_cpu"] += 1
        instances = Instances(to_host(found.instances.labels), to_host(found.instances.anchors))
        stats = tile_stats(to_host(found.prob), instances, read, core)
    return dataclasses.replace(stats, tissue_px=tissue.count(Box(core.x - read.x, core.y - read.y, core.w, core.h)))


def _nuclei(prob: Array, box: Box, core: Box, params: SeparateParams, clock: StageClock) -> WindowNuclei:
    instances = separate(prob, params)
    clock.lap("separate")
    batch = vectorize(instances, prob, box, core)
    clock.lap("vectorize")
    return WindowNuclei(batch, instances, prob)

"""One window of a slide: pixels -> probability maps -> nuclei, on the host or on a device."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from wsiseg.backend import memory_errors, to_device, to_host
from wsiseg.config import RunConfig
from wsiseg.log import log
from wsiseg.normalize import normalize
from wsiseg.read import UNSCANNED_MAX
from wsiseg.separate import SeparateParams, separate
from wsiseg.types import Box, Instances, PolygonBatch, Stain
from wsiseg.vectorize import vectorize

if TYPE_CHECKING:
    from wsiseg.predict import Model

__all__ = ["StageClock", "WindowNuclei", "stain_aim", "window_maps", "window_nuclei"]

Array = Any


@dataclass(slots=True)
class StageClock:
    """Wall seconds of consecutive stages."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        """Book the time since the last lap to ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self.last
        self.last = now


@dataclass(frozen=True, slots=True, eq=False)
class WindowNuclei:
    """What a window holds: the polygons that its core owns, and all instances with the maps that they come from.

    Attributes
    ----------
    batch
        Polygons of nuclei whose marker lies in the core.
    instances
        Label image of the whole window.
    prob : uint8 (2, H, W)
        Maps of the window, on the host or the device; 0 center, 1 material.
    """

    batch: PolygonBatch
    instances: Instances
    prob: Array


def stain_aim(model: Model, config: RunConfig) -> Stain:
    """Return what slides are normalized to: what the config says, or (``auto``) what the weights were trained for."""
    method = config.normalize.method
    return model.stain_aim if method == "auto" else Stain(method)


def window_maps(
    model: Model,
    rgb: Array,
    box: Box,
    stain: Stain,
    tissue: Array | None,
    device: str = "cpu",
    *,
    unscanned: Array | None = None,
    clock: StageClock | None = None,
    events: Counter[str] | None = None,
) -> Array:
    """Return the probability maps of a window.

    Parameters
    ----------
    rgb : uint8 (h, w, 3)
        Pixels of ``model.input_box(box)``, white outside the slide; on the host or the device.
    box
        The window, working px.
    stain
        The slide's stain transformation.
    tissue : bool (H, W) or None
        Where maps are wanted; elsewhere they may be 0. ``None``: everywhere.
    unscanned : bool (h, w) or None
        Where plain black means that nothing was scanned (``wsiseg.read.unscanned_window``); it is taken for white, as what lies
        outside the slide. ``None``: nowhere.
    clock, events
        Receive seconds of ``normalize`` and ``predict``, and what was done otherwise for want of memory.

    Returns
    -------
    uint8 (2, H, W)
        0 center, 1 material.
    """
    from wsiseg.predict import predict  # torch: not in the client, which only names this module

    clock = clock or StageClock()
    window = model.input_box(box)
    rgb = to_device(rgb, device)
    if unscanned is not None:
        rgb = _white_for_black(rgb, to_device(unscanned, device))
    rgb = normalize(rgb, stain)
    clock.lap("normalize")
    prob = predict(model, rgb, window, box, None if tissue is None else to_device(tissue, device), events)
    clock.lap("predict")
    return prob


def _white_for_black(rgb: Array, where: Array) -> Array:
    """Return uint8 (h, w, 3) with white for what is plain black ``where`` bool (h, w): beside black the network finds less."""
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
    """Separate maps into instances and trace those that the core owns; where a device has no memory left, on the CPU.

    Parameters
    ----------
    prob : uint8 (2, H, W)
        Maps of ``box``.
    box, core
        Window and the part of it that owns nuclei, working px.
    params
        Thresholds and limits, working px.
    clock, events
        Receive seconds of ``separate`` and ``vectorize``, and whether the CPU had to do it.
    """
    clock = clock or StageClock()
    try:
        return _nuclei(prob, box, core, params, clock)
    except memory_errors():
        log.warning("window %s: the memory of the device is full, separated on the CPU", box)
        if events is not None:
            events["separated_on_cpu"] += 1
        return _nuclei(to_host(prob), box, core, params, clock)


def _nuclei(prob: Array, box: Box, core: Box, params: SeparateParams, clock: StageClock) -> WindowNuclei:
    instances = separate(prob, params)
    clock.lap("separate")
    batch = vectorize(instances, prob, box, core)
    clock.lap("vectorize")
    return WindowNuclei(batch, instances, prob)

"""Compute how much of a GPU's memory a tile takes, and which windows fit in the free memory."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from wsiseg.predict.nets import NetSpec

__all__ = ["DevicePlan", "Window", "activation_bytes_per_px", "plan_device"]

MIN_WINDOW_WPX = 256
"""Smallest side of a window without its halo: below it nearly all of the work is spent on the halo."""
MAX_AT_ONCE = 3
"""Tiles on a device at the same time: one is uploaded, one computed, one traced. More would only use memory."""
SEPARATE_BYTES_PER_PX = 56
"""Bytes per px of a tile without the network: pixels 3, maps 2, arrays of separate and vectorize 41 (counted from their code),
and a fifth more for lists of nuclei."""
WORKSPACE = 1.25
"""Assumed factor for cuDNN's scratch memory and the pool's rounding; if it is too small, windows are halved."""


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """``window_wpx``: useful side of a network window; ``batch``: tiles that may be on the device at once."""

    window_wpx: int
    batch: int


@dataclass(slots=True)
class Window:
    """Side of a network window without its halo, working px; it is reduced when a window does not fit in memory.

    Attributes
    ----------
    side_wpx
        The side that all threads of a worker use now.
    min_wpx
        Smallest side: a window of this side is not halved.
    """

    side_wpx: int
    min_wpx: int = MIN_WINDOW_WPX
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def halve(self, failed_wpx: int) -> int | None:
        """Record that a window of ``failed_wpx`` did not fit; return the side to use instead, ``None`` if there is none.

        If another thread has already halved that side, its value is returned.
        """
        with self._lock:
            if failed_wpx <= self.min_wpx:
                return None
            self.side_wpx = min(self.side_wpx, max(self.min_wpx, failed_wpx // 32 * 16))
            return self.side_wpx


def activation_bytes_per_px(spec: NetSpec, itemsize: int) -> float:
    """Return the peak memory of activations in bytes per input px of a window.

    A block keeps its input, and the input and output of the current convolution; skips are kept for the decoder; a merge
    concatenates the upsampled map and the skip, which both stay in memory. The result is the largest sum of any step.

    Parameters
    ----------
    spec
        The network.
    itemsize
        Bytes of a number: 4 for fp32, 2 for bf16.
    """
    area = [1 / (spec.stem * 2**level) ** 2 for level in range(len(spec.widths))]
    peak, skips, channels = 0.0, 0.0, 3 * spec.stem**2
    for level, (width, convs) in enumerate(zip(spec.widths, spec.down_convs, strict=True)):
        peak = max(peak, skips + area[level] * (channels + min(convs, 2) * width))
        if level < len(spec.widths) - 1:
            skips += area[level] * width
        channels = width
    for level, convs in zip(range(len(spec.widths) - 2, -1, -1), spec.up_convs, strict=True):
        width = spec.widths[level]
        risen = channels if spec.wide_up else width
        skips -= area[level] * width
        peak = max(peak, skips + area[level] * (2 * (risen + width) + min(convs, 2) * width))
        channels = width
    pixels = 3 + 3 * 3 * itemsize  # bytes, and floats while they are scaled to [-1, 1] in the network's layout
    levels = 2 * (itemsize + 2 + 4 + 4 + 1)  # logits, and the integers of the table look-up
    return pixels + max(peak * itemsize, area[0] * channels * itemsize + levels)


def plan_device(free_bytes: int, spec: NetSpec, itemsize: int, tile_wpx: int, halo_wpx: int) -> DevicePlan:
    """Return the window size and the number of simultaneous tiles that fit in a device's memory.

    A window larger than the tile gains nothing; otherwise the largest is best, because each window computes its own halo. More
    than one tile is processed at a time only if several whole tiles fit.

    Parameters
    ----------
    free_bytes
        Memory that this process may use, with its weights already loaded.
    spec, itemsize
        See ``activation_bytes_per_px``.
    tile_wpx
        Side of the window that a tile reads, including the separation halo.
    halo_wpx
        The network's halo around a window.
    """
    post = SEPARATE_BYTES_PER_PX * tile_wpx**2
    per_px = WORKSPACE * activation_bytes_per_px(spec, itemsize)
    side = -(-tile_wpx // 16) * 16
    while side > MIN_WINDOW_WPX and post + per_px * (side + 2 * halo_wpx) ** 2 > free_bytes:
        side = max(MIN_WINDOW_WPX, side // 32 * 16)
    need = post + per_px * (side + 2 * halo_wpx) ** 2
    return DevicePlan(side, max(1, min(MAX_AT_ONCE, int(free_bytes // need))))

"""Windows that may reach outside the slide: only the inside is decoded, the rest is white."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["ALL_TRANSPARENT", "RGB", "hides_all", "over_white", "read_on_white"]

RGB: TypeAlias = npt.NDArray[np.uint8]

ALL_TRANSPARENT = (
    "its alpha sample is 0 (transparent) everywhere, and would hide the picture. Expected 255 where the picture shows; save "
    "it without alpha."
)


def read_on_white(
    read: Callable[[int, int, int, int], RGB], x: int, y: int, w: int, h: int, width_px: int, height_px: int
) -> RGB:
    """Read the window (x, y, w, h) of a plane of ``width_px`` by ``height_px`` pixels, white (255) outside the plane.

    Parameters
    ----------
    read
        ``read(x, y, w, h) -> uint8 (h, w, 3)``; called at most once, and only with a window inside the plane.
    x, y, w, h, width_px, height_px
        In px of the plane.

    Returns
    -------
    uint8 (h, w, 3)
    """
    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width_px), min(y + h, height_px)
    if (x0, y0, x1, y1) == (x, y, x + w, y + h) and w > 0 and h > 0:
        return read(x, y, w, h)
    canvas = np.full((max(h, 0), max(w, 0), 3), 255, np.uint8)
    if x1 > x0 and y1 > y0:
        canvas[y0 - y : y1 - y, x0 - x : x1 - x] = read(x0, y0, x1 - x0, y1 - y0)
    return canvas


def hides_all(colours: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> bool:
    """Return whether alpha is 0 everywhere although the colours vary: the writer of the picture left alpha unset."""
    return bool(alpha.size) and not alpha.any() and bool(colours.min() != colours.max())


def over_white(rgba: npt.NDArray[np.uint8]) -> RGB:
    """Composite straight-alpha uint8 (h, w, 4) over white: ``(c a + 255 (255 - a)) / 255``, rounded; uint8 (h, w, 3)."""
    rgb = np.ascontiguousarray(rgba[..., :3])
    alpha = rgba[..., 3]
    if alpha.size and alpha.min() < 255:
        rows = np.flatnonzero((alpha < 255).any(axis=1))
        a = alpha[rows, :, None].astype(np.uint32)
        rgb[rows] = ((rgb[rows] * a + 255 * (255 - a) + 127) // 255).astype(np.uint8)
    return rgb

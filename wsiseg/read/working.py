"""Working pixels: a slide's plane at the model's resolution.

A working pixel's value depends only on its position in the slide, not on the window that is read, so tiles are bit for bit
equal where they overlap. At scale 1 working pixels *are* level-0 pixels. Otherwise pixel i of an axis is a weighted mean around
its center ``c = (i + 0.5) r - 0.5`` in px of a source level, where r is source px per working px: a triangle of half-width
``max(1, r)`` (anti-aliased when shrinking, linear interpolation when enlarging), with weights in 1/16384 that depend on i only.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError
from wsiseg.read._window import RGB
from wsiseg.read.slide import Slide
from wsiseg.types import Box, SlideMeta

__all__ = ["best_level", "read_working", "scale_for", "working_size"]

_WEIGHT_BITS = 14
_MAX_SOURCE_PX = 100_000_000  # decoded at once: bounds memory when a fine slide is shrunk a lot


def scale_for(mpp: float, mpp_model: float, tolerance_frac: float) -> float:
    """Return working px per level-0 px: 1.0 where ``mpp`` is within ``tolerance_frac`` of the model's, else mpp / mpp_model.

    Parameters
    ----------
    mpp, mpp_model
        um per px of the slide's level 0 and of the network's training images.
    tolerance_frac
        Largest difference, as a fraction of the model's mpp, up to which the slide is not resampled.

    Raises
    ------
    ConfigError
        An mpp is not positive.
    """
    if not (mpp > 0 and mpp_model > 0):
        raise ConfigError(f"Expected positive microns per pixel, got {mpp!r} (slide) and {mpp_model!r} (model).")
    # The tolerance includes its limit despite rounding in the header: 0.275 is within 10 % of 0.25.
    return 1.0 if abs(mpp - mpp_model) <= tolerance_frac * mpp_model * (1 + 1e-9) else mpp / mpp_model


def working_size(meta: SlideMeta, scale: float) -> tuple[int, int]:
    """Return (width, height) of the slide in working px; the last px may reach over the slide's edge into white."""
    if scale == 1.0:
        return meta.width_px, meta.height_px
    return tuple(max(1, math.ceil(n * scale - 1e-6)) for n in (meta.width_px, meta.height_px))  # type: ignore[return-value]


def best_level(meta: SlideMeta, scale: float) -> int:
    """Return the coarsest level at least as fine as working px, among those with a whole-number downsample.

    At other levels (13198 px halved twice gives 3299.5) pixels have no exact place, and readers disagree about them.
    """
    fits = [k for k, d in enumerate(meta.level_downsamples) if float(d).is_integer() and d * scale <= 1 + 1e-9]
    return max(fits, key=lambda k: (meta.level_downsamples[k], -k), default=0)


def read_working(slide: Slide, box: Box, scale: float) -> RGB:
    """Read a window in working px.

    Parameters
    ----------
    slide
        An open slide.
    box
        Working px; may be partly or wholly outside the slide, where pixels are white.
    scale
        Working px per level-0 px, from ``scale_for``.

    Returns
    -------
    uint8 (box.h, box.w, 3)

    Raises
    ------
    TileReadError
        The pixels cannot be decoded.
    """
    if box.w <= 0 or box.h <= 0:
        return np.empty((max(box.h, 0), max(box.w, 0), 3), np.uint8)
    if scale == 1.0:
        return slide.read_level(0, box.x, box.y, box.w, box.h)
    level = best_level(slide.meta, scale)
    ratio = 1.0 / (scale * slide.meta.level_downsamples[level])
    x_first, x_weights = _taps(box.x, box.w, ratio)
    y_first, y_weights = _taps(box.y, box.h, ratio)
    x0, source_w = int(x_first[0]), int(x_first[-1] - x_first[0]) + x_weights.shape[1]
    out = np.empty((box.h, box.w, 3), np.uint8)
    rows = max(1, int(_MAX_SOURCE_PX / (source_w * ratio)))
    for top in range(0, box.h, rows):
        part = slice(top, min(top + rows, box.h))
        first = y_first[part]
        y0, source_h = int(first[0]), int(first[-1] - first[0]) + y_weights.shape[1]
        source = np.ascontiguousarray(slide.read_level(level, x0, y0, source_w, source_h))
        _resample(source, x_first - x0, x_weights, first - y0, y_weights[part], out[part])
    return out


def _taps(start: int, n: int, ratio: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return for working indices start..start+n-1 the first source index (n,) and weights (n, K), each row summing to 2**14."""
    support = max(1.0, ratio)
    center = (np.arange(start, start + n, dtype=np.int64) + 0.5) * ratio - 0.5
    first = np.floor(center - support).astype(np.int64) + 1
    offset = first[:, None] + np.arange(math.ceil(2 * support)) - center[:, None]
    weights = np.maximum(0.0, 1.0 - np.abs(offset) / support)
    weights /= weights.sum(axis=1, keepdims=True)
    fixed = np.floor(weights * (1 << _WEIGHT_BITS) + 0.5).astype(np.int32)
    # The rounding error is added to the largest weight, so that white stays white.
    fixed[np.arange(n), fixed.argmax(axis=1)] += (1 << _WEIGHT_BITS) - fixed.sum(axis=1, dtype=np.int32)
    return first, fixed


def _resample(
    source: RGB,
    x_first: npt.NDArray[np.int64],
    x_weights: npt.NDArray[np.int32],
    y_first: npt.NDArray[np.int64],
    y_weights: npt.NDArray[np.int32],
    out: RGB,
) -> None:
    try:
        from wsiseg.read._cpu_resample import resample
    except ImportError:
        _resample_numpy(source, x_first, x_weights, y_first, y_weights, out)
    else:
        resample(source, x_first, x_weights, y_first, y_weights, out)


def _resample_numpy(
    source: RGB,
    x_first: npt.NDArray[np.int64],
    x_weights: npt.NDArray[np.int32],
    y_first: npt.NDArray[np.int64],
    y_weights: npt.NDArray[np.int32],
    out: RGB,
) -> None:
    """Do the same as ``resample`` in NumPy, if Numba is not installed."""
    rows = np.full((out.shape[0], source.shape[1], 3), 32, np.int32)
    for k in range(y_weights.shape[1]):
        rows += y_weights[:, k, None, None] * source[y_first + k]
    rows >>= 6
    total = np.full(out.shape, 1 << 21, np.int32)
    for k in range(x_weights.shape[1]):
        total += x_weights[None, :, k, None] * rows[:, x_first + k]
    out[...] = total >> 22

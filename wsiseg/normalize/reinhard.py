"""Reinhard et al. 2001, "Color transfer between images" (IEEE CG&A 21:5), equations 4 to 11, in Ruderman's l alpha beta space.

RGB as ``(v + 1) / 256`` is converted to LMS, its decimal logarithms to l, alpha, beta; each of the three is shifted and scaled
so that tissue's mean and standard deviation become the reference's. Glass is not tissue: the change fades out for px whose
darkest channel is above ``FADE_FROM``, and from ``FADE_TO`` on (glass, white) a px is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend import BLOCK, Backend, backend_of, blocks_for

__all__ = ["FADE_FROM", "FADE_TO", "TARGET_MEAN", "TARGET_STD", "apply", "fit", "log_transform"]

RGB_TO_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
"""Equation 4 of the paper."""
LMS_TO_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
"""Equation 6 of the paper; its inverse is its transpose."""

TARGET_MEAN = (-0.5249, -0.0753, 0.0219)
TARGET_STD = (0.3077, 0.0507, 0.0116)
"""l, alpha, beta of the reference: tissue of the bundled demo slide, as ``fit`` measures it."""

FADE_FROM, FADE_TO = 200, 240
"""Values of the darkest channel (0 to 255) from which the change fades out, and from which there is no change."""
_MIN_STD = 1e-3
_MAX_GAIN = 3.0  # the noise of a nearly uniform slide must not be amplified
_LOG_LOW, _STEPS = -5.0, 8192


def fit(pixels: npt.NDArray[np.uint8]) -> tuple[float, ...] | None:
    """Return means and standard deviations of l, alpha, beta of tissue px uint8 (n, 3); ``None`` if the color is uniform."""
    lab = np.log10((pixels.astype(np.float64) + 1) / 256 @ RGB_TO_LMS.T) @ LMS_TO_LAB.T
    std = lab.std(axis=0)
    if (std < _MIN_STD).any():
        return None
    return tuple(float(v) for v in (*lab.mean(axis=0), *std))


def log_transform(params: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return matrix (3, 3) and offset (3,) that map log10 LMS of a slide to the normalized log10 LMS.

    ``params`` are the slide's six numbers, and six more if the reference is not the demo slide.
    """
    mean, std, aim = np.array(params[:3]), np.array(params[3:6]), np.array(params[6:] or (*TARGET_MEAN, *TARGET_STD))
    gain = np.minimum(aim[3:] / std, _MAX_GAIN)
    matrix = LMS_TO_LAB.T @ np.diag(gain) @ LMS_TO_LAB
    return matrix, LMS_TO_LAB.T @ (aim[:3] - gain * mean)


def apply(rgb: Any, params: Sequence[float]) -> Any:
    """Normalize uint8 (..., 3); bit for bit equal on a GPU. Without Numba it is computed in float32, at most 1 level off."""
    matrix, offset = log_transform(params)
    to_rgb = np.linalg.inv(RGB_TO_LMS)
    weight = np.clip((FADE_TO - np.arange(256)) / (FADE_TO - FADE_FROM), 0, 1).astype(np.float32)
    device = backend_of(rgb)
    if device is not None:
        return _apply_on_device(device, rgb, matrix, offset, to_rgb, weight)
    flat = np.ascontiguousarray(rgb).reshape(-1, 3)
    try:
        from wsiseg.normalize._cpu_stain import transfer_log_lms
    except ImportError:
        return _apply_numpy(flat, matrix, offset, to_rgb, weight).reshape(rgb.shape)
    mix, log_of, power_of = _tables()
    out = np.empty_like(flat)
    transfer_log_lms(
        flat,
        mix,
        log_of,
        matrix.astype(np.float32),
        offset.astype(np.float32),
        power_of,
        np.float32(_LOG_LOW),
        np.float32(_STEPS),
        to_rgb.astype(np.float32),
        weight,
        out,
    )
    return out.reshape(rgb.shape)


@cache
def _tables() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return tables from RGB to LMS in 16 bits (65000 is 1.0, white a little less), of logarithms, and of powers * 256."""
    mix = np.floor(RGB_TO_LMS * 65000 + 0.5).astype(np.int64)
    log_of = np.log10(np.maximum(np.arange(65536), 1) / 65000).astype(np.float32)
    power_of = (256 * 10 ** (_LOG_LOW + np.arange(int((0.5 - _LOG_LOW) * _STEPS)) / _STEPS)).astype(np.float32)
    return mix, log_of, power_of


def _apply_on_device(
    device: Backend,
    rgb: Any,
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    to_rgb: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float32],
) -> Any:
    out = device.empty(rgb.shape, "uint8")
    n = out.size // 3
    if n == 0:
        return out
    mix, log_of, power_of = _tables()
    steps = np.float32(_STEPS)
    base = -np.float32(_LOG_LOW) * steps + np.float32(0.5)
    affine = np.column_stack([matrix.astype(np.float32) * steps, offset.astype(np.float32) * steps + base])
    mix_there, log_there, power_there, weight_there = (
        device.kept(f"reinhard {name}", table)
        for name, table in (("mix", mix), ("log", log_of), ("power", power_of), ("weight", weight))
    )
    affine_there, to_rgb_there = (device.upload(np.ascontiguousarray(t)) for t in (affine, to_rgb.astype(np.float32)))
    tables = (mix_there, log_there, affine_there, power_there, len(power_of), to_rgb_there, weight_there)
    device.launch("transfer_log_lms", blocks_for(n), BLOCK, (device.contiguous(rgb), n, *tables, out))
    return out


def _apply_numpy(
    flat: npt.NDArray[np.uint8],
    matrix: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    to_rgb: npt.NDArray[np.float64],
    weight: npt.NDArray[np.float32],
) -> npt.NDArray[np.uint8]:
    out = np.empty_like(flat)
    for start in range(0, len(flat), 1 << 20):  # keeps the float copies small
        part = flat[start : start + (1 << 20)]
        lms = np.log10((part.astype(np.float32) + 1) / 256 @ RGB_TO_LMS.T.astype(np.float32))
        wanted = 10 ** np.clip(lms @ matrix.T.astype(np.float32) + offset.astype(np.float32), _LOG_LOW, 0.5)
        new = np.clip(256 * (wanted @ to_rgb.T.astype(np.float32)) - 1, 0, 255)
        w = weight[part.min(axis=1)][:, None]
        out[start : start + len(part)] = np.floor(part + w * (new - part) + 0.5)
    return out

"""Macenko et al. 2009, "A method for normalizing histology slides for quantitative analysis" (ISBI).

Optical density of a channel is ``-ln((v + 1) / 256)``, so that white (255) has none. In the plane of the two largest singular
directions of tissue's densities, the 1st and 99th percentile of the angle are the two stains; concentrations solve
``stains @ c = density`` in the least-squares sense, and are scaled so that their 99th percentiles become the reference's. All
that is linear: density' = A density with one 3x3 matrix per slide, which is what ``apply`` computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.backend import BLOCK, backend_of, blocks_for

__all__ = ["TARGET_MAX_C", "TARGET_STAINS", "apply", "density_matrix", "fit", "tables"]

TARGET_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
"""Reference hematoxylin and eosin vectors (r, g, b): ``HERef`` of the authors' published MATLAB code."""
TARGET_MAX_C = (1.9705, 1.0308)
"""Reference 99th percentiles of the concentrations: ``maxCRef`` of the same code."""

_MIN_DENSITY = 0.15  # "beta": the color of fainter px does not show the stain
_PERCENTILE = 1.0  # "alpha"
_MAX_FIT_PX = 1_000_000
_STEPS = 4096  # per unit of optical density, in the tables of ``apply``


def fit(pixels: npt.NDArray[np.uint8]) -> tuple[float, ...] | None:
    """Fit the parameters of the stain to tissue px uint8 (n, 3); ``None`` if they do not show two stains."""
    pixels = pixels[:: -(-len(pixels) // _MAX_FIT_PX)]
    density = -np.log((pixels.astype(np.float64) + 1) / 256)
    strong = density[(density >= _MIN_DENSITY).all(axis=1)]
    if len(strong) < 64:
        return None
    _, vectors = np.linalg.eigh(np.cov(strong.T))
    plane = vectors[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    angle = np.arctan2(strong @ plane[:, 1], strong @ plane[:, 0])
    low, high = np.percentile(angle, (_PERCENTILE, 100 - _PERCENTILE))
    pair = [plane @ np.array([math.cos(a), math.sin(a)]) for a in (low, high)]
    # Hematoxylin absorbs more red than eosin does.
    hematoxylin, eosin = sorted(pair, key=lambda v: float(-v[0]))
    stains = np.stack([hematoxylin, eosin], axis=1)
    if math.degrees(high - low) < 3 or np.linalg.cond(stains) > 50:
        return None
    c_max = np.percentile(density @ np.linalg.pinv(stains).T, 99, axis=0)
    if (c_max <= 0.05).any():
        return None
    return tuple(float(v) for v in (*hematoxylin, *eosin, *c_max))


def density_matrix(params: Sequence[float]) -> npt.NDArray[np.float64]:
    """Return the 3x3 matrix that maps a slide's optical densities (r, g, b) to the normalized ones.

    ``params`` are the slide's eight numbers, and eight more if the reference is not the authors' image.
    """
    (stains, c_max), aim = _parted(params[:8]), params[8:]
    target_stains, target_c = _parted(aim) if aim else (np.array(TARGET_STAINS).T, np.array(TARGET_MAX_C))
    return np.asarray(target_stains @ np.diag(target_c / c_max) @ np.linalg.pinv(stains))


def _parted(params: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return stains as columns (3, 2) and the 99th percentiles of their concentrations (2,)."""
    return np.array(params[:6], np.float64).reshape(2, 3).T, np.array(params[6:8], np.float64)


def tables(params: Sequence[float]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return shares of the density (channel out, channel in, value), in 1/_STEPS, and the color of their sum."""
    density = -np.log((np.arange(256) + 1) / 256)
    table = np.floor(density_matrix(params)[:, :, None] * density * _STEPS + 0.5).astype(np.int32)
    back = np.clip(np.floor(256 * np.exp(-np.arange(6 * _STEPS) / _STEPS) - 1 + 0.5), 0, 255).astype(np.uint8)
    return table, back


def apply(rgb: Any, params: Sequence[float]) -> Any:
    """Normalize uint8 (..., 3); bit for bit equal with and without Numba, and on a GPU."""
    table, back = tables(params)
    device = backend_of(rgb)
    if device is not None:
        flat = device.contiguous(rgb)
        out = device.empty(rgb.shape, "uint8")
        n = out.size // 3
        if n:
            args = (flat, n, device.upload(table), device.upload(back), len(back), out)
            device.launch("mix_densities", blocks_for(n), BLOCK, args)
        return out
    flat = np.ascontiguousarray(rgb).reshape(-1, 3)
    out = np.empty_like(flat)
    try:
        from wsiseg.normalize._cpu_stain import mix_densities
    except ImportError:
        for k in range(3):
            total = table[k, 0][flat[:, 0]] + table[k, 1][flat[:, 1]] + table[k, 2][flat[:, 2]]
            out[:, k] = back[np.clip(total, 0, len(back) - 1)]
    else:
        mix_densities(flat, table, back, out)
    return out.reshape(rgb.shape)

"""Synthetic tissue with known truth: probability maps as a network gives them, touching nuclei, and each pixel's true nucleus.

Nuclei are wobbly ellipses of 350 to 700 px (22 to 44 um^2 at 0.25 um/px); half of them are put beside another so that they
touch. The material map is a noisy logistic of the distance to the outline, dimmed where two outlines meet; the center map is a
blob per nucleus. NumPy and SciPy only, so that it runs where the GPU is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage as ndi
from scipy.spatial import cKDTree

__all__ = ["SyntheticTile", "synthetic_tile"]


class SyntheticTile(NamedTuple):
    """``prob`` uint8 (2, H, W) center and material, ``truth`` int32 (H, W), ``centers`` float64 (N, 2) as (x, y)."""

    prob: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int32]
    centers: npt.NDArray[np.float64]


def synthetic_tile(n: int = 9000, size: int = 4000, seed: int = 0, touching_frac: float = 0.5) -> SyntheticTile:
    """Draw up to ``n`` nuclei on a ``size`` x ``size`` tile (those closer than 13 px to an earlier one are left out)."""
    rng = np.random.default_rng(seed)
    area = rng.uniform(350, 700, n)
    elongation = rng.uniform(1.0, 1.6, n)
    major = np.sqrt(area / np.pi * elongation)
    minor = major / elongation
    free = max(1, int(n * (1 - touching_frac)))
    centers = np.empty((n, 2))
    centers[:free] = rng.uniform(0, size, (free, 2))
    mate = rng.integers(0, free, n - free)
    angle = rng.uniform(0, 2 * np.pi, n - free)
    gap = (major[mate] + major[free:]) * rng.uniform(0.75, 1.0, n - free)
    centers[free:] = np.clip(centers[mate] + np.c_[np.cos(angle), np.sin(angle)] * gap[:, None], 0, size - 1)
    keep = np.ones(n, bool)
    pairs = cKDTree(centers).query_pairs(13, output_type="ndarray")
    keep[pairs.max(axis=1)] = False
    centers, major, minor = centers[keep], major[keep], minor[keep]

    nearest, second, truth = _distances(rng, centers, major, minor, size)
    noise = ndi.gaussian_filter(rng.standard_normal((size, size), np.float32), 2.0)
    noise /= noise.std()
    seam = np.clip(1 - (second - nearest) / 0.25, 0, 1) * (nearest < 1)
    material = ndi.gaussian_filter(1 / (1 + np.exp(-(9 * (1 - nearest) + 0.9 * noise - 2.2 * seam))), 0.7)
    center = np.zeros((size, size), np.float32)
    center[centers[:, 1].astype(int), centers[:, 0].astype(int)] = rng.uniform(0.55, 0.95, len(centers))
    center = ndi.gaussian_filter(center, 2.0) * np.float32(2 * np.pi * 4) + 0.01 * np.abs(noise)
    prob = np.stack([center, material])
    np.clip(prob, 0, 1, out=prob)
    return SyntheticTile((prob * 255).astype(np.uint8), truth, centers)


def _distances(
    rng: np.random.Generator,
    centers: npt.NDArray[np.float64],
    major: npt.NDArray[np.float64],
    minor: npt.NDArray[np.float64],
    size: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return the least and second-least relative distance to an outline's center (1: on the outline), and the owner."""
    n = len(centers)
    tilt, wobble, phase = rng.uniform(0, np.pi, n), rng.uniform(0, 0.12, n), rng.uniform(0, 6.28, n)
    nearest = np.full((size, size), 3.0, np.float32)
    second = nearest.copy()
    truth = np.zeros((size, size), np.int32)
    for i, (x, y) in enumerate(centers):
        reach = int(major[i] * 1.9) + 2
        ys = slice(max(0, int(y) - reach), min(size, int(y) + reach + 1))
        xs = slice(max(0, int(x) - reach), min(size, int(x) + reach + 1))
        dy = (np.arange(ys.start, ys.stop) - y)[:, None].astype(np.float32)
        dx = (np.arange(xs.start, xs.stop) - x)[None].astype(np.float32)
        cos, sin = np.float32(np.cos(tilt[i])), np.float32(np.sin(tilt[i]))
        u, v = (dx * cos + dy * sin) / np.float32(major[i]), (dy * cos - dx * sin) / np.float32(minor[i])
        r = np.hypot(u, v)
        r = np.where(
            r > 1.8, np.float32(9), r / (1 + np.float32(wobble[i]) * np.cos(3 * np.arctan2(v, u) + np.float32(phase[i])))
        )
        old = nearest[ys, xs]
        closer = r < old
        second[ys, xs] = np.where(closer, old, np.minimum(second[ys, xs], r))
        nearest[ys, xs] = np.where(closer, r, old)
        truth[ys, xs] = np.where(closer & (r < 1), i + 1, truth[ys, xs])
    return nearest, second, truth

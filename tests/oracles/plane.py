"""Plain definitions of working pixels and stain normalization, in float64 and loops."""

from __future__ import annotations

import numpy as np


def working_pixel(source: np.ndarray, i: int, j: int, ratio: float) -> np.ndarray:
    """The working px (column i, row j) of a source uint8 (H, W, 3) amid white: a triangle-weighted mean, float64 (3,)."""
    support = max(1.0, ratio)

    def taps(k: int) -> list[tuple[int, float]]:
        center = (k + 0.5) * ratio - 0.5
        near = [(n, 1 - abs(n - center) / support) for n in range(int(center - support) - 2, int(center + support) + 3)]
        near = [(n, w) for n, w in near if w > 0]
        return [(n, w / sum(w for _, w in near)) for n, w in near]

    total = np.zeros(3)
    for y, wy in taps(j):
        for x, wx in taps(i):
            inside = 0 <= y < source.shape[0] and 0 <= x < source.shape[1]
            total += wy * wx * (source[y, x] if inside else 255.0)
    return total


def macenko_pixel(v: np.ndarray, stains: np.ndarray, max_c: np.ndarray, ref: np.ndarray, ref_max_c: np.ndarray) -> np.ndarray:
    """Macenko normalization of px uint8 (n, 3): solve for concentrations, scale, recompose; stains and ref are (3, 2)."""
    density = -np.log((v.astype(np.float64) + 1) / 256)
    c = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    c = c / max_c[:, None] * ref_max_c[:, None]
    return np.clip(256 * np.exp(-(ref @ c).T) - 1, 0, 255)


def reinhard_pixel(v: np.ndarray, mean: np.ndarray, std: np.ndarray, mean_t: np.ndarray, std_t: np.ndarray) -> np.ndarray:
    """Reinhard transfer of px uint8 (n, 3): the paper's equations 4 to 11, faded out from 200 to 240 of the darkest channel."""
    to_lms = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    out = np.empty((len(v), 3))
    for k, px in enumerate(v.astype(np.float64)):
        el, m, s = np.log10(to_lms @ ((px + 1) / 256))
        lab = np.array([(el + m + s) / np.sqrt(3), (el + m - 2 * s) / np.sqrt(6), (el - m) / np.sqrt(2)])
        lum, alpha, beta = (lab - mean) * np.minimum(std_t / std, 3.0) + mean_t
        a, b, c = lum * np.sqrt(3) / 3, alpha * np.sqrt(6) / 6, beta * np.sqrt(2) / 2
        rgb = np.linalg.solve(to_lms, 10 ** np.array([a + b + c, a + b - c, a - 2 * b]))
        w = min(1.0, max(0.0, (240 - px.min()) / 40))
        out[k] = px + w * (np.clip(256 * rgb - 1, 0, 255) - px)
    return out

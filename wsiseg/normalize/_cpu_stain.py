"""Compiled stain normalization, with table lookups instead of logarithms and powers."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsiseg.backend._cpu_jit import jit

__all__ = ["mix_densities", "transfer_log_lms"]


@jit
def mix_densities(flat: Any, table: Any, back: Any, out: Any) -> None:
    """Fill ``out`` uint8 (n, 3): add each channel's density shares, look up the sum's color. Integers, equal to NumPy's."""
    last = back.shape[0] - 1
    for i in range(flat.shape[0]):
        r, g, b = flat[i, 0], flat[i, 1], flat[i, 2]
        for k in range(3):
            total = table[k, 0, r] + table[k, 1, g] + table[k, 2, b]
            out[i, k] = back[min(max(total, 0), last)]


@jit
def transfer_log_lms(
    flat: Any,
    mix: Any,
    log_of: Any,
    matrix: Any,
    offset: Any,
    power_of: Any,
    log_low: Any,
    steps: Any,
    to_rgb: Any,
    weight: Any,
    out: Any,
) -> None:
    """Fill ``out`` uint8 (n, 3): 16-bit LMS, log10, affine map, power, RGB; blended by the darkest channel's weight."""
    last = power_of.shape[0] - 1
    base = -log_low * steps + np.float32(0.5)
    m = matrix * steps
    o = offset * steps + base
    for i in range(flat.shape[0]):
        r, g, b = np.int64(flat[i, 0]), np.int64(flat[i, 1]), np.int64(flat[i, 2])
        w = weight[min(r, min(g, b))]
        if w == 0:
            out[i, 0] = flat[i, 0]
            out[i, 1] = flat[i, 1]
            out[i, 2] = flat[i, 2]
            continue
        l0 = log_of[(mix[0, 0] * (r + 1) + mix[0, 1] * (g + 1) + mix[0, 2] * (b + 1) + 128) >> 8]
        l1 = log_of[(mix[1, 0] * (r + 1) + mix[1, 1] * (g + 1) + mix[1, 2] * (b + 1) + 128) >> 8]
        l2 = log_of[(mix[2, 0] * (r + 1) + mix[2, 1] * (g + 1) + mix[2, 2] * (b + 1) + 128) >> 8]
        p0 = power_of[min(max(np.int64(m[0, 0] * l0 + m[0, 1] * l1 + m[0, 2] * l2 + o[0]), 0), last)]
        p1 = power_of[min(max(np.int64(m[1, 0] * l0 + m[1, 1] * l1 + m[1, 2] * l2 + o[1]), 0), last)]
        p2 = power_of[min(max(np.int64(m[2, 0] * l0 + m[2, 1] * l1 + m[2, 2] * l2 + o[2]), 0), last)]
        for k in range(3):
            new = to_rgb[k, 0] * p0 + to_rgb[k, 1] * p1 + to_rgb[k, 2] * p2 - np.float32(1)
            new = min(max(new, np.float32(0)), np.float32(255))
            old = np.float32(flat[i, k])
            out[i, k] = np.uint8(old + w * (new - old) + np.float32(0.5))

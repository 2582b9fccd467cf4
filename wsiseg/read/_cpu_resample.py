"""The separable fixed-point resampler, compiled. Equal in every bit to ``working._resample_numpy``."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsiseg.backend._cpu_jit import jit

__all__ = ["resample"]


@jit
def resample(source: Any, x_first: Any, x_weights: Any, y_first: Any, y_weights: Any, out: Any) -> None:
    """Fill ``out`` uint8 (h, w, 3): rows mixed first (16-bit intermediate), then columns; see ``working``."""
    h, w = out.shape[0], out.shape[1]
    n = source.shape[1] * 3
    y_taps, x_taps = y_weights.shape[1], x_weights.shape[1]
    total = np.empty(n, np.int32)
    flat = source.reshape(source.shape[0], n)
    for i in range(h):
        total[:] = 32  # rounds the shift by 6
        for k in range(y_taps):
            weight = y_weights[i, k]
            if weight != 0:
                row = flat[y_first[i] + k]
                for j in range(n):
                    total[j] += weight * np.int32(row[j])
        for j in range(n):
            total[j] >>= 6
        for j in range(w):
            base = 3 * x_first[j]
            r = np.int32(1 << 21)
            g = np.int32(1 << 21)
            b = np.int32(1 << 21)
            for k in range(x_taps):
                weight = x_weights[j, k]
                r += weight * total[base + 3 * k]
                g += weight * total[base + 3 * k + 1]
                b += weight * total[base + 3 * k + 2]
            out[i, j, 0] = r >> 22
            out[i, j, 1] = g >> 22
            out[i, j, 2] = b >> 22

"""Small probability maps that break careless kernels, and random ones for property tests."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from scipy import ndimage as ndi


def spiral(size: int, pitch: int) -> np.ndarray:
    """A corridor ``pitch - 3`` px wide that winds to the middle."""
    out = np.zeros((size, size), np.uint8)
    y = x = 0
    length, heading, turns = size - 1, 0, 0
    while length > 0:
        dy, dx = ((0, 1), (1, 0), (0, -1), (-1, 0))[heading]
        for _ in range(length):
            out[y : y + max(1, pitch - 3), x : x + max(1, pitch - 3)] = 255
            y, x = y + dy, x + dx
        heading, turns = (heading + 1) % 4, turns + 1
        if turns >= 3 and turns % 2 == 1:
            length -= pitch
    return out


def blobs(shape: tuple[int, int], at: list[tuple[int, int]], sigma: float = 2.0) -> np.ndarray:
    """A center map: a Gaussian peak of height 230 at each (y, x)."""
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    out = np.zeros(shape)
    for y, x in at:
        out = np.maximum(out, 230 * np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2 * sigma**2)))
    return out.astype(np.uint8)


def adversarial() -> dict[str, np.ndarray]:
    """Return named uint8 (2, H, W) maps."""
    out: dict[str, np.ndarray] = {}
    full = np.full((40, 33), 255, np.uint8)
    zero = np.zeros_like(full)
    out["empty"] = np.stack([zero, zero])
    out["all_255"] = np.stack([full, full])
    out["full_material_two_markers"] = np.stack([blobs(full.shape, [(5, 5), (33, 20)]), full])
    out["one_pixel"] = np.full((2, 1, 1), 255, np.uint8)
    rng = np.random.default_rng(5)
    row = np.repeat(rng.integers(0, 256, (2, 1, 40)), 4, axis=2).astype(np.uint8)
    out["one_row"] = row
    out["one_column"] = np.ascontiguousarray(row.transpose(0, 2, 1))
    yy, xx = np.mgrid[:34, :34]
    checker = (255 * ((yy // 3 + xx // 3) % 2)).astype(np.uint8)  # squares that touch by corners only
    out["checkerboard"] = np.stack([checker, checker])
    fine = (255 * ((yy + xx) % 2)).astype(np.uint8)
    out["fine_checkerboard"] = np.stack([fine, fine])
    arm = spiral(48, 5)
    out["spiral"] = np.stack([blobs(arm.shape, [(0, 1), (24, 24), (47, 20)]), arm])
    bridge = np.zeros((24, 50), np.uint8)
    bridge[4:20, 3:19] = bridge[4:20, 30:46] = 255
    bridge[11:13, 19:30] = 200
    out["bridge"] = np.stack([blobs(bridge.shape, [(11, 10), (12, 38)]), bridge])
    diagonal = np.zeros((40, 40), np.uint8)
    diagonal[4:20, 4:20] = diagonal[20:36, 20:36] = 255
    out["diagonal_touch"] = np.stack([blobs(diagonal.shape, [(12, 12), (28, 28)]), diagonal])
    ring = np.zeros((44, 44), np.uint8)
    ring[3:41, 3:41] = 255
    ring[9:35, 9:35] = 0
    ring[16:28, 16:28] = 255  # a nucleus in the hole of another
    out["nested"] = np.stack([blobs(ring.shape, [(6, 6), (22, 22), (38, 38)]), ring])
    leak = ring.copy()
    leak[16:28, 16:28] = 0
    for k in range(7):
        leak[2 + k, 2 + k : 4 + k] = 0  # the hole leaks out along a diagonal
    out["leaking_hole"] = np.stack([blobs(ring.shape, [(38, 38)]), leak])
    steps = np.repeat(np.repeat(rng.integers(4, 8, (2, 9, 9)) * 36, 5, axis=1), 5, axis=2).astype(np.uint8)
    out["plateaus"] = steps
    border = np.zeros((32, 32), np.uint8)
    border[:12, :14] = border[20:, 18:] = border[:9, 22:] = 240
    out["borders"] = np.stack([border, border])
    for size in (31, 32, 33, 63, 64, 65, 128, 129):
        noise = ndi.gaussian_filter(rng.standard_normal((2, 24, size)), (0, 3, 3))
        out[f"noise_{size}"] = np.clip(128 + 700 * noise, 0, 255).astype(np.uint8)
    return out


@st.composite
def random_maps(draw: st.DrawFn) -> np.ndarray:
    """uint8 (2, H, W): smooth or rough noise, of few or many levels."""
    H, W = draw(st.integers(1, 36)), draw(st.integers(1, 36))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sigma = draw(st.sampled_from([0, 1, 2, 4]))
    noise = rng.standard_normal((2, H, W))
    if sigma:
        noise = ndi.gaussian_filter(noise, (0, sigma, sigma))
    noise = noise / max(noise.std(), 1e-9) * 70 + draw(st.sampled_from([90, 128, 180]))
    levels = draw(st.sampled_from([2, 4, 16, 256]))
    step = 256 // levels
    return (np.clip(noise, 0, 255).astype(np.int64) // step * step).astype(np.uint8)

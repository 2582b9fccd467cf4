"""Synthetic nuclei as pixel-edge rings, without any of the package's code: wobbly ellipses, made row-convex and walked by hand.

A row-convex region (every row is one interval) has a boundary that can be written down directly: down the right ends, up the
left ends. That gives rings that are independent of the package's tracer, by the million.
"""

from __future__ import annotations

import numpy as np

from wsiseg.types import PolygonBatch

SIDE = 64


def wobbly_rows(rng: np.random.Generator, n: int, area_px: float = 500.0) -> tuple[np.ndarray, np.ndarray]:
    """Return left and right ends (n, SIDE) int32 of each row of ``n`` wobbly ellipses; left == right where a row is empty."""
    grid = np.arange(SIDE) + 0.5 - SIDE / 2
    yy, xx = np.meshgrid(grid, grid, indexing="ij")
    theta, radius = np.arctan2(yy, xx).ravel(), np.hypot(yy, xx).ravel()
    orders = np.arange(2, 9)
    basis = np.concatenate([np.cos(orders[:, None] * theta), np.sin(orders[:, None] * theta)]).astype(np.float32)
    amplitude = np.tile(np.array([0.18, 0.06, 0.04, 0.025, 0.02, 0.015, 0.012], np.float32), 2)
    left, right = np.zeros((n, SIDE), np.int32), np.zeros((n, SIDE), np.int32)
    for start in range(0, n, 2048):
        stop = min(start + 2048, n)
        weights = rng.normal(0, 1, (stop - start, len(basis))).astype(np.float32) * amplitude
        mean_radius = np.sqrt(area_px / np.pi) * np.exp(rng.normal(0, 0.22, (stop - start, 1))).astype(np.float32)
        wall = np.clip(mean_radius * (1 + weights @ basis), 2.0, SIDE / 2 - 1)
        inside = (radius[None].astype(np.float32) <= wall).reshape(-1, SIDE, SIDE)
        filled = inside.any(2)
        left[start:stop] = np.where(filled, inside.argmax(2), 0)
        right[start:stop] = np.where(filled, SIDE - inside[:, :, ::-1].argmax(2), 0)
    return _one_span(left, right)


def _one_span(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the rows around the middle, each made to overlap the row nearer to the middle by at least one pixel."""
    middle = SIDE // 2
    for rows in (range(middle + 1, SIDE), range(middle - 1, -1, -1)):
        step = 1 if rows[0] > middle else -1
        for y in rows:
            inner = y - step
            gone = (right[:, inner] <= left[:, inner]) | (right[:, y] <= left[:, y])
            left[:, y] = np.minimum(left[:, y], right[:, inner] - 1)
            right[:, y] = np.maximum(right[:, y], left[:, inner] + 1)
            left[gone, y] = right[gone, y] = 0
    return left, right


def rings_of_rows(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (xy int32 (V, 2), ring_offsets int64): closed, positive shoelace over (x, y), collinear points merged."""
    n, side = left.shape
    rows = np.arange(side, dtype=np.int32)
    full = right > left
    down = np.stack(
        [
            np.stack([right, np.broadcast_to(rows, left.shape)], -1),
            np.stack([right, np.broadcast_to(rows + 1, left.shape)], -1),
        ],
        2,
    ).reshape(n, 2 * side, 2)
    up = np.stack(
        [np.stack([left, np.broadcast_to(rows + 1, left.shape)], -1), np.stack([left, np.broadcast_to(rows, left.shape)], -1)],
        2,
    )[:, ::-1].reshape(n, 2 * side, 2)
    points = np.concatenate([down, up], 1)
    keep = np.concatenate([np.repeat(full, 2, 1), np.repeat(full[:, ::-1], 2, 1)], 1)
    owner = np.repeat(np.arange(n), keep.sum(1))
    xy = points[keep]
    xy, owner = _merge(xy, owner)
    counts = np.bincount(owner, minlength=n)
    offsets = np.concatenate([[0], np.cumsum(counts + 1)]).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])
    closed = np.empty((offsets[-1], 2), np.int32)
    closed[np.arange(len(xy)) + owner] = xy
    closed[offsets[1:] - 1] = xy[first]
    return closed, offsets


def _merge(xy: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop repeated points and points on a straight line, within each cyclic ring, until none is left."""
    while True:
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        ends = np.append(starts[1:], len(owner)) - 1
        before, after = np.arange(len(owner)) - 1, np.arange(len(owner)) + 1
        before[starts], after[ends] = ends, starts
        into, out = xy - xy[before], xy[after] - xy
        twin = (into == 0).all(1)
        straight = (into[:, 0] * out[:, 1] - into[:, 1] * out[:, 0] == 0) & ~twin & ~(out == 0).all(1)
        drop = twin if twin.any() else straight
        if not drop.any():
            return xy, owner
        xy, owner = xy[~drop], owner[~drop]


def shoelace(xy: np.ndarray, ring_offsets: np.ndarray) -> np.ndarray:
    """Return the signed area of each ring, float64."""
    x, y = xy[:, 0].astype(np.float64), xy[:, 1].astype(np.float64)
    cross = np.zeros(len(x))
    cross[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    cross[ring_offsets[1:] - 1] = 0.0
    return 0.5 * np.add.reduceat(cross, ring_offsets[:-1])


def nuclei(seed: int, n: int, extent_wpx: int, shapes: int = 4096) -> PolygonBatch:
    """Return ``n`` nuclei scattered over a square of ``extent_wpx``, shapes drawn from ``shapes`` different ones."""
    rng = np.random.default_rng(seed)
    shapes = min(shapes, n)
    left, right = wobbly_rows(rng, shapes)
    base_xy, base_offsets = rings_of_rows(left, right)
    pick = rng.permutation(n) % shapes
    length = np.diff(base_offsets)
    offsets = np.concatenate([[0], np.cumsum(length[pick])]).astype(np.int64)
    index = np.arange(offsets[-1]) + np.repeat(base_offsets[:-1][pick] - offsets[:-1], length[pick])
    cell = max(1, int(np.sqrt(extent_wpx * extent_wpx / n)))
    side = int(np.ceil(np.sqrt(n)))
    slot = rng.permutation(side * side)[:n]
    corner = np.stack([slot % side, slot // side], 1) * cell + rng.integers(0, max(1, cell), (n, 2))
    xy = base_xy[index] + np.repeat(corner.astype(np.int32), length[pick], axis=0)
    return PolygonBatch(xy, offsets, _columns(rng, left, right, base_xy, base_offsets, pick, corner))


def _columns(
    rng: np.random.Generator,
    left: np.ndarray,
    right: np.ndarray,
    xy: np.ndarray,
    offsets: np.ndarray,
    pick: np.ndarray,
    corner: np.ndarray,
) -> dict[str, np.ndarray]:
    width = (right - left).astype(np.float64)
    area = width.sum(1)
    rows = np.arange(SIDE) + 0.5
    cx, cy = ((right + left) / 2 * width).sum(1) / area, (rows * width).sum(1) / area
    var_y = (width * (rows - cy[:, None]) ** 2).sum(1) / area + 1 / 12
    var_x = (width * ((right + left) / 2 - cx[:, None]) ** 2 + width**3 / 12).sum(1) / area
    cov = (width * (rows - cy[:, None]) * ((right + left) / 2 - cx[:, None])).sum(1) / area
    spread = np.sqrt((var_x - var_y) ** 2 + 4 * cov**2)
    crack = np.add.reduceat(
        np.abs(np.diff(xy, axis=0, append=xy[-1:])).sum(1)
        * (np.arange(len(xy)) != np.repeat(offsets[1:] - 1, np.diff(offsets))),
        offsets[:-1],
    )
    seed = corner + SIDE // 2
    n = len(pick)
    return {
        "nucleus_id": seed[:, 1].astype(np.int64) * 2**31 + seed[:, 0],
        "area_wpx": area[pick].astype(np.int32),
        "cx_wpx": cx[pick] + corner[:, 0],
        "cy_wpx": cy[pick] + corner[:, 1],
        "perimeter_wpx": (crack * np.pi / 4)[pick].astype(np.float32),
        "major_wpx": (4 * np.sqrt((var_x + var_y + spread) / 2))[pick].astype(np.float32),
        "minor_wpx": (4 * np.sqrt((var_x + var_y - spread) / 2))[pick].astype(np.float32),
        "orientation_rad": (0.5 * np.arctan2(2 * cov, var_x - var_y))[pick].astype(np.float32),
        "center_prob": np.clip(rng.normal(190, 35, n), 100, 255).astype(np.uint8),
        "material_prob": np.clip(rng.normal(215, 20, n), 120, 255).astype(np.uint8),
    }

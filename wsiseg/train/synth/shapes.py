"""Fit distributions of the shapes of nuclei to annotated tissue, and draw random polygons from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import InputError
from wsiseg.labels import compact_labels

__all__ = ["VERTICES", "ShapeStatistics", "draw_outlines", "fit_shapes", "shape_table"]

VERTICES = 32
"""Corners of a drawn polygon."""

_WAVES = np.arange(3, 7)  # frequencies along an outline; 1 is a shift and 2 changes the ellipse
_MIN_PX = 20  # smaller objects are not nuclei (Hou et al. 2020)
_ABSORBED = 1.25  # compensates the part of the waves that the fitted ellipse absorbs (measured on drawn outlines)


@dataclass(frozen=True, slots=True, eq=False)
class ShapeStatistics:
    """Distributions of one reference.

    Attributes
    ----------
    nuclei : float64 (N, 3)
        Area (px), axis ratio (0..1, minor over major) and irregularity (share of the area outside the ellipse of the same
        moments, 0..1) of each whole nucleus; one row per nucleus keeps their correlation.
    per_mpx : float64 (K,)
        Nuclei per 10^6 px in each square of the reference.
    contact : float
        Share of nuclei that touch another one, 0..1.
    """

    nuclei: NDArray[np.float64]
    per_mpx: NDArray[np.float64]
    contact: float


def shape_table(labels: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Measure the nuclei of a label image (H, W), 0 background.

    Returns
    -------
    (float64 (N, 5), bool (N, 2))
        Area (px), axis ratio, irregularity, centroid x and y (px), by ascending label; and whether the nucleus is at the edge
        of the image, and whether it touches another (8-connected).
    """
    compact = compact_labels(labels)
    n = int(compact.max()) if compact.size else 0
    y, x = np.nonzero(compact)
    k = compact[y, x] - 1
    area = np.bincount(k, minlength=n).astype(np.float64)
    mean_x, mean_y = np.bincount(k, x + 0.5, n) / area, np.bincount(k, y + 0.5, n) / area
    dx, dy = x + 0.5 - mean_x[k], y + 0.5 - mean_y[k]
    third = 1 / 12  # a pixel's own second moment
    xx, yy = np.bincount(k, dx * dx, n) / area + third, np.bincount(k, dy * dy, n) / area + third
    xy = np.bincount(k, dx * dy, n) / area
    middle, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    ratio = np.sqrt(np.maximum(middle - spread, 0) / (middle + spread))
    # a uniform ellipse ends at Mahalanobis distance 2
    m2 = (yy[k] * dx**2 - 2 * xy[k] * dx * dy + xx[k] * dy**2) / (xx * yy - xy**2)[k]
    outside = np.bincount(k, m2 > 4, n) / area
    at_edge = np.zeros(n + 1, np.bool_)
    for border in (compact[:1], compact[-1:], compact[:, :1], compact[:, -1:]):
        at_edge[border] = True
    return np.stack([area, ratio, outside, mean_x, mean_y], 1), np.stack([at_edge[1:], _touching(compact, n)], 1)


def fit_shapes(images: Iterable[NDArray[np.integer]], square_px: int = 256) -> ShapeStatistics:
    """Fit the distributions of annotated tissue.

    Parameters
    ----------
    images
        Label images (H, W).
    square_px
        Side of the squares in which density is counted, px: equal to that of the patches to be drawn.

    Raises
    ------
    InputError
        There are fewer than ten whole nuclei.
    """
    rows, touching, density = [], [], []
    for labels in images:
        table, flags = shape_table(labels)
        whole = ~flags[:, 0] & (table[:, 0] >= _MIN_PX)
        rows.append(table[whole, :3])
        touching.append(flags[whole, 1])
        h, w = labels.shape
        down, across = max(1, h // square_px), max(1, w // square_px)
        counts, _, _ = np.histogram2d(table[:, 4], table[:, 3], (down, across), ((0, h), (0, w)))
        density.append(counts.ravel() * (down * across / (h * w) * 1e6))
    nuclei = np.concatenate(rows) if rows else np.zeros((0, 3))
    if len(nuclei) < 10:
        raise InputError(f"Expected a reference with at least 10 whole nuclei of {_MIN_PX} px or more, got {len(nuclei)}.")
    return ShapeStatistics(nuclei, np.concatenate(density), float(np.concatenate(touching).mean()))


def draw_outlines(statistics: ShapeStatistics, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw random nuclear polygons.

    A polygon is an ellipse of a drawn area and axis ratio, whose radius varies by waves along the outline so that the share of
    its area outside the ellipse is the drawn irregularity. Values are those of a random nucleus of the reference plus a tenth
    of the distributions' spread, so that no nucleus is copied and the joint distribution is kept (smoothed bootstrap, Silverman
    1986).

    Parameters
    ----------
    n
        Number of polygons.

    Returns
    -------
    float64 (n, VERTICES, 2)
        (x, y) of open rings about the origin, px.
    """
    rows = statistics.nuclei[rng.integers(len(statistics.nuclei), size=n)]
    known = np.stack([np.log(statistics.nuclei[:, 0]), *statistics.nuclei[:, 1:].T])
    jitter = rng.standard_normal((3, n)) * (0.1 * known.std(1))[:, None]
    area = np.maximum(rows[:, 0] * np.exp(jitter[0]), _MIN_PX)
    ratio = np.clip(rows[:, 1] + jitter[1], 0.1, 1)
    outside = np.clip(rows[:, 2] + jitter[2], 0, 0.25) * _ABSORBED
    t = np.arange(VERTICES) * (2 * np.pi / VERTICES)
    waves = rng.standard_normal((n, 2, len(_WAVES))) / _WAVES
    phase = t[:, None] * _WAVES
    bump = np.einsum("nk,vk->nv", waves[:, 0], np.cos(phase)) + np.einsum("nk,vk->nv", waves[:, 1], np.sin(phase))
    # a radius of 1 + e puts the share mean(max(e, 0)) * 2 outside; scaled to what was drawn
    bump *= (outside / np.maximum(2 * np.maximum(bump, 0).mean(1), 1e-9))[:, None]
    radius = np.maximum(1 + bump, 0.3)
    u, v = radius * np.cos(t), radius * np.sin(t) * ratio[:, None]
    turn = rng.uniform(0, np.pi, n)[:, None]
    rings = np.stack([u * np.cos(turn) - v * np.sin(turn), u * np.sin(turn) + v * np.cos(turn)], -1)
    following = np.roll(rings, -1, 1)
    now = np.abs((rings[..., 0] * following[..., 1] - rings[..., 1] * following[..., 0]).sum(1)) / 2
    return rings * np.sqrt(area / now)[:, None, None]


def _touching(labels: NDArray[np.int32], n: int) -> NDArray[np.bool_]:
    found = np.zeros(n + 1, np.bool_)
    h, w = labels.shape
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        a = labels[: h - dy, max(0, -dx) : w - max(0, dx)]
        b = labels[dy:, max(0, dx) : w - max(0, -dx)]
        met = (a != b) & (a > 0) & (b > 0)
        found[a[met]] = True
        found[b[met]] = True
    return found[1:]

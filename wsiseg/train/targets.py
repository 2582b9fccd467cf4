"""Compute the training targets of the two heads from instance labels: a center map, a material map, and a weight per pixel.

The center map has one peak per nucleus, scaled to its size, so that each nucleus has one maximum. The material is lower on the
pixels where two nuclei touch, so that the watershed separates them there. (Mahbod et al. 2019 exclude those pixels, which
reduces IoU by up to 6 % in crowded tissue, so here they are above the threshold.)
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.errors import ConfigError

__all__ = ["CenterKind", "make_targets"]

CenterKind = Literal["ellipse", "gaussian", "disc", "distance", "point"]

_GAP_PX = 2  # background this near to two nuclei gets a higher weight, to keep them apart
_WEIGHT_ONE = 64  # a weight of 1.0 as uint8
_LARGE_PX = 350  # area from which a nucleus has no additional weight: 22 um2 at 0.25 um/px, the median of MoNuSeg
_RIM_PX = 2  # background this near to a small nucleus shares its weight


def make_targets(
    labels: NDArray[Any],
    center: CenterKind = "ellipse",
    border_weight: float = 3.0,
    touching: float = 0.65,
    small_weight: float = 1.0,
) -> NDArray[np.uint8]:
    """Return the training targets of one label image.

    Parameters
    ----------
    labels : integer (H, W)
        0 for background, another value for each nucleus.
    center
        ``ellipse``: exp(-m^2 / (2 * 0.8^2)), m the Mahalanobis distance to the centroid under the nucleus's own second
        moments (its border is near m = 2). ``gaussian``: the same with a round nucleus of equal area. ``disc``: 1 where
        m <= 0.8, a small ellipse. ``distance``: distance to the border over its maximum in the nucleus.
        ``point``: the 3x3 px about the centroid (Hou et al. 2020 mark those about the bounding box's center).
    border_weight
        Weight of pixels where nuclei touch or nearly touch, 1 to 3.98; all others have weight 1.
    small_weight
        Maximum additional weight of small nuclei, 1 to 3.98. Scores count nuclei, a loss counts pixels: a nucleus of area A
        below 350 px has the weight min((350 / A)^0.75, ``small_weight``), also in its rim of 2 px of background. It multiplies
        ``border_weight``; products are cut at 3.98.
    touching
        Material of the pixels where nuclei touch, 0 to 1; it is 1 on other nuclear pixels.

    Returns
    -------
    uint8 (3, H, W)
        Center 0..255, material 0..255, weight in units of 1/64.

    Raises
    ------
    ConfigError
        The kind of center is unknown, or a weight is out of range.
    """
    if center not in get_args(CenterKind):
        raise ConfigError(f"Expected the center target to be one of {get_args(CenterKind)}, got {center!r}.")
    for name, value in (("border_weight", border_weight), ("small_weight", small_weight)):
        if not 1 <= value < 256 / _WEIGHT_ONE:
            raise ConfigError(f"Expected {name} to be 1 to 3.98, got {value}.")
    if not 0 <= touching <= 1:
        raise ConfigError(f"Expected touching to be 0 to 1, got {touching}.")
    ids = np.unique(labels)
    ids = ids[ids != 0]
    compact = np.zeros(labels.shape, np.int32)
    if len(ids):
        compact = np.where(labels != 0, np.searchsorted(ids, labels) + 1, 0).astype(np.int32)
    contact, gap = _contacts(compact)
    out = np.empty((3, *labels.shape), np.uint8)
    out[0] = np.round(255 * _center_map(compact, len(ids), center))
    out[1] = np.where(contact, round(255 * touching), np.where(compact > 0, 255, 0))
    weight = np.where(contact | gap, border_weight, 1.0)
    if small_weight > 1:
        weight *= _size_weight(compact, small_weight)
    out[2] = np.round(np.minimum(weight * _WEIGHT_ONE, 255))
    return out


def _size_weight(labels: NDArray[np.int32], limit: float) -> NDArray[np.float64]:
    """Return the weight of each pixel by the area of its nucleus, or of the smallest nucleus near a background pixel."""
    area = np.bincount(labels.ravel()).clip(1)
    of_nucleus = np.clip((_LARGE_PX / area) ** 0.75, 1, limit)
    of_nucleus[0] = 1
    own = of_nucleus[labels]
    return np.asarray(np.where(labels > 0, own, ndimage.grey_dilation(own, size=2 * _RIM_PX + 1)))


def _contacts(labels: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return masks of nucleus pixels with another nucleus among their 8 neighbors, and of background near two nuclei."""
    far = np.int32(np.iinfo(np.int32).max)
    filled = np.where(labels > 0, labels, far)

    def two_nuclei(reach_px: int) -> NDArray[np.bool_]:
        size = 2 * reach_px + 1
        high, low = ndimage.maximum_filter(labels, size), ndimage.minimum_filter(filled, size)
        return np.asarray((high > 0) & (low < far) & (high != low))

    return two_nuclei(1) & (labels > 0), two_nuclei(_GAP_PX) & (labels == 0)


def _center_map(labels: NDArray[np.int32], n: int, kind: CenterKind) -> NDArray[np.float32]:
    out = np.zeros(labels.shape, np.float32)
    if n == 0:
        return out
    y, x = np.nonzero(labels)
    k = labels[y, x]
    if kind == "distance":
        return _distance_map(labels, n)
    area = np.bincount(k, minlength=n + 1).clip(1).astype(np.float64)
    mean_x, mean_y = np.bincount(k, x, n + 1) / area, np.bincount(k, y, n + 1) / area
    if kind == "point":
        out[np.round(mean_y[1:]).astype(int), np.round(mean_x[1:]).astype(int)] = 1
        return np.asarray(ndimage.maximum_filter(out, 3))
    dx, dy = x - mean_x[k], y - mean_y[k]
    if kind == "gaussian":
        m2 = (dx**2 + dy**2) / (area / (4 * np.pi))[k]  # a disc of area A has the second moment A / (4 pi) on each axis
    else:
        third = 1 / 12  # second moment of a pixel, without which one-pixel-wide nuclei would be singular
        xx = np.bincount(k, dx * dx, n + 1) / area + third
        yy = np.bincount(k, dy * dy, n + 1) / area + third
        xy = np.bincount(k, dx * dy, n + 1) / area
        det = xx * yy - xy**2
        m2 = (yy[k] * dx**2 - 2 * xy[k] * dx * dy + xx[k] * dy**2) / det[k]
    out[y, x] = (m2 <= 0.8**2) if kind == "disc" else np.exp(-m2 / (2 * 0.8**2))
    return out


def _distance_map(labels: NDArray[np.int32], n: int) -> NDArray[np.float32]:
    far = np.int32(np.iinfo(np.int32).max)
    highest = ndimage.maximum_filter(np.where(labels > 0, labels, far), 3)
    inner = (ndimage.minimum_filter(labels, 3) == labels) & (highest == labels)
    depth = ndimage.distance_transform_edt(inner & (labels > 0)) + (labels > 0)
    peak = ndimage.maximum(depth, labels, np.arange(n + 1))
    return np.asarray(np.where(labels > 0, depth / np.maximum(peak, 1)[labels], 0), np.float32)

"""Place random polygons as the nuclei of one patch, with the density and contacts of the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.labels import compact_labels, rasterize_rings
from wsiseg.train.synth.shapes import VERTICES, ShapeStatistics, draw_outlines

__all__ = ["Placed", "place_nuclei"]

_MARGIN_PX = 32  # nuclei may extend over the edge of a patch, as real ones do
_PAD_PX = 64  # border for the parts of nuclei outside the field of centers
_FREE_TRIES, _CONTACT_TRIES = 40, 8
_EIGHT = np.ones((3, 3), np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class Placed:
    """Nuclei of one patch.

    Attributes
    ----------
    rings : float64 (N, VERTICES, 2)
        (x, y) of open rings in patch px, possibly outside the patch. Later rings cover earlier ones.
    labels : int32 (H, W)
        The rings drawn in order, renumbered 1..M without those outside.
    """

    rings: NDArray[np.float64]
    labels: NDArray[np.int32]


def place_nuclei(statistics: ShapeStatistics, patch_px: int, rng: np.random.Generator, overlap_max: float = 0.2) -> Placed:
    """Draw the nuclei of one square patch.

    Their number is that of a random square of the reference. A nucleus is placed without contact, or in contact with another
    while fewer touch than in the reference; it is then moved until a random share of it (up to ``overlap_max``) covers others.

    Parameters
    ----------
    statistics
        Shapes, density and contacts of the reference.
    patch_px
        Side of the patch, px.
    rng
        Source of all random numbers.
    overlap_max
        Maximum share of a nucleus that covers others or is covered, 0..1. It cannot be fitted, as label images show no overlap.
    """
    side = patch_px + 2 * _MARGIN_PX
    n = int(rng.poisson(rng.choice(statistics.per_mpx) * side**2 / 1e6))
    canvas = _Canvas(side, overlap_max)
    for ring in draw_outlines(statistics, n, rng):  # in sequence, because each leaves less space for the next
        stamp = _Stamp(ring)
        apart = canvas.touching_share() >= statistics.contact or not canvas.areas
        at = (canvas.free(stamp, rng) if apart else None) or canvas.contact(stamp, rng)
        if at is not None:
            canvas.put(stamp, at)
    rings = np.array(canvas.rings).reshape(-1, VERTICES, 2) - _MARGIN_PX - _PAD_PX
    offsets = np.arange(len(rings) + 1) * VERTICES
    return Placed(rings, compact_labels(rasterize_rings(rings.reshape(-1, 2), offsets, (patch_px, patch_px))))


class _Stamp:
    """A polygon as a small mask with an empty pixel all around; it is moved by integer px, so that the mask is the same."""

    def __init__(self, ring: NDArray[np.float64]) -> None:
        low = np.floor(ring.min(0)) - 1
        self.ring = ring - low
        w, h = (int(v) for v in np.ceil(self.ring.max(0)) + 1)
        self.mask = rasterize_rings(self.ring, np.array([0, len(ring)]), (h, w)) > 0
        self.grown = ndimage.binary_dilation(self.mask, _EIGHT)
        self.area = int(self.mask.sum())
        self.radius = float(np.sqrt(self.area / np.pi))


class _Canvas:
    def __init__(self, side: int, overlap_max: float) -> None:
        self.side, self.overlap_max = side, overlap_max
        self.labels = np.zeros((side + 2 * _PAD_PX, side + 2 * _PAD_PX), np.int32)
        self.rings: list[NDArray[np.float64]] = []
        self.areas: list[int] = []  # visible area of each nucleus, px
        self.whole: list[int] = []
        self.centers: list[tuple[float, float]] = []
        self.touches: list[bool] = []

    def touching_share(self) -> float:
        return sum(self.touches) / max(1, len(self.touches))

    def free(self, stamp: _Stamp, rng: np.random.Generator) -> tuple[int, int] | None:
        for cy, cx in rng.integers(_PAD_PX, _PAD_PX + self.side, (_FREE_TRIES, 2)).tolist():
            at = self._corner(stamp, cy, cx)
            if at is not None and not self._under(stamp.grown, *at).any():
                return at
        return None

    def contact(self, stamp: _Stamp, rng: np.random.Generator) -> tuple[int, int] | None:
        """Return a position at a random side of another nucleus with a random overlap; None if none was found."""
        if not self.areas:
            return None
        for parent, angle, share in zip(
            rng.integers(len(self.areas), size=_CONTACT_TRIES).tolist(),
            rng.uniform(0, 2 * np.pi, _CONTACT_TRIES).tolist(),
            rng.uniform(0, self.overlap_max, _CONTACT_TRIES).tolist(),
            strict=True,
        ):
            cy, cx = self.centers[parent]
            far = int(2 * np.sqrt(self.whole[parent] / np.pi) + 2 * stamp.radius) + 2
            best: tuple[int, int] | None = None
            for distance in range(far, 0, -1):
                at = self._corner(stamp, cy + distance * np.sin(angle), cx + distance * np.cos(angle))
                if at is None:
                    continue
                if not self._bearable(stamp, *at):
                    break
                if self._under(stamp.grown, *at).any():
                    best = at
                    if np.count_nonzero(self._under(stamp.mask, *at)) >= share * stamp.area:
                        break
            if best is not None:
                return best
        return None

    def put(self, stamp: _Stamp, at: tuple[int, int]) -> None:
        y, x = at
        h, w = stamp.mask.shape
        met = np.unique(self._under(stamp.grown, y, x))
        hidden = np.bincount(self._under(stamp.mask, y, x), minlength=len(self.areas) + 1)
        for k in met[met > 0].tolist():
            self.touches[k - 1] = True
            self.areas[k - 1] -= int(hidden[k])
        self.labels[y : y + h, x : x + w][stamp.mask] = len(self.areas) + 1
        self.areas.append(stamp.area)
        self.whole.append(stamp.area)
        self.touches.append(bool(met.any()))
        self.centers.append((y + h / 2, x + w / 2))
        self.rings.append(stamp.ring + np.array((x, y)))

    def _corner(self, stamp: _Stamp, cy: float, cx: float) -> tuple[int, int] | None:
        """Return the corner of a stamp centered here; None if the center is outside the field or the stamp does not fit."""
        h, w = stamp.mask.shape
        within = all(_PAD_PX <= c < _PAD_PX + self.side for c in (cy, cx))
        return (round(cy - h / 2), round(cx - w / 2)) if within and max(h, w) < 2 * _PAD_PX else None

    def _bearable(self, stamp: _Stamp, y: int, x: int) -> bool:
        hidden = np.bincount(self._under(stamp.mask, y, x), minlength=len(self.areas) + 1)[1:]
        if hidden.sum() > self.overlap_max * stamp.area:
            return False
        return all(self.areas[k] - hidden[k] >= (1 - self.overlap_max) * self.whole[k] for k in np.flatnonzero(hidden))

    def _under(self, mask: NDArray[np.bool_], y: int, x: int) -> NDArray[np.int32]:
        return self.labels[y : y + mask.shape[0], x : x + mask.shape[1]][mask]

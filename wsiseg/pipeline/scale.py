"""Estimate microns per pixel of pictures that state none, from the size of the nuclei that the network finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsiseg.config import RunConfig
from wsiseg.pipeline.image import find_nuclei

if TYPE_CHECKING:
    from wsiseg.predict import Model

__all__ = ["MppEstimate", "estimate_mpp", "mpp_to_segment_at"]

# of the median nucleus as the network outlines it, on pictures of known scale (benchmarks/scale.py)
NUCLEUS_DIAM_UM = 6.0
UNSTATED_DIAM_UM = 7.0
MIN_NUCLEI = 5
STARTS = (1.0, 2.0, 4.0)  # of the model's mpp: a lower objective shows nuclei too small to be found at the first
LIMITS = (0.5, 4.0)  # of the model's mpp
MAX_ROUNDS = 6
SETTLED_FRAC = 0.02


@dataclass(frozen=True, slots=True)
class MppEstimate:
    """Estimated microns per px, and the number of nuclei that it comes from.

    ``at_limit``: it is an end of the range that was searched, and the true value may lie beyond.
    """

    mpp: float
    n_nuclei: int
    at_limit: bool


def estimate_mpp(
    pictures: Sequence[NDArray[np.uint8]], model: Model, config: RunConfig, nucleus_diam_um: float = NUCLEUS_DIAM_UM
) -> MppEstimate | None:
    """Return the microns per px at which the median nucleus of some pictures has a given diameter.

    The pictures are segmented at an assumed mpp, without test-time augmentation; it is then multiplied by the ratio of that
    diameter to the one found, until it changes by less than 2 % (at most six times). Nuclei of tissues differ in size:
    ``benchmarks/scale.py`` measures how far estimates of pictures of known scale are off.

    Parameters
    ----------
    pictures : sequence of uint8 (H, W, 3)
        Pictures of one scale, H&E.
    nucleus_diam_um
        Diameter of a circle with the median area of the nuclei as the network outlines them, um.

    Returns
    -------
    MppEstimate or None
        Between 0.5 and 4 times the model's mpp; ``None`` if fewer than five nuclei are found.
    """
    model = model.without_tta()
    for start in STARTS:
        estimate = _settle(pictures, model.mpp * start, nucleus_diam_um, model, config)
        if estimate is not None:
            return estimate
    return None


def mpp_to_segment_at(rgb: NDArray[np.uint8], model: Model, config: RunConfig) -> float | None:
    """Return the microns per px at which to segment a picture uint8 (H, W, 3) that states none; ``None``: too few nuclei.

    It is above ``estimate_mpp``'s by a sixth, because nuclei shown too small are missed and merged. Where the picture would be
    reduced, it is reduced half of the way (in logarithms): some tissue has large nuclei, and pixels left out do not come back.
    Both were chosen on training images (``benchmarks/scale.py``).
    """
    found = estimate_mpp([rgb], model, config, UNSTATED_DIAM_UM)
    if found is None:
        return None
    return found.mpp if found.mpp > model.mpp else math.sqrt(found.mpp * model.mpp)


def _settle(
    pictures: Sequence[NDArray[np.uint8]], mpp: float, wanted_um: float, model: Model, config: RunConfig
) -> MppEstimate | None:
    low, high = (model.mpp * factor for factor in LIMITS)
    for _ in range(MAX_ROUNDS):
        areas_um2 = _areas_um2(pictures, mpp, model, config)
        n = len(areas_um2)
        if n < MIN_NUCLEI:
            return None
        diameter_um = 2 * float(np.sqrt(np.median(areas_um2) / np.pi))
        last, mpp = mpp, float(np.clip(mpp * wanted_um / diameter_um, low, high))
        if abs(mpp / last - 1) < SETTLED_FRAC:
            break
    return MppEstimate(mpp, n, mpp in (low, high))


def _areas_um2(pictures: Sequence[NDArray[np.uint8]], mpp: float, model: Model, config: RunConfig) -> NDArray[np.float64]:
    areas = []
    for rgb in pictures:
        batch, working_mpp = find_nuclei(rgb, mpp, model, config)
        areas.append(np.asarray(batch.columns["area_wpx"], np.float64) * working_mpp**2)
    return np.concatenate(areas) if areas else np.zeros(0)

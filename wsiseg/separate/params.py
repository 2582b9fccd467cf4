"""Convert options in fractions and µm² to the integers that the kernels compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.config import SeparateConfig
from wsiseg.errors import ConfigError

__all__ = ["CENTER_MAX", "FALLBACK", "MATERIAL_MAX", "MERGE_REACH_PX", "SeparateParams", "distance_table", "resolve_params"]

CENTER_MAX = 255 * 256
"""Greatest value of the smoothed center map (5x5 binomial, sum 256)."""
MATERIAL_MAX = 255 * 16
"""Greatest value of the smoothed material map (3x3 binomial, sum 16)."""
DISTANCE_REACH_PX = 32
"""Distances to the nearest marker are cut here: the table has DISTANCE_REACH_PX ** 2 + 1 entries."""
MERGE_REACH_PX = 24
"""Peaks further apart than this (in x or in y) are never merged."""
AREA_LIMIT_PX = (1 << 18) - 1
"""Largest area limit: the flood's step count has 18 bits."""

FALLBACK: Mapping[str, Any] = MappingProxyType(
    {
        "center_threshold_frac": 0.25,
        "material_threshold_frac": 0.5,
        "marker_radius_wpx": 6,
        "compactness": 2.0,
        "merge_depth_frac": 0.0,
        "merge_share_frac": 0.0,
        "min_area_um2": 6.0,
        "min_material_frac": 0.0,
    }
)
"""Used if neither the config nor the weights' card has a value. Radius 6 px at 0.25 um/px: maxima closer than 1.5 um are
one nucleus; 6 um^2 is a disc of 2.8 um, below the smallest lymphocyte section."""


@dataclass(frozen=True, slots=True)
class SeparateParams:
    """Separation parameters in map units and working px, as used by the definition in ``wsiseg.separate``.

    Attributes
    ----------
    center_threshold
        Least smoothed center value of a marker, 1..65280.
    material_threshold
        Least smoothed material value of the mask, 1..4080.
    marker_radius_px
        r of the (2 r + 1) square in which a peak is the maximum, 1..32.
    compactness_q256
        Compactness in 1/256, 0..4096.
    merge_depth
        Peaks whose saddle is less deep than this (smoothed center units, 0..65280) are one; 0: no merging.
    seed_recall
        Whether components of the mask without a peak get a marker.
    min_area_px, max_area_px
        Inclusive limits on the hole-filled area, 1..262143.
    min_material
        Least mean material of a nucleus, times 16, 0..4080; 0: none is dropped.
    merge_share_q256
        Peaks between which the center map falls by less than this share of the lower one, in 1/256, 0..256, are one, too.
    """

    center_threshold: int
    material_threshold: int
    marker_radius_px: int
    compactness_q256: int
    merge_depth: int
    seed_recall: bool
    min_area_px: int
    max_area_px: int
    min_material: int = 0
    merge_share_q256: int = 0

    def __post_init__(self) -> None:
        """Refuse values outside the ranges of the kernels' integer types."""
        limits = {
            "center_threshold": (1, CENTER_MAX),
            "material_threshold": (1, MATERIAL_MAX),
            "marker_radius_px": (1, 32),
            "compactness_q256": (0, 4096),
            "merge_depth": (0, CENTER_MAX),
            "min_area_px": (1, AREA_LIMIT_PX),
            "max_area_px": (self.min_area_px, AREA_LIMIT_PX),
            "min_material": (0, MATERIAL_MAX),
            "merge_share_q256": (0, 256),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"separate: expected {name} in {low}..{high}, got {value}.")

    @property
    def merges(self) -> bool:
        """Whether peaks with a shallow saddle are merged (step 4)."""
        return self.merge_depth > 0 or self.merge_share_q256 > 0


@lru_cache(maxsize=16)
def distance_table(compactness_q256: int) -> npt.NDArray[np.uint16]:
    """Return the term of the landscape for each squared distance: exactly ``16 * compactness * sqrt(D)`` rounded half up.

    Parameters
    ----------
    compactness_q256
        Compactness in 1/256, 0..4096.

    Returns
    -------
    table : uint16 (1025,)
        Entry D for the squared distance D in px^2; for larger ones use D = 1024.
    """
    values = [(math.isqrt(compactness_q256 * compactness_q256 * d) + 8) // 16 for d in range(DISTANCE_REACH_PX**2 + 1)]
    table = np.array(values, np.uint16)
    table.setflags(write=False)
    return table


def resolve_params(config: SeparateConfig, defaults: Mapping[str, Any], mpp_working: float) -> SeparateParams:
    """Resolve options to integers: the config's value, else the weights' fitted one, else ``FALLBACK``.

    Parameters
    ----------
    config
        User's options; ``None`` means "as fitted for the weights".
    defaults
        Fitted values of the weights' card under the names of ``FALLBACK``; any may be missing.
    mpp_working
        Microns per working px, > 0.

    Returns
    -------
    SeparateParams
        Fractions times the maps' greatest value, rounded half up; areas in px, the least rounded up, the greatest down.

    Raises
    ------
    ConfigError
        A name in ``defaults`` is unknown, or a value is out of its range.
    """
    unknown = sorted(set(defaults) - set(FALLBACK))
    if unknown:
        raise ConfigError(f"separate: the weights' card has no option {unknown[0]!r}. Expected some of {sorted(FALLBACK)}.")
    if not (math.isfinite(mpp_working) and mpp_working > 0):
        raise ConfigError(f"separate: expected mpp_working > 0 um/px, got {mpp_working!r}.")

    def pick(name: str) -> Any:
        chosen = getattr(config, name, None)
        return defaults.get(name, FALLBACK[name]) if chosen is None else chosen

    px_um2 = mpp_working * mpp_working
    max_area_px = math.floor(config.max_area_um2 / px_um2 + 1e-9)
    if max_area_px > AREA_LIMIT_PX:
        raise ConfigError(
            f"separate.max_area_um2: {config.max_area_um2} um^2 is {max_area_px} px at {mpp_working} um/px; "
            f"expected at most {AREA_LIMIT_PX} px ({AREA_LIMIT_PX * px_um2:.0f} um^2). Lower max_area_um2."
        )
    return SeparateParams(
        center_threshold=max(1, _half_up(pick("center_threshold_frac") * CENTER_MAX)),
        material_threshold=max(1, _half_up(pick("material_threshold_frac") * MATERIAL_MAX)),
        marker_radius_px=int(pick("marker_radius_wpx")),
        compactness_q256=_half_up(pick("compactness") * 256),
        merge_depth=_half_up(pick("merge_depth_frac") * CENTER_MAX),
        seed_recall=bool(config.seed_recall),
        min_area_px=max(1, math.ceil(pick("min_area_um2") / px_um2 - 1e-9)),
        max_area_px=max_area_px,
        min_material=_half_up(pick("min_material_frac") * MATERIAL_MAX),
        merge_share_q256=_half_up(pick("merge_share_frac") * 256),
    )


def _half_up(value: float) -> int:
    return math.floor(value + 0.5)

"""The ladder that finds a slide's microns per pixel, or says that there is none.

1. the user's value (``--mpp``, manifest column ``mpp``);
2. what the vendor wrote, as OpenSlide tells it (``openslide.mpp-x/y``);
3. the TIFF resolution tags, if they describe a microscope and not a screen or printer;
4. the objective power: 10 / power (0.25 um/px at 40x, 0.5 at 20x), the convention of all large scanners;
5. nothing: ``MissingMppError``. A physical fact is never guessed.

The step taken is recorded as ``SlideMeta.mpp_source``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from wsiseg.errors import AnisotropicMppError, InputError, MissingMppError
from wsiseg.types import MppSource

__all__ = ["MAX_ANISOTROPY_FRAC", "PLAUSIBLE_MPP", "objective_power", "resolve_mpp", "tag_mpp"]

PLAUSIBLE_MPP = (0.02, 20.0)
"""Microns per px that a file may state. Outside it the number is no microscope's: a TIFF of 72, 96, 300 or 600 dpi claims
352.8, 264.6, 84.7 or 42.3 um/px, one of "1 px per cm" 10,000; such values are ignored and the next step is taken."""

MAX_ANISOTROPY_FRAC = 0.01
"""Largest relative difference of the x and y resolution; beyond it lengths and areas would be wrong."""

_UM_PER_UNIT = {"inch": 25400.0, "centimeter": 10000.0}


def tag_mpp(resolution: object, unit: object) -> float | None:
    """Return microns per px from a TIFF resolution (px per unit), ``None`` where unit or value cannot be a microscope's.

    ``unit`` is ``inch`` or ``centimeter``; TIFF's third unit, ``none``, states no length.
    """
    per_unit, scale = _number(resolution), _UM_PER_UNIT.get(str(unit))
    if per_unit is None or scale is None or per_unit <= 0:
        return None
    return _plausible(scale / per_unit)


def objective_power(properties: Mapping[str, str]) -> float | None:
    """Return the nominal magnification (40.0 for 40x) of a file's properties, ``None`` where absent or absurd."""
    power = _number(properties.get("openslide.objective-power"))
    return power if power is not None and 1 <= power <= 150 else None


def resolve_mpp(properties: Mapping[str, str], *, user_mpp: float | None, vendor: str, where: str) -> tuple[float, MppSource]:
    """Climb the ladder of this module.

    Parameters
    ----------
    properties
        OpenSlide's property names and values; plain images bring only the ``tiff.*`` ones.
    user_mpp
        The user's um per level-0 px; wins over everything.
    vendor
        OpenSlide's vendor; for ``generic-tiff`` its mpp comes from the resolution tags, so the source is ``tiff``.
    where
        The slide, for messages.

    Returns
    -------
    (float, str)
        um per level-0 px (the mean of x and y) and the step that gave it.

    Raises
    ------
    MissingMppError
        No step gave a value.
    AnisotropicMppError
        x and y differ by more than 1 %.
    InputError
        The user's value is not a positive number.
    """
    if user_mpp is not None:
        if not (math.isfinite(user_mpp) and user_mpp > 0):
            raise InputError(f"{where}: expected mpp to be a positive number of um per pixel, got {user_mpp!r}.")
        return float(user_mpp), "user"
    vendor_x, vendor_y = (_plausible(_number(properties.get(f"openslide.mpp-{axis}"))) for axis in "xy")
    if vendor_x is not None and vendor_y is not None:
        return _isotropic(vendor_x, vendor_y, where), "tiff" if vendor == "generic-tiff" else "openslide"
    unit = properties.get("tiff.ResolutionUnit")
    tag_x, tag_y = (tag_mpp(properties.get(f"tiff.{axis}Resolution"), unit) for axis in "XY")
    if tag_x is not None and tag_y is not None:
        return _isotropic(tag_x, tag_y, where), "tiff"
    power = objective_power(properties)
    if power is not None:
        return 10.0 / power, "objective"
    raise MissingMppError(
        f"{where}: the file states no microns per pixel (looked at openslide.mpp-x/y, TIFF resolution tags, objective power). "
        "Give it with --mpp (um per level-0 pixel, e.g. --mpp 0.25 for a usual 40x scan), or for many slides in the manifest "
        "column 'mpp'."
    )


def _isotropic(x: float, y: float, where: str) -> float:
    if abs(x - y) > MAX_ANISOTROPY_FRAC * max(x, y):
        raise AnisotropicMppError(
            f"{where}: microns per pixel differ in x and y: {x:g} and {y:g}, expected within {MAX_ANISOTROPY_FRAC:.0%}. "
            "If the header is wrong, give the true value with --mpp or the manifest column 'mpp'; else resample the slide."
        )
    return (x + y) / 2


def _plausible(mpp: float | None) -> float | None:
    return mpp if mpp is not None and PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] else None


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None

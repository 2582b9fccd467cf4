"""Find a slide's microns per pixel.

The sources are tried in this order:

1. the user's value (``--mpp``, manifest column ``mpp``), also outside ``PLAUSIBLE_MPP``;
2. what the file states, most explicit first: the vendor's value as OpenSlide gives it, OME-XML, ImageJ, Aperio, libvips and
   Leica texts, the scale of an OME-Zarr, and last the resolution tags (TIFF, PNG, JPEG), unless they describe a screen or a
   printer. The first is taken if it is within ``PLAUSIBLE_MPP``;
3. if it is not, ``ImplausibleMppError``: converters are off by 10, 2.54, 25.4 or 1000, and a network given a tenth of the
   scale finds nothing;
4. the objective power that the scanner states: 10 / power (0.25 um/px at 40x, 0.5 at 20x), the convention of the large
   scanners, correct to about 10 %, as stated in the note;
5. otherwise ``MissingMppError``. A physical fact is never guessed.

The step taken is recorded as ``SlideMeta.mpp_source``. ``mpp_note`` records statements that disagree by more than 1 %, and
whether only an objective power was stated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wsiseg.errors import AnisotropicMppError, ImplausibleMppError, InputError, MissingMppError
from wsiseg.read._mpp_text import MppClaim, number, um_per_unit
from wsiseg.types import MppSource

__all__ = ["MAX_ANISOTROPY_FRAC", "PLAUSIBLE_MPP", "Mpp", "resolve_mpp", "objective_power", "tag_claim"]

PLAUSIBLE_MPP = (0.1, 2.0)
"""Range of microns per px that is accepted as stated (100x to 5x). The user must confirm others with ``--mpp``."""

MAX_TAG_MPP = 20.0
"""Resolution tags above it describe a screen or printer: 72, 96, 300 or 600 dpi are 352.8, 264.6, 84.7 or 42.3 um/px, one of
"1 px per cm" is 10,000. They do not describe the slide."""

MAX_ANISOTROPY_FRAC = 0.01
"""Largest relative difference of the x and y resolution; beyond it lengths and areas would be wrong."""

_COMMON_MPP = (0.25, 0.5, 1.0)
_SLIPS = (
    (10.0, "10 (mm and cm confused)"),
    (2.54, "2.54 (cm and inch confused)"),
    (25.4, "25.4 (mm and inch confused)"),
    (100.0, "100"),
    (1000.0, "1000 (nm, um and mm confused)"),
    (10000.0, "10,000 (um and cm confused)"),
)


@dataclass(frozen=True, slots=True)
class Mpp:
    """um per level-0 px (the mean of x and y), its source, and a text about statements that disagree (empty: none)."""

    value: float
    source: MppSource
    note: str = ""


def tag_claim(x_resolution: object, y_resolution: object, unit: object, where: str = "TIFF resolution tags") -> MppClaim | None:
    """Return um per px from resolution tags, ``None`` if they state no length, or a screen's or printer's on both axes."""
    x, y = _tag_um(x_resolution, unit), _tag_um(y_resolution, unit)
    if x is None or y is None or min(x, y) > MAX_TAG_MPP:
        return None
    return MppClaim("image" if "TIFF" not in where else "tiff", where, x, y)


def objective_power(properties: Mapping[str, str]) -> float | None:
    """Return the nominal magnification (40.0 for 40x) from a file's properties, ``None`` if absent or implausible."""
    power = number(properties.get("openslide.objective-power"))
    return power if power is not None and 1 <= power <= 150 else None


def resolve_mpp(
    properties: Mapping[str, str], *, user_mpp: float | None, vendor: str, where: str, claims: Iterable[MppClaim] = ()
) -> Mpp:
    """Return um per level-0 px from the first source of this module that states it.

    Parameters
    ----------
    properties
        OpenSlide's property names and values; other readers give at most the ``tiff.*`` ones.
    user_mpp
        The user's um per level-0 px; has priority over all others.
    vendor
        OpenSlide's vendor; the mpp of ``generic-tiff`` comes from the resolution tags and is treated as such.
    where
        The slide, for messages.
    claims
        Statements found in texts of the file, most explicit first.

    Raises
    ------
    MissingMppError
        No source states a value.
    ImplausibleMppError
        The value is outside ``PLAUSIBLE_MPP``.
    AnisotropicMppError
        x and y differ by more than 1 %.
    InputError
        The user's value is not a positive number.
    """
    if user_mpp is not None and not (math.isfinite(user_mpp) and user_mpp > 0):
        raise InputError(f"{where}: expected mpp to be a positive number of um per pixel, got {user_mpp!r}.")
    found = list(claims)
    x, y = (number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    if x is not None and y is not None and vendor not in ("generic-tiff", ""):
        found.insert(0, MppClaim("openslide", f"{vendor} header", x, y))
    x_tag, y_tag, unit = (properties.get(f"tiff.{name}") for name in ("XResolution", "YResolution", "ResolutionUnit"))
    tags = tag_claim(x_tag, y_tag, unit)
    if tags is not None:
        found.append(tags)
    if user_mpp is not None:
        return Mpp(float(user_mpp), "user", _disagreement(MppClaim("user", "the user", user_mpp, user_mpp), found))
    if not found:
        power = objective_power(properties)
        if power is None:
            raise MissingMppError(_nothing_stated(properties, where))
        return Mpp(
            10.0 / power,
            "objective",
            f"the file states an objective of {power:g}x and no microns per pixel: {10 / power:.4g} was taken, correct to "
            "about 10 %; give the true value with --mpp",
        )
    first = found[0]
    if abs(first.x - first.y) > MAX_ANISOTROPY_FRAC * max(first.x, first.y):
        raise AnisotropicMppError(
            f"{where}: microns per pixel differ in x and y: {first.x:g} and {first.y:g} by {first.where}, expected within "
            f"{MAX_ANISOTROPY_FRAC:.0%}. "
            "If the header is wrong, give the true value with --mpp or the manifest column 'mpp'; else resample the slide."
        )
    value, note = (first.x + first.y) / 2, _disagreement(first, found[1:])
    if not PLAUSIBLE_MPP[0] <= value <= PLAUSIBLE_MPP[1]:
        low, high = PLAUSIBLE_MPP
        raise ImplausibleMppError(
            f"{where}: {value:.4g} microns per pixel by {first.where}, expected {low:g} to {high:g}.{_slips(value)}"
            f"{' Moreover ' + note + '.' if note else ''} Give the true value with --mpp (--mpp {value:.4g} confirms this one) "
            "or in the manifest column 'mpp'."
        )
    return Mpp(value, first.source, note)


def _nothing_stated(properties: Mapping[str, str], where: str) -> str:
    hints = ""
    x, unit = number(properties.get("tiff.XResolution")), properties.get("tiff.ResolutionUnit")
    um = _tag_um(x, unit)
    if um is not None and um > MAX_TAG_MPP:
        hints += f" Its resolution tags state {um:.4g} um per pixel, which is a screen's or printer's."
    elif x is not None and x != 1 and um is None:
        hints += f" Its resolution tag is {x:g} without a unit."
    return (
        f"{where}: the file states no microns per pixel (looked at the vendor's header, OME-XML, ImageJ, Aperio and libvips "
        f"texts, resolution tags, objective power).{hints} "
        "Give it with --mpp (um per level-0 pixel, e.g. --mpp 0.25 for a usual 40x scan), or for many slides in the manifest "
        "column 'mpp'. If nobody knows it, `wsiseg info --estimate-mpp` estimates it from the size of the nuclei."
    )


def _disagreement(taken: MppClaim, others: Iterable[MppClaim]) -> str:
    value = (taken.x + taken.y) / 2
    apart = [c for c in others if max(abs(c.x - value), abs(c.y - value)) > MAX_ANISOTROPY_FRAC * value]
    if not apart:
        return ""
    said = ", ".join(f"{c.where} {c.x:.4g}" + (f" x {c.y:.4g}" if abs(c.x - c.y) > 0.01 * c.x else "") for c in apart)
    return f"microns per pixel disagree: {value:.4g} by {taken.where} was taken, but {said}"


def _slips(value: float) -> str:
    """Return a text on mistakes that may explain a value, those first whose correction gives a usual scanner resolution."""
    low, high = PLAUSIBLE_MPP
    found = [(v, name) for f, name in _SLIPS for v in (value * f, value / f) if low <= v <= high]
    found.sort(key=lambda pair: min(abs(math.log(pair[0] / common)) for common in _COMMON_MPP))
    if not found:
        return ""
    return " Off by a factor " + ", or ".join(f"{name} it would be {v:.3g}" for v, name in found[:2]) + "."


def _tag_um(resolution: object, unit: object) -> float | None:
    per_unit, scale = number(resolution), um_per_unit(str(unit)) if unit in ("inch", "centimeter") else None
    return scale / per_unit if per_unit is not None and scale is not None else None

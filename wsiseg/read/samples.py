"""Convert sample values of any type to 8 bits, by one rule per slide.

Integers of more than 8 bits: the upper 8 of the bits in use are taken. Those are the bits that the file declares (OME
``SignificantBits``, ``BitsPerSample``) if they are fewer than the container's, else the smallest of 8, 10, 12, 14, 16 (or 32)
that fits the brightest sample of the slide: in H&E that is glass or pale tissue, which fills more than a quarter of the range.
Floats: 0..1 where the brightest is at most ``FLOAT_ONE``, else 0..255.
The rule is fitted once per slide, not per tile; reading a tile with a value beyond it is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.read._window import RGB

__all__ = ["FLOAT_255", "FLOAT_ONE", "Depth", "cmyk_to_rgb", "depth_of", "looks_bright", "to_u8"]

FLOAT_ONE, FLOAT_255 = 1.5, 300.0
"""Brightest float samples of a picture of 0..1, and of one of 0..255: resampling overshoots both by some percent."""

_BITS = (8, 10, 12, 14, 16, 32)

_BRIGHT_U8 = 64
"""Some glass or stained tissue is brighter than this in all three channels; fluorescence seldom is."""


@dataclass(frozen=True, slots=True)
class Depth:
    """How a slide's samples become 0..255: ``bits`` in use of integers, or the value of white (``full``) of floats."""

    bits: int = 8
    full: float = 0.0

    @property
    def words(self) -> str:
        """Return the rule in words; empty for samples of 8 bits."""
        return f"values read as 0 to {self.full:g}" if self.full else f"values read as {self.bits} bits"


def depth_of(values: npt.NDArray[Any], declared_bits: int = 0) -> Depth:
    """Fit the rule of this module to samples of a slide.

    Parameters
    ----------
    values
        Unsigned integers or floats of any shape, not empty.
    declared_bits
        Bits in use that the file states; 0: not stated.

    Raises
    ------
    ValueError
        No rule fits: signed, negative, larger than the declared bits allow, or floats beyond ``FLOAT_255``.
    """
    if values.dtype == np.uint8:
        return Depth()
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        top, low = (float(finite.max()), float(finite.min())) if finite.size else (1.0, 0.0)
        if top > FLOAT_255 or low < -0.5 * (FLOAT_ONE if top <= FLOAT_ONE else 255 * FLOAT_ONE):
            raise ValueError(f"float samples are between {low:g} and {top:g}, expected 0 to 1 or 0 to 255")
        return Depth(full=1.0 if top <= FLOAT_ONE else 255.0)
    if values.dtype.kind != "u":
        raise ValueError(f"samples are {values.dtype}, expected unsigned integers or floats")
    top = int(values.max())
    if declared_bits:
        if top >> declared_bits:
            raise ValueError(f"a sample is {top}, but the file declares {declared_bits} bits")
        return Depth(declared_bits)
    return Depth(next(bits for bits in _BITS if top < 1 << bits) if top < 1 << 32 else 64)


def to_u8(values: npt.NDArray[Any], depth: Depth) -> npt.NDArray[np.uint8]:
    """Convert samples to 0..255 by a slide's rule: uint8 of the same shape. A float that is not a number becomes white.

    Raises
    ------
    ValueError
        A value exceeds the range of the rule.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        scaled = np.nan_to_num(values.astype(np.float64) * (255.0 / depth.full), nan=255.0, posinf=255.0, neginf=255.0)
        if scaled.size and scaled.max() > 2 * 255:
            raise ValueError(f"a sample is {values.max():g}, but the slide was found to have values 0 to {depth.full:g}")
        return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    if values.size and int(values.max()) >> depth.bits:
        raise ValueError(f"a sample is {int(values.max())}, but the slide was found to use {depth.bits} bits")
    return (values >> (depth.bits - 8)).astype(np.uint8)


def cmyk_to_rgb(cmyk: npt.NDArray[np.uint8]) -> RGB:
    """Convert CMYK uint8 (h, w, 4), 255 full ink, to RGB uint8 (h, w, 3) as Pillow does."""
    light = 255 - cmyk[..., 3:4].astype(np.int32)
    product = cmyk[..., :3] * light + 128
    return np.clip(light - ((product >> 8) + product >> 8), 0, 255).astype(np.uint8)


def looks_bright(rgb: RGB) -> bool:
    """Return whether some px of a picture are bright in all three channels, as in brightfield; True for a black picture."""
    least = rgb.min(axis=-1)
    return bool(np.percentile(least, 99) >= _BRIGHT_U8) or not rgb.any()

"""Frames: the origin and unit of external coordinates, and checks whether they fit the slide.

Every command that reads such coordinates (tissue masks, imports, files to score) has the option ``--frame`` with the same
syntax: an origin and a unit, joined by a comma; either can be left out.

======================  ==============================================================================================
``auto``                as the file states: ``bounds`` for QuPath's objects, else ``slide`` (the default)
``slide``               (0, 0) is the corner of the slide's level 0
``bounds``              (0, 0) is the corner of the scanned area (``openslide.bounds-x``), as in QuPath
``px``                  one unit is a level-0 px (the default)
``um``                  one unit is a micrometre
``mpp=0.5``             one unit is a px of 0.5 um
``down=4``              one unit is a px of the level that is 4 times smaller than level 0
======================  ==============================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.types import SlideMeta

__all__ = [
    "FRAME_GRAMMAR",
    "Frame",
    "Ground",
    "MIN_INSIDE_FRAC",
    "Origin",
    "check_fit",
    "ground_of",
    "mpp_note",
    "parse_frame",
    "size_note",
]

FRAME_GRAMMAR = "[auto|slide|bounds][,px|,um|,mpp=UM|,down=N]"
MIN_INSIDE_FRAC = 0.02
"""If a smaller fraction of coordinates is inside the slide, they are refused, because slide or frame must be wrong."""
WARN_OUTSIDE_FRAC = 0.01
MPP_TOLERANCE_FRAC = 0.02

Float = npt.NDArray[np.float64]
Origin = Literal["auto", "slide", "bounds"]


@dataclass(frozen=True, slots=True)
class Ground:
    """Size, resolution and scanned area of a slide (level-0 px; a side of 0 or ``mpp`` None: not known)."""

    width_px: int = 0
    height_px: int = 0
    mpp: float | None = None
    bounds_x: int = 0
    bounds_y: int = 0
    bounds_w: int = 0
    bounds_h: int = 0
    downsamples: tuple[float, ...] = ()

    @property
    def area(self) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of the scanned area, or of the slide if there is no such area."""
        if self.bounds_w > 0 and self.bounds_h > 0:
            return (self.bounds_x, self.bounds_y, self.bounds_x + self.bounds_w, self.bounds_y + self.bounds_h)
        return (0, 0, self.width_px or math.inf, self.height_px or math.inf)


@dataclass(frozen=True, slots=True)
class Frame:
    """An origin and a unit. ``um_per_unit`` is 0 if not stated; ``down`` is level-0 px per unit."""

    origin: Origin = "auto"
    um_per_unit: float = 0.0
    down: float = 1.0

    @property
    def unit_plain(self) -> bool:
        """Whether one unit is a level-0 px."""
        return not self.um_per_unit and self.down == 1.0

    def on(self, ground: Ground, stated: Origin = "slide", what: str = "coordinates") -> tuple[float, float, float]:
        """Return (factor, dx, dy): level-0 px of the slide are ``factor * xy + (dx, dy)``.

        Parameters
        ----------
        stated
            The origin that the file itself states, for ``auto``.
        what
            Text with which error messages begin.

        Raises
        ------
        InputError
            The unit is micrometres, and the slide's microns per pixel are unknown.
        """
        factor = self.down
        if self.um_per_unit:
            if not ground.mpp:
                raise InputError(f"{what}: a frame in um needs the slide's um/px. Add --mpp, or name the slide.")
            factor = self.um_per_unit / ground.mpp
        origin = stated if self.origin == "auto" else self.origin
        shift = (ground.bounds_x, ground.bounds_y) if origin == "bounds" else (0, 0)
        return factor, float(shift[0]), float(shift[1])


def ground_of(meta: SlideMeta) -> Ground:
    """Return the ``Ground`` of an open slide."""
    return Ground(
        meta.width_px, meta.height_px, meta.mpp, meta.bounds_x, meta.bounds_y, meta.bounds_w, meta.bounds_h,
        meta.level_downsamples,
    )  # fmt: skip


def parse_frame(text: str) -> Frame:
    """Return the frame from a text such as ``bounds,um`` (see the docstring of the module); empty: ``auto``.

    Raises
    ------
    InputError
        The text does not follow the grammar.
    """
    origin: Origin | None = None
    unit: tuple[float, float] | None = None
    for word in filter(None, (w.strip().lower() for w in text.split(","))):
        name, _, number = word.partition("=")
        if word in ("auto", "slide", "bounds") and origin is None:
            origin = word  # type: ignore[assignment]
        elif word in ("px", "um") and unit is None:
            unit = (1.0, 1.0) if word == "um" else (0.0, 1.0)
        elif name in ("mpp", "down") and unit is None and 0 < _number(number) < 10_000:
            unit = (_number(number), 1.0) if name == "mpp" else (0.0, _number(number))
        else:
            raise InputError(f"Expected a frame {FRAME_GRAMMAR}, such as bounds or slide,mpp=0.5, got {text!r}.")
    um_per_unit, down = unit or (0.0, 1.0)
    return Frame(origin or "auto", um_per_unit, down)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def check_fit(xy: Float, ground: Ground, placed: tuple[float, float, float], what: str, n: int | None = None) -> list[str]:
    """Return warnings about points outside the slide; an empty list if they fit.

    Parameters
    ----------
    xy : float64 (N, 2)
        Points in the frame of the file, one per polygon or per vertex.
    ground
        Size and bounds of the slide.
    placed
        Result of ``Frame.on`` for the frame that was used: (level-0 px per unit of the file, shift in x, shift in y).
    what
        Name of the file and of its points; the message begins with it.
    n
        Number of points in the file, if ``xy`` is only a sample of them.

    Raises
    ------
    FormatError
        Less than 2 % of the points are inside the slide.
    """
    inside = _inside(xy, ground, placed)
    if len(xy) == 0 or inside >= 1 - WARN_OUTSIDE_FRAC:
        return []
    left, top, right, bottom = ground.area
    low, high = xy.min(axis=0), xy.max(axis=0)
    known = f"the {'scanned area' if ground.bounds_w else 'slide'}, x {left:g} to {right:g}, y {top:g} to {bottom:g} level-0 px"
    used = f"as {placed[0]:g} xy + ({placed[1]:g}, {placed[2]:g})"
    used = "as level-0 px of the slide" if placed == (1.0, 0.0, 0.0) else used
    text = (
        f"{what}: {1 - inside:.1%} of {n or len(xy):,} are outside {known}; in the file x goes from {low[0]:g} to {high[0]:g}, "
        f"y from {low[1]:g} to {high[1]:g}, read {used}. {_hint(xy, ground, inside)}"
    )
    if inside < MIN_INSIDE_FRAC:
        raise FormatError(text)
    return [text]


def _inside(xy: Float, ground: Ground, placed: tuple[float, float, float]) -> float:
    """Return the share of points inside the scanned area, with a tolerance of one px for rounding."""
    if len(xy) == 0:
        return 1.0
    factor, dx, dy = placed
    at = xy * factor + (dx, dy)
    left, top, right, bottom = ground.area
    tolerance = max(1.0, factor)
    good = (at >= (left - tolerance, top - tolerance)) & (at <= (right + tolerance, bottom + tolerance))
    return float(good.all(axis=1).mean())


def _hint(xy: Float, ground: Ground, inside: float) -> str:
    """Return a sentence that names the frames in which nearly all points would be inside the slide."""
    origins = ["slide"] + (["bounds"] if (ground.bounds_x, ground.bounds_y) != (0, 0) else [])
    units = ["", *(f",down={d:g}" for d in ground.downsamples if d > 1), *([",um"] if ground.mpp else [])]
    texts = [origin + unit for unit in units for origin in origins]
    fitting = [f"--frame {t}" for t in texts if _inside(xy, ground, parse_frame(t).on(ground)) > max(0.98, inside)]
    if fitting:
        return f"They would be inside with {', or with '.join(fitting[:3])}."
    return "They fit in no frame of this slide: check that they belong to it, or give their --frame."


def mpp_note(what: str, stated: float | None, ground_mpp: float | None) -> list[str]:
    """Return a warning if a file states another um/px than the slide has; empty if it agrees or is not stated."""
    if not stated or not ground_mpp or abs(stated / ground_mpp - 1) <= MPP_TOLERANCE_FRAC:
        return []
    text = f"{what}: it states {stated:g} um/px, the slide has {ground_mpp:g} um/px ({stated / ground_mpp:.3g} times). "
    text += f"Coordinates are taken as px of the slide; if they are px of {stated:g} um, use --frame mpp={stated:g}."
    return [text]


def size_note(what: str, size: Sequence[int], ground: Ground, factor: float, *, origin: str) -> list[str]:
    """Return a warning if a label image or mask does not cover the slide; empty if it does.

    Parameters
    ----------
    size
        (width, height) of the image.
    factor
        Level-0 px per px of the image with which it will be read.
    origin
        ``bounds``: it is meant to cover the scanned area; else the slide.
    """
    width, height = ground.width_px, ground.height_px
    if origin == "bounds" and ground.bounds_w and ground.bounds_h:
        width, height = ground.bounds_w, ground.bounds_h
    if not width or not height or _covers(size, (width, height), factor):
        return []
    area = {"slide": "slide", "bounds": "scanned area"}
    text = f"{what}: {size[0]} x {size[1]} px, each of {factor:g} level-0 px, cover {size[0] * factor:.0f} x "
    text += f"{size[1] * factor:.0f} level-0 px, but the {area.get(origin, 'slide')} has {width} x {height}."
    for down in dict.fromkeys([1.0, *ground.downsamples, *(float(2**k) for k in range(1, 9)), float(round(width / size[0]))]):
        for name, sides in (("slide", (ground.width_px, ground.height_px)), ("bounds", (ground.bounds_w, ground.bounds_h))):
            if min(sides) > 0 and down > 0 and _covers(size, sides, down):
                return [f"{text} It would cover the {area[name]} with --frame {name},down={down:g}."]
    return [f"{text} No level of the slide has that size; it is read from the corner. Check the slide, and --dx, --dy."]


def _covers(size: Sequence[int], sides: tuple[int, int], down: float) -> bool:
    """Return whether an image of px of ``down`` level-0 px is as large as the sides, within one px and half a percent."""
    return all(abs(n * down - side) <= max(1.0, down, 0.005 * side) for n, side in zip(size, sides, strict=True))

"""Measure how unlike the training images a slide looks: one score, and the reasons for it as text.

A trait of a slide is compared with the same trait of the images that the network was trained on, whose 5th, 50th and 95th
percentiles are in the model card (``scripts/measure_look.py``). A value twice as far from the median as the percentile on its
side scores 1 (see ``Trait.slack``); the slide's score is that of its most unusual trait.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TRAITS", "Foreign", "Trait", "foreign_look", "look_reference"]


@dataclass(frozen=True, slots=True)
class Trait:
    """One number of a slide, and the meaning of values below or above those of the training images (empty: not unusual).

    A value scores 1 at ``slack`` distances beyond the percentile, a distance being that from median to percentile. ``log``: the
    logarithm is compared. ``least`` is the smallest unusual distance from the median, in the compared scale.
    """

    name: str
    low: str = ""
    high: str = ""
    unit: str = ""
    log: bool = False
    slack: float = 1.0
    least: float = 0.0

    def scaled(self, value: float) -> float:
        """Return the value on the scale on which it is compared."""
        return math.log(max(value, 1e-6)) if self.log else value


TRAITS: tuple[Trait, ...] = (
    Trait("stain_residual", high="colors unlike hematoxylin and eosin (immunostain, another dye, swapped channels)",
          log=True, least=0.7),
    Trait("brown_frac", high="brown, as DAB immunostain and pigment are", least=0.025),
    Trait("od_red_frac", low="unusually red or pink", high="unusually blue or gray", least=0.04),
    Trait("od_blue_frac", low="unusually violet", high="unusually yellow or brown", least=0.04),
    Trait("od_green_high", low="nothing is pink: no eosin (immunostain, or another dye)", slack=0.15, least=0.06),
    Trait("sharpness", low="blurred", high="too much fine detail (noise, or microns per px stated too small)", log=True,
          least=0.5),
    Trait("sharpness_low", low="a tenth of the tissue or more is out of focus", log=True, least=0.6),
    Trait("unsharp_frac", high="parts of the tissue are out of focus", least=0.06),
    Trait("jpeg_blocking", high="blocks of strong JPEG compression", log=True, least=0.5),
    Trait("ink_frac", high="pen marks on the tissue", least=0.02),
    Trait("fold_frac", high="dark areas, as folds or thick tissue are", least=0.03),
    Trait("nuclei_per_colored_mm2", low="few nuclei for that much colored tissue", unit="per mm²", log=True, least=0.7),
    Trait("area_p50_um2", low="small nuclei: are the microns per px right?", high="large nuclei: are the microns per px right?",
          unit="µm²", log=True, least=0.7),
    Trait("nuclear_scale", low="nuclei and detail small for the microns per px stated",
          high="nuclei and detail large for the microns per px stated", log=True, slack=0.6, least=0.35),
    Trait("center_prob_mean", low="the network is unsure where nuclei are", least=0.2),
    Trait("material_prob_mean", low="the network is unsure what nuclei are", least=0.2),
)  # fmt: skip
"""The traits. Those of the network are left wide: neither blur nor a wrong scale moves them beyond what organs do."""

SCALE_OF = {"area_p50_um2": (24.0, 0.375), "nuclei_per_colored_mm2": (5400.0, -0.1), "sharpness": (0.17, -0.3)}
"""What ``nuclear_scale`` is the product of: each by what it is on training images, and the power of that.

A wrong scale moves all three, organs and scanners mostly one. Powers: least squares of the logarithm of the factor by which the
microns per px of 42 training images were changed (1/3 to 3); held out by set, its error is 0.35 octaves, that of the area alone
0.42."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """How unusual a slide looks: check it if ``score`` is above 1. ``reasons`` are the traits above 1, the strongest first."""

    score: float
    reasons: tuple[str, ...]


def look_reference(looks: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return the 5th, 50th and 95th percentile of each trait over training images, with four digits."""
    out = {}
    for trait in TRAITS:
        known = [float(v) for look in looks if (v := _value(look, trait.name)) is not None]
        if known:
            out[trait.name] = [float(f"{v:.4g}") for v in np.percentile(known, (5, 50, 95))]
    return out


def foreign_look(look: Mapping[str, Any], reference: Mapping[str, Sequence[float]]) -> Foreign | None:
    """Return how unlike the training images a slide looks; ``None`` if none of its traits can be compared.

    Parameters
    ----------
    look
        Traits of the slide by name; those missing or ``None`` are left out.
    reference
        The result of ``look_reference``.
    """
    found = []
    for trait in TRAITS:
        value, known = _value(look, trait.name), reference.get(trait.name)
        if value is not None and known is not None:
            found.append(_scored(trait, float(value), known))
    if not found:
        return None
    found.sort(key=lambda f: -f[0])
    return Foreign(found[0][0], tuple(words for score, words in found if score > 1))


def _value(look: Mapping[str, Any], name: str) -> float | None:
    if name == "nuclear_scale":
        parts = [(look.get(of), usual, power) for of, (usual, power) in SCALE_OF.items()]
        return (
            None
            if not all(v for v, _, _ in parts)
            else math.prod((float(v or 0) / usual) ** power for v, usual, power in parts)
        )
    value = look.get(name)
    return None if value is None else float(value)


def _scored(trait: Trait, value: float, known: Sequence[float]) -> tuple[float, str]:
    low, middle, high = (trait.scaled(v) for v in known)
    x = trait.scaled(value)
    words, end = (trait.low, low) if x < middle else (trait.high, high)
    if not words:
        return 0.0, ""
    reach = max(abs(end - middle) * (1 + trait.slack), trait.least, 1e-9)
    unit = f" {trait.unit}" if trait.unit else ""
    text = f"{words} ({_text(value)}{unit}, training images {_text(known[0])} to {_text(known[2])}{unit})"
    return abs(x - middle) / reach, text


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

"""Options of ``wsiseg evaluate``: which images, which protocol, and which outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["HouProtocol", "SetChoice", "SetOutputs"]


@dataclass(frozen=True, slots=True)
class HouProtocol:
    """The protocol ``hou2020``.

    Attributes
    ----------
    groups
        CSV of images with their cancer type and WSI group.
    annotators
        Further annotations of the same images; each is scored against TRUTH as if it were a prediction.
    """

    groups: Path | None = None
    annotators: Sequence[Path] = ()


@dataclass(frozen=True, slots=True)
class SetChoice:
    """Which images of annotated sets are scored, and how.

    Attributes
    ----------
    sets, split, limit
        As in ``choose_samples``.
    mpp
        As in ``score_model``.
    by
        What a row of the table is.
    protocol
        A protocol to score by; None: every score.
    against
        Other weights, for a paired test on the same images.
    """

    sets: Sequence[str] = ()
    split: Literal["validation", "train", "all"] = "validation"
    limit: int = 0
    mpp: float | None = None
    by: Literal["set", "patient", "image"] = "set"
    protocol: HouProtocol | None = None
    against: str = ""


@dataclass(frozen=True, slots=True)
class SetOutputs:
    """Files that are written in addition to the table.

    Attributes
    ----------
    gallery, crops
        Picture file for so many of the worst windows, at most one per image.
    labels_out
        As in ``score_model``.
    out
        JSON file for all numbers.
    """

    gallery: Path | None = None
    crops: int = 8
    labels_out: Path | None = None
    out: Path | None = None

"""Measure the agreement of several people's (or programs') annotations of the same images, per organ.

The tables of Mahbod et al. 2021 (CryoNuSeg, doi 10.1016/j.compbiomed.2021.104349): Dice (pixels), AJI and PQ as mean and
standard deviation over the images of each organ and over all; *inter-observer* between two people, *intra-observer* between two
readings of one. The first of a pair is taken as truth, which only affects AJI. Pairs are compared by two-sided Wilcoxon
signed-rank tests on the images they share.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.metrics.agreement import PairedTest, paired_test
from wsiseg.metrics.scores import Scores, instance_scores

__all__ = [
    "ObserverPair",
    "ObserverRow",
    "ObserverTest",
    "Reading",
    "compare_observers",
    "observer_cells",
    "observer_rows",
    "observer_tests",
]

OBSERVER_SCORES: tuple[str, ...] = ("dice", "aji", "pq")


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One observer's annotation of a set: label map by image. ``reading`` distinguishes readings of the same ``observer``."""

    observer: str
    reading: str
    labels: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ObserverPair:
    """Two readings and their scores for each image; ``organs`` has the organ of each of ``images``."""

    first: str
    second: str
    kind: Literal["inter", "intra"]
    images: tuple[str, ...]
    organs: tuple[str, ...]
    scores: tuple[Scores, ...]

    @property
    def name(self) -> str:
        """Return ``"first - second"``."""
        return f"{self.first} - {self.second}"


def compare_observers(readings: Sequence[Reading], organs: Mapping[str, str] | None = None) -> list[ObserverPair]:
    """Score every pair of readings on the images that both have.

    Parameters
    ----------
    readings
        At least two; of a pair, the earlier one is taken as truth.
    organs
        Organ of each image; None: only the summary over ``"all"`` images.

    Returns
    -------
    list of ObserverPair

    Raises
    ------
    FormatError
        There are fewer than two readings, two have the same name, two have no image in common, or sizes differ.
    """
    names = [r.reading for r in readings]
    if len(readings) < 2 or len(set(names)) < len(names):
        raise FormatError(f"evaluate observers: expected two or more readings of different names, got {names}.")
    pairs = []
    for a, b in combinations(readings, 2):
        images = tuple(sorted(set(a.labels) & set(b.labels)))
        if not images:
            raise FormatError(
                f"evaluate observers: {a.reading} and {b.reading} have no image in common (first names "
                f"{sorted(a.labels)[:2]} and {sorted(b.labels)[:2]})."
            )
        scores = []
        for image in images:
            try:
                scores.append(instance_scores(b.labels[image], a.labels[image]))
            except FormatError as err:
                raise FormatError(f"{image}, {a.reading} - {b.reading}: {err}") from err
        kind: Literal["inter", "intra"] = "intra" if a.observer == b.observer else "inter"
        found = tuple((organs or {}).get(image, "") for image in images)
        pairs.append(ObserverPair(a.reading, b.reading, kind, images, found, tuple(scores)))
    return pairs


@dataclass(frozen=True, slots=True)
class ObserverRow:
    """A pair's agreement on the images of an organ (``all``: on all): mean and sample standard deviation over images."""

    pair: str
    kind: str
    organ: str
    n_images: int
    n_first: int
    n_second: int
    dice_mean: float
    dice_sd: float
    aji_mean: float
    aji_sd: float
    pq_mean: float
    pq_sd: float


@dataclass(frozen=True, slots=True)
class ObserverTest:
    """Which of two pairs agrees better by a score."""

    score: str
    first: str
    second: str
    test: PairedTest


def observer_rows(pair: ObserverPair) -> list[ObserverRow]:
    """Return one row per organ and one for all images.

    Images that are empty in both readings are left out of the means; the deviation of a single image is NaN.
    """
    rows = []
    named = sorted(set(pair.organs) - {""})
    for organ in [*named, "all"]:
        mine = [s for s, o in zip(pair.scores, pair.organs, strict=True) if organ in ("all", o)]
        spread = []
        for score in OBSERVER_SCORES:
            values = np.array([getattr(s, score) for s in mine if not s.empty])
            spread.append(float(values.mean()) if len(values) else math.nan)
            spread.append(float(values.std(ddof=1)) if len(values) > 1 else math.nan)
        n_first, n_second = sum(s.n_truth for s in mine), sum(s.n_pred for s in mine)
        rows.append(ObserverRow(pair.name, pair.kind, organ, len(mine), n_first, n_second, *spread))
    return rows


def observer_tests(pairs: Sequence[ObserverPair]) -> list[ObserverTest]:
    """Test for every two pairs whether their agreement differs, on the images that both pairs have."""
    rows = []
    for a, b in combinations(pairs, 2):
        of_a, of_b = dict(zip(a.images, a.scores, strict=True)), dict(zip(b.images, b.scores, strict=True))
        shared = sorted(set(of_a) & set(of_b))
        for score in OBSERVER_SCORES:
            test = paired_test([getattr(of_a[i], score) for i in shared], [getattr(of_b[i], score) for i in shared])
            rows.append(ObserverTest(score, f"{a.name} ({a.kind})", f"{b.name} ({b.kind})", test))
    return rows


def observer_cells(pairs: Sequence[ObserverPair]) -> tuple[list[str], list[list[str]]]:
    """Return headings and text cells of the rows of all pairs, with scores in percent as in the paper."""
    headings = ["pair", "kind", "organ", "images", "nuclei", "Dice %", "AJI %", "PQ %"]

    def spread(mean: float, sd: float) -> str:
        mean, sd = 100 * mean, 100 * sd
        return "-" if math.isnan(mean) else f"{mean:.1f}" if math.isnan(sd) else f"{mean:.1f} ± {sd:.1f}"

    cells = [
        [r.pair, r.kind, r.organ, str(r.n_images), f"{r.n_first} - {r.n_second}", spread(r.dice_mean, r.dice_sd),
         spread(r.aji_mean, r.aji_sd), spread(r.pq_mean, r.pq_sd)]
        for pair in pairs
        for r in observer_rows(pair)
    ]  # fmt: skip
    return headings, cells

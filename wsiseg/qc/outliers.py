"""Flag slides whose statistics are outliers in their cohort, each flag with its reason as text.

The published rule (Hou et al. 2020, Scientific Data 7:185): within a cancer type, a person checks the slides in the outer 2 %
of nucleus count and of mean nuclear area (both sides) and of the standard deviation of nuclear area (upper side). If a
significant share of these is unacceptable, the limits are widened to the outer 4 %. wsiseg also ranks nuclei per mm2, because
a small biopsy has few nuclei without being a bad slide.

This rule flags a fixed share of slides even if all are good: up to seven of 12. It is therefore the default only for cohorts of
at least ``MIN_SLIDES_FOR_TAILS`` slides, where it flags at most 14 % (``method="tails"`` applies it to any cohort). In smaller
cohorts, and if there is a reference, a slide is flagged if its robust z-score (of the logarithm, since counts and areas are
skewed) exceeds a limit that is higher for smaller cohorts (``wsiseg.qc.robust.z_limit``). Slides are ranked by that score with
every method.

Independently of its cohort, a slide is flagged if its status is not ``done``, if too many of its nuclei are outside the tissue
mask, or if it differs from the images that the network was trained on. Sharpness and color are compared with its cohort's by
robust z-score, unless only ``tails`` is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError
from wsiseg.qc.robust import robust_distance2, z_limit, z_scores
from wsiseg.rows import SlideRow

__all__ = [
    "MIN_SLIDES_FOR_TAILS",
    "OUTSIDE_LIMIT_FRAC",
    "OutlierRow",
    "Statistic",
    "TailRule",
    "find_outliers",
    "tail_size",
]

Rounding = Literal["ceil", "floor", "nearest"]
Method = Literal["auto", "tails", "mad", "mahalanobis"]
Rows = Sequence[SlideRow]
FloatArray = npt.NDArray[np.float64]

MIN_SLIDES_FOR_TAILS = 100
"""Cohorts of at least this many slides with nuclei are judged by the published rule if the method is ``auto``."""

OUTSIDE_LIMIT_FRAC = 0.005
"""A slide is flagged if the lower end of the interval of its share of nuclei outside the tissue mask exceeds this."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One ranked column of the slide table: on which sides a value is suspect, and how it is written in reasons."""

    column: str
    words: str
    low: bool
    high: bool
    unit: str = ""
    decimals: int = 0

    def text(self, value: float) -> str:
        """Return the value as text with its unit, for the reason of a flag."""
        return f"{value:,.{self.decimals}f}{' ' + self.unit if self.unit else ''}"


HOU_STATISTICS: tuple[Statistic, ...] = (
    Statistic("n_nuclei", "nucleus count", low=True, high=True),
    Statistic("nuclei_per_mm2", "nuclear density", low=True, high=True, unit="per mm²"),
    Statistic("area_mean_um2", "mean nuclear area", low=True, high=True, unit="µm²", decimals=1),
    Statistic("area_std_um2", "spread of nuclear area (standard deviation)", low=False, high=True, unit="µm²", decimals=1),
)
"""The ranked statistics and their suspect sides. Nuclei per mm2 is not in the published rule."""

LOOK_STATISTICS: tuple[Statistic, ...] = (
    Statistic("sharpness", "sharpness", low=True, high=True, decimals=3),
    Statistic("stain_residual", "color that hematoxylin and eosin do not explain", low=False, high=True, decimals=4),
    Statistic("od_red_frac", "red's share of the stain", low=True, high=True, decimals=3),
    Statistic("od_blue_frac", "blue's share of the stain", low=True, high=True, decimals=3),
)
"""How a slide looks: its robust z-score in the cohort counts at any number of slides, unless ``tails`` alone is asked for."""


@dataclass(frozen=True, slots=True)
class TailRule:
    """The rule that decides which slides a person should check.

    Attributes
    ----------
    tail_frac, second_tail_frac
        Outer share on each side in the first and in the second round, above 0 and at most 0.5.
    second_round_share
        A cohort gets the second round if at least this share of its first-round slides was judged unacceptable. Slides not
        yet judged count as acceptable, so only judgements of a person can start the second round.
    rounding
        How a share of the slides is rounded to a number of slides.
    min_slides
        Cohorts with fewer slides are not ranked.
    method
        ``tails`` is the published rule. ``mad`` flags slides that are more robust standard deviations from the median than
        ``z_limit`` allows; ``mahalanobis`` flags slides that are unusual in all statistics together. Both need 5 slides and
        flag few or no slides of a good cohort. ``auto`` is ``tails`` from ``MIN_SLIDES_FOR_TAILS`` slides, ``mad`` for smaller
        cohorts or with a reference.
    """

    tail_frac: float = 0.02
    second_tail_frac: float = 0.04
    second_round_share: float = 1 / 3
    rounding: Rounding = "ceil"
    min_slides: int = 5
    method: tuple[Method, ...] = ("auto",)
    statistics: tuple[Statistic, ...] = HOU_STATISTICS

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, low_open, high in (("tail_frac", 0.0, 0.5), ("second_tail_frac", 0.0, 0.5), ("second_round_share", 0.0, 1.0)):
            value = getattr(self, name)
            if not low_open < value <= high:
                raise ConfigError(f"Expected {name} to be above {low_open:g} and at most {high:g}, got {value!r}.")
        if self.second_tail_frac < self.tail_frac:
            raise ConfigError(
                f"Expected second_tail_frac of at least tail_frac ({self.tail_frac}), got {self.second_tail_frac}."
            )
        if self.rounding not in ("ceil", "floor", "nearest"):
            raise ConfigError(f"Expected rounding to be ceil, floor or nearest, got {self.rounding!r}.")
        if self.min_slides < 2:
            raise ConfigError(
                f"Expected min_slides of at least 2 (a single slide cannot be compared with others), got {self.min_slides}."
            )
        if not self.method or set(self.method) - {"auto", "tails", "mad", "mahalanobis"}:
            raise ConfigError(f"Expected method to name auto, tails, mad or mahalanobis, got {self.method!r}.")

    def methods(self, n_slides: int, *, against_reference: bool) -> frozenset[str]:
        """Return the names of the rules (``tails``, ``mad``, ``mahalanobis``) for a cohort of ``n_slides`` ranked slides."""
        small = against_reference or n_slides < MIN_SLIDES_FOR_TAILS
        return frozenset(("mad" if small else "tails") if m == "auto" else m for m in self.method)


@dataclass(slots=True)
class OutlierRow:
    """The result of the rule for one slide.

    ``round`` is 0 (not flagged), 1 (any status but done, or first tails) or 2 (only in the wider tails). ``tails`` are codes
    such as ``n_nuclei:low``; ``reasons`` are the same as text. ``note`` is why a slide was not ranked; ``rank``,
    ``z``, ``z_of`` and ``compared`` are as in ``wsiseg.schema.OUTLIERS``.
    """

    slide_id: str
    cohort: str
    status: str
    round: int = 0
    tails: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    note: str = ""
    rank: int | None = None
    z: float | None = None
    z_of: str = ""
    compared: str = ""

    @property
    def flagged(self) -> bool:
        """Whether a person should check the slide."""
        return self.round > 0

    def flag(self, round_: int, tail: str, reason: str) -> None:
        """Add a tail and its reason; a slide flagged in both rounds keeps round 1."""
        self.round = min(self.round, round_) if self.round else round_
        self.tails.append(tail)
        self.reasons.append(reason.replace("; ", ", "))  # tables separate reasons by semicolons


def tail_size(n: int, frac: float, rounding: Rounding = "ceil") -> int:
    """Return the number of slides in the outer share ``frac`` of ``n`` slides.

    Decimal arithmetic is used, so that 0.02 of 150 is exactly 3 and is not rounded up to 4.
    """
    share = Fraction(str(frac)) * n
    if rounding == "ceil":
        return math.ceil(share)
    return math.floor(share) if rounding == "floor" else math.floor(share + Fraction(1, 2))


def find_outliers(
    rows: Rows,
    rule: TailRule | None = None,
    verdicts: Mapping[str, str] | None = None,
    reference: Rows = (),
) -> list[OutlierRow]:
    """Apply the rule and return one result per slide, in the order of ``rows``.

    Parameters
    ----------
    rows
        Rows of the slide table; ``slide_id``, ``cohort``, ``status``, the ranked columns and
        those of ``wsiseg.schema.TRUST`` are used.
    verdicts
        Reviewers' mark of each judged slide id: ``unacceptable`` counts towards the second round of its cohort.
    reference
        Rows of slides of another run that are known to be good. Slides are compared with the reference slides of the same
        cohort, or with all reference slides if there are fewer than ``rule.min_slides`` of that cohort. If empty, slides are
        compared with their own cohort of this run.

    Notes
    -----
    Failed slides and slides without nuclei are flagged as such and not ranked: they would fill the tails and hide other
    outliers. If values are equal, the slide whose id sorts first counts as more extreme, so that a tail has exactly its size.
    """
    rule = rule or TailRule()
    verdicts = verdicts or {}
    good = [r for r in reference if r.status == "done" and r.n_nuclei]
    out = [OutlierRow(r.slide_id, r.cohort, r.status) for r in rows]
    cohorts: dict[str, list[int]] = {}
    for i, (row, o) in enumerate(zip(rows, out, strict=True)):
        if o.status == "failed":
            o.flag(1, "status:failed", f"the slide failed: {row.error or 'no reason recorded'}")
        elif o.status == "suspect":
            o.flag(1, "status:suspect", row.error or "no nucleus was found, and the slide is not blank")
        elif not row.n_nuclei:
            o.flag(1, "status:empty", "no nucleus was found")
        else:
            if o.status == "partial":
                o.flag(1, "status:partial", f"{row.tiles_failed or 'some'} tiles failed, so counts are too low")
            cohorts.setdefault(o.cohort, []).append(i)
        _flag_without_cohort(row, o)
    for cohort in sorted(cohorts):
        members = sorted(cohorts[cohort], key=lambda i: out[i].slide_id)
        known = [r for r in good if r.cohort == cohort]
        known = known if len(known) >= rule.min_slides else good
        if len(known or members) < rule.min_slides:
            who = "the reference" if known else "the cohort"
            for i in members:
                out[i].note = f"not ranked: {who} has {len(known or members)} slides with nuclei, fewer than {rule.min_slides}"
            continue
        _rank_cohort([rows[i] for i in members], [out[i] for i in members], rule, verdicts, known)
    return out


def _flag_without_cohort(row: SlideRow, out: OutlierRow) -> None:
    """Flag a slide for nuclei outside the mask and for differing from the training images; neither needs a cohort."""
    n, low, high = row.outside_nuclei, row.outside_nuclei_low, row.outside_nuclei_high
    found = row.n_nuclei or 0
    if row.tissue_mask == "found" and n and low and low / (found + low) > OUTSIDE_LIMIT_FRAC:
        out.flag(
            1,
            "outside:high",
            f"about {n:,.0f} nuclei ({100 * n / (found + n):.1f} %, 95 % {low:,.0f} to {high or n:,.0f}) lie outside the "
            "tissue mask (see its picture, give a mask, or segment with --tissue-mask all)",
        )
    if (row.foreign_score or 0.0) > 1.0:
        first, *more = (row.foreign_reasons or "it looks unlike the training images").split("; ")
        out.flag(1, "foreign:high", first)
        out.reasons += more


def _rank_cohort(rows: Rows, out: list[OutlierRow], rule: TailRule, verdicts: Mapping[str, str], reference: Rows) -> None:
    """Rank and flag the members of one cohort, ordered by slide id."""
    methods = rule.methods(len(rows), against_reference=bool(reference))
    z = [z_scores(_logs(rows, s), _logs(reference, s) if reference else None) for s in rule.statistics]
    _rank(rows, out, rule, z, reference)
    if "tails" in methods:
        _flag_tails(rows, out, rule, z, 1)
    if "mad" in methods:
        _flag_mad(rows, out, rule, z, reference)
    if "mahalanobis" in methods:
        _flag_mahalanobis(out, rule, z)
    if {"auto", "mad"} & set(rule.method):
        look = [z_scores(_logs(rows, s), _logs(reference, s) if reference else None) for s in LOOK_STATISTICS]
        _flag_mad(rows, out, replace(rule, statistics=LOOK_STATISTICS), look, reference)
    selected = [o for o in out if o.round == 1]
    bad = sum(verdicts.get(o.slide_id) == "unacceptable" for o in selected)
    if "tails" in methods and selected and bad > 0 and bad >= rule.second_round_share * len(selected) - 1e-9:
        _flag_tails(rows, out, rule, z, 2)


def _rank(rows: Rows, out: list[OutlierRow], rule: TailRule, z: list[FloatArray], reference: Rows) -> None:
    """Set the rank of every member, by its largest robust z-score on a suspect side."""
    suspect = [np.where(v < 0, s.low, s.high) * np.abs(v) for v, s in zip(z, rule.statistics, strict=True)]
    most = np.argmax(suspect, axis=0)
    size = np.max(suspect, axis=0)
    against = f"{len(reference)} slides of the reference" if reference else f"{len(rows)} slides{_of_cohort(out[0].cohort)}"
    for place, i in enumerate(np.argsort(-size, kind="stable"), start=1):
        out[i].rank, out[i].z = place, round(float(z[most[i]][i]), 2)
        out[i].z_of, out[i].compared = rule.statistics[most[i]].words, against


def _values(rows: Rows, statistic: Statistic) -> FloatArray:
    return np.array([getattr(r, statistic.column) for r in rows], np.float64)  # None becomes nan


def _logs(rows: Rows, statistic: Statistic) -> FloatArray:
    values = _values(rows, statistic)
    return np.log(np.where(values > 0, values, np.nan))


def _flag_tails(rows: Rows, out: list[OutlierRow], rule: TailRule, z: list[FloatArray], round_: int) -> None:
    frac = rule.tail_frac if round_ == 1 else rule.second_tail_frac
    for statistic, score in zip(rule.statistics, z, strict=True):
        values = _values(rows, statistic)
        known = np.flatnonzero(np.isfinite(values))
        n = known.size
        if n < rule.min_slides or np.ptp(values[known]) == 0:
            continue  # all values are equal: there is no outlier
        k = tail_size(n, frac, rule.rounding)
        median = float(np.median(values[known]))
        for side, wanted, sign in (("low", statistic.low, 1.0), ("high", statistic.high, -1.0)):
            if not wanted:
                continue
            order = known[np.argsort(sign * values[known], kind="stable")]
            for place, i in enumerate(order[:k], start=1):
                tail = f"{statistic.column}:{side}"
                if tail in out[i].tails:
                    continue
                extreme = "lowest" if side == "low" else "highest"
                which = f"the {extreme}" if place == 1 else f"the {_ordinal(place)} {extreme}"
                out[i].flag(
                    round_,
                    tail,
                    f"{statistic.words} {statistic.text(values[i])} is {which} of {n} slides{_of_cohort(out[i].cohort)} "
                    f"(outer {frac * 100:g} %: {k} {'slide' if k == 1 else 'slides'}, median {statistic.text(median)}, "
                    f"robust z {score[i]:+.1f})",
                )


def _flag_mad(rows: Rows, out: list[OutlierRow], rule: TailRule, z: list[FloatArray], reference: Rows) -> None:
    for statistic, score in zip(rule.statistics, z, strict=True):
        values, compared = _values(rows, statistic), _values(reference or rows, statistic)
        n = int(np.isfinite(compared).sum())
        if n < rule.min_slides:
            continue
        limit, median = z_limit(n), statistic.text(float(np.nanmedian(compared)))
        for i in np.flatnonzero((score > limit) & statistic.high | (score < -limit) & statistic.low):
            direction = "above" if score[i] > 0 else "below"
            whom = f"{n} slides of the reference" if reference else f"{n} slides{_of_cohort(out[i].cohort)}"
            out[i].flag(
                1,
                f"{statistic.column}:mad",
                f"{statistic.words} {statistic.text(values[i])} is {abs(score[i]):.1f} robust standard deviations {direction} "
                f"the median {median} of {whom} (limit for so many: {limit:.1f})",
            )


def _flag_mahalanobis(out: list[OutlierRow], rule: TailRule, scores: list[FloatArray]) -> None:
    z = np.column_stack(scores)
    if len(out) <= 2 * z.shape[1]:
        for o in out:
            o.note = f"mahalanobis was not applied: {len(out)} slides are too few for {z.shape[1]} statistics"
        return
    distance2, limit = robust_distance2(z)
    for i in np.flatnonzero(distance2 > limit):
        most = rule.statistics[int(np.abs(z[i]).argmax())]
        out[i].flag(
            1,
            "joint:mahalanobis",
            f"unusual in all statistics together (squared distance {distance2[i]:.1f}, limit {limit:.1f}, "
            f"most in {most.words})",
        )


def _of_cohort(cohort: str) -> str:
    return f" of {cohort}" if cohort else ""


def _ordinal(n: int) -> str:
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"

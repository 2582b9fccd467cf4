"""Slides that stand out in their cohort -> a flag with its reason in words.

The rule is that of Hou et al. (2020, Scientific Data 7:185): within a cancer type, the slides in the outer 2 % of nucleus count
and of mean nuclear area (both sides) and of the standard deviation of nuclear area (upper side) are looked at; where a
significant share of them is unacceptable, the outer 4 %. Nuclei per mm2 is ranked beside the count, because a small biopsy has
few nuclei and is none the worse for it.

In a small cohort "2 % of the slides" is less than one. ``TailRule.rounding`` says what that means: ``ceil`` (the default)
always shows the most extreme slide of each side to a person, which costs at most seven looks a cohort and can miss no lone
failure; ``floor`` flags no slide below 50. Cohorts under ``min_slides`` are not ranked at all, and every row says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError
from wsiseg.schema import Column

__all__ = ["OUTLIERS", "OutlierRow", "Statistic", "TailRule", "find_outliers", "tail_size"]

OUTLIERS: tuple[Column, ...] = (
    Column("slide_id", "string", "", "slide"),
    Column("cohort", "string", "", "cohort in which it was ranked"),
    Column("status", "string", "", "done, empty, suspect, partial or failed"),
    Column("round", "int32", "", "0 not flagged, 1 first tails (or any status but done), 2 only in the wider tails"),
    Column("tails", "string", "", "statistic:side of every tail it is in, separated by spaces"),
    Column("reasons", "string", "", "the same in words, separated by semicolons"),
    Column("note", "string", "", "why it was not ranked"),
    Column("n_nuclei", "int64", "", "nuclei"),
    Column("nuclei_per_mm2", "float64", "1/mm^2", "nuclei per tissue area"),
    Column("area_mean_um2", "float64", "um^2", "mean nuclear area"),
    Column("area_std_um2", "float64", "um^2", "standard deviation of nuclear area"),
)
"""``RUN/qc/outliers.parquet``, one row a slide of the run."""

Rounding = Literal["ceil", "floor", "nearest"]
Method = Literal["tails", "mad", "mahalanobis"]
Rows = Sequence[Mapping[str, Any]]
FloatArray = npt.NDArray[np.float64]

MAD_LIMIT = 3.5
"""Modified z-score above which a value is an outlier (Iglewicz and Hoaglin 1993, How to Detect and Handle Outliers)."""

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation of a normal distribution, 1 / Phi^-1(3/4)."""

CHI2_PROBABILITY = 0.975
"""Share of good slides inside the robust ellipsoid (the usual cutoff, Rousseeuw and van Zomeren 1990)."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One ranked column of the slide table, the sides on which it is suspect, and how it is written."""

    column: str
    words: str
    low: bool
    high: bool
    unit: str = ""
    decimals: int = 0

    def text(self, value: float) -> str:
        """Return the value as a person reads it."""
        return f"{value:,.{self.decimals}f}{' ' + self.unit if self.unit else ''}"


HOU_STATISTICS: tuple[Statistic, ...] = (
    Statistic("n_nuclei", "nucleus count", low=True, high=True),
    Statistic("nuclei_per_mm2", "nuclear density", low=True, high=True, unit="per mm²"),
    Statistic("area_mean_um2", "mean nuclear area", low=True, high=True, unit="µm²", decimals=1),
    Statistic("area_std_um2", "spread of nuclear area (standard deviation)", low=False, high=True, unit="µm²", decimals=1),
)
"""What is ranked, and on which side; density is our addition."""


@dataclass(frozen=True, slots=True)
class TailRule:
    """Which slides a person shall look at.

    Attributes
    ----------
    tail_frac, second_tail_frac
        Outer share on each side in the first and in the second round, above 0 and at most 0.5.
    second_round_share
        A cohort gets the second round where at least this share of its first-round slides was judged unacceptable. Slides not
        yet judged count as acceptable, so the round can only be opened by what a person has seen.
    rounding
        How many slides a tail share of ``n`` slides is: see the module.
    min_slides
        Smaller cohorts are not ranked.
    method
        ``tails`` is the published rule. ``mad`` adds slides more than 3.5 robust standard deviations from the cohort's median,
        ``mahalanobis`` slides that are far out in all statistics together; both work from 5 slides up and flag no slide in a
        clean cohort, so they suit small ones.
    """

    tail_frac: float = 0.02
    second_tail_frac: float = 0.04
    second_round_share: float = 1 / 3
    rounding: Rounding = "ceil"
    min_slides: int = 5
    method: tuple[Method, ...] = ("tails",)
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
                f"Expected min_slides of at least 2 (one slide has nothing to differ from), got {self.min_slides}."
            )
        if not self.method or set(self.method) - {"tails", "mad", "mahalanobis"}:
            raise ConfigError(f"Expected method to name tails, mad or mahalanobis, got {self.method!r}.")


@dataclass(slots=True)
class OutlierRow:
    """What the rule says of one slide.

    ``round`` is 0 (not flagged), 1 (any status but done, or first tails) or 2 (only in the wider tails). ``tails`` are machine
    words such as ``n_nuclei:low``; ``reasons`` say the same to a person. ``note`` tells why a slide was not ranked.
    """

    slide_id: str
    cohort: str
    status: str
    round: int = 0
    tails: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def flagged(self) -> bool:
        """Return whether a person shall look at the slide."""
        return self.round > 0

    def flag(self, round_: int, tail: str, reason: str) -> None:
        """Add a reason; the earliest round stays."""
        self.round = min(self.round, round_) if self.round else round_
        self.tails.append(tail)
        self.reasons.append(reason.replace("; ", ", "))  # tables separate reasons by semicolons


def tail_size(n: int, frac: float, rounding: Rounding = "ceil") -> int:
    """Return how many of ``n`` slides an outer share is, exact (0.02 of 150 is 3, whatever binary fractions make of it)."""
    share = Fraction(str(frac)) * n
    if rounding == "ceil":
        return math.ceil(share)
    return math.floor(share) if rounding == "floor" else math.floor(share + Fraction(1, 2))


def find_outliers(rows: Rows, rule: TailRule | None = None, verdicts: Mapping[str, str] | None = None) -> list[OutlierRow]:
    """Return what the rule says of every slide, in the order given.

    Parameters
    ----------
    rows
        Rows of the slide table (``wsiseg.schema.SLIDES``); ``slide_id``, ``cohort``, ``status`` and the ranked columns are
        used.
    verdicts
        What reviewers said of slides: ``unacceptable`` counts towards the second round of its cohort.

    Notes
    -----
    Failed slides and slides without nuclei are flagged for that and not ranked: they would fill the tails and hide the others.
    Of equal values the slide that comes first by id is the more extreme, so that a tail holds exactly its share.
    """
    rule = rule or TailRule()
    verdicts = verdicts or {}
    out = [OutlierRow(str(r["slide_id"]), str(r.get("cohort") or ""), str(r.get("status") or "")) for r in rows]
    cohorts: dict[str, list[int]] = {}
    for i, (row, o) in enumerate(zip(rows, out, strict=True)):
        if o.status == "failed":
            o.flag(1, "status:failed", f"the slide failed: {row.get('error') or 'no reason recorded'}")
        elif o.status == "suspect":
            o.flag(1, "status:suspect", str(row.get("error") or "no nucleus was found, and the slide is not blank"))
        elif not row.get("n_nuclei"):
            o.flag(1, "status:empty", "no nucleus was found")
        else:
            if o.status == "partial":
                o.flag(1, "status:partial", f"{row.get('tiles_failed') or 'some'} tiles failed, so counts are too low")
            cohorts.setdefault(o.cohort, []).append(i)
    for cohort in sorted(cohorts):
        members = sorted(cohorts[cohort], key=lambda i: out[i].slide_id)
        if len(members) < rule.min_slides:
            for i in members:
                out[i].note = f"not ranked: the cohort has {len(members)} slides with nuclei, fewer than {rule.min_slides}"
            continue
        _rank_cohort([rows[i] for i in members], [out[i] for i in members], rule, verdicts)
    return out


def _rank_cohort(rows: Rows, out: list[OutlierRow], rule: TailRule, verdicts: Mapping[str, str]) -> None:
    """Flag the members of one cohort, ordered by slide id."""
    if "tails" in rule.method:
        _flag_tails(rows, out, rule, rule.tail_frac, 1)
    if "mad" in rule.method:
        _flag_mad(rows, out, rule)
    if "mahalanobis" in rule.method:
        _flag_mahalanobis(rows, out, rule)
    selected = [o for o in out if o.round == 1]
    bad = sum(verdicts.get(o.slide_id) == "unacceptable" for o in selected)
    if "tails" in rule.method and selected and bad > 0 and bad >= rule.second_round_share * len(selected) - 1e-9:
        _flag_tails(rows, out, rule, rule.second_tail_frac, 2)


def _values(rows: Rows, statistic: Statistic) -> FloatArray:
    return np.array([math.nan if r.get(statistic.column) is None else float(r[statistic.column]) for r in rows])


def _flag_tails(rows: Rows, out: list[OutlierRow], rule: TailRule, frac: float, round_: int) -> None:
    for statistic in rule.statistics:
        values = _values(rows, statistic)
        known = np.flatnonzero(np.isfinite(values))
        n = known.size
        if n < rule.min_slides or np.ptp(values[known]) == 0:
            continue  # where all are equal, none stands out
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
                    f"(outer {frac * 100:g} %: {k} {'slide' if k == 1 else 'slides'}, median {statistic.text(median)})",
                )


def _flag_mad(rows: Rows, out: list[OutlierRow], rule: TailRule) -> None:
    for statistic in rule.statistics:
        values = _values(rows, statistic)
        z = _robust_z(values)
        for i in np.flatnonzero((z > MAD_LIMIT) & statistic.high | (z < -MAD_LIMIT) & statistic.low):
            direction = "above" if z[i] > 0 else "below"
            out[i].flag(
                1,
                f"{statistic.column}:mad",
                f"{statistic.words} {statistic.text(values[i])} is {abs(z[i]):.1f} robust standard deviations {direction} "
                f"the median {statistic.text(float(np.nanmedian(values)))}{_of_cohort(out[i].cohort)}",
            )


def _robust_z(values: FloatArray) -> FloatArray:
    """Return (x - median) / (1.4826 MAD), 0 where the spread is nil."""
    known = values[np.isfinite(values)]
    if known.size == 0:
        return np.zeros_like(values)
    center = np.median(known)
    spread = MAD_TO_SIGMA * np.median(np.abs(known - center))
    return np.nan_to_num((values - center) / spread) if spread > 0 else np.zeros_like(values)


def _flag_mahalanobis(rows: Rows, out: list[OutlierRow], rule: TailRule) -> None:
    z = np.column_stack([_robust_z(_values(rows, s)) for s in rule.statistics])
    if len(rows) <= 2 * z.shape[1]:
        for o in out:
            o.note = f"no joint test: {len(rows)} slides are too few for {z.shape[1]} statistics"
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


def robust_distance2(z: FloatArray) -> tuple[FloatArray, float]:
    """Return squared robust Mahalanobis distances and their limit.

    ``z`` float64 (N, P) holds values centered by the median and scaled by the MAD. Correlation is that of the values clipped at
    2 robust standard deviations (so that outliers cannot turn it), drawn towards none by P / N; distances are scaled so that
    their median is that of chi-square with P degrees of freedom (Maronna and Zamar 2002, Technometrics 44:307), and the limit
    is its quantile 1 - 0.025 / N or 0.975, whichever is farther: in a clean cohort of any size about one in forty has a flagged
    slide.
    """
    from scipy.stats import chi2

    n, p = z.shape
    clipped = np.clip(z, -2.0, 2.0)
    spread = clipped.std(axis=0)
    unit = np.divide(clipped - clipped.mean(axis=0), spread, out=np.zeros_like(clipped), where=spread > 0)
    shrink = min(1.0, p / n)
    correlation = (1 - shrink) * (unit.T @ unit / n) + shrink * np.eye(p)
    np.fill_diagonal(correlation, 1.0)
    distance2 = np.einsum("ij,ij->i", z, np.linalg.solve(correlation, z.T).T)
    median = float(np.median(distance2))
    if median > 0:
        distance2 = distance2 * (float(chi2.ppf(0.5, p)) / median)
    return distance2, float(chi2.ppf(max(CHI2_PROBABILITY, 1 - (1 - CHI2_PROBABILITY) / n), p))


def _of_cohort(cohort: str) -> str:
    return f" of {cohort}" if cohort else ""


def _ordinal(n: int) -> str:
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{suffix}"

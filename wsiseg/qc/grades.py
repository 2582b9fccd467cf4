"""Grade every slide by its share of bad patches, with the confidence interval of that share.

The groups are those of Hou et al. (2020, Scientific Data 7:185), by the share of a slide's sampled patches that are not
adequate (precision or recall below 75 %): Best 0 %, Good up to 6.67 %, Adequate up to 13.3 %, Problematic up to 20 %,
Unacceptable above that or if the slide failed slide QC. These limits are 1, 2 and 3 bad patches of 15. They are compared as
integers, so that 2 of 30 is Good, as 1 of 15 is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from wsiseg.errors import InputError

__all__ = ["GRADES", "SlideGrade", "cohort_summary", "grade_of", "grade_slides", "wilson_interval"]

GRADES = ("Best", "Good", "Adequate", "Problematic", "Unacceptable")
UNGRADED = "Ungraded"
"""Not in the paper: the grade of a slide without a judged patch."""

_SAMPLED = 15
_LIMITS = (0, 1, 2, 3)  # bad patches of 15 that still belong to Best, Good, Adequate, Problematic

Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class SlideGrade:
    """One slide's grade and the numbers behind it; fields as in ``wsiseg.schema.GRADED``."""

    slide_id: str
    cohort: str
    grade: str
    n_bad: int
    n_judged: int
    n_unsure: int
    n_patches: int
    bad_frac: float
    bad_frac_low: float
    bad_frac_high: float
    slide_verdict: str
    flagged_round: int
    reason: str


def grade_of(n_bad: int, n_judged: int, *, slide_failed: bool = False) -> str:
    """Return the group (one of ``GRADES``, or ``Ungraded``) of a slide with ``n_bad`` of ``n_judged`` patches not adequate.

    Raises
    ------
    InputError
        ``n_bad`` is negative or larger than ``n_judged``.
    """
    if not 0 <= n_bad <= n_judged:
        raise InputError(f"Expected 0 <= bad patches <= judged patches, got {n_bad} of {n_judged}.")
    if slide_failed:
        return "Unacceptable"
    if n_judged == 0:
        return UNGRADED
    for grade, limit in zip(GRADES, _LIMITS, strict=False):
        if n_bad * _SAMPLED <= limit * n_judged:
            return grade
    return "Unacceptable"


def wilson_interval(n_bad: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the score interval of the share ``n_bad / n`` (Wilson 1927, J. Am. Stat. Assoc. 22:209); (0, 1) if ``n`` is 0."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = n_bad / n, z * z
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (0.0 if n_bad == 0 else center - half), (1.0 if n_bad == n else center + half)


def grade_slides(
    slides: Sequence[tuple[str, str, str]],
    patches: Mapping[str, Sequence[str]],
    patch_words: Mapping[str, str],
    slide_words: Mapping[str, str],
    flags: Mapping[str, tuple[int, str]],
    biased: Collection[str] = (),
) -> list[SlideGrade]:
    """Return the grade of every slide, in the order given.

    Parameters
    ----------
    slides
        (slide_id, cohort, status) of every slide of the run.
    patches
        Patch ids of each slide id.
    patch_words
        ``adequate``, ``not_adequate`` or ``unsure`` for every judged patch (all reviewers taken together).
    slide_words
        ``acceptable``, ``unacceptable`` or ``unsure`` for every slide that was judged as a whole.
    flags
        (round, reasons as text) of each flagged slide.
    biased
        Slides whose suspect patches were judged first and whose other patches are not judged yet: the judged ones are not a
        random sample, so these slides get no grade from patches.

    Notes
    -----
    A slide fails slide QC if the reviewers found it unacceptable or its status is ``failed``.
    """
    out = []
    for slide_id, cohort, status in slides:
        ids = patches.get(slide_id, ())
        words = [patch_words[i] for i in ids if i in patch_words]
        n_bad, n_good = words.count("not_adequate"), words.count("adequate")
        n = n_bad + n_good
        verdict = slide_words.get(slide_id, "")
        failed = status == "failed" or verdict == "unacceptable"
        round_, reason = flags.get(slide_id, (0, ""))
        low, high = wilson_interval(n_bad, n)
        grade = grade_of(n_bad, n, slide_failed=failed)
        if slide_id in biased and not failed:
            grade = UNGRADED
            reason = "; ".join(
                t for t in (reason, f"suspect patches were judged first, {n} of {len(ids)}: judge the rest") if t
            )
        out.append(
            SlideGrade(
                slide_id,
                cohort,
                grade,
                n_bad,
                n,
                words.count("unsure"),
                len(ids),
                n_bad / n if n else math.nan,
                low,
                high,
                verdict,
                round_,
                reason,
            )
        )
    return out


@dataclass(frozen=True, slots=True)
class CohortQc:
    """Slide QC of a cohort, as in the published table; the field names are its headings."""

    CancerType: str
    Slides: int
    SelectedRound1: int
    SelectedRound2: int
    LookedAt: int
    Unacceptable: int
    UnacceptablePercent: float


@dataclass(frozen=True, slots=True)
class CohortGroups:
    """How many slides of a cohort are in each group, and its judged patches; the field names are the headings."""

    CancerType: str
    Best: int
    Good: int
    Adequate: int
    Problematic: int
    Unacceptable: int
    Ungraded: int
    PatchesJudged: int
    PatchesBadPercent: float | None


def cohort_summary(grades: Sequence[SlideGrade]) -> tuple[list[CohortQc], list[CohortGroups]]:
    """Return two summary tables of a graded run, each with one row per cohort and a last row ``All``.

    The first follows the published table of slide QC: slides, slides flagged as outliers, slides found unacceptable, and the
    share of these among all slides. The second is the number of slides with each grade.
    """
    cohorts: dict[str, list[SlideGrade]] = {}
    for g in grades:
        cohorts.setdefault(g.cohort, []).append(g)
    groups = [(cohort or "(none)", cohorts[cohort]) for cohort in sorted(cohorts)] + [("All", list(grades))]
    slide_qc, by_group = [], []
    for name, members in groups:
        unacceptable = sum(g.slide_verdict == "unacceptable" for g in members)
        slide_qc.append(
            CohortQc(
                name,
                len(members),
                sum(g.flagged_round == 1 for g in members),
                sum(g.flagged_round == 2 for g in members),
                sum(bool(g.slide_verdict) for g in members),
                unacceptable,
                round(100 * unacceptable / len(members), 2) if members else 0.0,
            )
        )
        judged, bad = sum(g.n_judged for g in members), sum(g.n_bad for g in members)
        counts = {grade: sum(g.grade == grade for g in members) for grade in (*GRADES, UNGRADED)}
        bad_percent = round(100 * bad / judged, 2) if judged else None
        by_group.append(CohortGroups(name, **counts, PatchesJudged=judged, PatchesBadPercent=bad_percent))
    return slide_qc, by_group

"""The outlier rule: planted failures are found at the stated rate, tails hold exactly their share, and every flag says why."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.errors import ConfigError
from wsiseg.qc import TailRule, find_outliers, tail_size


def cohort(n: int, seed: int = 0, name: str = "BRCA") -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    tissue = random.uniform(20, 300, n)
    density = random.normal(4000, 500, n)
    return [
        {
            "slide_id": f"{name}-{i:04d}",
            "cohort": name,
            "status": "done",
            "n_nuclei": int(density[i] * tissue[i]),
            "nuclei_per_mm2": density[i],
            "area_mean_um2": random.normal(40, 3),
            "area_std_um2": random.normal(14, 1.5),
        }
        for i in range(n)
    ]


def test_planted_failures_are_flagged_at_the_stated_rate() -> None:
    rows = cohort(500)
    planted = {
        **{i: {"nuclei_per_mm2": 200.0 + i} for i in range(5)},  # stain too pale: almost nothing found
        **{i: {"area_mean_um2": 90.0 + i} for i in range(5, 10)},  # nuclei run together
        **{i: {"area_std_um2": 40.0 + i} for i in range(10, 15)},  # some run together
        **{i: {"area_mean_um2": 5.0 + i / 10} for i in range(15, 20)},  # texture taken for nuclei
    }
    for i, change in planted.items():
        rows[i].update(change)
    found = find_outliers(rows)
    assert all(found[i].flagged for i in planted)
    # seven tails of exactly 2 % of 500
    assert sum(len(o.tails) for o in found) == 7 * 10
    assert all(o.round in (0, 1) for o in found)
    assert "area_std_um2:low" not in {t for o in found for t in o.tails}  # upper side only
    clean = sum(o.flagged for o in found) - len(planted)
    assert clean <= 7 * 10 - 20


def test_more_failures_than_the_tail_holds_are_flagged_at_the_rate_of_the_round() -> None:
    rows = cohort(500, 8)
    for i in range(20):  # 4 % of the cohort: nuclei run together, every one above all good slides
        rows[25 * i]["area_mean_um2"] = 80.0 + i
    planted = {r["slide_id"] for r in rows[::25]}

    def caught(verdicts: dict[str, str], *rounds: int) -> list[str]:
        found = find_outliers(rows, verdicts=verdicts)
        return [o.slide_id for o in found if "area_mean_um2:high" in o.tails and o.round in rounds and o.slide_id in planted]

    first = caught({}, 1)
    assert len(first) == 10  # 2 % of 500: half of them
    looked_at = [o.slide_id for o in find_outliers(rows) if o.flagged]
    verdicts = {s: "unacceptable" if s in planted else "acceptable" for s in looked_at}
    share = sum(v == "unacceptable" for v in verdicts.values()) / len(verdicts)
    assert not caught(verdicts, 2) or share >= 1 / 3
    verdicts |= dict.fromkeys(looked_at[: len(looked_at) // 3 + 1], "unacceptable")  # a third of the looked-at is bad
    assert set(caught(verdicts, 1, 2)) == planted  # 4 %: all of them


def test_reasons_say_what_where_and_how_much() -> None:
    rows = cohort(100)
    rows[7]["area_mean_um2"] = 99.25
    reason = "; ".join(find_outliers(rows)[7].reasons)
    assert "mean nuclear area 99.2 µm² is the highest of 100 slides of BRCA (outer 2 %: 2 slides, median" in reason


def test_each_cohort_is_ranked_alone() -> None:
    rows = cohort(60, 1, "BRCA") + [{**r, "area_mean_um2": r["area_mean_um2"] + 50} for r in cohort(60, 2, "GBM")]
    high = [o.cohort for o in find_outliers(rows) if "area_mean_um2:high" in o.tails]
    assert sorted(high) == ["BRCA"] * 2 + ["GBM"] * 2  # ceil(1.2) each, although every GBM slide is above every BRCA slide


def test_second_round_opens_where_a_third_is_unacceptable_and_only_there() -> None:
    rows = cohort(200, 3, "LUAD") + cohort(200, 4, "LUSC")
    first = find_outliers(rows)
    chosen = {c: [o.slide_id for o in first if o.cohort == c and o.flagged] for c in ("LUAD", "LUSC")}
    third = {c: math.ceil(len(chosen[c]) / 3) for c in chosen}
    verdicts = dict.fromkeys(chosen["LUAD"][: third["LUAD"]], "unacceptable")
    verdicts |= dict.fromkeys(chosen["LUSC"][: third["LUSC"] - 1], "unacceptable")
    second = find_outliers(rows, verdicts=verdicts)
    assert {o.cohort for o in second if o.round == 2} == {"LUAD"}
    assert [o.slide_id for o in second if o.round == 1] == [o.slide_id for o in first if o.round == 1]
    for tail in {t for o in second for t in o.tails}:
        assert sum(tail in o.tails for o in second if o.cohort == "LUAD") == 8  # 4 % of 200
        assert sum(tail in o.tails for o in second if o.cohort == "LUSC") == 4
    assert not any(o.round == 2 for o in find_outliers(rows, TailRule(second_round_share=0.9), verdicts))


@pytest.mark.parametrize(
    ("n", "frac", "ceil", "floor", "nearest"),
    [
        (20, 0.02, 1, 0, 0),
        (49, 0.02, 1, 0, 1),
        (50, 0.02, 1, 1, 1),
        (51, 0.02, 2, 1, 1),
        (150, 0.02, 3, 3, 3),
        (350, 0.02, 7, 7, 7),
        (25, 0.04, 1, 1, 1),
    ],
)
def test_two_percent_of_a_small_cohort(n: int, frac: float, ceil: int, floor: int, nearest: int) -> None:
    assert (tail_size(n, frac), tail_size(n, frac, "floor"), tail_size(n, frac, "nearest")) == (ceil, floor, nearest)


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 50))
def test_tail_size_is_exact(n: int, percent: int) -> None:
    assert tail_size(n, percent / 100) == -(-percent * n // 100)
    assert tail_size(n, percent / 100, "floor") == percent * n // 100


def test_small_cohorts_are_not_ranked_and_say_so() -> None:
    found = find_outliers(cohort(4))
    assert not any(o.flagged for o in found)
    assert all("4 slides with nuclei, fewer than 5" in o.note for o in found)
    assert sum(o.flagged for o in find_outliers(cohort(20), TailRule(rounding="floor"))) == 0


def test_failed_and_empty_slides_are_flagged_and_leave_the_tails_to_others() -> None:
    rows = cohort(50)
    rows[0].update(
        status="failed", error="not a slide", n_nuclei=None, nuclei_per_mm2=None, area_mean_um2=None, area_std_um2=None
    )
    rows[1].update(status="empty", n_nuclei=0, nuclei_per_mm2=0.0, area_mean_um2=math.nan, area_std_um2=math.nan)
    rows[2].update(status="partial", tiles_failed=3)
    nothing = {"n_nuclei": 0, "nuclei_per_mm2": 0.0, "area_mean_um2": None, "area_std_um2": None}
    rows[3].update(status="suspect", error="no nucleus in 5 mm2 of tissue", **nothing)
    found = find_outliers(rows)
    assert (found[3].round, found[3].tails) == (1, ["status:suspect"])
    assert found[3].reasons == ["no nucleus in 5 mm2 of tissue"]
    assert found[0].reasons == ["the slide failed: not a slide"]
    assert found[1].reasons == ["no nucleus was found"]
    assert "3 tiles failed" in found[2].reasons[0]
    assert sum("n_nuclei:low" in o.tails for o in found[2:]) == 1  # of the 47 with nuclei


def test_equal_slides_do_not_stand_out() -> None:
    same = {"cohort": "", "status": "done", "n_nuclei": 10, "nuclei_per_mm2": 1.0, "area_mean_um2": 2.0, "area_std_um2": 3.0}
    assert not any(o.flagged for o in find_outliers([{**same, "slide_id": str(i)} for i in range(30)]))


@settings(deadline=None)
@given(st.permutations(range(40)))
def test_order_of_slides_does_not_matter(order: list[int]) -> None:
    rows = cohort(40, 5)
    for r in rows[::7]:
        r["area_mean_um2"] = 60.0  # ties
    expected = {o.slide_id: o.tails for o in find_outliers(rows)}
    assert {o.slide_id: o.tails for o in find_outliers([rows[i] for i in order])} == expected


def test_robust_rules_flag_the_shifted_and_leave_a_clean_cohort() -> None:
    rows = cohort(80, 6)
    assert sum(o.flagged for o in find_outliers(rows, TailRule(method=("mad",)))) <= 2
    assert sum(o.flagged for o in find_outliers(rows, TailRule(method=("mahalanobis",)))) <= 2
    rows[3]["area_mean_um2"] = 80.0
    assert "robust standard deviations above the median" in find_outliers(rows, TailRule(method=("mad",)))[3].reasons[0]
    # each value is ordinary, together they are not: dense slides have small nuclei here, this one has not
    for i, r in enumerate(rows):
        z = (i - 40) / 20
        r.update(nuclei_per_mm2=4000 + 400 * z, area_mean_um2=40 - 3 * z + (i % 5) / 10, area_std_um2=14 + (i * 7 % 11) / 5)
        r["n_nuclei"] = 100_000 + 5000 * (i * 13 % 17)
    rows[20].update(nuclei_per_mm2=4600.0, area_mean_um2=44.5)
    found = find_outliers(rows, TailRule(method=("mahalanobis",)))
    assert found[20].flagged
    assert "in all statistics together" in found[20].reasons[0]
    assert sum(o.flagged for o in found) <= 2


@pytest.mark.parametrize(
    "bad",
    [
        {"tail_frac": 0.0},
        {"tail_frac": 0.6},
        {"tail_frac": 0.05},
        {"rounding": "up"},
        {"min_slides": 1},
        {"method": ()},
        {"method": ("tail",)},
        {"second_round_share": 0},
    ],
)
def test_impossible_rules_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        TailRule(**bad)

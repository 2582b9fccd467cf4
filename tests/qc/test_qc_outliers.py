"""The outlier rule: planted failures are found at the stated rate, tails have exactly their share, flags have reasons."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg import qc
from wsiseg.errors import ConfigError
from wsiseg.qc import OutlierRow, TailRule, tail_size
from wsiseg.rows import SlideRow

TAILS = TailRule(method=("tails",))


def find_outliers(
    rows: list[dict[str, Any]],
    rule: TailRule | None = None,
    verdicts: dict[str, str] | None = None,
    reference: list[dict[str, Any]] | None = None,
) -> list[OutlierRow]:
    """Apply the rule to rows with only some of the columns."""
    stated, good = ([SlideRow.blank(**r) for r in given] for given in (rows, reference or []))
    return qc.find_outliers(stated, rule, verdicts, good)


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
    high = [o.cohort for o in find_outliers(rows, TAILS) if "area_mean_um2:high" in o.tails]
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
    assert sum(o.flagged for o in find_outliers(cohort(20), TailRule(rounding="floor", method=("tails",)))) == 0


def test_failed_and_empty_slides_are_flagged_and_leave_the_tails_to_others() -> None:
    rows = cohort(50)
    rows[0].update(
        status="failed", error="not a slide", n_nuclei=None, nuclei_per_mm2=None, area_mean_um2=None, area_std_um2=None
    )
    rows[1].update(status="empty", n_nuclei=0, nuclei_per_mm2=0.0, area_mean_um2=math.nan, area_std_um2=math.nan)
    rows[2].update(status="partial", tiles_failed=3)
    nothing = {"n_nuclei": 0, "nuclei_per_mm2": 0.0, "area_mean_um2": None, "area_std_um2": None}
    rows[3].update(status="suspect", error="no nucleus in 5 mm2 of tissue", **nothing)
    found = find_outliers(rows, TAILS)
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
    for rule in (TAILS, TailRule()):
        expected = {o.slide_id: (o.tails, o.rank, o.z) for o in find_outliers(rows, rule)}
        assert {o.slide_id: (o.tails, o.rank, o.z) for o in find_outliers([rows[i] for i in order], rule)} == expected


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
        {"method": ("auto", "z")},
        {"second_round_share": 0},
    ],
)
def test_impossible_rules_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        TailRule(**bad)


def test_a_small_clean_cohort_is_ranked_and_hardly_anyone_is_flagged() -> None:
    """Cohorts of 5 to 99 slides: under 3 % flagged; by the published rule the tails of 12 slides name about half of them."""
    flagged = ranked = by_tails = 0
    for seed, n in enumerate((5, 8, 12, 12, 20, 35, 49, 50, 75, 99)):
        found = find_outliers(cohort(n, seed))
        flagged += sum(o.flagged for o in found)
        ranked += n
        assert sorted(o.rank for o in found if o.rank) == list(range(1, n + 1))
        first = next(o for o in found if o.rank == 1)
        assert first.z is not None
        assert all(abs(o.z or 0.0) <= abs(first.z) for o in found if o.z_of == first.z_of and o.z and o.z * first.z > 0)
        by_tails += sum(o.flagged for o in find_outliers(cohort(n, seed), TAILS)) if n == 12 else 0
    assert flagged < 0.03 * ranked
    assert by_tails >= 8  # of 24


def test_the_published_rule_holds_from_a_hundred_slides_on() -> None:
    for n, is_tails in ((99, False), (100, True)):
        tails = [t for o in find_outliers(cohort(n, 7)) for t in o.tails]
        assert (len(tails) == 7 * 2) is is_tails
        assert all(t.endswith(":mad") for t in tails) or is_tails


@pytest.mark.parametrize("n", [12, 30, 99])
def test_a_planted_slide_of_a_small_cohort_is_flagged_with_how_unusual_it_is(n: int) -> None:
    rows = cohort(n, 11)
    rows[4]["area_mean_um2"] *= 2.5
    found = find_outliers(rows)[4]
    assert (found.flagged, found.rank, found.z_of) == (True, 1, "mean nuclear area")
    logs = np.log([r["area_mean_um2"] for r in rows])
    z = (logs[4] - np.median(logs)) / (1.4826 * np.median(abs(logs - np.median(logs))))
    assert found.z == pytest.approx(z, abs=0.01)
    assert f"is {z:.1f} robust standard deviations above the median" in found.reasons[0]
    assert found.compared == f"{n} slides of BRCA"


def test_slides_are_compared_with_a_reference_cohort() -> None:
    """Two slides alone, and a mostly bad cohort: both are flagged by comparison with slides known to be good."""
    good = cohort(60, 12)
    few = cohort(2, 13)
    few[1]["nuclei_per_mm2"] /= 8
    assert [o.note.split(":")[0] for o in find_outliers(few)] == ["not ranked", "not ranked"]
    found = find_outliers(few, reference=good)
    assert [o.flagged for o in found] == [False, True]
    assert "below the median" in found[1].reasons[0]
    assert "of 60 slides of the reference" in found[1].reasons[0]
    mostly_bad = cohort(12, 14)
    for r in mostly_bad[:9]:
        r["area_mean_um2"] *= 0.4
    assert sum(o.flagged for o in find_outliers(mostly_bad, reference=good)) == 9
    assert not any(o.flagged for o in find_outliers(mostly_bad, reference=[])[:9])
    other = [{**r, "cohort": "GBM", "area_mean_um2": r["area_mean_um2"] * 3} for r in cohort(60, 15)]
    assert not find_outliers(few, reference=good + other)[0].flagged  # its own cohort is in the reference
    assert find_outliers(few, reference=good[:4] + other)[0].flagged  # of which there are too few: with all


def test_nuclei_outside_the_mask_and_a_foreign_look_are_flagged_without_a_cohort() -> None:
    rows = cohort(3, 16)
    rows[0] |= {"n_nuclei": 1000, "outside_nuclei": 30.0, "outside_nuclei_low": 12.0, "outside_nuclei_high": 60.0}
    rows[1] |= {"n_nuclei": 1000, "outside_nuclei": 30.0, "outside_nuclei_low": 4.0, "outside_nuclei_high": 160.0}
    rows[2] |= {"foreign_score": 1.7, "foreign_reasons": "brown stain; blurred"}
    rows[0]["tissue_mask"] = rows[1]["tissue_mask"] = "found"
    found = find_outliers(rows)
    assert found[0].reasons[0].startswith("about 30 nuclei (2.9 %, 95 % 12 to 60) lie outside the tissue mask")
    assert not found[1].flagged  # the sample does not show that it is more than 0.5 %
    assert found[2].reasons == ["brown stain", "blurred"]
    rows[0]["tissue_mask"] = "given"  # a region that the user chose
    assert not find_outliers(rows)[0].flagged


def test_a_slide_that_looks_unlike_its_cohort_is_flagged_unless_the_published_rule_alone_is_requested() -> None:
    random = np.random.default_rng(4)
    rows = [{**r, "sharpness": random.normal(0.15, 0.01), "od_blue_frac": random.normal(0.26, 0.01)} for r in cohort(30, 4)]
    rows[7]["sharpness"], rows[19]["od_blue_frac"], rows[11]["sharpness"] = 0.05, 0.4, None
    found = find_outliers(rows)
    assert [o.slide_id for o in found if any(t.startswith(("sharpness", "od_")) for t in o.tails)] == ["BRCA-0007", "BRCA-0019"]
    assert any("sharpness 0.050 is" in reason and "below the median" in reason for reason in found[7].reasons)
    assert not any(t.startswith(("sharpness", "od_")) for o in find_outliers(rows, TAILS) for t in o.tails)
    assert [o.rank for o in found] == [o.rank for o in find_outliers(cohort(30, 4))]  # looks are not ranked

"""Groups, tables and agreement against numbers worked out by hand and formulas written down a second time."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from wsiseg.errors import InputError
from wsiseg.qc import (
    GRADES,
    cohen_kappa,
    cohort_summary,
    grade_of,
    grade_slides,
    reviewer_agreement,
    wilson_interval,
    write_release,
)
from wsiseg.rows import SlideRow

PUBLISHED = ["Best", "Good", "Adequate", "Problematic", "Unacceptable", "Unacceptable"]
"""Hou et al. 2020: 0, 6.67, 13.3, 20 % and above, i.e. 0, 1, 2, 3, 4 and more of 15 patches."""


def test_groups_of_fifteen_patches() -> None:
    assert [grade_of(bad, 15) for bad in range(6)] == PUBLISHED
    assert grade_of(15, 15) == "Unacceptable"
    assert grade_of(0, 15, slide_failed=True) == "Unacceptable"
    assert grade_of(0, 0) == "Ungraded"


@settings(deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_groups_of_any_number_by_exact_fractions(case: tuple[int, int]) -> None:
    bad, n = case
    share = Fraction(bad, n)
    passed = [g for g, limit in zip(GRADES, (0, 1, 2, 3), strict=False) if share <= Fraction(limit, 15)]
    assert grade_of(bad, n) == (passed[0] if passed else "Unacceptable")


def test_groups_get_no_better_with_more_bad_patches() -> None:
    for n in (7, 15, 30, 45, 100):
        places = [GRADES.index(grade_of(bad, n)) for bad in range(n + 1)]
        assert places == sorted(places)


@pytest.mark.parametrize(("bad", "n"), [(-1, 15), (16, 15)])
def test_impossible_counts_are_refused(bad: int, n: int) -> None:
    with pytest.raises(InputError, match="bad patches"):
        grade_of(bad, n)


@pytest.mark.parametrize(("bad", "n"), [(0, 15), (1, 15), (3, 15), (15, 15), (7, 31)])
def test_wilson_interval_holds_the_shares_a_score_test_accepts(bad: int, n: int) -> None:
    """The interval's ends are where |p_hat - p| = z sqrt(p (1 - p) / n), found here by bisection."""
    z, share = 1.959963984540054, bad / n

    def score(p: float) -> float:
        return (share - p) ** 2 - z * z * p * (1 - p) / n

    low = 0.0 if bad == 0 else brentq(score, 1e-12, share - 1e-9)
    high = 1.0 if bad == n else brentq(score, share + 1e-9, 1 - 1e-12)
    assert wilson_interval(bad, n) == pytest.approx((low, high), abs=1e-9)


def hand_made() -> tuple[list, dict, dict, dict, dict]:
    slides = [
        ("s1", "BRCA", "done"),
        ("s2", "BRCA", "done"),
        ("s3", "BRCA", "failed"),
        ("s4", "GBM", "done"),
        ("s5", "GBM", "done"),
    ]
    patches = {s: [f"{s}-{i}" for i in range(15)] for s in ("s1", "s2", "s4", "s5")}
    words = {p: "adequate" for ids in patches.values() for p in ids if not p.startswith("s5")}
    words |= {"s2-0": "not_adequate", "s2-1": "not_adequate", "s4-3": "not_adequate", "s4-4": "unsure"}
    verdicts = {"s1": "unacceptable", "s4": "acceptable"}
    flags = {"s1": (1, "nucleus count is low"), "s4": (1, "x"), "s3": (1, "the slide failed: gone"), "s2": (0, "")}
    return slides, patches, words, verdicts, flags


def test_grades_equal_a_table_made_by_hand() -> None:
    grades = {g.slide_id: g for g in grade_slides(*hand_made())}
    got = {s: (g.grade, g.n_bad, g.n_judged, g.n_unsure, g.n_patches) for s, g in grades.items()}
    assert got == {
        "s1": ("Unacceptable", 0, 15, 0, 15),  # failed slide QC, whatever its patches
        "s2": ("Adequate", 2, 15, 0, 15),
        "s3": ("Unacceptable", 0, 0, 0, 0),
        "s4": ("Adequate", 1, 14, 1, 15),  # 1 of 14 is more than 1 of 15
        "s5": ("Ungraded", 0, 0, 0, 15),
    }
    assert math.isnan(grades["s5"].bad_frac)
    assert grades["s2"].bad_frac == pytest.approx(2 / 15)


def test_five_hundred_slides_fall_into_the_published_groups() -> None:
    random = np.random.default_rng(4)
    n_bad = random.choice(7, 500, p=[0.4, 0.2, 0.12, 0.1, 0.08, 0.06, 0.04])
    slides = [(f"s{i:03d}", ("BRCA", "LUAD")[i % 2], "failed" if i % 50 == 7 else "done") for i in range(500)]
    patches = {s: [f"{s}-{k}" for k in range(15)] for s, _, status in slides if status != "failed"}
    words = {p: "adequate" for ids in patches.values() for p in ids}
    for i, (s, _, status) in enumerate(slides):
        if status != "failed":
            words |= {f"{s}-{k}": "not_adequate" for k in random.choice(15, n_bad[i], replace=False)}
    verdicts = {s: "unacceptable" for s, _, _ in slides[3::40]}
    expected = [
        "Unacceptable" if status == "failed" or s in verdicts else PUBLISHED[min(int(n_bad[i]), 5)]
        for i, (s, _, status) in enumerate(slides)
    ]
    grades = grade_slides(slides, patches, words, verdicts, {})
    assert [g.grade for g in grades] == expected
    by_group = cohort_summary(grades)[1]
    assert {g: getattr(by_group[-1], g) for g in GRADES} == {g: expected.count(g) for g in GRADES}
    judged = [i for i, (_, _, status) in enumerate(slides) if status != "failed"]
    assert by_group[-1].PatchesBadPercent == round(100 * int(n_bad[judged].sum()) / (15 * len(judged)), 2)


def test_release_has_the_published_columns_and_values(tmp_path: Path) -> None:
    grades = grade_slides(*hand_made())
    known = {
        "s1": {"path": "/data/TCGA-A.svs", "n_nuclei": 1000, "area_mean_um2": 40.0, "area_std_um2": 10.0},
        "s4": {"path": r"C:\slides\TCGA-D.svs", "n_nuclei": 7, "area_mean_um2": 25.0, "area_std_um2": float("nan")},
    }
    rows = {g.slide_id: SlideRow.blank(g.slide_id, "done", **known.get(g.slide_id, {})) for g in grades}
    files = write_release(tmp_path, grades, rows, {"s1": 'pen, "thick"'})
    assert {p.name for p in files} == {
        "grades.parquet",
        "quality_control_result.csv",
        "wsi_quality_control_result.csv",
        "patch_quality_control_result.csv",
        "summary_slide_qc.csv",
        "summary_groups.csv",
    }
    read = {p.name: list(csv.reader(io.StringIO(p.read_text("utf-8")))) for p in files if p.suffix == ".csv"}
    assert read["quality_control_result.csv"] == [
        ["CancerType", "WSI-ID", "QCResult"],
        ["BRCA", "TCGA-A.svs", "Unacceptable"],
        ["BRCA", "s2", "Adequate"],
        ["BRCA", "s3", "Unacceptable"],
        ["GBM", "TCGA-D.svs", "Adequate"],
        ["GBM", "s5", "Ungraded"],
    ]
    assert read["wsi_quality_control_result.csv"] == [
        [
            "CancerType",
            "WSI-ID",
            "NumNucleiSample",
            "SizeOfNuclei-Average",
            "SizeOfNuclei-Stddev",
            "Note",
            "SegmentationUnacceptableOrNot",
            "VisualAssessmentComment",
        ],
        ["BRCA", "TCGA-A.svs", "1000", "640.00", "160.00", "nucleus count is low", "1", 'pen, "thick"'],
        ["BRCA", "s3", "0", "", "", "the slide failed: gone", "", ""],
        ["GBM", "TCGA-D.svs", "7", "400.00", "", "x", "0", ""],
    ]
    assert read["patch_quality_control_result.csv"][0] == [
        "CancerType",
        "WSI-ID",
        "NumOfUnacceptableSegRegions",
        "NumOfSampledRegions",
    ]
    assert ["GBM", "TCGA-D.svs", "1", "14"] in read["patch_quality_control_result.csv"]
    table = pq.read_table(tmp_path / "grades.parquet")
    assert table["grade"].to_pylist() == ["Unacceptable", "Adequate", "Unacceptable", "Adequate", "Ungraded"]
    assert table.schema.field("bad_frac_low").metadata[b"description"]


def test_summaries_add_up() -> None:
    grades = grade_slides(*hand_made())
    slide_qc, groups = cohort_summary(grades)
    assert [r.CancerType for r in groups] == ["BRCA", "GBM", "All"]
    for table in (slide_qc, groups):
        rows = [asdict(row) for row in table]
        for key, total in rows[-1].items():
            if key != "CancerType" and "Percent" not in key:
                assert total == sum(r[key] for r in rows[:-1])
    assert asdict(slide_qc[0]) == {
        "CancerType": "BRCA",
        "Slides": 3,
        "SelectedRound1": 2,
        "SelectedRound2": 0,
        "LookedAt": 1,
        "Unacceptable": 1,
        "UnacceptablePercent": 33.33,
    }
    assert groups[-1].PatchesBadPercent == round(100 * 3 / 44, 2)


def plain_kappa(a: list[str], b: list[str]) -> float:
    """Cohen's kappa as scikit-learn computes it (weights none), from the two lists and without a table."""
    words = sorted(set(a) | set(b))
    n = len(a)
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / n
    expected = sum((a.count(w) / n) * (b.count(w) / n) for w in words)
    return (observed - expected) / (1 - expected)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sampled_from("xyz")), min_size=2, max_size=60))
def test_kappa_equals_the_plain_formula(pairs: list[tuple[str, str]]) -> None:
    a, b = [p[0] for p in pairs], [p[1] for p in pairs]
    table = np.array([[sum(p == (x, y) for p in pairs) for y in "xyz"] for x in "xyz"])
    kappa, error = cohen_kappa(table)
    if len(set(a)) == 1 and set(a) == set(b):
        assert math.isnan(kappa)
    else:
        assert kappa == pytest.approx(plain_kappa(a, b), abs=1e-12)
        assert error >= 0


def test_kappa_standard_error_is_that_of_resampling() -> None:
    table = np.array([[60, 12], [9, 40]])
    kappa, error = cohen_kappa(table)
    random = np.random.default_rng(0)
    drawn = random.multinomial(table.sum(), table.ravel() / table.sum(), 4000).reshape(-1, 2, 2)
    spread = np.std([cohen_kappa(t)[0] for t in drawn])
    assert error == pytest.approx(spread, rel=0.05)
    assert kappa == pytest.approx(plain_kappa(["a"] * 72 + ["b"] * 49, ["a"] * 60 + ["b"] * 12 + ["a"] * 9 + ["b"] * 40))


def test_agreement_of_reviewers_uses_common_decided_items() -> None:
    marks = {
        "ann": {"1": "adequate", "2": "adequate", "3": "not_adequate", "4": "unsure", "5": "adequate"},
        "bob": {"1": "adequate", "2": "not_adequate", "3": "not_adequate", "4": "adequate"},
        "eve": {"9": "adequate"},
    }
    (only,) = reviewer_agreement(marks, ("adequate", "not_adequate"))
    assert (only.first, only.second, only.n) == ("ann", "bob", 3)
    assert only.agree_frac == pytest.approx(2 / 3)
    assert only.kappa == pytest.approx(plain_kappa(["a", "a", "n"], ["a", "n", "n"]))
    assert only.kappa_low <= only.kappa <= only.kappa_high


def test_kappa_refuses_what_is_no_table() -> None:
    with pytest.raises(InputError, match="square"):
        cohen_kappa([[1, 2, 3], [4, 5, 6]])

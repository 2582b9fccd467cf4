"""How unlike the training images a slide looks: what scores, in which order, and in which words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wsiseg.summarize import TRAITS, foreign_look, look_reference


def usual(seed: int) -> dict[str, Any]:
    """The look of one clean picture."""
    random = np.random.default_rng(seed)
    values = {
        "stain_residual": 0.004, "brown_frac": 0.001, "od_red_frac": 0.25, "od_blue_frac": 0.26, "od_green_high": 0.52,
        "sharpness": 0.13,
        "sharpness_low": 0.11, "unsharp_frac": 0.01, "jpeg_blocking": 0.05, "ink_frac": 0.0, "fold_frac": 0.001,
        "nuclei_per_colored_mm2": 5000.0, "area_p50_um2": 25.0, "center_prob_mean": 0.8, "material_prob_mean": 0.78,
    }  # fmt: skip
    return {name: value * random.uniform(0.9, 1.1) for name, value in values.items()}


REFERENCE = look_reference([usual(k) for k in range(200)])
WIDE = {
    **REFERENCE,
    "area_p50_um2": [12.0, 25.0, 50.0],
    "nuclei_per_colored_mm2": [1000.0, 5000.0, 13000.0],
    "nuclear_scale": [0.8, 1.12, 1.55],
    "sharpness": [0.08, 0.13, 0.2],
}
"""Typical traits of many organs and scanners of known scale."""


def test_the_reference_holds_the_percentiles_of_every_trait() -> None:
    assert set(REFERENCE) == {t.name for t in TRAITS}
    areas = np.percentile([usual(k)["area_p50_um2"] for k in range(200)], (5, 50, 95))
    assert REFERENCE["area_p50_um2"] == pytest.approx(areas, rel=1e-3)


def test_what_looks_like_the_training_images_is_not_flagged() -> None:
    found = [foreign_look(usual(1000 + k), REFERENCE) for k in range(100)]
    assert all(f is not None and f.score < 1 and f.reasons == () for f in found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stain_residual": 0.05}, "immunostain"),
        ({"brown_frac": 0.06}, "DAB"),
        ({"od_green_high": 0.35}, "nothing is pink"),
        ({"unsharp_frac": 0.2}, "out of focus"),
        ({"fold_frac": 0.08}, "folds"),
        ({"sharpness": 0.02, "sharpness_low": 0.018}, "blurred"),
        ({"jpeg_blocking": 0.6}, "JPEG"),
        ({"ink_frac": 0.1}, "pen marks"),
        ({"area_p50_um2": 100.0}, "are the microns per px right?"),
        ({"area_p50_um2": 6.0}, "are the microns per px right?"),
        ({"nuclei_per_colored_mm2": 300.0}, "few nuclei"),
    ],
)
def test_a_trait_far_out_is_the_reason(change: dict[str, float], words: str) -> None:
    found = foreign_look({**usual(7), **change}, REFERENCE)
    assert found is not None
    assert found.score > 1
    assert any(words in reason for reason in found.reasons)
    assert not any(";" in reason for reason in found.reasons)  # tables separate reasons by semicolons


def test_reasons_come_strongest_first_with_value_and_range() -> None:
    found = foreign_look({**usual(7), "ink_frac": 0.5, "jpeg_blocking": 0.12}, REFERENCE)
    assert found is not None
    assert found.reasons[0].startswith("pen marks on the tissue (0.5, training images 0 to ")
    assert len(found.reasons) == 2


def test_what_is_not_known_is_left_out() -> None:
    assert foreign_look({}, REFERENCE) is None
    assert foreign_look(usual(1), {}) is None
    found = foreign_look({"ink_frac": 0.1, "sharpness": None}, REFERENCE)
    assert found is not None
    assert len(found.reasons) == 1


def test_a_wrong_scale_moves_area_detail_and_density_together() -> None:
    """No one of them need be far out: each is what another organ or scanner has."""
    look = usual(3)
    for factor, words in ((0.45, "small"), (2.0, "large")):
        changed = {"area_p50_um2": factor**1.6, "sharpness": factor**-0.7, "nuclei_per_colored_mm2": factor**-1.2}
        for names in (*([n] for n in changed), list(changed)):
            found = foreign_look({**look, **{n: look[n] * changed[n] for n in names}}, WIDE)
            assert found is not None
            assert (found.score > 1) == (len(names) == 3)
        assert f"nuclei and detail {words} for the microns per px stated" in found.reasons[0]


def test_the_scale_of_nuclei_grows_with_the_microns_stated() -> None:
    """Its unit is the factor by which these are wrong: area goes with its square, number per area with its inverse square."""
    known = look_reference([{**usual(3)}])["nuclear_scale"][1]
    twice = {
        **usual(3),
        "area_p50_um2": usual(3)["area_p50_um2"] * 4,
        "nuclei_per_colored_mm2": usual(3)["nuclei_per_colored_mm2"] / 4,
    }
    assert 1.5 < look_reference([twice])["nuclear_scale"][1] / known < 2.5

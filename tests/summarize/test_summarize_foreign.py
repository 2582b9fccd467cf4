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
        "stain_residual": 0.004, "od_red_frac": 0.25, "od_blue_frac": 0.26, "sharpness": 0.13, "sharpness_low": 0.11,
        "jpeg_blocking": 0.05, "ink_frac": 0.0, "fold_frac": 0.05, "nuclei_per_colored_mm2": 5000.0, "area_p50_um2": 25.0,
        "center_prob_mean": 0.8, "material_prob_mean": 0.78,
    }  # fmt: skip
    return {name: value * random.uniform(0.9, 1.1) for name, value in values.items()}


REFERENCE = look_reference([usual(k) for k in range(200)])


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


def test_reasons_come_strongest_first_with_value_and_range() -> None:
    found = foreign_look({**usual(7), "ink_frac": 0.5, "jpeg_blocking": 0.12}, REFERENCE)
    assert found is not None
    assert found.reasons[0].startswith("pen marks on the tissue (0.5; training images 0 to ")
    assert len(found.reasons) == 2


def test_what_is_not_known_is_left_out() -> None:
    assert foreign_look({}, REFERENCE) is None
    assert foreign_look(usual(1), {}) is None
    found = foreign_look({"ink_frac": 0.1, "sharpness": None}, REFERENCE)
    assert found is not None
    assert len(found.reasons) == 1


def test_a_scale_that_is_wrong_both_ways_moves_area_and_detail_oppositely() -> None:
    """Neither alone need be far out: nuclei half as large and detail twice as fine are."""
    look = usual(3)
    for area, detail in ((0.55, 1.5), (1.8, 0.65)):
        both = {**look, "area_p50_um2": look["area_p50_um2"] * area, "sharpness": look["sharpness"] * detail}
        found = foreign_look(both, REFERENCE)
        assert found is not None
        assert "for the microns per px stated" in found.reasons[0]

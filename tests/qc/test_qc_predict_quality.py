"""Features move the way they should under known damage; the model finds a known truth; its worth is measured right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage, optimize

from wsiseg.errors import FormatError, InputError
from wsiseg.qc.predict_quality import FEATURES, USED, QualityModel, auc, calibration, fit_quality, patch_features, reviews_saved

NUCLEI = {
    k: np.full(9, v)
    for k, v in (
        ("area_um2", 40.0),
        ("perimeter_um", 22.4),
        ("major_um", 7.2),
        ("minor_um", 7.1),
        ("center_prob", 230),
        ("material_prob", 240),
    )
}


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nine dark discs on pink with fine texture, their maps and labels."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:120, :120]
    discs = np.zeros((120, 120), np.int32)
    center = np.zeros((120, 120))
    for k, (cy, cx) in enumerate(itertools.product((20, 60, 100), repeat=2)):
        far = np.hypot(y - cy, x - cx)
        discs[far < 12] = k + 1
        center = np.maximum(center, np.clip(1 - far / 4, 0, 1))
    rgb = np.where(discs[..., None] > 0, (90, 60, 140), (225, 170, 200)) + random.normal(0, 8, (120, 120, 1))
    material = ndimage.gaussian_filter((discs > 0).astype(float), 1)
    return np.clip(rgb, 0, 255).astype(np.uint8), np.rint(255 * np.stack([center, material])).astype(np.uint8), discs


def feature(values: np.ndarray, name: str) -> float:
    return float(values[FEATURES.index(name)])


def test_each_damage_moves_its_feature() -> None:
    rgb, prob, labels = scene()
    good = patch_features(rgb, prob, NUCLEI, labels)
    assert np.isfinite(good).all()
    blurred = np.stack([ndimage.gaussian_filter(c.astype(float), 2) for c in np.moveaxis(rgb, 2, 0)], -1).astype(np.uint8)
    assert feature(patch_features(blurred, prob, NUCLEI, labels), "sharpness") < feature(good, "sharpness") - 0.5
    contrast = (rgb // 2 + 60).astype(np.uint8)
    assert feature(patch_features(contrast, prob, NUCLEI, labels), "sharpness") == pytest.approx(
        feature(good, "sharpness"), abs=0.1
    )
    pale = (255 - (255 - rgb.astype(int)) // 3).astype(np.uint8)
    assert feature(patch_features(pale, prob, NUCLEI, labels), "od_mean") < 0.6 * feature(good, "od_mean")
    brown = (rgb * (1.0, 0.8, 0.4)).astype(np.uint8)
    moved = patch_features(brown, prob, NUCLEI, labels)
    assert np.hypot(*(feature(moved, h) - feature(good, h) for h in ("hue_x", "hue_y"))) > 0.2
    vague = prob.copy()
    vague[1] = vague[1] // 2 + 50
    assert feature(patch_features(rgb, vague, NUCLEI, labels), "material_entropy") > 3 * feature(good, "material_entropy")
    assert feature(patch_features(rgb, vague, NUCLEI, labels), "unsure_frac") > feature(good, "unsure_frac")
    none = prob.copy()
    none[1] = 0
    assert feature(patch_features(rgb, none, NUCLEI, labels), "center_orphan_frac") == 1.0
    assert feature(patch_features(rgb, prob, NUCLEI, labels * (labels > 3)), "material_orphan_frac") == pytest.approx(
        1 / 3, abs=0.02
    )
    assert feature(good, "roundness_mean") == pytest.approx(4 * np.pi * 40 / 22.4**2)


def test_blank_patches_and_patches_without_nuclei_are_finite() -> None:
    empty = {k: v[:0] for k, v in NUCLEI.items()}
    for value in (0, 255):
        blank = np.full((64, 64, 3), value, np.uint8)
        assert np.isfinite(patch_features(blank, np.full((2, 64, 64), value, np.uint8), empty)).all()
    with pytest.raises(InputError, match="one window"):
        patch_features(np.zeros((64, 64, 3), np.uint8), np.zeros((2, 32, 64), np.uint8), empty)


def planted(n: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    x = random.normal(0, 1, (n, len(FEATURES)))
    doubt, round_, sure = (x[:, FEATURES.index(k)] for k in ("unsure_frac", "roundness_mean", "center_prob_mean"))
    chance = 1 / (1 + np.exp(1 - 1.5 * doubt + 1.2 * round_ + 0.8 * sure))
    return x, random.random(n) < chance, chance


def test_the_fit_is_the_optimum_of_its_likelihood() -> None:
    x, y, _ = planted(200)
    model = fit_quality(x, y, ridge=2.0)
    z = np.clip((x[:, [FEATURES.index(k) for k in USED]] - model.mean) / model.scale, -4, 4)
    design = np.column_stack([z, np.ones(len(z))])

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, design @ w).sum() - y @ (design @ w) + (w[:-1] ** 2).sum())

    found = optimize.minimize(loss, np.zeros(design.shape[1]), method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 10**6})
    assert loss(model.weights) <= found.fun + 1e-4


def test_it_finds_what_was_planted_also_in_new_patches() -> None:
    x, y, chance = planted(1200)
    model = fit_quality(x[:600], y[:600])
    score = model.predict(x[600:])
    assert auc(score, y[600:]) > auc(chance[600:], y[600:]) - 0.06
    assert reviews_saved(score, y[600:], 0.9) > 0.25
    for predicted, observed, n in calibration(score, y[600:], 5):
        assert abs(predicted - observed) < 4 * np.sqrt(0.25 / n)
    again = QualityModel.from_json(model.to_json())
    assert np.array_equal(again.predict(x), model.predict(x))


def test_auc_equals_counting_pairs() -> None:
    random = np.random.default_rng(2)
    score, y = random.integers(0, 6, 60) / 5, random.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[y] for b in score[~y]]
    assert auc(score, y) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc(score, np.ones(60, bool)))


def test_reviews_saved_by_hand() -> None:
    fails = np.array([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], bool)
    assert reviews_saved(np.arange(10, 0, -1.0), fails, 1.0) == pytest.approx(0.8)  # 2 reviews instead of 10
    assert reviews_saved(np.arange(10.0), fails, 1.0) == pytest.approx(0.0)  # worst order: all 10
    with pytest.raises(InputError):
        reviews_saved(np.arange(10.0), ~fails & fails)


def test_what_cannot_be_fitted_or_read_is_refused() -> None:
    x, y, _ = planted(50)
    with pytest.raises(InputError, match="one kind"):
        fit_quality(x, y | True)
    with pytest.raises(InputError, match="finite"):
        fit_quality(np.where(x > 2, np.nan, x), y)
    for text in ("", "{}", '{"features": ["a"], "mean": [0], "scale": [1], "weights": [0, 0, 0]}'):
        with pytest.raises(FormatError):
            QualityModel.from_json(text)

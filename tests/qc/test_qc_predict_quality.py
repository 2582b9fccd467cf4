"""Features move the way they should under known damage; the model finds a known truth; its worth is measured right."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, optimize

from wsiseg.errors import FormatError, InputError
from wsiseg.qc import FEATURES, NUCLEUS_COLUMNS, QualityModel, load_quality, patch_features, patch_orientations
from wsiseg.qc.patch_features import PICTURE_FEATURES
from wsiseg.qc.patch_orientations import PatchSegmenter, agreement, load_patch_segmenter, orientation_features
from wsiseg.qc.predict_quality import (
    MIN_JUDGED,
    TERMS,
    apply_calibration,
    auc,
    brier,
    calibration,
    calibration_error,
    fit_quality,
    group_spread,
    recalibrate,
    reviews_saved,
)
from wsiseg.qc.quality_map import cell_features, map_png, quality_map
from wsiseg.schema.quality import OF_NUCLEI, OF_ORIENTATIONS

NUCLEI = dict(zip(NUCLEUS_COLUMNS, (np.full(9, v) for v in (40.0, 22.4, 7.2, 7.1, 230.0, 240.0)), strict=True))


def scene() -> tuple[np.ndarray, np.ndarray]:
    """Nine dark discs on pink with fine texture, and their labels."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    discs = np.zeros((128, 128), np.int32)
    for k, (cy, cx) in enumerate(itertools.product((20, 60, 100), repeat=2)):
        discs[np.hypot(y - cy, x - cx) < 12] = k + 1
    rgb = np.where(discs[..., None] > 0, (90, 60, 140), (225, 170, 200)) + random.normal(0, 8, (128, 128, 1))
    return np.clip(rgb, 0, 255).astype(np.uint8), discs


def feature(values: np.ndarray, name: str) -> float:
    return float(values[FEATURES.index(name)])


def test_each_damage_moves_its_feature() -> None:
    rgb, labels = scene()
    good = patch_features(rgb, labels, NUCLEI)
    assert np.isfinite(good).all()
    blurred = np.stack([ndimage.gaussian_filter(c.astype(float), 2) for c in np.moveaxis(rgb, 2, 0)], -1).astype(np.uint8)
    soft = patch_features(blurred, labels, NUCLEI)
    assert feature(soft, "sharpness") < feature(good, "sharpness") - 0.5
    pale = patch_features((rgb // 2 + 60).astype(np.uint8), labels, NUCLEI)
    assert feature(pale, "sharpness") == pytest.approx(feature(good, "sharpness"), abs=0.1)  # not contrast, sharpness
    faint = (255 - (255 - rgb.astype(int)) // 3).astype(np.uint8)
    assert feature(patch_features(faint, labels, NUCLEI), "od_mean") < 0.6 * feature(good, "od_mean")
    brown = patch_features((rgb * (1.0, 0.8, 0.4)).astype(np.uint8), labels, NUCLEI)
    assert np.hypot(*(feature(brown, h) - feature(good, h) for h in ("hue_x", "hue_y"))) > 0.2


def test_outlines_that_do_not_sit_on_the_picture_are_noticed() -> None:
    rgb, labels = scene()
    good = patch_features(rgb, labels, NUCLEI)
    missed = patch_features(rgb, labels * (labels > 3), NUCLEI)  # three of nine nuclei are not outlined
    assert feature(good, "dark_outside_share") < 0.02
    assert feature(missed, "dark_outside_share") == pytest.approx(1 / 3, abs=0.03)
    shifted = patch_features(rgb, np.roll(labels, 20, axis=1), NUCLEI)
    assert feature(shifted, "edge") < 0.7 * feature(good, "edge")
    assert feature(shifted, "contrast") < 0.3 * feature(good, "contrast")
    extra = labels.copy()
    extra[35:45, 35:45] = 10  # pale tissue between the discs
    false = patch_features(rgb, extra, NUCLEI)
    assert feature(false, "pale_nuclei_frac") == pytest.approx(0.1)
    assert feature(good, "pale_nuclei_frac") == 0


def test_features_of_nuclei_are_the_plain_formulas() -> None:
    rgb, labels = scene()
    given = {
        "area_um2": np.array([10.0, 30.0, 90.0]),
        "perimeter_um": np.array([12.0, 21.0, 40.0]),
        "major_um": np.array([4.0, 8.0, 12.0]),
        "minor_um": np.array([3.0, 5.0, 10.0]),
        "center_prob": np.array([255, 102, 51], np.uint8),
        "material_prob": np.array([204, 204, 153], np.uint8),
    }
    got = patch_features(rgb, labels, given)
    expected = {
        "center_mean": (1 + 0.4 + 0.2) / 3,
        "center_minus_material": ((1 - 0.8) + (0.4 - 0.8) + (0.2 - 0.6)) / 3,
        "disagreement": (0.2 + 0.4 + 0.4) / 3,
        "elongation_mean": (4 / 3 + 8 / 5 + 12 / 10) / 3,
        "small_frac": 1 / 3,
        "roundness_mean": sum(4 * np.pi * a / p**2 for a, p in ((10, 12), (30, 21), (90, 40))) / 3,
        "log_area_sd": np.log([10, 30, 90]).std(),
        "log_count": np.log1p(3 * 256**2 / 128**2),
    }
    assert {k: feature(got, k) for k in expected} == pytest.approx(expected)


def test_blank_patches_and_patches_without_nuclei_are_finite() -> None:
    empty = {k: v[:0] for k, v in NUCLEI.items()}
    for value in (0, 255):
        blank = np.full((64, 64, 3), value, np.uint8)
        for labels in (np.zeros((64, 64), np.int32), np.ones((64, 64), np.int32)):
            assert np.isfinite(patch_features(blank, labels, empty)).all()
    with pytest.raises(InputError, match="equal height and width"):
        patch_features(np.zeros((64, 64, 3), np.uint8), np.zeros((32, 64), np.int32), empty)


def planted(n: int = 600) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    x = random.normal(0, 1, (n, len(FEATURES)))
    doubt, round_, hue = (x[:, FEATURES.index(k)] for k in ("dark_outside_share", "roundness_mean", "hue_x"))
    chance = 1 / (1 + np.exp(1.5 - 1.5 * doubt + 1.2 * round_ - 0.5 * hue**2))  # stain fails when off to either side
    return x, random.random(n) < chance, chance


def test_the_fit_is_the_optimum_of_its_likelihood() -> None:
    x, y, _ = planted(200)
    importance = np.random.default_rng(3).uniform(0.2, 2, 200)
    model = fit_quality(x, y, importance, ridge=2.0)
    stain = x[:, [FEATURES.index(k) for k in ("od_mean", "hue_x", "hue_y")]]
    median = np.median(stain, axis=0)
    far = np.sqrt((((stain - median) / (1.4826 * np.median(abs(stain - median), axis=0))) ** 2).sum(axis=1))
    terms = np.column_stack([*(x[:, FEATURES.index(k)] for k in TERMS[:-1]), far])
    z = np.clip((terms - terms.mean(0)) / terms.std(0), -4, 4)
    design = np.column_stack([z, np.ones(len(z))])

    def loss(w: np.ndarray) -> float:
        return float((importance * (np.logaddexp(0, design @ w) - y * (design @ w))).sum() + (w[:-1] ** 2).sum())

    found = optimize.minimize(loss, np.zeros(design.shape[1]), method="L-BFGS-B", options={"maxiter": 2000, "maxfun": 10**6})
    assert loss(model.weights) <= found.fun + 1e-4
    assert model.predict(x) == pytest.approx(1 / (1 + np.exp(-design @ model.weights)))


def test_it_finds_what_was_planted_also_in_new_patches() -> None:
    x, y, chance = planted(1600)
    model = fit_quality(x[:800], y[:800])
    score = model.predict(x[800:])
    assert auc(score, y[800:]) > auc(chance[800:], y[800:]) - 0.06
    assert reviews_saved(score, y[800:], 0.9) > 0.2
    assert calibration_error(score, y[800:], 5) < 0.08
    assert brier(score, y[800:]) < 0.8 * y.mean() * (1 - y.mean())
    again = QualityModel.from_json(model.to_json())
    assert again.predict(x) == pytest.approx(model.predict(x), abs=1e-6)


def test_calibration_to_reviewers_finds_how_lenient_they_are() -> None:
    random = np.random.default_rng(5)
    score = random.uniform(0.05, 0.95, 4000)
    lenient = 1 / (1 + np.exp(1.5 - 0.8 * np.log(score / (1 - score))))
    y = random.random(4000) < lenient
    seen = random.random(4000) < score  # suspects were chosen more often: the fit must not mind
    fit = recalibrate(score[seen], y[seen])
    assert fit == pytest.approx((-1.5, 0.8), abs=0.15)
    assert apply_calibration(score, fit)[~seen].mean() == pytest.approx(y[~seen].mean(), abs=0.02)
    assert np.array_equal(apply_calibration(score, None), score)
    assert recalibrate(score[: MIN_JUDGED - 1], y[: MIN_JUDGED - 1]) is None
    assert recalibrate(score[:50], np.zeros(50, bool)) is None


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
    # as if half of them failed: the perfect order looks at that half, instead of at all
    assert reviews_saved(np.arange(10, 0, -1.0), fails, 1.0, prevalence=0.5) == pytest.approx(0.5)
    with pytest.raises(InputError):
        reviews_saved(np.arange(10.0), ~fails & fails)


def test_calibration_figures_by_hand() -> None:
    score, fails = np.array([0.1, 0.3, 0.6, 0.8]), np.array([0, 1, 1, 1], bool)
    assert calibration(score, fails, 2) == [(pytest.approx(0.2), 0.5, 2), (pytest.approx(0.7), 1.0, 2)]
    assert calibration_error(score, fails, 2) == pytest.approx(0.3)
    assert brier(score, fails) == pytest.approx((0.01 + 0.49 + 0.16 + 0.04) / 4)


def test_spread_of_patients_is_that_which_chance_does_not_explain() -> None:
    random = np.random.default_rng(7)
    group = np.repeat(np.arange(200), 60)
    p = np.full(len(group), 0.4)
    assert group_spread(p, random.random(len(p)) < p, group.astype(str)) < 0.03
    shifted = np.clip(p + random.normal(0, 0.15, 200)[group], 0, 1)
    assert group_spread(p, random.random(len(p)) < shifted, group.astype(str)) == pytest.approx(0.15, abs=0.02)


def dark_is_nucleus(rgb: np.ndarray) -> np.ndarray:
    """Maps of a network that takes what is dark for nuclei, whatever the orientation."""
    dark = (rgb.mean(axis=2) < 140).astype(float)
    material = ndimage.gaussian_filter(dark, 1) * 255
    center = ndimage.gaussian_filter(dark, 4) * 255
    return np.stack([center, material]).astype(np.uint8)


def turned(monkeypatch: pytest.MonkeyPatch, network: Callable[[np.ndarray], np.ndarray], **given: np.ndarray) -> np.ndarray:
    monkeypatch.setattr(patch_orientations, "predict_picture", lambda model, rgb: network(rgb))
    rgb, labels = scene()
    return orientation_features(given.get("rgb", rgb), given.get("labels", labels), load_patch_segmenter("open"))


def of_turns(values: np.ndarray, name: str) -> float:
    return float(values[OF_ORIENTATIONS.index(name)])


def test_a_network_that_predicts_the_same_each_time_is_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = scene()[1]
    good = turned(monkeypatch, dark_is_nucleus)
    for name in ("turn_f1", "turn_f1_low", "turn_dice", "mean_precision", "mean_recall", "mean_worse"):
        assert of_turns(good, name) == pytest.approx(1.0, abs=1e-3)
    for name in ("turn_sd_center", "turn_sd_material", "turn_sd_share", "turn_count_sd"):
        assert of_turns(good, name) == pytest.approx(0.0, abs=1e-3)
    missed = turned(monkeypatch, dark_is_nucleus, labels=labels * (labels > 3))  # three of nine were not stored
    assert (of_turns(missed, "mean_precision"), of_turns(missed, "mean_recall")) == (1.0, pytest.approx(6 / 9))
    extra = labels.copy()
    extra[36:46, 36:46] = 10
    false = turned(monkeypatch, dark_is_nucleus, labels=extra)
    assert (of_turns(false, "mean_precision"), of_turns(false, "mean_recall")) == (pytest.approx(0.9), 1.0)

    def blind(rgb: np.ndarray) -> np.ndarray:
        maps = dark_is_nucleus(rgb)
        maps[:, :, :50] = 0  # sees nothing at its left: never the same nuclei
        return maps

    unsteady = turned(monkeypatch, blind)
    assert of_turns(unsteady, "turn_f1") < 0.8
    assert of_turns(unsteady, "turn_sd_material") > 10 * of_turns(good, "turn_sd_material") + 1e-3
    nothing = turned(monkeypatch, lambda rgb: np.zeros((2, *rgb.shape[:2]), np.uint8), labels=labels * 0)
    assert np.isfinite(nothing).all()
    assert of_turns(nothing, "turn_f1") == of_turns(nothing, "mean_worse") == 1.0  # nothing there, and nothing found
    with pytest.raises(InputError, match="equal height and width"):
        turned(monkeypatch, dark_is_nucleus, labels=np.zeros((64, 128), np.int32))


def test_agreement_counts_nuclei_by_hand() -> None:
    a, b = np.zeros((100, 100), np.int32), np.zeros((100, 100), np.int32)
    a[20:30, 20:30], a[50:60, 50:60], a[80:90, 20:30] = 3, 5, 9
    b[20:30, 22:32], b[50:60, 56:66] = 1, 2  # IoU 2/3 and 1/4; the third is not there
    b[2:12, 2:12] = 7  # its center is too near to the edge to count
    assert agreement(a, b, 0.5) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    assert agreement(a, b, 0.2) == (pytest.approx(2 / 3), 1.0)
    assert agreement(a, b * 0, 0.5) == (0.0, 0.0)
    assert agreement(a * 0, b * 0, 0.5) == (1.0, 1.0)


def test_cells_of_a_map_are_summed_up_as_patches() -> None:
    random = np.random.default_rng(4)
    n = 500
    columns = {
        "area_um2": random.uniform(5, 90, n),
        "perimeter_um": random.uniform(8, 40, n),
        "major_um": random.uniform(5, 15, n),
        "minor_um": random.uniform(3, 5, n),
        "center_prob": random.integers(20, 255, n).astype(np.uint8),
        "material_prob": random.integers(20, 255, n).astype(np.uint8),
    }
    cell = np.concatenate([np.arange(12), random.integers(0, 12, n - 12)])
    found = cell_features(columns, cell, 12)
    blank = np.full((256, 256, 3), 240, np.uint8), np.zeros((256, 256), np.int32)
    for c in range(12):
        expected = patch_features(*blank, {k: v[cell == c] for k, v in columns.items()})
        assert found[c] == pytest.approx([expected[PICTURE_FEATURES.index(k)] for k in OF_NUCLEI])


def test_a_map_shows_doubt_at_its_position() -> None:
    model = load_quality("research")
    assert model is not None
    assert model.of_nuclei is not None
    random = np.random.default_rng(0)
    n = 4000
    x, y = random.uniform(0, 8000, n), random.uniform(0, 4000, n)
    sure = x < 4000
    columns = dict(zip(NUCLEUS_COLUMNS, (np.full(n, v) for v in (40.0, 22.4, 7.2, 7.1)), strict=False))
    columns |= {"center_prob": np.where(sure, 235, 120), "material_prob": np.where(sure, 235, 130), "cx": x, "cy": y}
    found = quality_map(columns, (8000, 4500), 0.25, model.of_nuclei)
    assert found.cell_px == 256
    assert found.fail_prob.shape == (18, 32)
    assert np.isnan(found.fail_prob[16:]).all()  # no nucleus lies there
    left, right = found.fail_prob[:15, :15], found.fail_prob[:15, 17:31]
    assert np.nanmean(left) < np.nanmean(right)
    picture = np.asarray(Image.open(io.BytesIO(map_png(found))))
    assert (picture[..., 3] > 0).tolist() == np.isfinite(found.fail_prob).tolist()
    large = quality_map(columns, (8_000_000, 4500), 0.25, model.of_nuclei)
    assert large.fail_prob.shape[1] <= 400
    assert large.cell_px == 256 * -(-31_250 // 400)


def test_fitting_to_quality_keeps_the_order_and_the_probabilities() -> None:
    x, _, chance = planted(1500)
    random = np.random.default_rng(11)
    quality = np.clip(1 - chance, 0, 1) * 0.5 + 0.5
    fails = random.binomial(30, quality) / 30 < 0.75
    groups = (np.arange(1500) % 12).astype(str)
    model = fit_quality(x[:1000], fails[:1000], quality=quality[:1000], groups=groups[:1000])
    score = model.predict(x[1000:])
    assert auc(score, fails[1000:]) > auc(-quality[1000:], fails[1000:]) - 0.06
    assert calibration_error(score, fails[1000:], 5) < 0.08
    with pytest.raises(InputError, match="both quality and groups"):
        fit_quality(x, fails, quality=quality)


def whole(rgb: np.ndarray, labels: np.ndarray, nuclei: dict[str, np.ndarray], segmenter: PatchSegmenter) -> np.ndarray:
    return np.concatenate([patch_features(rgb, labels, nuclei), orientation_features(rgb, labels, segmenter)])


@pytest.mark.parametrize("network", ["open", "research"])
def test_the_models_that_ship_say_what_they_are(network: str) -> None:
    model = load_quality(network)
    assert model is not None
    assert model.facts["network"] == network
    assert model.facts["licence"]
    assert ("monuseg" in model.facts["trained_on"]) == (network == "research")  # non-commercial images: research only
    held = model.facts["held_out"]
    assert held["patients"] >= 8
    assert held["auc"] > 0.7
    assert sum(n for _, _, n in held["calibration"]) == held["patches"]
    assert held["calibration_error"] == pytest.approx(
        sum(abs(p - o) * n for p, o, n in held["calibration"]) / held["patches"], abs=2e-3
    )
    rgb, labels = scene()
    segmenter = load_patch_segmenter(network)
    good = model.predict(whole(rgb, labels, NUCLEI, segmenter)[None])[0]
    doubtful = {**NUCLEI, "center_prob": np.full(9, 80.0), "material_prob": np.full(9, 120.0)}
    bad = model.predict(whole(rgb, np.roll(labels, 20, axis=1), doubtful, segmenter)[None])[0]
    assert 0 < good < bad < 1


@pytest.mark.parametrize("network", ["open", "research"])
def test_a_patch_without_outlines_is_judged_by_what_it_shows(network: str) -> None:
    model, none = load_quality(network), {k: v[:0] for k, v in NUCLEI.items()}
    assert model is not None
    rgb, labels = scene()
    segmenter = load_patch_segmenter(network)
    missed = whole(rgb, labels * 0, none, segmenter)
    texture = np.random.default_rng(1).normal(0, 8, (128, 128, 1))
    pink = np.clip(np.array([225, 170, 200]) + texture, 0, 255).astype(np.uint8)
    stroma = whole(pink, labels * 0, none, segmenter)
    assert feature(missed, "dark_outside_frac") > 0.15 > feature(stroma, "dark_outside_frac")
    score = model.predict(np.stack([missed, stroma]))
    assert score[0] > score[1]
    odd = stroma.copy()  # what stands in the place of nuclei that are not there has no say
    odd[[FEATURES.index(k) for k in ("center_mean", "roundness_mean", "contrast")]] = 5.0
    assert model.predict(odd[None])[0] == pytest.approx(score[1])


def test_what_cannot_be_fitted_or_read_is_refused() -> None:
    x, y, _ = planted(50)
    with pytest.raises(InputError, match="50 that fail of 50"):
        fit_quality(x, y | True)
    with pytest.raises(InputError, match="finite"):
        fit_quality(np.where(x > 2, np.nan, x), y)
    stored = json.loads(fit_quality(x, y).to_json())
    for text in ("", "{}", "[]", json.dumps({**stored, "terms": ["a"]}), json.dumps({**stored, "mean": [1.0]})):
        with pytest.raises(FormatError):
            QualityModel.from_json(text)
    assert load_quality("mine") is None
    assert load_quality("../open") is None

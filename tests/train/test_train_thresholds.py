"""Thresholds of trained weights: fitted on sets that were not trained on, each set with the same weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.train.test_train_run import config_file, write_data
from wsiseg.config import PredictConfig
from wsiseg.datasets import Sample, list_samples
from wsiseg.errors import ConfigError
from wsiseg.pipeline import ImageMaps
from wsiseg.predict import load_model
from wsiseg.predict.weights import SHIPPED_DIR
from wsiseg.train.training import TrainConfig, train_from_toml
from wsiseg.train.validation import OPERATING_POINT, Judged, fit_separation, predict_samples, score_separation, set_means
from wsiseg.types import Box

HALO = 8


def discs(dataset: str, image_id: str, border: float, side: int = 160, step: int = 32) -> Judged:
    """Discs of radius 9 whose maps are sure inside and fall off outwards: at the true border the material is ``border``."""
    y, x = np.mgrid[:side, :side]
    truth = np.zeros((side, side), np.int32)
    center, material = np.zeros((side, side)), np.zeros((side, side))
    for k, (cy, cx) in enumerate((cy, cx) for cy in range(16, side, step) for cx in range(16, side, step)):
        r = np.hypot(x - cx, y - cy)
        truth[r <= 9] = k + 1
        center = np.maximum(center, np.exp(-((r / 6) ** 2)))
        material = np.maximum(material, np.clip(border + (9.5 - r) * 0.12, 0, 1))
    prob = np.pad(np.round(255 * np.stack([center, material])).astype(np.uint8), ((0, 0), (HALO, HALO), (HALO, HALO)))
    maps = ImageMaps(prob, Box(0, 0, side, side), HALO, 1.0, 0.25, (side, side))
    return Judged(Sample(image_id, dataset, image_id, "", "", 0.25, validation=False), maps, truth)


@pytest.mark.parametrize("border", [0.3, 0.5])
def test_the_threshold_is_where_the_borders_are(border: float) -> None:
    found, reached = fit_separation([discs("a", "1", border)])
    assert found["material_threshold_frac"] == pytest.approx(border, abs=0.06)
    assert reached > 0.95


def test_sets_count_the_same_however_many_images_they_have() -> None:
    """Three images of unsure tissue and one of sure tissue: the score is that of one of each."""
    judged = [discs("unsure", str(k), 0.3) for k in range(3)] + [discs("sure", "1", 0.5)]
    for level in (0.3, 0.4, 0.5):
        scores = score_separation(judged, {**OPERATING_POINT, "material_threshold_frac": level})
        means = set_means(judged, scores)
        each = {s.sample.dataset: (v.pq + v.aji) / 2 for s, v in zip(judged, scores, strict=True)}
        assert means == pytest.approx(each)
    many, _ = fit_separation(judged)
    few, _ = fit_separation(judged[2:])
    assert many == few


def test_an_image_of_another_resolution_is_predicted_as_a_slide_is(tmp_path: Path) -> None:
    """At 0.5 um per px the network gets twice the pixels (the maps are its working px), and truth stays at the image's own."""
    write_data(tmp_path)
    info = tmp_path / "tnbc" / "INFO.json"
    info.write_text('{"mpp": "0.5"}')
    model = load_model(PredictConfig(weights="open", precision="fp32"))
    judged = predict_samples(model, list_samples(tmp_path, ("tnbc",))[:1])[0]
    assert judged.maps.scale == pytest.approx(2.0)
    assert judged.maps.mpp == pytest.approx(0.25)
    assert judged.maps.inner.shape == (2, 256, 256)
    assert judged.maps.inner[1].mean() == pytest.approx(255 * (judged.truth > 0).mean(), rel=0.3)
    (scores,) = score_separation([judged], OPERATING_POINT)
    assert scores.n_truth == 9
    assert scores.pq > 0.6
    material = ndimage.zoom(judged.maps.inner[1], 0.5, order=0)
    assert material[judged.truth > 0].mean() > 3 * material[judged.truth == 0].mean()


def test_a_training_without_sets_to_fit_on_takes_the_measured_point(tmp_path: Path) -> None:
    path = config_file(tmp_path, steps=2)
    card = json.loads((train_from_toml(path) / "weights" / "small.json").read_text())
    assert card["separate_defaults"] == OPERATING_POINT


def test_a_training_fits_on_the_sets_that_it_is_given(tmp_path: Path) -> None:
    path = config_file(tmp_path, steps=60, validate=False)
    shutil.copytree(tmp_path / "data" / "tnbc", tmp_path / "data" / "other")
    path.write_text(path.read_text().replace("patch_px", 'fit_sets = ["other"]\npatch_px'))
    run = train_from_toml(path)
    card = json.loads((run / "weights" / "small.json").read_text())
    model = load_model(PredictConfig(weights=str(run / "weights" / "small.safetensors")))
    judged = predict_samples(model, list_samples(tmp_path / "data", ("other",)))

    def mean(thresholds: dict[str, float]) -> float:
        return set_means(judged, score_separation(judged, thresholds))["other"]

    assert card["separate_defaults"] != OPERATING_POINT
    assert mean(card["separate_defaults"]) > mean(dict(OPERATING_POINT))
    assert card["training"]["fit_sets"] == ["other"]


def test_held_out_patients_of_a_set_to_fit_on_have_no_part_in_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config_file(tmp_path, steps=2)
    shutil.copytree(tmp_path / "data" / "tnbc", tmp_path / "data" / "other")
    path.write_text(path.read_text().replace("tnbc =", "other =").replace("patch_px", 'fit_sets = ["tnbc"]\npatch_px'))
    fitted: list[Judged] = []

    def fit(judged: list[Judged]) -> tuple[dict[str, float], float]:
        fitted.extend(judged)
        return dict(OPERATING_POINT), 0.0

    monkeypatch.setattr("wsiseg.train.training.fit_separation", fit)
    train_from_toml(path)
    assert sorted(j.sample.image_id for j in fitted) == ["tnbc_01_1", "tnbc_02_1", "tnbc_04_1"]
    for patient in ("01", "02", "04"):
        (tmp_path / "data" / "tnbc" / f"tnbc_{patient}_1.labels.png").unlink()
    path.write_text(path.read_text().replace('"run"', '"again"'))
    with pytest.raises(ConfigError, match=r"fit_sets names \['tnbc'\]"):
        train_from_toml(path)
    assert not (tmp_path / "again").exists(), "it is said before the training"


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"fit_sets": ["tnbc"]}, "'tnbc'"),
        ({"fit_sets": "monuseg"}, "list of sets"),
        ({"fit_sets": ["monuseg"], "separation": "hou43"}, "hou43"),
        ({"separation": "fitted"}, "unseen"),
    ],
)
def test_sets_that_cannot_be_fitted_on_are_refused(extra: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TrainConfig.from_tree({"name": "a", "licence": "x", "sets": {"tnbc": 1.0, "consep": 1.0}, **extra})


@pytest.mark.parametrize("name", ["open", "research"])
def test_the_shipped_weights_hold_the_measured_point(name: str) -> None:
    """Thresholds of ``research`` are the default; those of ``open`` are what the benchmark's fit to its unseen sets found."""
    card = json.loads((SHIPPED_DIR / f"{name}.json").read_text(encoding="utf-8"))
    measured = json.loads((Path(__file__).parents[2] / "benchmarks/results/operating_point.json").read_text(encoding="utf-8"))
    fitted = card["training"]["fit_sets"]
    assert card["separate_defaults"] == (measured["walk"][name]["thresholds"] if fitted else OPERATING_POINT)
    assert not set(fitted) & set(card["data"]["sets"])
    assert measured["networks"][name]["sha256"] == card["sha256"]
    assert not set(card["scores_unseen_sets"]) & set(card["data"]["sets"])

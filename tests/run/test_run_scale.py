"""Microns per px estimated from nuclei: they follow the picture's scale, and a slide's is near what its file states."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import call
from tests.damage import with_damaged_tiles
from wsiseg.config import PredictConfig, RunConfig
from wsiseg.pipeline import estimate_mpp, network_look
from wsiseg.predict import Model, load_model
from wsiseg.read import open_slide
from wsiseg.run.inspect import estimate_slide_mpp

DEMO_SLIDE = Path(__file__).parents[2] / "wsiseg/demo/atlas_metaplasia_HE_crop.svs"
CONFIG = RunConfig(predict=PredictConfig(weights="open", precision="fp32"))


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(CONFIG.predict)


def resized(rgb: np.ndarray, factor: float) -> np.ndarray:
    size = (round(rgb.shape[1] * factor), round(rgb.shape[0] * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def test_a_resized_picture_has_so_many_more_microns_per_px(crop_rgb: np.ndarray, model: Model) -> None:
    """Whatever the true size of the nuclei, half as many px are twice as many um each."""
    large = resized(crop_rgb[:400, :400], 1.5)
    at_large = estimate_mpp([large], model, CONFIG)
    at_small = estimate_mpp([resized(large, 0.5)], model, CONFIG)
    assert at_large is not None
    assert at_small is not None
    assert at_small.mpp / at_large.mpp == pytest.approx(2, rel=0.15)
    assert at_small.n_nuclei > 20


def test_at_the_estimate_the_median_nucleus_has_the_diameter(crop_rgb: np.ndarray, model: Model) -> None:
    for diameter_um in (6.0, 8.0):
        found = estimate_mpp([crop_rgb[:400, :400]], model, CONFIG, diameter_um)
        assert found is not None
        look = network_look(crop_rgb[:400, :400], found.mpp, model, CONFIG)
        assert 2 * np.sqrt(look["area_p50_um2"] / np.pi) == pytest.approx(diameter_um, rel=0.06)


def test_an_estimate_at_the_end_of_the_range_says_so(crop_rgb: np.ndarray, model: Model) -> None:
    """Nuclei 60 um wide would need more than 1 um per px, where the range ends."""
    found = estimate_mpp([crop_rgb[:300, :300]], model, CONFIG, 60.0)
    assert found is not None
    assert (found.mpp, found.at_limit) == (1.0, True)
    near = estimate_mpp([crop_rgb[:300, :300]], model, CONFIG)
    assert near is not None
    assert not near.at_limit


def test_test_time_augmentation_has_no_part_in_the_estimate(crop_rgb: np.ndarray, model: Model) -> None:
    augmented = load_model(dataclasses.replace(CONFIG.predict, tta=8))
    assert estimate_mpp([crop_rgb[:300, :300]], augmented, CONFIG) == estimate_mpp([crop_rgb[:300, :300]], model, CONFIG)
    assert augmented.tta == 8


def test_without_nuclei_there_is_no_estimate(model: Model) -> None:
    assert estimate_mpp([np.full((300, 300, 3), 240, np.uint8)], model, CONFIG) is None
    assert estimate_mpp([], model, CONFIG) is None


def test_the_estimate_of_a_slide_is_near_what_its_file_states(model: Model) -> None:
    slide = open_slide(DEMO_SLIDE)
    stated = slide.meta.mpp
    slide.close()
    found = estimate_slide_mpp(str(DEMO_SLIDE), CONFIG)
    assert found is not None
    assert 1 / 1.6 < found.mpp / stated < 1.6


def test_info_estimates_where_the_file_states_nothing(crop_rgb: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(crop_rgb).save(tmp_path / "crop.png")
    without = call("info", tmp_path / "crop.png", code=1)
    assert "info --estimate-mpp" in without
    assert "mpp_estimated" not in without
    said = call("info", "--estimate-mpp", tmp_path / "crop.png", code=1)
    value = float(said.split("mpp_estimated", 1)[1].split()[0])
    assert 0.25 < value < 1.0
    (tmp_path / "broken.svs").write_bytes(b"no slide")
    assert "mpp_estimated" not in call("info", "--estimate-mpp", tmp_path / "broken.svs", code=1)
    Image.new("RGB", (300, 300), "white").save(tmp_path / "blank.png")
    assert "none: fewer than five nuclei found" in call("info", "--estimate-mpp", tmp_path / "blank.png", code=1)


def test_a_slide_whose_pixels_cannot_be_decoded_does_not_end_the_command_for_the_next(
    crop_rgb: np.ndarray, tmp_path: Path
) -> None:
    damaged = with_damaged_tiles(DEMO_SLIDE, tmp_path / "damaged.svs")
    Image.fromarray(crop_rgb).save(tmp_path / "crop.png")
    said = call("info", "--estimate-mpp", damaged, tmp_path / "crop.png", code=1)
    of_damaged, of_crop = (part.split("\n", 1)[0].strip() for part in said.split("mpp_estimated")[1:])
    assert of_damaged.startswith("none: ")
    assert "damaged" in of_damaged
    assert 0.25 < float(of_crop.split()[0]) < 1.0

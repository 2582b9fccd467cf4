"""How a slide looks: each number moves with what it is named after, on a real scan that is altered."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from wsiseg.read import ArraySlide, open_slide, slide_look, survey_slide

DEMO = Path(__file__).parents[2] / "wsiseg/demo/atlas_metaplasia_HE_crop.svs"
MPP = 0.2528


def look(rgb: np.ndarray, mpp: float = MPP) -> dict[str, float]:
    slide = ArraySlide(np.ascontiguousarray(rgb), mpp=mpp)
    survey = survey_slide(slide)
    return slide_look(slide, survey, survey.tissue)


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    return open_slide(DEMO).read_level(0, 1200, 1200, 900, 900)


@pytest.fixture(scope="module")
def plain(rgb: np.ndarray) -> dict[str, float]:
    return look(rgb)


def test_blur_takes_sharpness(rgb: np.ndarray, plain: dict[str, float]) -> None:
    soft = look(ndimage.gaussian_filter(rgb, (4, 4, 0)))
    assert soft["sharpness"] < 0.3 * plain["sharpness"]
    half = rgb.copy()
    half[:400] = ndimage.gaussian_filter(rgb, (6, 6, 0))[:400]
    strip = look(half)
    assert strip["sharpness_low"] < 0.4 * plain["sharpness_low"]


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_strip_out_of_focus_counts_by_its_area(rgb: np.ndarray, plain: dict[str, float], share: float) -> None:
    strip = rgb.copy()
    rows = round(share * len(rgb))
    strip[:rows] = ndimage.gaussian_filter(rgb, (6, 6, 0))[:rows]
    assert plain["unsharp_frac"] < 0.05
    assert look(strip)["unsharp_frac"] == pytest.approx(share, abs=0.12)
    assert (
        look(ndimage.gaussian_filter(rgb, (4, 4, 0)))["unsharp_frac"] < 0.05
    )  # blurred everywhere: no part is unlike the rest


def test_a_fold_counts_by_its_area_and_nuclei_do_not(rgb: np.ndarray, plain: dict[str, float]) -> None:
    density = -np.log10((rgb + 1.0) / 256)
    density[400:580] *= 2.6
    assert plain["fold_frac"] < 0.02
    assert look(np.clip(256 * 10.0**-density - 1, 0, 255).astype(np.uint8))["fold_frac"] == pytest.approx(0.2, abs=0.08)


def test_blocks_of_jpeg_are_seen(rgb: np.ndarray, plain: dict[str, float]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=12)
    assert look(np.asarray(Image.open(buffer)))["jpeg_blocking"] > 3 * plain["jpeg_blocking"]


def test_ink_that_lets_tissue_through_is_seen(rgb: np.ndarray, plain: dict[str, float]) -> None:
    assert plain["ink_frac"] == 0
    for color in ((20, 60, 170), (15, 120, 80)):
        inked = rgb.copy()
        inked[300:400] = (0.15 * rgb[300:400] + 0.85 * np.array(color)).astype(np.uint8)
        assert look(inked)["ink_frac"] == pytest.approx(1 / 9, abs=0.04)


def test_brown_for_eosin_is_not_explained_by_hematoxylin_and_eosin(rgb: np.ndarray, plain: dict[str, float]) -> None:
    density = -np.log10((rgb + 1.0) / 256)
    stains = np.array([(0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)])
    h, e = np.moveaxis(np.maximum(density @ np.linalg.pinv(stains), 0), 2, 0)
    brown = h[..., None] * stains[0] + e[..., None] * np.array((0.268, 0.570, 0.776))  # DAB, Ruifrok and Johnston 2001
    dab = look(np.clip(256 * 10.0**-brown - 1, 0, 255).astype(np.uint8))
    assert dab["stain_residual"] > 3 * plain["stain_residual"]
    assert dab["od_blue_frac"] > plain["od_blue_frac"] + 0.05
    assert plain["brown_frac"] < 0.005 < 0.02 < dab["brown_frac"]
    assert dab["od_green_high"] < plain["od_green_high"] - 0.05  # nothing is pink


def test_a_slide_of_glass_has_no_look() -> None:
    glass = np.full((600, 600, 3), 244, np.uint8)
    assert look(glass) == {"colored_mm2": 0.0}

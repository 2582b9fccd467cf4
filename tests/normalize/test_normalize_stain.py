import sys
from pathlib import Path

import numpy as np
import pytest

from tests.oracles.plane import macenko_pixel, reinhard_pixel
from wsiseg.errors import ConfigError
from wsiseg.normalize import fit_stain, macenko, normalize, reinhard
from wsiseg.types import Stain

DEMO = Path(__file__).parents[2] / "wsiseg/demo/atlas_metaplasia_HE_crop.svs"
MACENKO = Stain("macenko", (0.7175, 0.6078, 0.3403, 0.1679, 0.8711, 0.4614, 2.79, 1.98))
REINHARD = Stain("reinhard", (-0.4284, -0.0426, 0.0163, 0.4268, 0.0668, 0.0181))
COLORS = np.random.default_rng(0).integers(0, 256, (4000, 3), np.uint8)


def stained(n=40_000, h=(0.65, 0.70, 0.29), e=(0.07, 0.99, 0.11), seed=0):
    """Px of two known stains, mixed by Beer-Lambert; the published vectors of Ruifrok and Johnston 2001 by default."""
    rng = np.random.default_rng(seed)
    c = rng.exponential(0.6, (n, 2))
    density = c @ np.array([np.array(h) / np.linalg.norm(h), np.array(e) / np.linalg.norm(e)])
    return np.clip(np.rint(256 * np.exp(-density) - 1), 0, 255).astype(np.uint8).reshape(200, -1, 3)


@pytest.fixture(params=[True, False], ids=["numba", "numpy"])
def compiled(request, monkeypatch):
    if not request.param:
        monkeypatch.setitem(sys.modules, "wsiseg.normalize._cpu_stain", None)
    else:
        pytest.importorskip("numba")


def test_macenko_is_the_definition(compiled):
    ref = np.array(macenko.TARGET_STAINS).T
    stains = np.array(MACENKO.params[:6]).reshape(2, 3).T
    expected = macenko_pixel(COLORS, stains, np.array(MACENKO.params[6:]), ref, np.array(macenko.TARGET_MAX_C))
    assert np.abs(normalize(COLORS, MACENKO) - expected).max() <= 1


def test_reinhard_is_the_definition(compiled):
    p = np.array(REINHARD.params)
    expected = reinhard_pixel(COLORS, p[:3], p[3:], np.array(reinhard.TARGET_MEAN), np.array(reinhard.TARGET_STD))
    off = np.abs(normalize(COLORS, REINHARD) - expected)
    assert off.max() <= 1


@pytest.mark.parametrize("stain", [MACENKO, REINHARD, Stain()], ids=lambda s: s.method)
def test_a_pixel_is_independent_and_white_stays_white(stain, compiled):
    image = COLORS[:3600].reshape(60, 60, 3)
    whole = normalize(image, stain)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(normalize(image[7:41, 13:29], stain), whole[7:41, 13:29])
    white = np.full((5, 4, 3), 255, np.uint8)
    np.testing.assert_array_equal(normalize(white, stain), white)
    assert normalize(image[:0], stain).shape == (0, 60, 3)


def test_macenko_finds_known_stains():
    image = stained()
    stain = fit_stain("macenko", image, np.ones(image.shape[:2], bool))
    found = np.array(stain.params[:6]).reshape(2, 3)
    for vector, true in zip(found, ([0.65, 0.70, 0.29], [0.07, 0.99, 0.11]), strict=True):
        cosine = vector @ true / np.linalg.norm(vector) / np.linalg.norm(true)
        assert np.degrees(np.arccos(cosine)) < 4


def test_macenko_brings_two_scanners_together():
    one, two = stained(), stained(h=(0.55, 0.75, 0.36), e=(0.2, 0.95, 0.25))
    all_tissue = np.ones(one.shape[:2], bool)
    before = np.abs(one.astype(int) - two).mean()
    after = np.abs(
        normalize(one, fit_stain("macenko", one, all_tissue)).astype(int)
        - normalize(two, fit_stain("macenko", two, all_tissue))
    ).mean()
    assert after < before / 3


def test_macenko_reaches_the_image_that_it_aims_at():
    """Fitted again, a normalized slide has the stains and the 99th percentiles of the reference image."""
    slide, reference = stained(), stained(h=(0.55, 0.75, 0.36), e=(0.2, 0.95, 0.25), seed=1)
    all_tissue = np.ones(slide.shape[:2], bool)
    aim = fit_stain("macenko", reference, all_tissue).params
    stain = fit_stain("macenko", slide, all_tissue, aim)
    assert stain.params == (*fit_stain("macenko", slide, all_tissue).params, *aim)
    reached = fit_stain("macenko", normalize(slide, stain), all_tissue).params
    np.testing.assert_allclose(reached, aim, rtol=0.03, atol=0.01)  # eight bits
    assert np.abs(np.array(aim) - [*np.ravel(macenko.TARGET_STAINS), *macenko.TARGET_MAX_C]).max() > 0.1, "another aim"


def test_reinhard_reaches_the_image_that_it_aims_at():
    rng = np.random.default_rng(0)
    slide, reference = (
        rng.normal(c, (8, 7, 6), (200, 200, 3)).clip(0, 255).astype(np.uint8) for c in ((150, 90, 140), (120, 80, 150))
    )
    aim = fit_stain("reinhard", reference, np.ones((200, 200), bool)).params
    reached = reinhard.fit(normalize(slide, fit_stain("reinhard", slide, np.ones((200, 200), bool), aim)).reshape(-1, 3))
    np.testing.assert_allclose(reached[:3], aim[:3], atol=0.01)
    np.testing.assert_allclose(reached[3:], aim[3:], rtol=0.1)


def test_reinhard_reaches_the_targets_moments():
    # Mild stain only: nothing clips and nothing is near glass, so the moments must come out exactly (but for rounding).
    rng = np.random.default_rng(0)
    image = rng.normal((150, 90, 140), (8, 7, 6), (200, 200, 3)).clip(0, 255).astype(np.uint8)
    stain = fit_stain("reinhard", image, np.ones((200, 200), bool))
    moments = reinhard.fit(normalize(image, stain).reshape(-1, 3))
    gain = np.minimum(np.array(reinhard.TARGET_STD) / stain.params[3:], 3)
    np.testing.assert_allclose(moments[:3], reinhard.TARGET_MEAN, atol=0.01)
    np.testing.assert_allclose(moments[3:], gain * stain.params[3:], rtol=0.1)


def test_the_reinhard_target_is_the_demo_slide():
    from wsiseg.read import fit_tissue, open_slide, stain_sample

    slide = open_slide(DEMO)
    rgb, tissue = stain_sample(slide, fit_tissue(slide), 1.0)
    params = fit_stain("reinhard", rgb, tissue).params
    # the numbers are fixed, as every result in this stain depends on them; the mask they were taken under has grown a little
    np.testing.assert_allclose(params, (*reinhard.TARGET_MEAN, *reinhard.TARGET_STD), atol=5e-3)
    target = Stain("reinhard", (*reinhard.TARGET_MEAN, *reinhard.TARGET_STD))
    assert np.abs(normalize(rgb, target).astype(int) - rgb).max() <= 1, "what is the target already stays as it is"


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_too_little_to_fit_leaves_the_slide_as_it_is(method):
    image = stained()
    nothing = np.zeros(image.shape[:2], bool)
    assert fit_stain(method, image, nothing) == Stain()
    assert fit_stain(method, np.full_like(image, 255), ~nothing) == Stain()
    assert fit_stain(method, np.full_like(image, 128), ~nothing) == Stain()
    assert fit_stain(method, np.empty((0, 128, 3), np.uint8), np.empty((0, 128), bool)) == Stain()


def test_one_stain_is_not_two():
    image = stained(e=(0.65, 0.70, 0.29))
    assert fit_stain("macenko", image, np.ones(image.shape[:2], bool)) == Stain()


def test_wrong_requests():
    with pytest.raises(ConfigError, match="vahadane"):
        fit_stain("vahadane", np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), bool))
    with pytest.raises(ConfigError, match=r"\(3, 2\)"):
        fit_stain("macenko", np.zeros((2, 2, 3), np.uint8), np.ones((3, 2), bool))
    with pytest.raises(ConfigError, match="reference of 8 numbers, got 6"):
        fit_stain("macenko", stained(), np.ones(stained().shape[:2], bool), REINHARD.params)


def test_macenko_is_the_same_with_and_without_numba(monkeypatch):
    pytest.importorskip("numba")
    fast = normalize(COLORS, MACENKO)
    monkeypatch.setitem(sys.modules, "wsiseg.normalize._cpu_stain", None)
    np.testing.assert_array_equal(normalize(COLORS, MACENKO), fast)

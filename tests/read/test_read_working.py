from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.plane import working_pixel
from wsiseg.errors import ConfigError
from wsiseg.read import ArraySlide, open_slide, read_working, scale_for, working_size
from wsiseg.read import working as working_module
from wsiseg.read.working import best_level
from wsiseg.types import Box

DEMO = Path(__file__).parents[2] / "wsiseg/demo/atlas_metaplasia_HE_crop.svs"
PIXELS = np.random.default_rng(0).integers(0, 256, (60, 84, 3), np.uint8)
PLAIN = ArraySlide(PIXELS, mpp=0.25)
PYRAMID = ArraySlide(PIXELS, mpp=0.25, coarser=(PIXELS[1::2, 1::2], PIXELS[2::4, 2::4]))
SCALES = [2.0, 1.996, 1.21, 0.88, 0.5, 0.499, 0.26, 0.125]


@pytest.mark.parametrize(
    ("mpp", "tolerance", "expected"),
    [
        (0.25, 0.1, 1.0),
        (0.2528, 0.1, 1.0),
        (0.275, 0.1, 1.0),
        (0.225, 0.1, 1.0),
        (0.2751, 0.1, 1.1004),
        (0.5, 0.1, 2.0),
        (0.26, 0, 1.04),
    ],
)
def test_scale(mpp, tolerance, expected):
    assert scale_for(mpp, 0.25, tolerance) == pytest.approx(expected, rel=1e-12)


def test_scale_refuses_what_is_no_resolution():
    with pytest.raises(ConfigError):
        scale_for(0.0, 0.25, 0.1)


@pytest.mark.parametrize("scale", SCALES)
def test_values_are_the_triangle_filters(scale):
    got = read_working(PLAIN, Box(-3, -2, 200, 150), scale)
    for x, y in [(0, 0), (3, 2), (4, 2), (9, 7), (12, 13), (20, 30), (45, 11), (80, 60), (199, 149)]:
        expected = working_pixel(PIXELS, x - 3, y - 2, 1 / scale)
        # 14-bit weights and an intermediate in 1/256 grey levels
        np.testing.assert_allclose(got[y, x], expected, atol=0.56)


def test_scale_one_is_level_zero():
    box = Box(-7, 3, 100, 40)
    np.testing.assert_array_equal(read_working(PLAIN, box, 1.0), PLAIN.read_level(0, -7, 3, 100, 40))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SCALES),
    st.tuples(st.integers(-40, 90), st.integers(-40, 90), st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(-40, 90), st.integers(-40, 90), st.integers(1, 60), st.integers(1, 60)),
    st.booleans(),
)
def test_a_pixel_does_not_depend_on_the_window(scale, a, b, pyramid):
    slide = PYRAMID if pyramid else PLAIN
    one, two = Box(*a), Box(*b)
    x0, y0, x1, y1 = max(one.x, two.x), max(one.y, two.y), min(one.x1, two.x1), min(one.y1, two.y1)
    first, second = read_working(slide, one, scale), read_working(slide, two, scale)
    assert first.shape == (one.h, one.w, 3)
    if x1 > x0 and y1 > y0:
        np.testing.assert_array_equal(
            first[y0 - one.y : y1 - one.y, x0 - one.x : x1 - one.x], second[y0 - two.y : y1 - two.y, x0 - two.x : x1 - two.x]
        )


def test_nor_on_the_window_on_a_real_pyramid():
    slide = open_slide(DEMO)
    for scale in (0.22, 0.7):
        whole = read_working(slide, Box(0, 0, 700, 600), scale)
        np.testing.assert_array_equal(read_working(slide, Box(333, 217, 301, 299), scale), whole[217:516, 333:634])


def test_nor_on_how_much_is_decoded_at_once(monkeypatch):
    whole = read_working(PLAIN, Box(-5, -5, 60, 50), 0.5)
    monkeypatch.setattr(working_module, "_MAX_SOURCE_PX", 1000)
    np.testing.assert_array_equal(read_working(PLAIN, Box(-5, -5, 60, 50), 0.5), whole)


@pytest.mark.parametrize("scale", SCALES)
def test_compiled_and_numpy_agree(scale, monkeypatch):
    pytest.importorskip("numba")
    box = Box(-9, -4, 70, 50)
    compiled = read_working(PLAIN, box, scale)
    monkeypatch.setattr(working_module, "_resample", working_module._resample_numpy)
    np.testing.assert_array_equal(read_working(PLAIN, box, scale), compiled)


def test_white_and_outside_stay_white():
    white = ArraySlide(np.full((50, 50, 3), 255, np.uint8), mpp=0.25)
    for scale in SCALES:
        assert (read_working(white, Box(-20, -20, 200, 200), scale) == 255).all()
        assert (read_working(PLAIN, Box(1000, 1000, 20, 20), scale) == 255).all()
    assert read_working(PLAIN, Box(0, 0, 0, 5), 0.5).shape == (5, 0, 3)


def test_coarsest_level_that_is_fine_enough():
    meta = PYRAMID.meta
    assert [best_level(meta, s) for s in (2.0, 0.9, 0.51, 0.5, 0.3, 0.25, 0.1)] == [0, 0, 0, 1, 1, 2, 2]
    odd = ArraySlide(PIXELS, mpp=0.25).meta
    object.__setattr__(odd, "level_downsamples", (1.0, 1.999))
    assert best_level(odd, 0.25) == 0


@pytest.mark.parametrize("scale", SCALES)
def test_working_size_covers_the_slide(scale):
    width, height = working_size(PLAIN.meta, scale)
    for n, full in ((width, 84), (height, 60)):
        assert n / scale >= full - 1e-3
        assert (n - 1) / scale < full

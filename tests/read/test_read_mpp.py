import numpy as np
import pytest
import tifffile

from wsiseg.errors import AnisotropicMppError, InputError, MissingMppError
from wsiseg.read import open_slide
from wsiseg.read.mpp import resolve_mpp, tag_mpp

FULL = {
    "openslide.mpp-x": "0.2528",
    "openslide.mpp-y": "0.2528",
    "tiff.XResolution": "20000",
    "tiff.YResolution": "20000",
    "tiff.ResolutionUnit": "centimeter",
    "openslide.objective-power": "40",
}


def without(*prefixes):
    return {k: v for k, v in FULL.items() if not k.startswith(prefixes)}


@pytest.mark.parametrize(
    ("properties", "user", "expected"),
    [
        (FULL, 0.3, (0.3, "user")),
        (FULL, None, (0.2528, "openslide")),
        (without("openslide.mpp"), None, (0.5, "tiff")),
        (without("openslide.mpp", "tiff"), None, (0.25, "objective")),
        ({"openslide.objective-power": "20"}, None, (0.5, "objective")),
        ({**FULL, "openslide.mpp-x": "nan", "openslide.mpp-y": "0"}, None, (0.5, "tiff")),
    ],
)
def test_the_ladder_takes_the_first_step_that_holds(properties, user, expected):
    assert resolve_mpp(properties, user_mpp=user, vendor="aperio", where="x") == pytest.approx(expected)


@pytest.mark.parametrize("dpi", [1, 72, 96, 300, 600])
def test_resolutions_of_screens_and_printers_are_no_mpp(dpi):
    assert tag_mpp(dpi, "inch") is None


def test_tag_units():
    assert tag_mpp(50800, "inch") == pytest.approx(0.5)
    assert tag_mpp(20000, "centimeter") == pytest.approx(0.5)
    assert tag_mpp(20000, "none") is None
    assert tag_mpp(0, "inch") is None
    assert tag_mpp("much", "inch") is None


def test_missing_mpp_names_option_and_column():
    with pytest.raises(MissingMppError, match=r"slide s1.*--mpp.*column 'mpp'"):
        resolve_mpp({}, user_mpp=None, vendor="", where="slide s1")


def test_anisotropic_only_beyond_one_percent_and_never_against_the_user():
    near = {"openslide.mpp-x": "0.2500", "openslide.mpp-y": "0.2524"}
    far = {"openslide.mpp-x": "0.2500", "openslide.mpp-y": "0.2530"}
    assert resolve_mpp(near, user_mpp=None, vendor="aperio", where="x")[0] == pytest.approx(0.2512)
    with pytest.raises(AnisotropicMppError, match=r"0\.25 and 0\.253.*--mpp"):
        resolve_mpp(far, user_mpp=None, vendor="aperio", where="x")
    assert resolve_mpp(far, user_mpp=0.25, vendor="aperio", where="x") == (0.25, "user")


@pytest.mark.parametrize("value", [0.0, -0.25, float("nan"), float("inf")])
def test_impossible_user_value(value):
    with pytest.raises(InputError, match="positive"):
        resolve_mpp(FULL, user_mpp=value, vendor="aperio", where="x")


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [
        ((40000, 40000), "CENTIMETER", 0.25),
        ((50800, 50800), "INCH", 0.5),
        ((72, 72), "INCH", None),
        ((40000, 20000), "CENTIMETER", -1),
    ],
)
def test_tiff_tags_in_real_files(tmp_path, tiled, resolution, unit, mpp):
    path = tmp_path / "s.tif"
    tile = {"tile": (64, 64)} if tiled else {}
    tifffile.imwrite(
        path,
        np.full((200, 300, 3), 200, np.uint8),
        photometric="rgb",
        resolution=resolution,
        resolutionunit=unit,
        metadata=None,
        **tile,
    )
    if mpp is None:
        with pytest.raises(MissingMppError):
            open_slide(path)
    elif mpp < 0:
        with pytest.raises(AnisotropicMppError):
            open_slide(path)
    else:
        slide = open_slide(path)
        assert (slide.meta.mpp, slide.meta.mpp_source) == (pytest.approx(mpp), "tiff")
        assert (slide.meta.width_px, slide.meta.height_px) == (300, 200)
    assert open_slide(path, mpp=0.37).meta.mpp_source == "user"

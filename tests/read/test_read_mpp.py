import numpy as np
import pytest
import tifffile
from PIL import Image

from wsiseg.errors import AnisotropicMppError, ImplausibleMppError, InputError, MissingMppError
from wsiseg.read import open_slide
from wsiseg.read._mpp_text import um_per_unit
from wsiseg.read.mpp import resolve_mpp, tag_claim

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
        ({**FULL, "openslide.mpp-x": "nan", "openslide.mpp-y": "0"}, None, (0.5, "tiff")),
    ],
)
def test_the_ladder_takes_the_first_step_that_holds(properties, user, expected):
    found = resolve_mpp(properties, user_mpp=user, vendor="aperio", where="x")
    assert (found.value, found.source) == pytest.approx(expected)


@pytest.mark.parametrize("dpi", [1, 72, 96, 300, 600])
def test_resolutions_of_screens_and_printers_are_no_mpp(dpi):
    assert tag_claim(dpi, dpi, "inch") is None


def test_tag_units():
    assert (claim := tag_claim(50800, 50800, "inch")) is not None
    assert (claim.x, claim.y) == pytest.approx((0.5, 0.5))
    assert (claim := tag_claim(20000, 20000, "centimeter")) is not None
    assert (claim.x, claim.y) == pytest.approx((0.5, 0.5))
    assert tag_claim(20000, 20000, "none") is None
    assert tag_claim(0, 0, "inch") is None
    assert tag_claim("much", "much", "inch") is None


def test_missing_mpp_names_option_and_column():
    with pytest.raises(MissingMppError, match=r"slide s1.*--mpp.*column 'mpp'"):
        resolve_mpp({}, user_mpp=None, vendor="", where="slide s1")


def test_anisotropic_only_beyond_one_percent_and_never_against_the_user():
    near = {"openslide.mpp-x": "0.2500", "openslide.mpp-y": "0.2524"}
    far = {"openslide.mpp-x": "0.2500", "openslide.mpp-y": "0.2530"}
    assert resolve_mpp(near, user_mpp=None, vendor="aperio", where="x").value == pytest.approx(0.2512)
    with pytest.raises(AnisotropicMppError, match=r"0\.25 and 0\.253.*--mpp"):
        resolve_mpp(far, user_mpp=None, vendor="aperio", where="x")
    found = resolve_mpp(far, user_mpp=0.25, vendor="aperio", where="x")
    assert (found.value, found.source) == (0.25, "user")
    assert "0.25 x 0.253" in found.note


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


RGB = np.random.default_rng(0).integers(100, 255, (90, 130, 3), np.uint8)


def write(path, pixels=RGB, *, tiled=False, resolution=None, unit=None, description=None, **more):
    extra = {"tile": (64, 64)} if tiled else {}
    if resolution is not None:
        extra |= {"resolution": resolution, "resolutionunit": unit}
    metadata = more.pop("metadata", None)
    tifffile.imwrite(path, pixels, photometric="rgb", description=description, metadata=metadata, **extra, **more)
    return path


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        ("µm", 1), ("\u03bcm", 1), ("um", 1), ("micron", 1), ("Microns", 1), ("\\u00B5m", 1), ("Âµm", 1), ("micrometre", 1),
        ("nm", 1e-3), ("mm", 1e3), ("cm", 1e4), ("m", 1e6), ("pm", 1e-6), ("Å", 1e-4), ("\u212b", 1e-4), ("inch", 25400),
        ("inches", 25400), ("in", 25400), ("pixel", None), ("", None), ("reference frame", None), ("Mm", None),
    ],
)  # fmt: skip
def test_units(unit, um):
    assert um_per_unit(unit) == (None if um is None else pytest.approx(um))


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    ("size", "unit"),
    [(0.25, "µm"), (250.0, "nm"), (0.00025, "mm"), (0.000025, "cm"), (2500.0, "Å"), (0.25 / 25400, "in"), (0.25, None)],
)
def test_ome_xml_in_every_unit(tmp_path, size, unit, tiled):
    ome = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit:
        ome |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit}
    path = write(tmp_path / "s.ome.tif", metadata=ome, tiled=tiled, resolution=(1, 1), unit=1)
    meta = open_slide(path).meta
    assert (meta.mpp, meta.mpp_source, meta.mpp_note) == (pytest.approx(0.25), "ome", "")


def test_ome_xml_without_a_length_states_nothing(tmp_path):
    ome = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "pixel"}
    ome |= {"PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "pixel"}
    with pytest.raises(MissingMppError):
        open_slide(write(tmp_path / "s.ome.tif", metadata=ome))


def test_the_size_of_the_image_that_is_read_not_of_another(tmp_path):
    path = tmp_path / "s.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as out:
        for name, pixels, mpp in (("label image", RGB[:30, :40], 8.0), ("scan", RGB, 0.25)):
            out.write(pixels, photometric="rgb", metadata={"Name": name, "PhysicalSizeX": mpp, "PhysicalSizeY": mpp})
    slide = open_slide(path)
    assert (slide.meta.mpp, slide.meta.mpp_source) == (0.25, "ome")
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 130, 90), RGB)


@pytest.mark.parametrize(
    ("unit", "per_unit"),
    [("micron", 4), ("\\u00B5m", 4), ("um", 4), ("nm", 0.004), ("mm", 4000), ("cm", 40000), ("inch", 101600)],
)
def test_imagej_unit(tmp_path, unit, per_unit):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, RGB, imagej=True, resolution=(per_unit, per_unit), metadata={"unit": unit})
    meta = open_slide(path).meta
    assert (meta.mpp, meta.mpp_source) == (pytest.approx(0.25), "imagej")


APERIO = "Aperio Image Library v12.0.0\r\n900x800 [100,100 300x260] (256x256) LZW|AppMag = 40|MPP = "


@pytest.mark.parametrize(("text", "mpp"), [("0.2500", 0.25), ("0,5", 0.5), ("0.2500|Left = 3", 0.25)])
def test_aperio_text_in_a_stripped_tiff(tmp_path, text, mpp):
    meta = open_slide(write(tmp_path / "s.tif", description=APERIO + text)).meta
    assert (meta.mpp, meta.mpp_source) == (mpp, "aperio")


def test_aperio_text_of_a_shrunk_picture_is_scaled(tmp_path):
    text = "Aperio Image Library v12\r\n1500x900 [100,50 1300x900] (256x256) -> 130x90 JPEG|AppMag = 40|MPP = 0.025"
    assert open_slide(write(tmp_path / "s.tif", description=text)).meta.mpp == pytest.approx(0.25)


@pytest.mark.parametrize("text", [APERIO.split("|MPP", maxsplit=1)[0], APERIO + "0"])
def test_an_objective_of_the_scanner_is_the_last_step_and_reported(tmp_path, text):
    meta = open_slide(write(tmp_path / "s.svs", description=text, tiled=True)).meta
    assert (meta.mpp, meta.mpp_source) == (0.25, "objective")
    assert "40x" in meta.mpp_note
    assert "--mpp" in meta.mpp_note


@pytest.mark.parametrize("text", [APERIO.split("|MPP", maxsplit=1)[0], APERIO + "0"])
def test_a_magnification_in_a_text_of_another_picture_is_never_taken(tmp_path, text):
    path = write(tmp_path / "s.tif", description=text, tiled=False)  # it may have been shrunk since
    with pytest.raises(MissingMppError, match="--mpp"):
        open_slide(path)
    assert open_slide(path, mpp=0.25).meta.mpp_source == "user"


VIPS = """<?xml version="1.0"?><image xmlns="http://www.vips.ecs.soton.ac.uk//dzsave" date="x" version="8.15"><properties>
<property><name>openslide.mpp-x</name><value type="VipsRefString">0.25</value></property>
<property><name>openslide.mpp-y</name><value type="VipsRefString">0.25</value></property>
<property><name>openslide.level[0].width</name><value type="VipsRefString">%d</value></property></properties></image>"""


def test_libvips_text_and_a_part_of_its_scan(tmp_path):
    meta = open_slide(write(tmp_path / "s.tif", description=VIPS % 130)).meta
    assert (meta.mpp, meta.mpp_source, meta.mpp_note) == (0.25, "vips", "")
    path = write(tmp_path / "half.tif", description=VIPS % 260, resolution=(20000, 20000), unit=3)
    assert "260 px wide" in open_slide(path).meta.mpp_note
    assert "0.5" in open_slide(path).meta.mpp_note


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    ("resolution", "unit", "said"),
    [
        ((400000, 400000), 3, r"0\.025 .*0\.1 to 2.*factor 10 .*0\.25.*--mpp 0\.025 confirms"),
        ((2400, 2400), 2, r"10\.58 .*factor"),
        ((2000, 2000), 3, r"\b5 .*factor 10 .*0\.5"),
    ],
)
def test_no_microscopes_scale_is_refused(tmp_path, resolution, unit, said, tiled):
    path = write(tmp_path / "s.tif", resolution=resolution, unit=unit, tiled=tiled)
    with pytest.raises(ImplausibleMppError, match=said):
        open_slide(path)
    assert open_slide(path, mpp=0.03).meta.mpp == 0.03


def test_a_thousandth_in_ome_xml_is_refused(tmp_path):
    path = write(tmp_path / "s.ome.tif", metadata={"axes": "YXS", "PhysicalSizeX": 0.00025, "PhysicalSizeY": 0.00025})
    with pytest.raises(ImplausibleMppError, match=r"OME-XML.*1000"):
        open_slide(path)


def test_statements_that_disagree_are_reported(tmp_path):
    ome = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    meta = open_slide(write(tmp_path / "s.ome.tif", metadata=ome, resolution=(20000, 20000), unit=3, tiled=True)).meta
    assert (meta.mpp, meta.mpp_source) == (0.25, "ome")
    assert "0.25 by OME-XML" in meta.mpp_note
    assert "TIFF resolution tags 0.5" in meta.mpp_note
    said = open_slide(tmp_path / "s.ome.tif", mpp=0.5).meta.mpp_note
    assert "0.5 by the user" in said
    assert "OME-XML PhysicalSizeX/Y 0.25" in said


def test_one_axis_alone_is_no_resolution(tmp_path):
    with pytest.raises(AnisotropicMppError, match="10000"):
        open_slide(write(tmp_path / "s.tif", resolution=(40000, 1), unit=3))


def test_a_resolution_without_unit_is_named(tmp_path):
    with pytest.raises(MissingMppError, match="4 without a unit"):
        open_slide(write(tmp_path / "s.tif", resolution=(4, 4), unit=1))


def test_resolution_of_png_and_jpeg(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "s.png", dpi=(50800, 50800))
    meta = open_slide(tmp_path / "s.png").meta
    assert (meta.mpp, meta.mpp_source) == (pytest.approx(0.5, rel=1e-4), "image")
    Image.fromarray(RGB).save(tmp_path / "s.jpg", dpi=(50800, 50800))
    assert open_slide(tmp_path / "s.jpg").meta.mpp == pytest.approx(0.5, rel=1e-4)
    Image.fromarray(RGB).save(tmp_path / "screen.png", dpi=(96, 96))
    with pytest.raises(MissingMppError):
        open_slide(tmp_path / "screen.png")


def test_hostile_texts_are_no_statement(tmp_path):
    bomb = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]><OME>&a;</OME>'
    with pytest.raises(MissingMppError):
        open_slide(write(tmp_path / "s.tif", description=bomb))


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(
    "text", ['{"mpp": 0.25}', '{"objective": 40, "mpp": 0.25, "site": "A"}', "appmag=40|mpp=0.25", "MPP: 0,25;x=1"]
)
def test_mpp_as_scripts_write_it(tmp_path, text, tiled):
    path, pixels = tmp_path / "s.tif", np.full((70, 80, 3), 200, np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, description=text, **({"tile": (64, 64)} if tiled else {}))
    slide = open_slide(path)
    assert slide.meta.mpp == 0.25


def test_an_aperio_text_that_openslide_cannot_split_still_states_its_mpp(tmp_path):
    text = "Aperio Image Library v12\r\n80x70 [0,0 80x70] (64x64)\nAppMag = 20\nMPP = 0.31"
    pixels = np.full((70, 80, 3), 200, np.uint8)
    tifffile.imwrite(tmp_path / "s.svs", pixels, photometric="rgb", metadata=None, description=text, tile=(64, 64))
    slide = open_slide(tmp_path / "s.svs")
    assert (slide.meta.vendor, slide.meta.mpp) == ("aperio", 0.31)

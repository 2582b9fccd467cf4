"""One crop in every layout that files have: the same pixels by whichever reader, or refused with its samples and bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiseg.errors import AnisotropicMppError, SlideOpenError, TileReadError
from wsiseg.read import fit_tissue, open_slide
from wsiseg.read.layout import picture_of
from wsiseg.read.samples import Depth, depth_of, to_u8


def crop(h=150, w=170):
    """Return stained tissue beside glass, smooth enough for lossy codecs, with values that name their place."""
    y, x = np.mgrid[:h, :w]
    wave = 60 * np.sin(x / 9) * np.cos(y / 7)
    rgb = np.stack([190 + wave / 2, 120 + wave, 180 + wave / 3], axis=2)
    rgb[:, : w // 4] = (250, 249, 251)
    rgb[:5] = (10, 128, 255)
    return np.clip(rgb, 0, 255).astype(np.uint8)


ROOT = Path(__file__).resolve().parents[2]
RGB = crop()
H, W = RGB.shape[:2]
PLANES = np.moveaxis(RGB, 2, 0).copy()
TILED = {"tile": (64, 48)}


def write(path, pixels, **options):
    tifffile.imwrite(path, pixels, **{"photometric": "rgb", "metadata": None, **options})
    return path


def shown(path, **options):
    slide = open_slide(path, mpp=0.5, **options)
    w, h = slide.meta.width_px, slide.meta.height_px
    whole = slide.read_level(0, 0, 0, w, h)
    part = slide.read_level(0, 33, 21, 90, 77)  # across tiles and strips
    np.testing.assert_array_equal(part, whole[21:98, 33:123])
    outside = slide.read_level(0, -3, -2, 10, 9)
    assert (outside[:2] == 255).all()
    np.testing.assert_array_equal(outside[2:, 3:], whole[:7, :7])
    slide.close()
    return whole


def ome(**more):
    return {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, **more}


LAYOUTS = {
    "plain": (RGB, {}),
    "planar": (PLANES, {"planarconfig": "separate"}),
    "16 bits": (RGB.astype(np.uint16) * 257, {}),
    "16 bits, by 256": (RGB.astype(np.uint16) * 256, {}),
    "16 bits planar": (PLANES.astype(np.uint16) * 257, {"planarconfig": "separate"}),
    "8 bits in 16": (RGB.astype(np.uint16), {}),
    "10 bits in 16": (RGB.astype(np.uint16) * 4, {}),
    "12 bits in 16": (RGB.astype(np.uint16) * 16, {}),
    "12 bits in 16, rounded": (np.rint(RGB * (4095 / 255)).astype(np.uint16), {}),
    "14 bits in 16": (RGB.astype(np.uint16) * 64, {}),
    "32 bits": (RGB.astype(np.uint32) << 24, {}),
    "float of 1": ((RGB / 255).astype(np.float32), {}),
    "double of 1": (RGB / 255, {}),
    "half of 1": ((RGB / 255).astype(np.float16), {}),
    "float of 255": (RGB.astype(np.float32), {}),
    "tagged gray": (RGB, {"photometric": "minisblack", "planarconfig": "contig"}),
    "tagged gray, 16 bits": (RGB.astype(np.uint16) * 257, {"photometric": "minisblack", "planarconfig": "contig"}),
    "opaque alpha": (np.dstack([RGB, np.full((H, W), 255, np.uint8)]), {"extrasamples": ["unassalpha"]}),
    "a fourth sample": (np.dstack([RGB, RGB[..., 0]]), {"extrasamples": ["unspecified"]}),
    "ome pages": (PLANES, {"photometric": "minisblack", "metadata": ome(), "ome": True}),
    "ome pages, named": (
        PLANES,
        {"photometric": "minisblack", "metadata": ome(Channel={"Name": ["R", "G", "B"]}), "ome": True},
    ),
    "ome pages, reversed": (
        PLANES[::-1],
        {"photometric": "minisblack", "metadata": ome(Channel={"Name": ["Blue", "Green", "Red"]}), "ome": True},
    ),
    "ome pages, 12 bits": (PLANES.astype(np.uint16) * 16, {"photometric": "minisblack", "metadata": ome(), "ome": True}),
    "ome of one scene, plane and time": (
        PLANES[None, None],
        {"photometric": "minisblack", "metadata": ome(axes="TZCYX"), "ome": True},
    ),
    "ome interleaved": (RGB, {"metadata": ome(axes="YXS"), "ome": True}),
    "ome planar": (PLANES, {"planarconfig": "separate", "metadata": ome(axes="SYX"), "ome": True}),
}


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_pixels_in_every_layout(tmp_path, name, tiled, compression):
    pixels, options = LAYOUTS[name]
    options = {**options, **(TILED if tiled else {"rowsperstrip": 40}), "compression": compression}
    if compression == "deflate" and pixels.dtype.kind == "u":
        options["predictor"] = True
    np.testing.assert_array_equal(shown(write(tmp_path / "s.tif", pixels, **options)), RGB)


@pytest.mark.parametrize("compression", ["zstd", "lzma", "packbits", "webp", "jpegxl", "jpeg2000", "png"])
@pytest.mark.parametrize("tiled", [False, True])
def test_lossless_compressions(tmp_path, compression, tiled):
    options = TILED if tiled else {"rowsperstrip": 40}
    np.testing.assert_array_equal(shown(write(tmp_path / "s.tif", RGB, compression=compression, **options)), RGB)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("planes", [False, True])
def test_jpeg_within_its_loss(tmp_path, tiled, planes):
    options = {"compression": "jpeg", "compressionargs": {"level": 98}, **(TILED if tiled else {})}
    if planes:
        options |= {"photometric": "minisblack", "metadata": ome(), "ome": True}
    got = shown(write(tmp_path / "s.tif", PLANES if planes else RGB, **options))
    assert np.abs(got.astype(int) - RGB).mean() < 3


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_byte_orders_and_bigtiff(tmp_path, byteorder, bigtiff, tiled):
    for pixels in (RGB, RGB.astype(np.uint16) * 257):
        path = write(tmp_path / "s.tif", pixels, byteorder=byteorder, bigtiff=bigtiff, **(TILED if tiled else {}))
        np.testing.assert_array_equal(shown(path), RGB)


def stored_as(pixels, orientation):
    """Return what a file with an Orientation tag stores so that it shows ``pixels`` (TIFF 6.0: where row and column 0 lie)."""
    back = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }  # fmt: skip
    return np.ascontiguousarray(back[orientation](pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["strips", "tiles", "16-bit tiles", "pages", "jpg", "png", "webp"])
def test_orientation_is_followed_by_every_reader(tmp_path, kind, orientation):
    pixels = stored_as(RGB, orientation)
    tag = {"extratags": [(274, "H", 1, orientation, True)]}
    if kind in ("jpg", "png", "webp"):
        exif = Image.Exif()
        exif[0x112] = orientation
        options = {"quality": 98, "subsampling": 0} if kind == "jpg" else {"lossless": True} if kind == "webp" else {}
        Image.fromarray(pixels).save(tmp_path / f"s.{kind}", exif=exif, **options)
        got = shown(tmp_path / f"s.{kind}")
        assert np.abs(got.astype(int) - RGB).mean() < (2 if kind == "jpg" else 1e-9)
        return
    if kind == "pages":
        planes = np.moveaxis(pixels, 2, 0)
        path = tmp_path / "s.ome.tif"
        tifffile.imwrite(path, planes, photometric="minisblack", metadata=ome(), **TILED, **tag)
    elif kind == "16-bit tiles":
        path = write(tmp_path / "s.tif", pixels.astype(np.uint16) * 257, **TILED, **tag)
    else:
        path = write(tmp_path / "s.tif", pixels, **(TILED if kind == "tiles" else {"rowsperstrip": 40}), **tag)
    np.testing.assert_array_equal(shown(path), RGB)


@pytest.mark.parametrize("kind", ["strips", "tiles", "png"])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_alpha_is_over_white(tmp_path, kind, premultiplied):
    alpha = np.full((H, W), 255, np.uint8)
    alpha[:20], alpha[20:40] = 0, 128
    colour = RGB
    share = alpha[..., None] / 255
    expected = np.where(alpha[..., None] == 0, 255, RGB * share + 255 * (1 - share))
    if premultiplied:
        if kind == "png":
            pytest.skip("PNG knows no premultiplied alpha")
        colour = np.rint(RGB * share).astype(np.uint8)
    rgba = np.dstack([colour, alpha])
    if kind == "png":
        Image.fromarray(rgba).save(tmp_path / "s.png")
        got = shown(tmp_path / "s.png")
    else:
        extra = "assocalpha" if premultiplied else "unassalpha"
        got = shown(write(tmp_path / "s.tif", rgba, extrasamples=[extra], **(TILED if kind == "tiles" else {})))
    assert np.abs(got - expected).max() <= 1


@pytest.mark.parametrize("tiled", [False, True])
def test_palettes(tmp_path, tiled):
    image = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=200)
    expected = np.asarray(image.convert("RGB"))
    image.save(tmp_path / "s.png")
    np.testing.assert_array_equal(shown(tmp_path / "s.png"), expected)
    colours = np.zeros((256, 3), np.uint16)
    given = np.asarray(image.getpalette(), np.uint16).reshape(-1, 3)
    colours[: len(given)] = given * 257
    options = {"photometric": "palette", "colormap": colours.T, **(TILED if tiled else {})}
    np.testing.assert_array_equal(shown(write(tmp_path / "s.tif", np.asarray(image), **options)), expected)


@pytest.mark.parametrize("tiled", [False, True])
def test_cmyk_as_pillow_shows_it(tmp_path, tiled):
    inks = Image.fromarray(RGB).convert("CMYK")
    expected = np.asarray(inks.convert("RGB"))
    path = write(tmp_path / "s.tif", np.asarray(inks), photometric="separated", **(TILED if tiled else {}))
    np.testing.assert_array_equal(shown(path), expected)
    inks.save(tmp_path / "s.jpg", quality=98)
    assert np.abs(shown(tmp_path / "s.jpg").astype(int) - RGB).mean() < 3


@pytest.mark.parametrize("suffix", ["png", "bmp", "jp2", "webp"])
def test_pictures_that_pillow_reads(tmp_path, suffix):
    Image.fromarray(RGB).save(tmp_path / f"s.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(shown(tmp_path / f"s.{suffix}"), RGB)


REFUSED = {
    "gray": (RGB[..., 1], {"photometric": "minisblack"}, "1 sample of 8 bits, MINISBLACK.*gray"),
    "inverted gray": (255 - RGB[..., 1], {"photometric": "miniswhite"}, "1 sample of 8 bits, MINISWHITE.*gray"),
    "gray of 16 bits": (RGB[..., 1].astype(np.uint16) * 257, {"photometric": "minisblack"}, "1 sample of 16 bits"),
    "gray and alpha": (RGB[..., :2], {"photometric": "minisblack", "planarconfig": "contig"}, "2 samples of 8 bits"),
    "bilevel": (RGB[..., 1] > 128, {"photometric": "minisblack"}, "1 sample of 1 bit,"),
    "four, tagged gray": (
        np.dstack([RGB, RGB[..., 0]]), {"photometric": "minisblack", "planarconfig": "contig"}, "4 samples of 8 bits.*stated",
    ),
    "signed": (RGB.astype(np.int16), {}, "3 samples of 16 signed bits"),
    "complex": (RGB[..., 0].astype(np.complex64), {"photometric": "minisblack"}, "1 sample of 64 complex bits"),
    "float of thousands": (RGB.astype(np.float32) * 16, {}, "3 samples of 32 floating point bits.*between"),
    "cielab": (RGB, {"photometric": "cielab"}, "3 samples of 8 bits, CIELAB"),
    "three inverted": (RGB, {"photometric": "miniswhite", "planarconfig": "contig"}, "3 samples of 8 bits, MINISWHITE"),
    "fluorescence, named": (
        PLANES, {"photometric": "minisblack", "metadata": ome(Channel={"Name": ["DAPI", "CD3", "CD8"]}), "ome": True},
        "3 samples of 8 bits.*3 pages.*DAPI, CD3, CD8.*fluorescence",
    ),
    "fluorescence, unnamed": (
        PLANES // 5, {"photometric": "minisblack", "metadata": ome(), "ome": True}, "3 pages.*bright in all",
    ),
    "five channels": (
        np.concatenate([PLANES, PLANES[:2]]), {"photometric": "minisblack", "metadata": ome(), "ome": True}, "5 pages",
    ),
    "ome gray": (RGB[..., 1], {"photometric": "minisblack", "metadata": ome(axes="YX"), "ome": True}, "1 sample of 8 bits"),
    "focal planes": (
        np.stack([RGB] * 4), {"metadata": {"axes": "ZYXS"}, "ome": True}, "stack .*Z 4",
    ),
    "times": (np.stack([PLANES] * 2), {"photometric": "minisblack", "metadata": {"axes": "TCYX"}, "ome": True}, "stack .*T 2"),
    "pages without words": (PLANES, {"photometric": "minisblack"}, "3 pages of 170 x 150 px"),
    "two fields": (np.stack([RGB] * 2), {}, "2 pages of 170 x 150 px"),
}  # fmt: skip


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_colour_picture_is_refused_with_its_samples(tmp_path, name, tiled):
    pixels, options, reported = REFUSED[name]
    path = write(tmp_path / "s.tif", pixels, **options, **(TILED if tiled else {}))
    with pytest.raises(SlideOpenError, match=f"(?s){reported}"):
        open_slide(path, mpp=0.5)


def test_gray_and_odd_pictures_are_refused(tmp_path):
    image = Image.fromarray(RGB)
    for mode, suffix, reported in (
        ("L", "png", "1 sample of 8 bits"), ("1", "png", "1 sample of 1 bit"), ("LA", "png", "1 sample of 8 bits and alpha"),
        ("L", "jpg", "1 sample of 8 bits"), ("L", "bmp", "1 sample of 8 bits"), ("L", "jp2", "1 sample of 8 bits"),
    ):  # fmt: skip
        image.convert(mode).save(tmp_path / f"s.{suffix}")
        with pytest.raises(SlideOpenError, match=reported):
            open_slide(tmp_path / f"s.{suffix}", mpp=0.5)
    image.save(tmp_path / "two.webp", save_all=True, append_images=[image.rotate(180)])
    with pytest.raises(SlideOpenError, match="2 frames"):
        open_slide(tmp_path / "two.webp", mpp=0.5)


def test_pngs_of_16_bits(tmp_path):
    imagecodecs = pytest.importorskip("imagecodecs")
    (tmp_path / "s.png").write_bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 257))
    np.testing.assert_array_equal(shown(tmp_path / "s.png"), RGB)
    (tmp_path / "s.png").write_bytes(imagecodecs.png_encode(RGB.astype(np.uint16) * 16))
    with pytest.raises(SlideOpenError, match=r"3 samples of 16 bits.*12 bits are in use"):
        open_slide(tmp_path / "s.png", mpp=0.5)


def test_two_scenes_are_refused_and_side_images_are_not(tmp_path):
    for names, fine in ((("scan", "label", "macro image"), True), (("scene 1", "scene 2", "x"), False)):
        path = tmp_path / "s.ome.tif"
        with tifffile.TiffWriter(path, ome=True) as out:
            for name, pixels in zip(names, (RGB, RGB[:, :160], RGB[:140]), strict=True):
                out.write(pixels, photometric="rgb", metadata={"Name": name})
        if fine:
            np.testing.assert_array_equal(shown(path), RGB)
        else:
            with pytest.raises(SlideOpenError, match="scene 2 160 x 150 px"):
                open_slide(path, mpp=0.5)


@pytest.mark.parametrize("where", ["subifds", "pages"])
@pytest.mark.parametrize("planes", [True, False])
def test_pyramids_of_odd_layouts(tmp_path, where, planes):
    path = tmp_path / ("s.ome.tif" if planes else "s.tif")
    full = PLANES if planes else RGB.astype(np.uint16) * 16
    half = full[:, ::2, ::2] if planes else full[::2, ::2]
    options = {"photometric": "minisblack" if planes else "rgb", **TILED}
    if planes and where == "pages":
        pytest.skip("OME-TIFF keeps its levels in SubIFDs")
    with tifffile.TiffWriter(path, ome=planes) as out:
        out.write(full, subifds=1 if where == "subifds" else None, metadata=ome() if planes else None, **options)
        out.write(half, subfiletype=1, metadata=None, **options)
    slide = open_slide(path, mpp=0.5)
    assert slide.meta.level_downsamples == (1.0, 2.0)
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, W, H), RGB)
    np.testing.assert_array_equal(slide.read_level(1, 0, 0, W // 2, H // 2), RGB[::2, ::2])


@pytest.mark.parametrize("bits", [12, 14, 10])
def test_declared_bits_win_and_are_held_to(tmp_path, bits):
    dark = (RGB.astype(np.uint16) >> 3) << (bits - 8)  # its brightest would be taken for fewer bits
    path = tmp_path / "s.ome.tif"
    tifffile.imwrite(path, dark, photometric="rgb", metadata={"axes": "YXS", "SignificantBits": bits})
    with tifffile.TiffFile(path) as tiff:
        assert picture_of(tiff).declared_bits == bits
    np.testing.assert_array_equal(shown(path), RGB >> 3)
    tifffile.imwrite(path, dark * 8 + 40000, photometric="rgb", metadata={"axes": "YXS", "SignificantBits": bits})
    with pytest.raises(SlideOpenError, match=f"declares {bits} bits"):
        open_slide(path, mpp=0.5)


@pytest.mark.parametrize("tiled", [True, False])
def test_a_truncated_file_is_reported(tmp_path, tiled):
    path = write(tmp_path / "s.tif", RGB.astype(np.uint16) * 257, **(TILED if tiled else {"rowsperstrip": 8}))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(SlideOpenError, match="truncated"):
        open_slide(path, mpp=0.5)


def test_a_damaged_tile_of_an_odd_layout_fails_alone(tmp_path):
    path = write(tmp_path / "s.tif", RGB.astype(np.uint16) * 257, compression="deflate", **TILED)
    with tifffile.TiffFile(path) as tiff:
        offset, count = tiff.pages[0].dataoffsets[-1], tiff.pages[0].databytecounts[-1]
    data = bytearray(path.read_bytes())
    data[offset + 8 : offset + count] = bytes(count - 8)
    path.write_bytes(data)
    slide = open_slide(path, mpp=0.5)
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 90, 60), RGB[:60, :90])
    with pytest.raises(TileReadError, match=r"slide s .*cannot be decoded"):
        slide.read_level(0, W - 9, H - 9, 9, 9)
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 90, 60), RGB[:60, :90])


@pytest.mark.parametrize("kind", ["rgb", "rgb jpeg", "16 bits", "pages"])
@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_absent_tiles_are_white(tmp_path, kind, reader):
    path = tmp_path / "s.ome.tif"
    if kind == "pages":
        tifffile.imwrite(path, PLANES, photometric="minisblack", metadata=ome(), **TILED)
    else:
        pixels = RGB.astype(np.uint16) * 257 if kind == "16 bits" else RGB
        write(path, pixels, compression="jpeg" if "jpeg" in kind else None, **TILED)
    whole = shown(path, reader=reader)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in tiff.pages:
            tags = page.tags["TileOffsets"], page.tags["TileByteCounts"]
            lists = [list(tag.value) for tag in tags]
            for tag, values in zip(tags, lists, strict=True):
                values[1] = 0
                tag.overwrite(values)
    whole[:64, 48:96] = 255
    np.testing.assert_array_equal(shown(path, reader=reader), whole)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 2**16),
    layout=st.sampled_from(["plain", "planar", "pages", "gray tag"]),
    bits=st.sampled_from([8, 10, 12, 16, "float"]),
    tiled=st.booleans(),
    compression=st.sampled_from([None, "deflate", "lzw", "zstd", "packbits"]),
    orientation=st.integers(1, 8),
    bigtiff=st.booleans(),
)
def test_any_layout_shows_what_the_png_shows(tmp_path, size, seed, layout, bits, tiled, compression, orientation, bigtiff):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    pixels[0, 0] = 255  # the brightest decides about the bits
    Image.fromarray(pixels).save(tmp_path / "s.png")
    values = stored_as(pixels, orientation)
    if bits == "float":
        values = (values / 255).astype(np.float32)
    elif bits > 8:
        values = values.astype(np.uint16) << (bits - 8)
    options = {"compression": compression, "bigtiff": bigtiff, "extratags": [(274, "H", 1, orientation, True)]}
    options |= {"tile": (16, 32)} if tiled else {"rowsperstrip": 7}
    if layout in ("planar", "pages"):
        values = np.ascontiguousarray(np.moveaxis(values, 2, 0))
    if layout == "plain":
        options |= {"photometric": "rgb", "metadata": None, "planarconfig": "contig"}
    elif layout == "planar":
        options |= {"photometric": "rgb", "metadata": None, "planarconfig": "separate"}
    elif layout == "pages":
        options |= {"photometric": "minisblack", "metadata": {"axes": "CYX"}, "ome": True, "description": None}
    else:
        options |= {"photometric": "minisblack", "metadata": None, "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "s.tif", values, **options)
    one, two = open_slide(tmp_path / "s.png", mpp=0.5), open_slide(tmp_path / "s.tif", mpp=0.5)
    assert (one.meta.width_px, one.meta.height_px) == (two.meta.width_px, two.meta.height_px) == size[::-1]
    window = (-1, -2, size[1] + 3, size[0] + 4)
    np.testing.assert_array_equal(one.read_level(0, *window), two.read_level(0, *window))
    np.testing.assert_array_equal(one.thumbnail(7), two.thumbnail(7))
    fit_tissue(two)
    two.close()


def test_the_layout_is_reported(tmp_path):
    meta = open_slide(write(tmp_path / "a.tif", RGB.astype(np.uint16) * 16, compression="zstd", **TILED), mpp=0.5).meta
    assert meta.layout == "3 samples of 16 bits, RGB, interleaved, tiles 48x64, compression ZSTD, values read as 12 bits"
    assert meta.reader == "tifffile"
    assert open_slide(write(tmp_path / "b.tif", RGB), mpp=0.5).meta.layout.startswith("3 samples of 8 bits, RGB, interleaved")
    with pytest.raises(SlideOpenError, match=r"reader cucim cannot be used: .*16 bits"):
        open_slide(tmp_path / "a.tif", mpp=0.5, reader="cucim")


@pytest.mark.parametrize(
    ("values", "declared", "bits", "full"),
    [
        (np.array([0, 255], np.uint16), 0, 8, 0), (np.array([0, 256], np.uint16), 0, 10, 0),
        (np.array([4095], np.uint16), 0, 12, 0), (np.array([4096], np.uint16), 0, 14, 0),
        (np.array([300], np.uint16), 12, 12, 0),
        (np.array([70000], np.uint32), 0, 32, 0), (np.array([0, 1.02]), 0, 8, 1), (np.array([0, 258.0]), 0, 8, 255),
        (np.array([np.nan, 0.4]), 0, 8, 1),
    ],
)  # fmt: skip
def test_the_rule_for_deep_samples(values, declared, bits, full):
    depth = depth_of(values, declared)
    assert (depth.bits, depth.full) == (bits, full)


def test_a_tile_beyond_the_slides_rule_is_no_pixel():
    with pytest.raises(ValueError, match=r"5000.*12 bits"):
        to_u8(np.array([5000], np.uint16), Depth(12))
    with pytest.raises(ValueError, match="0 to 1"):
        to_u8(np.array([200.0]), Depth(full=1.0))
    np.testing.assert_array_equal(to_u8(np.array([np.nan, -0.2, 0.5, 1.2]), Depth(full=1.0)), [255, 0, 128, 255])
    with pytest.raises(ValueError, match="expected 0 to 1"):
        depth_of(np.array([-3.0, 0.5]))


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (20, 20), (3, 200)])
@pytest.mark.parametrize("value", [0, 255, None])
@pytest.mark.parametrize("kind", ["png", "tiles", "12-bit tiles"])
def test_tiny_white_and_black_slides_open(tmp_path, size, value, kind):
    pixels = RGB[10 : 10 + size[0], -size[1] :].copy() if value is None else np.full((*size, 3), value, np.uint8)
    pixels = np.resize(pixels, (*size, 3))
    if kind == "png":
        path = tmp_path / "s.png"
        Image.fromarray(pixels).save(path)
    else:
        stored = pixels.astype(np.uint16) * 16 if kind == "12-bit tiles" else pixels
        path = write(tmp_path / "s.tif", stored, tile=(16, 16), compression="deflate")
    slide = open_slide(path, mpp=0.5)
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, size[1], size[0]), pixels)
    assert slide.thumbnail(8).shape[2] == 3
    assert value is None or not fit_tissue(slide).mask.any()


@pytest.mark.parametrize("aspect", [1.0, 1.5])
def test_a_leica_scan_states_its_size_in_nm(tmp_path, aspect):
    # OpenSlide shows the collection's whole area; the scanned part of 170 x 150 px at 500 nm begins at (200, 100)
    nm, wide, high = 500, 600, 500
    macro = np.full((64, 80, 3), 240, np.uint8)

    def image(ifd, w, h, size, at, power):
        return (
            f'<image name="i" uuid="urn:uuid:{ifd}"><creationDate>2020-01-01T00:00:00Z</creationDate>'
            '<device model="x" version="1"/>'
            f'<pixels sizeX="{w}" sizeY="{h}"><dimension sizeX="{w}" sizeY="{h}" r="0" ifd="{ifd}"/></pixels>'
            f'<view sizeX="{size[0]}" sizeY="{size[1]}" offsetX="{at[0]}" offsetY="{at[1]}" spacingZ="0"/><scanSettings>'
            f"<objectiveSettings><objective>{power}</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4"
            "</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings></image>"
        )

    area = (wide * nm, high * nm)
    text = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" uuid="u" '
        f'sizeX="{area[0]}" sizeY="{area[1]}"><barcode>0</barcode>{image(0, 80, 64, area, (0, 0), 1)}'
        f"{image(1, W, H, (W * nm, int(H * nm * aspect)), (200 * nm, 100 * nm), 20)}</collection></scn>"
    )
    path = tmp_path / "s.scn"
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        keep = {"photometric": "rgb", "compression": "jpeg", "tile": (64, 64), "metadata": None}
        out.write(macro, description=text, **keep)
        out.write(RGB, **keep)
    if aspect != 1:
        with pytest.raises(AnisotropicMppError, match="Leica"):
            open_slide(path)
        return
    slide = open_slide(path)
    meta = slide.meta
    assert (meta.vendor, meta.mpp, meta.mpp_source) == ("leica", 0.5, "leica")
    assert (meta.bounds_x, meta.bounds_y, meta.bounds_w, meta.bounds_h) == (200, 100, W, H)
    whole = slide.read_level(0, 0, 0, meta.width_px, meta.height_px)
    inside = whole[100 : 100 + H, 200 : 200 + W].astype(int)
    assert np.abs(inside - RGB).mean() < 5
    whole[100 : 100 + H, 200 : 200 + W] = 255
    assert (whole == 255).all()  # outside the scanned area: white


@pytest.mark.parametrize("compression", ["lzw", "jpeg", "zstd", "jpegxl", "webp", "deflate"])
def test_a_decoder_that_is_not_installed_is_named(tmp_path, compression):
    path = tmp_path / "s.ome.tif"
    pixels = RGB if compression == "webp" else PLANES
    options = {"photometric": "rgb" if compression == "webp" else "minisblack", **TILED}
    metadata = ome(axes="YXS") if compression == "webp" else ome()
    tifffile.imwrite(path, pixels, compression=compression, metadata=metadata, **options)
    (tmp_path / "imagecodecs").mkdir()
    (tmp_path / "imagecodecs/__init__.py").write_text("raise ImportError('as if it were not installed')")
    code = f"from wsiseg.read import open_slide; open_slide({str(path)!r}).read_level(0, 0, 0, 9, 9)"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    if done.returncode == 0:
        assert compression in ("deflate", "zstd")
    else:
        reported = done.stderr.splitlines()[-1]
        assert compression != "deflate"
        assert reported.startswith("wsiseg.errors.SlideOpenError")
        assert f"compression {compression.upper()} needs the package imagecodecs: pip install imagecodecs" in reported

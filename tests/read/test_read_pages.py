"""Which page of a TIFF is the picture, and samples that hide it: thumbnails first, further fields, composites, unset alpha."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsiseg.errors import SlideOpenError
from wsiseg.read import open_slide


def crop(h=160, w=176):
    """Return stained tissue beside glass, smooth, with values that name their place."""
    y, x = np.mgrid[:h, :w]
    wave = 60 * np.sin(x / 9) * np.cos(y / 7)
    rgb = np.stack([190 + wave / 2, 120 + wave, 180 + wave / 3], axis=2)
    rgb[:, : w // 4] = (250, 249, 251)
    return np.clip(rgb, 0, 255).astype(np.uint8)


RGB = crop()
H, W = RGB.shape[:2]
PLANES = np.moveaxis(RGB, 2, 0).copy()
LAYOUTS = pytest.mark.parametrize("layout", [{}, {"tile": (64, 64)}, {"tile": (64, 64), "compression": "lzw"}], ids=str)


def shown(path):
    slide = open_slide(path, mpp=0.5)
    return slide.read_level(0, 0, 0, slide.meta.width_px, slide.meta.height_px)


def pages(path, pictures, layout, **options):
    with tifffile.TiffWriter(path) as out:
        for k, picture in enumerate(pictures):
            out.write(picture, photometric="rgb", metadata=None, subfiletype=options.get("kinds", {}).get(k, 0), **layout)
    return path


@LAYOUTS
@pytest.mark.parametrize("kinds", [{}, {0: 1}], ids=["plain", "reduced"])
def test_a_thumbnail_before_the_picture_is_not_the_picture(tmp_path, layout, kinds):
    path = pages(tmp_path / "s.tif", [RGB[::4, ::4].copy(), RGB, RGB[::2, ::2].copy()], layout, kinds={**kinds, 2: 1})
    np.testing.assert_array_equal(shown(path), RGB)
    slide = open_slide(path, mpp=0.5)
    assert slide.level_sizes_px[:2] in (((W, H), (W // 2, H // 2)), ((W, H),))


@LAYOUTS
def test_fields_of_different_sizes_are_refused_and_small_side_pictures_are_not(tmp_path, layout):
    small = np.ascontiguousarray(RGB[:50, :60])
    np.testing.assert_array_equal(shown(pages(tmp_path / "s.tif", [RGB, small], layout)), RGB)
    for name, second in (("larger", np.concatenate([RGB, RGB[:20]])), ("narrower", np.ascontiguousarray(RGB[:, :90]))):
        path = pages(tmp_path / f"{name}.tif", [RGB, second], layout)
        with pytest.raises(SlideOpenError, match=r"3 samples of 8 bits.*further pictures of full resolution \(\d+ x 160 px\)"):
            open_slide(path, mpp=0.5)


@pytest.mark.parametrize("kind", ["mask", "photometric"])
def test_a_page_that_masks_transparent_px_is_no_second_picture(tmp_path, kind):
    path = tmp_path / "s.tif"
    mask = np.full((H, W), 255, np.uint8)
    with tifffile.TiffWriter(path) as out:
        out.write(RGB, photometric="rgb", metadata=None, tile=(64, 64))
        out.write(mask, photometric="minisblack", metadata=None, tile=(64, 64), subfiletype=0)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag, value = (254, 4) if kind == "mask" else (262, 4)
        tiff.pages[1].tags[tag].overwrite(value)
    np.testing.assert_array_equal(shown(path), RGB)


def lut(channel):
    table = np.zeros((3, 256), np.uint8)
    table[channel] = np.arange(256)
    return table


@pytest.mark.parametrize("mode", ["composite", "color"])
@pytest.mark.parametrize("depth", [1, 16])
@pytest.mark.parametrize("tables", [[], [lut(0), lut(1), lut(2)]], ids=["plain", "tables"])
def test_a_composite_of_imagej_is_read_by_its_channels(tmp_path, mode, depth, tables):
    pixels = PLANES if depth == 1 else PLANES.astype(np.uint16) * 16
    more = {"LUTs": tables} if tables else {}
    tifffile.imwrite(tmp_path / "s.tif", pixels, imagej=True, metadata={"axes": "CYX", "mode": mode, **more})
    np.testing.assert_array_equal(shown(tmp_path / "s.tif"), RGB)


@pytest.mark.parametrize(
    ("pixels", "metadata", "said"),
    [
        (PLANES, {"axes": "ZYX"}, "3 pages"),
        (PLANES, {"axes": "CYX", "mode": "grayscale"}, "3 pages"),
        (PLANES, {"axes": "CYX", "mode": "composite", "LUTs": [lut(2), lut(1), lut(0)]}, "3 pages"),
        (PLANES // 6, {"axes": "CYX", "mode": "composite"}, "bright in all three"),
    ],
    ids=["focus", "no colours", "other colours", "fluorescence"],
)
def test_other_stacks_of_imagej_are_refused(tmp_path, pixels, metadata, said):
    tifffile.imwrite(tmp_path / "s.tif", pixels, imagej=True, metadata=metadata)
    with pytest.raises(SlideOpenError, match=said):
        open_slide(tmp_path / "s.tif", mpp=0.5)


@pytest.mark.parametrize("ending", ["png", "webp", "tif", "tiled.tif"])
def test_alpha_that_was_left_unset_does_not_hide_the_picture_in_silence(tmp_path, ending):
    path = tmp_path / f"s.{ending}"

    def write(rgba):
        if ending == "tiled.tif":
            tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
        else:
            Image.fromarray(rgba).save(path, **({"lossless": True, "exact": True} if ending == "webp" else {}))

    write(np.dstack([RGB, np.zeros((H, W), np.uint8)]))
    with pytest.raises(SlideOpenError, match=r"samples.* of 8 bits.*alpha sample is 0 \(transparent\) everywhere"):
        open_slide(path, mpp=0.5)
    some = np.zeros((H, W), np.uint8)
    some[40:90, 60:100] = 255
    write(np.dstack([RGB, some]))
    got = shown(path)
    np.testing.assert_array_equal(got[40:90, 60:100], RGB[40:90, 60:100])
    assert (got[some == 0] == 255).all()
    write(np.zeros((H, W, 4), np.uint8))  # nothing is there, and nothing hidden
    assert (shown(path) == 255).all()


@pytest.mark.parametrize("tiled", [False, True])
def test_a_palette_of_8_bits_where_tiff_wants_16(tmp_path, tiled):
    image = Image.fromarray(RGB).quantize(200)
    colours = np.zeros((3, 256), np.uint16)
    colours[:, : len(image.getpalette()) // 3] = np.reshape(image.getpalette(), (-1, 3)).T
    options = {"photometric": "palette", "colormap": colours, **({"tile": (64, 64)} if tiled else {})}
    tifffile.imwrite(tmp_path / "s.tif", np.asarray(image), **options)
    np.testing.assert_array_equal(shown(tmp_path / "s.tif"), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_few_wrong_pixels_do_not_darken_a_slide_in_silence(tmp_path, dtype, tiled):
    pixels = RGB.astype(dtype) * (16 if dtype == np.uint16 else 1 / 255)
    pixels[50, 60] = 65535 if dtype == np.uint16 else 200.0
    tifffile.imwrite(tmp_path / "s.tif", pixels, photometric="rgb", **({"tile": (64, 64)} if tiled else {}))
    with pytest.raises(SlideOpenError, match=r"3 samples of \d\d .*bits.*brightest sample is.*99 % are below"):
        open_slide(tmp_path / "s.tif", mpp=0.5)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("ending", ["jp2", "j2k"])
def test_jpeg_2000_of_more_than_8_bits_is_refused(tmp_path, bits, ending):
    imagecodecs = pytest.importorskip("imagecodecs")
    deep = RGB if bits == 8 else RGB.astype(np.uint16) << (bits - 8)
    codec = "J2K" if ending == "j2k" else "JP2"
    path = tmp_path / f"s.{ending}"
    path.write_bytes(imagecodecs.jpeg2k_encode(deep, bitspersample=bits, codecformat=codec, reversible=True, level=0))
    if bits == 8:
        np.testing.assert_array_equal(shown(path), RGB)
    else:
        with pytest.raises(SlideOpenError, match=f"3 samples of {bits} bits, JPEG2000"):
            open_slide(path, mpp=0.5)


def ome_xml(names, width, height):
    planes = "".join(
        f'<TiffData FirstC="{k}" FirstT="0" FirstZ="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:{k}</UUID></TiffData>'
        for k, name in enumerate(names)
    )
    channels = "".join(f'<Channel ID="Channel:0:{k}" SamplesPerPixel="1"/>' for k in range(len(names)))
    return (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:{}"><Image ID="Image:0"><Pixels '
        f'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="{width}" SizeY="{height}" SizeC="{len(names)}" SizeZ="1" '
        f'SizeT="1" PhysicalSizeX="0.25" PhysicalSizeY="0.25">{channels}{planes}</Pixels></Image></OME>'
    )


def test_an_ome_tiff_of_a_file_a_channel_is_refused_beside_its_fellows_and_alone(tmp_path):
    """Read by the places of the first file, every channel would be that one's: gray, in silence."""
    names = [f"s_{colour}.ome.tif" for colour in ("red", "green", "blue")]
    text = ome_xml(names, W, H)
    for k, name in enumerate(names):
        xml = text.replace("urn:uuid:{}", f"urn:uuid:{k}")
        tifffile.imwrite(tmp_path / name, PLANES[k], photometric="minisblack", metadata=None, description=xml, tile=(64, 64))
    for name in names:
        with pytest.raises(SlideOpenError, match=r"pages are in several files .*s_blue.*s_green.*s_red"):
            open_slide(tmp_path / name)
    (tmp_path / names[1]).unlink()
    (tmp_path / names[2]).unlink()
    with pytest.raises(SlideOpenError, match=r"1 sample of 8 bits.*gray"):
        open_slide(tmp_path / names[0])


@pytest.mark.parametrize("kind", ["ome pages", "imagej"])
@pytest.mark.parametrize("kept", [0.4, 0.9])
def test_pages_that_were_not_copied_whole_are_called_truncated(tmp_path, kind, kept):
    path = tmp_path / "s.tif"
    if kind == "imagej":
        tifffile.imwrite(path, PLANES, imagej=True, metadata={"axes": "CYX", "mode": "composite"})
    else:
        tifffile.imwrite(path, PLANES, photometric="minisblack", metadata={"axes": "CYX"}, ome=True, tile=(64, 64))
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(SlideOpenError, match=r"beyond the end of the file.*truncated"):
        open_slide(path, mpp=0.5)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(
    ("dtype", "of_colours", "of_alpha"),
    [(np.uint16, 16, 257), (np.uint16, 257, 257), (np.uint16, 1, 1), (np.float32, 1, 1 / 255), (np.float32, 1 / 255, 1 / 255)],
    ids=["12 bits, alpha of 16", "16 bits", "8 bits", "0 to 255, alpha of 1", "0 to 1"],
)
def test_deep_alpha_has_a_range_of_its_own_and_may_be_partial(tmp_path, dtype, of_colours, of_alpha, tiled):
    alpha = np.full((H, W, 1), 255, np.uint8)
    alpha[:20] = 0
    pixels = np.concatenate([RGB * dtype(of_colours), alpha * dtype(of_alpha)], axis=2).astype(dtype)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], **({"tile": (64, 64)} if tiled else {})}
    tifffile.imwrite(tmp_path / "s.tif", pixels, **options)
    got = shown(tmp_path / "s.tif")
    assert (got[:20] == 255).all()
    np.testing.assert_array_equal(got[20:], RGB[20:])

import os
import pickle
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from tests.damage import with_damaged_tiles
from wsiseg.errors import InputError, MissingMppError, SlideOpenError, TileReadError
from wsiseg.read import ArraySlide, fingerprint, open_slide, read_working, slide_id_of
from wsiseg.read import image as image_module
from wsiseg.types import Box

ROOT = Path(__file__).parents[2]
CMU = ROOT / "tests/data/CMU-1-Small-Region.svs"
DEMO = ROOT / "wsiseg/demo/atlas_metaplasia_HE_crop.svs"
DATA = Path(os.environ.get("WSISEG_DATA", "/nonexistent"))
needs_data = pytest.mark.skipif(not (DATA / "slides").is_dir(), reason="WSISEG_DATA is not set")


def has_cucim():
    try:
        import cucim  # noqa: F401
    except ImportError:
        return False
    return True


needs_cucim = pytest.mark.skipif(not has_cucim(), reason="cuCIM is not installed")


def by_openslide(path, level, x, y, w, h):
    """OpenSlide's own pixels over white, at a level with a whole-number downsample."""
    with openslide.OpenSlide(path) as slide:
        factor = round(slide.level_downsamples[level])
        rgba = slide.read_region((x * factor, y * factor), level, (w, h))
        white = Image.new("RGBA", rgba.size, "white")
        return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def some_windows(width, height, rng, n=12):
    yield from [(-40, -30, 100, 90), (width - 50, height - 20, 130, 77), (0, 0, 1, 1), (width - 1, height - 1, 1, 1)]
    for _ in range(n):
        w, h = (int(v) for v in rng.integers(1, 500, 2))
        yield int(rng.integers(-100, width)), int(rng.integers(-100, height)), w, h


@pytest.mark.parametrize("reader", ["auto", "openslide"])
@pytest.mark.parametrize("path", [CMU, DEMO], ids=["one level", "pyramid"])
def test_pixels_are_openslides(path, reader):
    slide = open_slide(path, reader=reader)
    rng = np.random.default_rng(0)
    for level, size in enumerate(slide.level_sizes_px):
        for window in some_windows(*size, rng):
            np.testing.assert_array_equal(slide.read_level(level, *window), by_openslide(path, level, *window))
    slide.close()


@needs_cucim
@pytest.mark.parametrize("path", [CMU, DEMO])
def test_auto_takes_cucim_where_it_may(path):
    meta = open_slide(path).meta
    assert (meta.reader, meta.reader_note) == ("cucim", "")
    assert open_slide(path, reader="openslide").meta.reader == "openslide"


def test_meta_of_a_real_slide():
    meta = open_slide(CMU, cohort="SKCM").meta
    size, mtime = os.stat(CMU).st_size, os.stat(CMU).st_mtime_ns
    assert (meta.slide_id, meta.cohort, meta.vendor) == ("CMU-1-Small-Region", "SKCM", "aperio")
    assert (meta.width_px, meta.height_px, meta.mpp, meta.mpp_source) == (2220, 2967, 0.499, "openslide")
    assert (meta.size_bytes, meta.mtime_ns) == (size, mtime) == fingerprint(CMU)
    assert pickle.loads(pickle.dumps(meta)) == meta


def test_the_demo_slide():
    slide = open_slide(DEMO)
    assert slide.meta.mpp == 0.2528
    assert slide.level_sizes_px == ((4864, 4096), (1216, 1024))
    fine, coarse = slide.read_level(0, 0, 0, 4864, 4096), slide.read_level(1, 0, 0, 1216, 1024)
    means = fine.reshape(1024, 4, 1216, 4, 3).mean(axis=(1, 3))
    assert np.abs(means.mean(axis=(0, 1)) - coarse.mean(axis=(0, 1))).max() < 1
    assert np.abs(means - coarse).mean() < 6  # the coarse level shows the same tissue in the same colors


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_a_damaged_tile_fails_alone(tmp_path, reader, capfd):
    slide = open_slide(with_damaged_tiles(CMU, tmp_path / "damaged.svs", tile=(5, 2)), reader=reader)  # of 240 px
    for _ in range(2):
        with pytest.raises(TileReadError, match=r"slide damaged .*x=1210 y=490 w=100 h=90"):
            slide.read_level(0, 1210, 490, 100, 90)
        np.testing.assert_array_equal(slide.read_level(0, 300, 100, 200, 200), by_openslide(CMU, 0, 300, 100, 200, 200))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_tiles_beyond_a_truncated_end(tmp_path, reader):
    # A copy that stopped early but kept its directories: they and the coarse level lie before level 0's tiles.
    path = tmp_path / "short.tif"
    pixels = np.random.default_rng(1).integers(0, 255, (1024, 1024, 3), np.uint8)
    with tifffile.TiffWriter(path, bigtiff=False) as out:
        keep = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
        out.write(pixels, resolution=(40000, 40000), resolutionunit=3, **keep)
        out.write(np.ascontiguousarray(pixels[::4, ::4]), subfiletype=1, **keep)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        last = tiff.pages[0].tags["TileOffsets"]
        value = list(last.value)
        value[-1] += 10 * path.stat().st_size
        last.overwrite(value)
    slide = open_slide(path, reader=reader)
    assert slide.meta.reader == "openslide"
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 256, 256), pixels[:256, :256])
    with pytest.raises(TileReadError, match="slide short"):
        slide.read_level(0, 700, 1000, 100, 10)
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 256, 256), pixels[:256, :256])


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_generic_tiled_tiff(tmp_path, compression):
    path = tmp_path / "generic.tif"
    pixels = np.random.default_rng(2).integers(0, 255, (700, 900, 3), np.uint8)
    with tifffile.TiffWriter(path) as out:
        keep = {"photometric": "rgb", "compression": compression, "tile": (128, 128), "metadata": None}
        out.write(pixels, resolution=(40000, 40000), resolutionunit=3, **keep)
        out.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **keep)
    slide = open_slide(path)
    assert slide.meta.vendor == "generic-tiff"
    assert slide.meta.level_downsamples == (1.0, 2.0)
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 900, 700), pixels)
    np.testing.assert_array_equal(slide.read_level(1, 13, 57, 300, 200), pixels[::2, ::2][57:257, 13:313])


def test_readers_that_cannot_say_why(tmp_path):
    path = tmp_path / "packbits.tif"
    pixels = np.full((600, 600, 3), 200, np.uint8)
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", compression="packbits", metadata=None)
    slide = open_slide(path, mpp=0.25)
    assert slide.meta.reader == "openslide"
    assert slide.meta.reader_note != ""
    with pytest.raises(SlideOpenError, match="reader cucim cannot be used: "):
        open_slide(path, mpp=0.25, reader="cucim")
    assert (slide.read_level(0, 0, 0, 8, 8) == 200).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_plain_images_with_mpp(tmp_path, suffix):
    path = tmp_path / f"field.v2{suffix}"
    pixels = by_openslide(CMU, 0, 500, 1500, 320, 200)
    Image.fromarray(pixels).save(path)
    with pytest.raises(MissingMppError):
        open_slide(path)
    slide = open_slide(path, mpp=0.5)
    assert (slide.meta.slide_id, slide.meta.width_px, slide.meta.height_px) == ("field.v2", 320, 200)
    decoded = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 320, 200), decoded)
    out = slide.read_level(0, -5, -5, 10, 10)
    assert (out[:5] == 255).all()
    np.testing.assert_array_equal(out[5:, 5:], decoded[:5, :5])


def test_transparent_is_white(tmp_path):
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[:, 10:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    got = open_slide(tmp_path / "a.png", mpp=1).read_level(0, 0, 0, 30, 20)
    assert (got[:, :10] == 255).all()
    assert (got[:, 10:] == 0).all()


def test_absurd_and_deep_images_are_refused(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(image_module, "MAX_IMAGE_PX", 2999)
    with pytest.raises(SlideOpenError, match=r"states 60 x 50 px.*2999"):
        open_slide(tmp_path / "bomb.png", mpp=1)
    Image.fromarray(np.zeros((5, 6), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(SlideOpenError, match="1 sample of 16 bits"):
        open_slide(tmp_path / "deep.png", mpp=1)


def test_what_is_no_slide(tmp_path):
    for name, content in {"text.svs": b"not a slide", "empty.svs": b"", "cut.svs": CMU.read_bytes()[:900_000]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SlideOpenError, match=name):
            open_slide(tmp_path / name)
    with pytest.raises(SlideOpenError, match="No such file"):
        open_slide(tmp_path / "none.svs")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SlideOpenError, match=r"no \.dcm file"):
        open_slide(tmp_path / "folder")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:9000])
    with pytest.raises(SlideOpenError, match=r"cut\.png.*complete"):
        open_slide(tmp_path / "cut.png", mpp=1)
    with pytest.raises(SlideOpenError, match="reader"):
        open_slide(CMU, reader="bioformats")


def test_slide_ids(tmp_path):
    barcode = "TCGA-CR-7395-01A-01-TS1.0a1b-2c3d"
    assert slide_id_of(f"/x/{barcode}.svs") == barcode
    assert slide_id_of(tmp_path / "s.tif") == "s"
    for name, slide_id in {"CMU.dicom": "CMU", "1.2.840": "1.2.840"}.items():
        (tmp_path / name).mkdir()
        assert slide_id_of(tmp_path / name) == slide_id


def test_array_slide_pyramid_and_zarr(tmp_path):
    import zarr

    pixels = np.random.default_rng(3).integers(0, 255, (120, 160, 3), np.uint8)
    slide = ArraySlide(pixels, mpp=0.25, coarser=(pixels[::4, ::4],))
    assert slide.meta.level_downsamples == (1.0, 4.0)
    np.testing.assert_array_equal(slide.read_level(1, 3, 2, 5, 6), pixels[::4, ::4][2:8, 3:8])
    store = zarr.create_array(str(tmp_path / "z.zarr"), data=pixels, chunks=(50, 50, 3))
    store.attrs["mpp"] = 0.3
    on_disk = open_slide(tmp_path / "z.zarr")
    assert (on_disk.meta.slide_id, on_disk.meta.mpp) == ("z", 0.3)
    np.testing.assert_array_equal(on_disk.read_level(0, 10, 20, 100, 90), pixels[20:110, 10:110])
    with pytest.raises(InputError, match="uint8"):
        ArraySlide(pixels.astype(float), mpp=1)
    with pytest.raises(InputError, match="whole fraction"):
        ArraySlide(pixels, mpp=1, coarser=(pixels[:30, :50],))


@pytest.mark.parametrize("shape", [(97, 203), (100, 200)])
def test_thumbnail_is_the_mean_of_blocks(shape):
    pixels = np.random.default_rng(4).integers(0, 255, (*shape, 3), np.uint8)
    got = ArraySlide(pixels, mpp=1).thumbnail(50)
    k = -(-shape[1] // 50)
    padded = np.full((-(-shape[0] // k) * k, -(-shape[1] // k) * k, 3), 255.0)
    padded[: shape[0], : shape[1]] = pixels
    expected = padded.reshape(padded.shape[0] // k, k, padded.shape[1] // k, k, 3).mean(axis=(1, 3))
    assert max(got.shape) <= 50
    np.testing.assert_allclose(got, expected, atol=0.5)


@needs_data
def test_the_same_region_as_dicom():
    dicom, svs = open_slide(DATA / "slides/CMU-1-Small-Region.dicom"), open_slide(CMU)
    assert (dicom.meta.slide_id, dicom.meta.vendor) == ("CMU-1-Small-Region", "dicom")
    assert dicom.meta.mpp == pytest.approx(0.499)
    assert "dicom" in dicom.meta.reader_note
    difference = np.abs(dicom.read_level(0, 0, 0, 2220, 2967).astype(int) - svs.read_level(0, 0, 0, 2220, 2967))
    assert difference.mean() < 3  # the DICOM file was compressed again


@needs_data
def test_jpeg_2000_without_mpp():
    path = DATA / "slides/TCGA-CR-7395-01A-01-TS1.small.svs"
    with pytest.raises(MissingMppError):
        open_slide(path)
    slide = open_slide(path, mpp=1.0)
    assert slide.meta.slide_id == "TCGA-CR-7395-01A-01-TS1.small"
    assert slide.meta.reader == "openslide"
    np.testing.assert_array_equal(slide.read_level(0, 1000, 1000, 300, 200), by_openslide(path, 0, 1000, 1000, 300, 200))


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_odd_pyramids_read_alike(tmp_path, reader):
    # 901 px halved is 450.5: the level has no whole-number downsample, so working px come from level 0.
    path = tmp_path / "odd.tif"
    pixels = np.random.default_rng(5).integers(0, 255, (701, 901, 3), np.uint8)
    with tifffile.TiffWriter(path) as out:
        keep = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
        out.write(pixels, resolution=(40000, 40000), resolutionunit=3, **keep)
        out.write(np.ascontiguousarray(pixels[:700:2, :900:2]), subfiletype=1, **keep)
    slide, arbiter = open_slide(path, reader=reader), open_slide(path, reader="openslide")
    assert slide.level_sizes_px == ((901, 701), (450, 350))
    for window in [(0, 0, 450, 350), (101, 57, 200, 180), (-9, 300, 300, 90)]:
        np.testing.assert_array_equal(slide.read_level(1, *window), arbiter.read_level(1, *window))
    expected = read_working(ArraySlide(pixels, mpp=0.25), Box(10, 20, 200, 150), 0.4)
    np.testing.assert_array_equal(read_working(slide, Box(10, 20, 200, 150), 0.4), expected)


@pytest.mark.parametrize("kind", ["cucim or openslide", "array"])
def test_what_is_read_belongs_to_the_caller(kind):
    slide = open_slide(CMU) if kind != "array" else ArraySlide(by_openslide(CMU, 0, 0, 0, 300, 200), mpp=0.5)
    before = slide.read_level(0, 0, 0, 300, 200)
    copy = before.copy()
    before[:] = 7
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 300, 200), copy)

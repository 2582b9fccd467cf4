import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiseg.errors import FormatError
from wsiseg.read import (
    ArraySlide,
    TissueMask,
    fit_tissue,
    open_slide,
    stain_sample,
    tissue_frac,
    tissue_from_file,
    tissue_px_in,
    tissue_window,
)
from wsiseg.read.tissue import pen_marks, tissue_of_thumbnail
from wsiseg.types import Box

ROOT = Path(__file__).parents[2]
CMU = ROOT / "tests/data/CMU-1-Small-Region.svs"
DEMO = ROOT / "wsiseg/demo/atlas_metaplasia_HE_crop.svs"
QC = Path(os.environ.get("WSISEG_DATA", "/nonexistent")) / "qc_tiles"
META = ArraySlide(np.zeros((400, 800, 3), np.uint8), mpp=1.0, slide_id="s").meta


@pytest.mark.parametrize("path", [CMU, DEMO])
def test_dark_pixels_of_real_slides_are_inside_and_glass_is_not(path):
    slide = open_slide(path)
    tissue = fit_tissue(slide)
    box = Box(0, 0, slide.meta.width_px, slide.meta.height_px)
    window = tissue_window(tissue, box)
    rgb = slide.read_level(0, box.x, box.y, box.w, box.h).astype(int)
    purple = (rgb.max(axis=2) < 170) & (rgb[..., 1] < rgb[..., 0] - 25) & (rgb[..., 1] < rgb[..., 2] - 25)
    assert purple.sum() > 100_000
    assert window[purple].mean() > 0.998
    assert 0.4 < window.mean() < 0.8
    far = np.pad(~window[::50, ::50], 1)
    assert far.any()
    glass = rgb[~window]
    assert np.percentile(glass.min(axis=1), 2) > 215


def test_readers_find_the_same_tissue():
    one, two = fit_tissue(open_slide(DEMO)), fit_tissue(open_slide(DEMO, reader="openslide"))
    np.testing.assert_array_equal(one.mask, two.mask)


@pytest.mark.parametrize("value", [255, 243, 236])
def test_glass_alone_gives_an_empty_mask(value):
    rng = np.random.default_rng(0)
    glass = np.clip(value + rng.integers(-2, 3, (600, 900, 3)), 0, 255).astype(np.uint8)
    tissue = fit_tissue(ArraySlide(glass, mpp=1.0))
    assert not tissue.mask.any()
    sample, on_tissue = stain_sample(ArraySlide(glass, mpp=1.0), tissue, 1.0)
    assert (len(sample), len(on_tissue)) == (0, 0)


def test_specks_go_holes_close_and_the_rest_grows():
    rgb = np.full((300, 300, 3), 245, np.uint8)
    rgb[100:200, 100:200] = (190, 120, 180)
    rgb[140:150, 140:150] = 245  # 10 x 10 px of 8 um: 6,400 um2
    rgb[20:24, 20:24] = (190, 120, 180)  # 1,024 um2
    mask = tissue_of_thumbnail(rgb, 8.0)
    assert mask[140:150, 140:150].all()
    assert not mask[10:40, 10:40].any()
    assert mask[96:204, 150].all()
    assert not mask[:90].any()


def test_ink_is_distinguished_from_stain():
    ink = {"green": (40, 150, 110), "blue": (30, 90, 180), "red": (200, 20, 25), "black": (25, 25, 28)}
    stain = {
        "hematoxylin": (70, 50, 130),
        "eosin": (225, 120, 170),
        "blood": (190, 70, 80),
        "brown": (120, 80, 60),
        "glass": (243,) * 3,
    }
    for name, color in ink.items():
        assert pen_marks(np.array([[color]], np.uint8)).all(), name
    for name, color in stain.items():
        assert not pen_marks(np.array([[color]], np.uint8)).any(), name


@pytest.mark.skipif(not QC.is_dir(), reason="WSISEG_DATA is not set")
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("no-tissue", 0, 0.001),
        ("no-tissue-green-pen", 0, 0.01),
        ("almost-white-2", 0.01, 0.15),
        ("medium-nuclei-score-green-pen-level1", 0.3, 0.6),
        ("tcga-green-pen", 0.7, 0.9),
        ("tcga-red-pen", 0.6, 0.85),
        ("tissue-level2-4640-4649-8736-8746", 0.75, 1.0),  # loose cells lie on its glass
    ],
)
def test_real_pictures_with_pen(name, low, high):
    rgb = np.asarray(Image.open(QC / f"{name}.png").convert("RGB"))
    assert low <= tissue_of_thumbnail(rgb, 1.0).mean() <= high


masks = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
boxes = st.tuples(st.integers(-30, 60), st.integers(-30, 60), st.integers(1, 50), st.integers(1, 50))


@settings(max_examples=60, deadline=None)
@given(masks, boxes, st.sampled_from([1, 2, 4]))
def test_fraction_is_exact(shape, box, px):
    h, w, seed = shape
    mask = np.random.default_rng(seed).integers(0, 2, (h, w), np.uint8)
    tissue = TissueMask(mask, float(px), float(px), x0=-4.0, y0=8.0)
    b = Box(*box)
    full = np.zeros((300, 300), bool)  # level-0 px, shifted by 100
    full[108 : 108 + h * px, 96 : 96 + w * px] = np.kron(mask, np.ones((px, px))) > 0
    expected = full[100 + b.y : 100 + b.y1, 100 + b.x : 100 + b.x1]
    assert tissue_px_in(tissue, b) == expected.sum()
    assert tissue_frac(tissue, b) == pytest.approx(expected.mean())
    np.testing.assert_array_equal(tissue_window(tissue, b), expected)


def test_fraction_cuts_mask_pixels_and_uses_the_scale():
    tissue = TissueMask(np.array([[1, 0]], np.uint8), 10.0, 10.0)
    assert tissue_frac(tissue, Box(5, 0, 10, 5)) == pytest.approx(0.5)
    assert tissue_frac(tissue, Box(10, 0, 20, 10), scale=2.0) == pytest.approx(0.5)
    assert tissue_frac(tissue, Box(9, 9, 2, 2)) == pytest.approx(0.25)


def test_png_round_trip(tmp_path):
    tissue = TissueMask(np.random.default_rng(1).integers(0, 2, (25, 50), np.uint8), 15.995151515, 16.1, 3.5, -1.0)
    (tmp_path / "m.png").write_bytes(tissue.to_png())
    assert tissue.to_png() == tissue.to_png()
    for back in (
        TissueMask.load(tmp_path / "m.png"),
        TissueMask.load(tissue.to_png()),
        tissue_from_file(tmp_path / "m.png", META),
    ):
        np.testing.assert_array_equal(back.mask, tissue.mask)
        assert (back.px_w, back.px_h, back.x0, back.y0) == (tissue.px_w, tissue.px_h, tissue.x0, tissue.y0)


def test_a_mask_written_for_another_slide_is_refused(tmp_path):
    (tmp_path / "m.png").write_bytes(fit_tissue(open_slide(CMU)).to_png())
    with pytest.raises(FormatError, match=r"about 22\d\d x 29\d\d px, but slide s is 800 x 400 px"):
        tissue_from_file(tmp_path / "m.png", META)
    meta = open_slide(CMU).meta
    assert tissue_from_file(tmp_path / "m.png", meta).mask.any()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA"])
def test_foreign_png_is_stretched_over_the_slide(tmp_path, mode):
    mask = np.zeros((40, 80), np.uint8)
    mask[10:20, 40:60] = 255
    image = Image.fromarray(mask).convert(mode)
    image.save(tmp_path / "slide_mask_use.png")
    tissue = tissue_from_file(tmp_path / "slide_mask_use.png", META)
    assert tissue_px_in(tissue, Box(0, 0, 800, 400)) == 20_000
    assert tissue_frac(tissue, Box(400, 100, 200, 100)) == 1.0


def ring(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


POLYGON = {"type": "Polygon", "coordinates": [ring(100, 100, 500, 300), ring(200, 150, 300, 250)]}
FEATURE = {"type": "Feature", "geometry": POLYGON, "properties": {"name": "tissue"}}
SECOND = {"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [[ring(600, 0, 700, 50)]]}, "properties": {}}


@pytest.mark.parametrize(
    "tree",
    [FEATURE, [FEATURE, SECOND], {"type": "FeatureCollection", "features": [FEATURE, SECOND]}, POLYGON],
    ids=["one", "list", "collection", "bare"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_geojson(tmp_path, tree, packed):
    data = json.dumps(tree).encode()
    path = tmp_path / ("t.geojson.gz" if packed else "t.geojson")
    path.write_bytes(gzip.compress(data) if packed else data)
    tissue = tissue_from_file(path, META)
    shapes = [POLYGON] if tree in (FEATURE, POLYGON) else [POLYGON, SECOND["geometry"]]
    area = sum(shapely.from_geojson(json.dumps(shape)).area for shape in shapes)
    assert tissue_px_in(tissue, Box(0, 0, 800, 400)) == pytest.approx(area, rel=0.06)  # mask px are 8 level-0 px wide
    assert tissue_frac(tissue, Box(120, 120, 60, 160)) == 1.0
    assert tissue_frac(tissue, Box(216, 166, 70, 70)) == 0.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "PNG or GeoJSON"),
        (b"\x89PNG\r\n\x1a\nbroken", "not a readable PNG"),
        (b"\x1f\x8bbroken", "cannot be read"),
        (json.dumps({"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}}).encode(), "without any Polygon"),
        (json.dumps({"type": "Polygon", "coordinates": [ring(9000, 9000, 9900, 9900)]}).encode(), "outside slide s"),
        (json.dumps({"type": "Polygon", "coordinates": [[1, 2, 3]]}).encode(), "feature 0: expected a ring"),
        (json.dumps({"type": "Feature"}).encode(), "without a geometry: 1"),
        (b"[3]", "feature 0: expected an object"),
    ],
)
def test_wrong_masks(tmp_path, content, message):
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        tissue_from_file(tmp_path / "m", META)


def test_another_slides_mask(tmp_path):
    Image.fromarray(np.full((90, 40), 255, np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(FormatError, match="aspect ratio"):
        tissue_from_file(tmp_path / "m.png", META)
    with pytest.raises(FormatError, match="written by wsiseg"):
        TissueMask.load(tmp_path / "m.png")


def test_stain_sample_is_tissue_at_working_resolution():
    slide = open_slide(CMU)
    tissue = fit_tissue(slide)
    rgb, on_tissue = stain_sample(slide, tissue, 1.996, n_patches=8, patch_wpx=64)
    assert rgb.shape == (8 * 64, 64, 3)
    assert on_tissue.shape == (8 * 64, 64)
    assert on_tissue.mean() > 0.5
    again, _ = stain_sample(slide, tissue, 1.996, n_patches=8, patch_wpx=64)
    np.testing.assert_array_equal(rgb, again)

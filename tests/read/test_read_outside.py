"""The windows that are sampled outside a tissue mask: where they may lie, how often each is drawn, and what cannot matter."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wsiseg.read import ArraySlide, TissueMask, open_slide, outside_windows, survey_slide, tissue_window
from wsiseg.read.outside import CELL_WPX, MAX_WINDOWS
from wsiseg.types import Box

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "wsiseg/demo/atlas_metaplasia_HE_crop.svs"
SIDE = 3072
PINK, PURPLE = (222, 160, 196), (95, 60, 140)


def slide_with_nuclei(at: list[tuple[int, int]], radius: int = 14) -> np.ndarray:
    """A piece of tissue at the left, and lone nuclei on the glass beside it: smaller than what the mask takes for tissue."""
    random = np.random.default_rng(0)
    rgb = np.full((SIDE, SIDE, 3), 244.0)
    rgb[:, :1200] = PINK
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = y * y + x * x <= radius * radius
    for cx, cy in at:
        rgb[cy - radius : cy + radius + 1, cx - radius : cx + radius + 1][disc] = PURPLE
    return np.clip(np.rint(rgb + random.normal(0, 2, rgb.shape)), 0, 255).astype(np.uint8)


LONE = [(1600 + 280 * (k % 5), 300 + 500 * (k // 5)) for k in range(25)]


@pytest.fixture(scope="module")
def lone() -> ArraySlide:
    return ArraySlide(slide_with_nuclei(LONE), mpp=0.25)


def test_every_lone_nucleus_may_be_drawn_and_plain_glass_is_not(lone: ArraySlide) -> None:
    survey = survey_slide(lone)
    assert not any(tissue_window(survey.tissue, Box(x, y, 1, 1)).any() for x, y in LONE)
    drawn = {w.box for k in range(800) for w in outside_windows(lone.meta, 1.0, survey.tissue, survey, str(k))}
    cells = {(x // CELL_WPX, y // CELL_WPX) for x, y in LONE}
    assert cells <= {(b.x // CELL_WPX, b.y // CELL_WPX) for b in drawn}
    for box in drawn:  # each shows something, or what is near: a thumbnail px is 32 px, and smoothed
        window = lone.read_level(0, max(0, box.x - 64), max(0, box.y - 64), box.w + 128, box.h + 128)
        assert window.min() < 200
    assert all(b.x % CELL_WPX == 0 and b.y % CELL_WPX == 0 for b in drawn)


def test_weights_make_the_estimate_right_on_average(lone: ArraySlide) -> None:
    """Over many draws the sum of weights times nuclei is the number of nuclei: cells are drawn with the stated chance."""
    survey = survey_slide(lone)
    totals = []
    for k in range(400):
        windows = outside_windows(lone.meta, 1.0, survey.tissue, survey, f"draw {k}")
        held = [sum(w.box.x <= x < w.box.x1 and w.box.y <= y < w.box.y1 for x, y in LONE) for w in windows]
        totals.append(sum(n * w.weight for n, w in zip(held, windows, strict=True)))
        assert all(w.weight >= 1 for w in windows)
    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - len(LONE)) < max(4 * error, 0.01)


def test_the_draw_hangs_on_slide_and_mask_alone(lone: ArraySlide) -> None:
    survey = survey_slide(lone)
    first = outside_windows(lone.meta, 1.0, survey.tissue, survey, "content")
    moved = dataclasses.replace(lone.meta, path="/elsewhere.svs", slide_id="b", cohort="c")
    assert outside_windows(moved, 1.0, survey.tissue, survey_slide(lone), "content") == first
    assert any(outside_windows(lone.meta, 1.0, survey.tissue, survey, str(k)) != first for k in range(5))


def test_a_slide_that_is_all_tissue_or_glass_has_nothing_to_sample() -> None:
    random = np.random.default_rng(1)
    for color in ((244, 244, 245), PINK):
        rgb = np.clip(np.rint(random.normal(color, 2, (2048, 2048, 3))), 0, 255).astype(np.uint8)
        slide = ArraySlide(rgb, mpp=0.25)
        survey = survey_slide(slide)
        assert outside_windows(slide.meta, 1.0, survey.tissue, survey, "") == []


def test_a_mask_that_leaves_tissue_out_is_sampled_there_within_the_limit_of_cost() -> None:
    slide = open_slide(DEMO)
    survey = survey_slide(slide)
    mask = survey.tissue.mask.copy()
    mask[:, mask.shape[1] // 2 :] = 0
    half = TissueMask(mask, survey.tissue.px_w, survey.tissue.px_h)
    windows = outside_windows(slide.meta, 1.0, half, survey, "seed")
    assert 0 < len(windows) <= MAX_WINDOWS
    kept = [w for w in windows if tissue_window(survey.tissue, w.box).any()]
    assert len(kept) == len(windows)
    assert not any(tissue_window(half, w.box).all() for w in windows)


def test_cells_with_pen_marks_are_left_out() -> None:
    rgb = slide_with_nuclei(LONE)
    rgb[:, 2300:2360] = (30, 150, 110)  # a stroke across
    slide = ArraySlide(rgb, mpp=0.25)
    survey = survey_slide(slide)
    assert survey.ink_frac > 0
    drawn = [w.box for k in range(60) for w in outside_windows(slide.meta, 1.0, survey.tissue, survey, str(k))]
    assert drawn
    assert not any(b.x < 2360 and b.x1 > 2300 for b in drawn)


def test_pen_glass_bubbles_and_black_borders_are_not_tissue() -> None:
    """Planted beside the tissue of a real scan: none of it is in the mask, and the tissue's part of it stays as it was."""
    slide = open_slide(DEMO)
    rgb = slide.read_level(0, 0, 0, slide.meta.width_px, 1800)
    h, w = rgb.shape[:2]
    glass = np.median(rgb[tissue_window(survey_slide(slide).tissue, Box(0, 0, w, h)) == 0][::7], axis=0)
    random = np.random.default_rng(2)
    wide = np.clip(np.rint(random.normal(glass, 1.5, (h, w + 2400, 3))), 0, 255).astype(np.uint8)
    wide[:, :w] = rgb
    before = tissue_window(survey_slide(ArraySlide(wide, mpp=slide.meta.mpp)).tissue, Box(0, 0, w + 2400, h))
    planted = wide.copy()
    planted[:, w + 400 : w + 560] = (28, 120, 90)  # pen
    planted[:, w + 600 : w + 700] = (22, 22, 24)
    y, x = np.mgrid[:h, : w + 2400]
    for cx, cy, radius in ((w + 1100, 700, 350), (w + 1350, 1400, 250)):
        ring = np.abs(np.hypot(x - cx, y - cy) - radius)
        planted[ring < 14] = (70, 72, 74)  # rim of a bubble: dark and gray
        planted[(ring >= 14) & (ring < 26)] = (205, 206, 207)
    planted[:, -500:] = 0  # never scanned
    mask = tissue_window(survey_slide(ArraySlide(planted, mpp=slide.meta.mpp)).tissue, Box(0, 0, w + 2400, h))
    assert not mask[:, w + 200 :].any()
    assert (mask[:, :w] == before[:, :w]).mean() > 0.999

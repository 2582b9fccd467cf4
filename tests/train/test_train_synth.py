"""Synthetic training data: what is drawn against its reference, what is painted against the real patch, both networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from scipy import stats
from skimage.filters import threshold_otsu
from skimage.measure import regionprops
from torch import nn

from wsiseg.errors import ConfigError, InputError
from wsiseg.train import TrainingRun
from wsiseg.train.synth import (
    Discriminator,
    RefineConfig,
    Refiner,
    ShapeStatistics,
    draw_outlines,
    fit_shapes,
    importance_weights,
    in_paint,
    load_refiner,
    place_nuclei,
    refine_and_weigh,
    rough_nuclei,
    shape_table,
    train_refiner,
)


def reference(contact: float = 0.3, per_mpx: float = 700.0) -> ShapeStatistics:
    """Nuclei whose size and shape go together: the large ones are round and smooth."""
    rng = np.random.default_rng(5)
    area = rng.lognormal(5.5, 0.45, 800)
    ratio = np.clip(0.4 + 0.4 * stats.rankdata(area) / 800 + rng.normal(0, 0.06, 800), 0.2, 1)
    outside = np.clip(0.09 - 0.06 * stats.rankdata(area) / 800 + rng.normal(0, 0.01, 800), 0.01, 0.15)
    return ShapeStatistics(np.stack([area, ratio, outside], 1), np.full(4, per_mpx), contact)


def inside(rings: np.ndarray, side: int) -> np.ndarray:
    """Rasterize by matplotlib: which ring, drawn last, holds each pixel's center (0: none)."""
    y, x = np.mgrid[:side, :side] + 0.5
    out = np.zeros((side, side), np.int64)
    for k, ring in enumerate(rings, 1):
        out[Outline(ring).contains_points(np.stack([x.ravel(), y.ravel()], 1)).reshape(side, side)] = k
    return out


def test_measured_shapes_are_those_of_scikit_image() -> None:
    placed = place_nuclei(reference(), 256, np.random.default_rng(1))
    table, _ = shape_table(placed.labels)
    for row, region in zip(table, regionprops(placed.labels), strict=True):
        if region.area < 20:  # a corner of a nucleus that lies outside
            continue
        y, x = region.centroid
        minor, major = region.axis_minor_length, region.axis_major_length
        np.testing.assert_allclose(row[[0, 3, 4]], [region.area, x + 0.5, y + 0.5], rtol=1e-9)
        assert row[1] == pytest.approx(minor / major, abs=0.02)  # scikit-image leaves out a pixel's own second moment


def test_drawn_outlines_follow_the_reference() -> None:
    wanted = reference()
    rings = draw_outlines(wanted, 600, np.random.default_rng(0))
    labels = [inside(ring[None] + 50, 100) for ring in rings]
    drawn = np.array([shape_table(a)[0][0, :3] for a in labels])
    for column, tolerance in ((0, 0.08), (1, 0.05)):
        theirs, ours = (np.quantile(v[:, column], (0.1, 0.25, 0.5, 0.75, 0.9)) for v in (wanted.nuclei, drawn))
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)
    assert np.median(drawn[:, 2]) == pytest.approx(np.median(wanted.nuclei[:, 2]), rel=0.15)
    # and jointly: large nuclei are rounder and smoother, as they were
    assert stats.spearmanr(drawn[:, 0], drawn[:, 1]).statistic > 0.5
    assert stats.spearmanr(drawn[:, 0], drawn[:, 2]).statistic < -0.5


@pytest.mark.parametrize("contact", [0.0, 0.5])
def test_placed_nuclei_are_as_dense_and_as_crowded(contact: float) -> None:
    wanted = reference(contact, 600.0)
    rng = np.random.default_rng(3)
    placed = [place_nuclei(wanted, 256, rng) for _ in range(24)]
    centers = np.concatenate([p.rings.mean(1) for p in placed])
    within = ((centers >= 0) & (centers < 256)).all(1).sum() / (24 * 256**2) * 1e6
    assert within == pytest.approx(600, rel=0.12)
    assert fit_shapes(p.labels for p in placed).contact == pytest.approx(contact, abs=0.1)


def test_labels_are_the_rings_drawn_in_their_order() -> None:
    placed = place_nuclei(reference(0.7), 192, np.random.default_rng(4))
    expected = inside(placed.rings, 192)
    assert len(placed.rings) > 20
    np.testing.assert_array_equal(placed.labels > 0, expected > 0)
    pairs = np.unique(np.stack([placed.labels.ravel(), expected.ravel()], 1), axis=0)
    assert len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))  # one label, one ring


def test_overlap_stays_within_its_limit() -> None:
    placed = place_nuclei(reference(1.0), 256, np.random.default_rng(6), overlap_max=0.15)
    drawn = inside(placed.rings, 256)
    inner = [k for k, r in enumerate(placed.rings) if r.min() > 1 and r.max() < 255]
    hidden = [1 - (drawn == k + 1).sum() / inside(placed.rings[k][None], 256).sum() for k in inner]
    assert 0 < max(hidden) <= 0.15 + 1e-9


def test_a_reference_needs_nuclei() -> None:
    with pytest.raises(InputError, match="at least 10 whole nuclei"):
        fit_shapes([np.zeros((64, 64), np.int32)])


def tissue(side: int = 192, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pink tissue with blue discs, and where these are."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    nuclei = np.zeros((side, side), bool)
    for cy, cx in rng.integers(8, side - 8, (side * side // 1400, 2)):
        nuclei |= (y - cy) ** 2 + (x - cx) ** 2 < rng.integers(25, 70)
    rgb = np.where(nuclei[..., None], (90, 60, 140), (225, 170, 205)) + rng.normal(0, 6, (side, side, 3))
    return np.clip(rgb, 0, 255).astype(np.uint8), nuclei


def test_rough_nuclei_is_otsus_threshold() -> None:
    rgb, nuclei = tissue()
    found = rough_nuclei(rgb)
    assert (found == nuclei).mean() > 0.98
    red = rgb[..., 0]
    assert (found == (red < threshold_otsu(red))).mean() > 0.97
    assert not rough_nuclei(np.full((40, 40, 3), 240, np.uint8)).any()


def test_in_painting_moves_the_nuclei_and_leaves_the_rest() -> None:
    rgb, nuclei = tissue()
    labels = place_nuclei(reference(), 192, np.random.default_rng(8)).labels
    before = rgb.copy()
    out, changed = in_paint(rgb, nuclei, labels, np.random.default_rng(1))
    np.testing.assert_array_equal(rgb, before)
    np.testing.assert_array_equal(out[~changed], rgb[~changed])
    assert changed[nuclei].all()
    assert changed[labels > 0].all()
    far = np.ones_like(nuclei)  # nothing changes 7 px or more from both old and new nuclei
    for y, x in zip(*np.nonzero(nuclei | (labels > 0)), strict=True):
        far[max(0, y - 7) : y + 8, max(0, x - 7) : x + 8] = False
    assert far.any()
    assert not changed[far].any()
    # gone where they were, there where they are drawn
    red = out[..., 0].astype(float)
    gone = nuclei & (labels == 0)
    assert red[gone].mean() > 200
    assert red[labels > 0].mean() < 120
    assert out[gone].std(0).min() > 2  # with the grain of the background, not a flat color
    again, _ = in_paint(rgb, nuclei, labels, np.random.default_rng(1))
    np.testing.assert_array_equal(out, again)


def test_in_painting_needs_both_textures() -> None:
    rgb, nuclei = tissue(64)
    for mask in (np.zeros_like(nuclei), np.ones_like(nuclei)):
        with pytest.raises(InputError, match="Choose another patch"):
            in_paint(rgb, mask, np.zeros((64, 64), np.int32), np.random.default_rng(0))
    with pytest.raises(InputError, match="one size"):
        in_paint(rgb, nuclei[:32], np.zeros((64, 64), np.int32), np.random.default_rng(0))


def layers(net: nn.Module, kinds: type[nn.Module], x: torch.Tensor) -> int:
    """Count how often layers of a kind run in one pass."""
    seen: list[int] = []
    hooks = [m.register_forward_hook(lambda *_: seen.append(1)) for m in net.modules() if isinstance(m, kinds)]
    net(x)
    for hook in hooks:
        hook.remove()
    return len(seen)


@pytest.mark.parametrize(("net", "convs", "pools"), [(Refiner(4), 21, 2), (Discriminator(4), 15, 3)])
def test_published_depths(net: nn.Module, convs: int, pools: int) -> None:
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert layers(net, nn.Conv2d, x) == convs
    assert layers(net, nn.MaxPool2d, x) == pools
    assert not any(isinstance(m, nn.ConvTranspose2d) for m in net.modules())
    if isinstance(net, Refiner):
        torch.testing.assert_close(net(x), x)  # an untrained refiner changes nothing


def test_weights_are_clipped_odds() -> None:
    p = np.array([0.01, 0.2, 0.4, 0.5, 0.6, 0.66, 0.99])
    odds = [min(max(v / (1 - v), 0.2), 2.0) for v in p]
    np.testing.assert_allclose(importance_weights(np.log(p / (1 - p))), odds)
    np.testing.assert_allclose(importance_weights(np.array([-1e4, 1e4])), [0.2, 2.0])


SMALL = RefineConfig(steps=6, batch=2, crop_px=32, width=4, report_every=2, learning_rate=1e-3)


def pictures() -> tuple[list, list]:
    rgb, nuclei = tissue(64)
    return [(rgb, nuclei.astype(np.int32))], [tissue(80, 3)[0] // 2]  # the cohort is darker


def test_a_resumed_refiner_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, _ = train_refiner(*pictures(), SMALL, TrainingRun(tmp_path / "a"))
    train_refiner(*pictures(), SMALL, TrainingRun(tmp_path / "b", stop_after=3))
    with pytest.raises(ConfigError, match="Resume it"):
        train_refiner(*pictures(), SMALL, TrainingRun(tmp_path / "b"))
    resumed, judge = train_refiner(*pictures(), SMALL, TrainingRun(tmp_path / "b", resume=True))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    loaded, _ = load_refiner(tmp_path / "b" / "refiner.pt", SMALL.width)
    rgb = pictures()[0][0][0][:50, :45]  # no multiple of 8
    refined, weight = refine_and_weigh(loaded, judge, rgb)
    assert refined.shape == rgb.shape
    assert 0.2 <= weight <= 2
    with pytest.raises(ConfigError, match="a refiner of width 8, got another"):
        load_refiner(tmp_path / "b" / "refiner.pt", 8)


def test_refining_goes_towards_the_cohort(tmp_path: Path) -> None:
    config = RefineConfig(steps=40, batch=2, crop_px=32, width=8, learning_rate=2e-3, keep=0.5)
    synthetic, real = pictures()
    refiner, judge = train_refiner(synthetic, real, config, TrainingRun(tmp_path))
    refined, _ = refine_and_weigh(refiner, judge, synthetic[0][0])
    target = real[0].mean()
    assert abs(refined.mean() - target) < 0.8 * abs(synthetic[0][0].mean() - target)


def test_hard_examples_are_harder(tmp_path: Path) -> None:
    class Red(nn.Module):
        """Takes the dark in red light for nuclei."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (-8 * x[:, :1] - 2).repeat(1, 2, 1, 1)

    synthetic, _ = pictures()
    real = [tissue(80, 3)[0]]
    losses = []
    for hard in (0.0, 2.0):
        config = RefineConfig(
            steps=30, batch=2, crop_px=32, width=8, learning_rate=1e-3, keep=1.0, hard=hard, hard_limit=50, report_every=30
        )
        nets = train_refiner(synthetic, real, config, TrainingRun(tmp_path / str(hard)), task=Red())
        rgb, labels = synthetic[0]
        red = refine_and_weigh(*nets, rgb)[0][..., 0] / 127.5 - 1
        p = 1 / (1 + np.exp(8 * red + 2))
        losses.append(-np.log(np.where(labels > 0, p, 1 - p).clip(1e-6)).mean())
    assert losses[1] > 1.2 * losses[0]


def test_refiner_states_what_it_needs(tmp_path: Path) -> None:
    synthetic, real = pictures()
    with pytest.raises(InputError, match="real pictures of at least 72 px per side, got none"):
        train_refiner(
            [(np.zeros((99, 99, 3), np.uint8), np.zeros((99, 99), np.int32))],
            [],
            RefineConfig(crop_px=72),
            TrainingRun(tmp_path),
        )
    with pytest.raises(InputError, match="synthetic pictures of at least 72 px per side, got 64"):
        train_refiner(synthetic, real, RefineConfig(crop_px=72), TrainingRun(tmp_path))
    with pytest.raises(ConfigError, match="crop_px"):
        RefineConfig(crop_px=30)

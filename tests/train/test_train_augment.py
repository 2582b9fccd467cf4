"""Augmentation: image and targets move together, and the colors stay those of a slide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsiseg.train import AugmentConfig
from wsiseg.train.augment import augment_color, cut_patch, degrade, look_of, restain

STILL = AugmentConfig(scale_min=1, scale_max=1, elastic_px=0, free_rotation_p=0)


def tissue(size: int = 96) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.uniform(60, 250, (3, size, size)).astype(np.float32))


def test_without_augmentation_a_patch_is_a_turned_piece_of_the_image() -> None:
    """Whatever piece is cut, every value of it is in the image, at whole pixels when scale and place allow."""
    image = torch.arange(64 * 64, dtype=torch.int64).reshape(1, 64, 64) % 251
    stack = torch.cat([image, image]).to(torch.uint8)
    patch = cut_patch(stack, 32, np.random.default_rng(4), STILL)
    assert patch.shape == (2, 32, 32)
    assert torch.equal(patch[0], patch[1]), "all channels move together"


def test_image_and_target_move_together_under_everything() -> None:
    y, x = np.mgrid[:200, :200]
    disc = ((np.hypot(x - 100, y - 100) < 30) * 255).astype(np.uint8)
    stack = torch.from_numpy(np.stack([disc, disc]))
    for seed in range(10):
        patch = cut_patch(stack, 128, np.random.default_rng(seed), AugmentConfig())
        assert torch.equal(patch[0], patch[1])


def test_scale_is_in_its_range() -> None:
    disc = np.hypot(*np.mgrid[-150:150, -150:150]) < 30
    stack = torch.from_numpy((disc * 255).astype(np.uint8))[None]
    config = AugmentConfig(scale_min=0.6, scale_max=1.6, elastic_px=0)
    areas = []
    for seed in range(60):
        patch = cut_patch(stack, 400, np.random.default_rng(seed), config)[0] > 127
        if not (patch[0].any() or patch[-1].any() or patch[:, 0].any() or patch[:, -1].any()):
            areas.append(float(patch.sum()))
    factors = np.sqrt(np.array(areas) / disc.sum())
    assert len(factors) > 20
    assert factors.min() > 0.58
    assert factors.max() < 1.64
    assert np.ptp(factors) > 0.6


def test_the_same_generator_gives_the_same_patch() -> None:
    stack = (tissue() / 2).to(torch.uint8)
    config = AugmentConfig(blur_p=1, jpeg_p=1, noise_p=1)

    def once() -> torch.Tensor:
        rng = np.random.default_rng(9)
        return degrade(augment_color(cut_patch(stack, 64, rng, config), rng, config), rng, config)

    assert torch.equal(once(), once())


def test_colors_change_but_glass_stays_bright() -> None:
    glass = torch.full((3, 16, 16), 255.0)
    dull = AugmentConfig(gamma=0.0)
    for seed in range(30):
        out = augment_color(glass, np.random.default_rng(seed), dull)
        assert out.min() > 235
    rgb = tissue()
    differences = [float((augment_color(rgb, np.random.default_rng(s), AugmentConfig()) - rgb).abs().mean()) for s in range(10)]
    assert max(differences) > 15


def test_no_color_jitter_is_the_identity() -> None:
    off = AugmentConfig(stain_gain=0, stain_offset=0, hue_mix=0, gamma=0)

    class Still:
        def uniform(self, low: float, high: float, size: object = None) -> object:
            return np.zeros(size) if size is not None else 0.0  # type: ignore[call-overload]

    torch.testing.assert_close(augment_color(tissue(), Still(), off), tissue(), rtol=0, atol=0.01)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["low_resolution_p", "blur_p", "jpeg_p", "noise_p"])
def test_each_degradation_keeps_size_and_range(name: str) -> None:
    none = {"low_resolution_p": 0.0, "blur_p": 0.0, "jpeg_p": 0.0, "noise_p": 0.0}
    rgb = tissue(97)
    assert torch.equal(degrade(rgb, np.random.default_rng(0), AugmentConfig(**none)), rgb)
    out = degrade(rgb, np.random.default_rng(0), AugmentConfig(**{**none, name: 1.0}))
    assert out.shape == rgb.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 255
    assert not torch.equal(out, rgb)
    assert abs(float(out.mean() - rgb.mean())) < 5


def stained(mean: tuple[float, float, float], seed: int) -> torch.Tensor:
    """Return an image of tissue, dark enough to be all tissue, of a given mean density and mixed channels."""
    rng = np.random.default_rng(seed)
    mixing = rng.uniform(-0.05, 0.05, (3, 3)) + 0.12 * np.eye(3)
    density = np.array(mean)[:, None, None] + np.einsum("cd,dhw->chw", mixing, rng.standard_normal((3, 80, 80)))
    return torch.from_numpy((256 * np.exp(-density) - 1).astype(np.float32))


def as_image(rgb: torch.Tensor) -> np.ndarray:
    return rgb.round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_restained_tissue_has_the_other_look() -> None:
    mine, other = stained((0.7, 0.9, 0.6), 1), stained((0.9, 1.1, 0.8), 2)
    there = look_of(as_image(restain(mine, look_of(as_image(mine)), look_of(as_image(other)), 1.0)))
    wanted = look_of(as_image(other))
    assert np.abs(there.mean - wanted.mean).max() < 0.01
    assert np.abs(there.covariance - wanted.covariance).max() < 0.05 * wanted.covariance.max()


def test_restaining_towards_itself_or_not_at_all_changes_nothing() -> None:
    mine, other = stained((0.7, 0.9, 0.6), 1), stained((0.9, 1.1, 0.8), 2)
    look = look_of(as_image(mine))
    assert (restain(mine, look, look, 1.0) - mine).abs().max() < 0.01
    assert (restain(mine, look, look_of(as_image(other)), 0.0) - mine).abs().max() < 0.01


def test_restained_glass_stays_clear() -> None:
    glass = torch.full((3, 8, 8), 255.0)
    dark, pale = (look_of(as_image(stained(mean, 3))) for mean in ((1.4, 1.6, 1.2), (0.4, 0.5, 0.4)))
    assert (restain(glass, pale, dark, 1.3) - glass).abs().max() < 1e-3

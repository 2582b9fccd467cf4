"""Augmentation of a batch: each operation against another library's, and the same patches however the batch is shared out."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional

from wsiseg.normalize import fit_stain, normalize
from wsiseg.normalize.macenko import TARGET_MAX_C, TARGET_STAINS, density_matrix
from wsiseg.normalize.reinhard import TARGET_MEAN, TARGET_STD
from wsiseg.train import AugmentConfig
from wsiseg.train.augment import look_of
from wsiseg.train.augment_batch import (
    PixelBank,
    StainStatistics,
    augment_batch,
    blur_matrix,
    macenko_transfer,
    reinhard_transfer,
)
from wsiseg.train.jpeg import jpeg_quantized

CPU = torch.device("cpu")
OFF = AugmentConfig(
    scale_min=1, scale_max=1, elastic_px=0, free_rotation_p=0, stain_gain=0, stain_offset=0, hue_mix=0, gamma=0, blur_p=0,
    low_resolution_p=0, jpeg_p=0, noise_p=0,
)  # fmt: skip
STRONG = AugmentConfig(
    blur_p=0.6, low_resolution_p=0.5, jpeg_p=0.6, noise_p=0.6, restain_p=0.4, macenko_mix_p=0.3, reinhard_mix_p=0.3
)


def tissue(h: int, w: int, seed: int = 0, stains: np.ndarray | None = None) -> np.ndarray:
    """Two stains in smooth amounts, as RGB uint8 (h, w, 3)."""
    rng = np.random.default_rng(seed)
    amounts = [ndimage.gaussian_filter(rng.random((h, w)), 2) for _ in range(2)]
    amounts = [1.6 * (a - a.min()) / np.ptp(a) for a in amounts]
    vectors = np.array([[0.56, 0.72, 0.41], [0.22, 0.80, 0.56]]) if stains is None else stains
    density = amounts[0][..., None] * vectors[0] + amounts[1][..., None] * vectors[1]
    return np.clip(256 * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)


def bank_of(*images: np.ndarray, **known: Any) -> PixelBank:
    stacks = []
    for image in images:
        extra = (np.indices(image.shape[:2]).sum(0) % 7 == 0).astype(np.uint8) * 255
        stacks.append(torch.from_numpy(np.concatenate([255 - image.transpose(2, 0, 1), extra[None], extra[None], extra[None]])))
    return PixelBank(stacks, CPU, **known)


def test_samples_are_those_of_torchs_own_grid_sample() -> None:
    images = [tissue(37, 52, 0), tissue(64, 41, 1)]
    bank = bank_of(*images)
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.uniform(-9, 60, (2, 25, 25)).astype(np.float32))
    y = torch.from_numpy(rng.uniform(-9, 70, (2, 25, 25)).astype(np.float32))
    for mode, mirror in (("zeros", False), ("reflection", True)):
        got = bank.sample(np.array([0, 1]), x, y, np.array([mirror, mirror]))
        for k, image in enumerate(images):
            h, w = image.shape[:2]
            grid = torch.stack([x[k] / w * 2 - 1, y[k] / h * 2 - 1], -1)[None]
            whole = torch.from_numpy(255 - image.transpose(2, 0, 1)).float()[None]
            expected = functional.grid_sample(whole, grid, mode="bilinear", padding_mode=mode, align_corners=False)[0]
            torch.testing.assert_close(got[k, :3], expected, rtol=0, atol=0.02)


def test_image_and_targets_move_together() -> None:
    y, x = np.mgrid[:150, :150]
    disc = ((np.hypot(x - 75, y - 75) < 30) * 255).astype(np.uint8)
    stack = torch.from_numpy(np.stack([disc] * 6))
    geometry = dataclasses.replace(OFF, elastic_px=6.0, free_rotation_p=1.0)
    bank = PixelBank([stack], CPU)
    patches = augment_batch(bank, np.zeros(8, np.int64), np.full(8, 0.8), 96, np.random.default_rng(0), geometry)
    nucleus = patches[:, 3] > 127
    assert nucleus.any()
    assert not nucleus.all()
    dark = patches[:, 0] < 127  # the image's own channel, inverted back; glare moves it by 12 of 255 at most
    assert float((dark != nucleus).float().mean()) < 0.005


def test_parts_make_the_whole_and_the_seed_makes_the_parts() -> None:
    images = [tissue(90, 80, s) for s in range(3)]
    stains = [StainStatistics(fit(i, "macenko"), fit(i, "reinhard")) for i in images]
    bank = bank_of(*images, stains=stains, looks=[look_of(i) for i in images])
    chosen, magnify = np.array([0, 1, 2, 1, 0]), np.array([1, 0.9, 1.1, 0.9, 1])

    def make(part: slice = slice(None), seed: int = 5) -> torch.Tensor:
        return augment_batch(bank, chosen, magnify, 64, np.random.default_rng(seed), STRONG, part)

    whole = make()
    assert torch.equal(whole, make())
    assert not torch.equal(whole, make(seed=6))
    parts = torch.cat([make(slice(0, 2)), make(slice(2, 5))])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-2)
    assert 0 <= float(whole.min()) <= float(whole.max()) <= 255 + 1e-3


@pytest.mark.parametrize("quality", [35, 50, 75, 89])
def test_jpeg_is_what_pillow_makes_of_it(quality: int) -> None:
    image = tissue(72, 104, 4)
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 4, image.shape), 0, 255).round().astype(np.uint8)
    for pixels in (image, noisy, noisy[:67, :99]):
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, "JPEG", quality=quality)
            expected = np.asarray(Image.open(file)).astype(float)
        batch = torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()[None]
        got = jpeg_quantized(batch, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy()
        lost = np.abs(expected - pixels).mean()
        assert np.abs(got - expected).mean() < 0.2 * lost + 0.1, "ours differs from Pillow by little of what either loses"
        assert np.quantile(np.abs(got - expected), 0.99) <= 5


def test_one_batch_holds_several_qualities() -> None:
    pixels = torch.from_numpy(tissue(48, 48).transpose(2, 0, 1).copy()).float()
    both = jpeg_quantized(torch.stack([pixels, pixels]), torch.tensor([40.0, 85.0]))
    for k, quality in enumerate((40.0, 85.0)):
        torch.testing.assert_close(both[k], jpeg_quantized(pixels[None], torch.tensor([quality]))[0])


def test_blur_is_scipys_gaussian() -> None:
    image = np.random.default_rng(0).uniform(0, 255, (40, 40))
    for sigma in (0.5, 1.3):
        matrix = blur_matrix(torch.tensor([sigma], dtype=torch.float64), 40)[0].numpy()
        expected = ndimage.gaussian_filter(image, sigma, mode="mirror", truncate=8)
        np.testing.assert_allclose(matrix @ image @ matrix.T, expected, atol=1e-6)


def fit(rgb: np.ndarray, method: str) -> tuple[float, ...]:
    return fit_stain(method, rgb, np.ones(rgb.shape[:2], bool)).params


def test_macenko_to_the_reference_is_the_normalization() -> None:
    """Within the plane of the two stains both are the same matrix; beside it ours keeps what is there."""
    params = fit(tissue(80, 80), "macenko")
    target = (*TARGET_STAINS[0], *TARGET_STAINS[1], *TARGET_MAX_C)
    ours = macenko_transfer(params, target)
    stains = np.array(params[:6]).reshape(2, 3)
    for amounts in ((1.0, 0.0), (0.3, 1.2)):
        density = np.array(amounts) @ stains
        np.testing.assert_allclose(ours @ density, density_matrix(params) @ density, rtol=1e-9)
    beside = np.cross(*stains)
    np.testing.assert_allclose(ours @ beside, beside, rtol=1e-6, atol=1e-9)


def test_reinhard_to_the_reference_is_the_normalization() -> None:
    image = tissue(60, 60)
    params = fit(image, "reinhard")
    matrix, offset = reinhard_transfer(params, (*TARGET_MEAN, *TARGET_STD))
    from wsiseg.train.augment_batch import _reinhard

    batch = torch.from_numpy(image.transpose(2, 0, 1).copy()).float()[None]
    transfer = torch.from_numpy(np.c_[matrix, offset].astype(np.float32))[None]
    got = _reinhard(batch, transfer)[0].permute(1, 2, 0).numpy()
    expected = normalize(image, fit_stain("reinhard", image, np.ones(image.shape[:2], bool)))
    assert np.abs(got - expected).max() <= 1.6


def test_mixing_moves_the_stain_to_the_other_images() -> None:
    """All patches come from one of two stains; mixed by Macenko, some come near to the other."""
    pink, blue = tissue(90, 90, 0), tissue(90, 90, 0, np.array([[0.75, 0.55, 0.25], [0.35, 0.60, 0.70]]))
    stains = [StainStatistics(fit(i, "macenko"), fit(i, "reinhard")) for i in (pink, blue)]
    for name in ("macenko_mix_p", "reinhard_mix_p"):
        config = dataclasses.replace(OFF, **{name: 1.0})
        bank = bank_of(pink, blue, stains=stains)
        out = augment_batch(bank, np.zeros(12, np.int64), np.ones(12), 64, np.random.default_rng(0), config)
        hue = (out[:, 0] - out[:, 2]).mean((1, 2)).numpy()
        from_pink, from_blue = (float((i[..., 0].astype(int) - i[..., 2]).mean()) for i in (pink, blue))
        moved = (hue - from_pink) / (from_blue - from_pink)
        assert moved.max() > 0.5
        assert abs(from_blue - from_pink) > 10

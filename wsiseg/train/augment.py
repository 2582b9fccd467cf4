"""Draw random patches from images and augment them with the variation of scanners, stains and sections.

Geometry (flip, rotation, scale, elastic) is one resampling of image and targets together. Color works in optical density,
where stains add up (Ruifrok and Johnston 2001; Tellez et al. 2019). Blur, loss of resolution, JPEG and noise come last, in
the order in which they arise in a scanner. All random numbers come from the generator that the caller passes.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from wsiseg.errors import ConfigError

__all__ = [
    "STAINS",
    "UNMIX",
    "AugmentConfig",
    "Look",
    "augment_color",
    "cut_patch",
    "degrade",
    "look_of",
    "restain",
]

# Ruifrok and Johnston's optical densities of hematoxylin, eosin and DAB, one stain per row
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
UNMIX = np.linalg.inv(STAINS)


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Strengths and probabilities of augmentation; names of probabilities end in ``_p``.

    Attributes
    ----------
    scale_min, scale_max
        Magnification of a patch, drawn log-uniformly.
    unknown_scale
        Patches of sets without microns per px are also magnified by a factor that is drawn log-uniformly between
        1 / unknown_scale and this.
    elastic_px
        Maximum random displacement of a coarse grid of control points, px.
    stain_gain, stain_offset
        Each stain's density is multiplied by up to 1 +- gain and shifted by up to +- offset.
    hue_mix
        Off-diagonal mixing of color channels in optical density, as between the sensors of different scanners.
    macenko_mix_p, reinhard_mix_p
        Probability that a patch gets the stain of another training image by this method (only ``augment_batch``).
    restain_p
        Probability that a patch gets the colors of another training image (``restain``).
    """

    scale_min: float = 0.6
    scale_max: float = 1.6
    unknown_scale: float = 1.0
    elastic_px: float = 4.0
    free_rotation_p: float = 0.3
    stain_gain: float = 0.35
    stain_offset: float = 0.08
    hue_mix: float = 0.08
    gamma: float = 0.2
    blur_p: float = 0.25
    low_resolution_p: float = 0.15
    jpeg_p: float = 0.3
    noise_p: float = 0.25
    macenko_mix_p: float = 0.0
    reinhard_mix_p: float = 0.0
    restain_p: float = 0.0

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for a value outside its range."""
        for name in self.__slots__:
            value = getattr(self, name)
            low = 1.0 if name == "unknown_scale" else 0.0
            high = 1.0 if name.endswith("_p") else math.inf
            if not low <= value <= high:
                raise ConfigError(f"training config: expected augment.{name} to be {low:g} to {high:g}, got {value!r}.")
        if not 0 < self.scale_min <= self.scale_max:
            raise ConfigError(
                f"training config: expected 0 < augment.scale_min <= augment.scale_max, got {self.scale_min}, {self.scale_max}."
            )


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Colors of one image's tissue in optical density: mean float64 (3,) and covariance float64 (3, 3)."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


def look_of(rgb: NDArray[np.uint8]) -> Look:
    """Return the color statistics of the tissue in an image, uint8 (H, W, 3); glass (all channels above 220) is ignored."""
    pixels = rgb.reshape(-1, 3)
    tissue = pixels[pixels.min(1) <= 220]
    density = -np.log(((tissue if len(tissue) > 64 else pixels).astype(np.float64) + 1) / 256)
    return Look(density.mean(0), np.cov(density.T) + 1e-4 * np.eye(3))


def restain(rgb: torch.Tensor, look: Look, other: Look, share: float) -> torch.Tensor:
    """Return a patch with its stain changed from the colors of one image towards those of another, float32 (3, H, W), 0..255.

    The colors (optical densities) of tissue are transformed by the linear map of optimal transport between two Gaussians (Pitie
    and Kokaram, The linear Monge-Kantorovitch colour mapping, 2007).

    Parameters
    ----------
    rgb : float32 (3, H, W)
        Patch of the first image, 0..255.
    look, other
        Color statistics of the first and of the second image.
    share
        0: no change, 1: the colors of the second image; above 1 extrapolates.
    """
    root = _power(look.covariance, 0.5)
    inverse = _power(look.covariance, -0.5)
    monge = inverse @ _power(root @ other.covariance @ root, 0.5) @ inverse
    matrix = torch.from_numpy((1 - share) * np.eye(3) + share * monge).to(rgb)
    mean = torch.from_numpy(look.mean).to(rgb)
    target = torch.from_numpy(look.mean + share * (other.mean - look.mean)).to(rgb)
    density = -torch.log((rgb + 1) * (1 / 256))
    tissue = density.mean(0, keepdim=True).clamp(max=0.15) * (1 / 0.15)
    moved = torch.einsum("dc,chw->dhw", matrix, density - mean[:, None, None]) + target[:, None, None]
    return (256 * torch.exp(-torch.lerp(density, moved, tissue)) - 1).clamp(0, 255)


def cut_patch(
    stack: torch.Tensor, size_px: int, rng: np.random.Generator, config: AugmentConfig, magnify: float = 1.0
) -> torch.Tensor:
    """Return one patch of image and targets at a random position, with random scale, rotation, flip and deformation.

    Parameters
    ----------
    stack : uint8 (C, H, W)
        Channels of one image, in which 0 must mean background (so RGB is inverted: white is 0).
    size_px
        Side of the patch, px.
    magnify
        Additional magnification, which brings this image nearer to the working resolution.

    Returns
    -------
    float32 (C, size_px, size_px)
        Bilinear samples, 0..255.
    """
    _, h, w = stack.shape
    zoom = magnify * math.exp(rng.uniform(math.log(config.scale_min), math.log(config.scale_max)))
    half = 0.5 * size_px / zoom
    angle = rng.integers(4) * math.pi / 2
    if rng.random() < config.free_rotation_p:
        angle += rng.uniform(-math.pi / 4, math.pi / 4)
    flip = 1.0 if rng.random() < 0.5 else -1.0
    cx, cy = (_center(rng, half, side) for side in (w, h))
    steps = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    u, v = np.meshgrid(steps * half * flip, steps * half)
    sx = cx + u * math.cos(angle) - v * math.sin(angle)
    sy = cy + u * math.sin(angle) + v * math.cos(angle)
    reach = half * (abs(math.cos(angle)) + abs(math.sin(angle))) + config.elastic_px / zoom + 2
    x0, y0 = max(0, int(cx - reach)), max(0, int(cy - reach))
    part = stack[:, y0 : min(h, int(cy + reach) + 1), x0 : min(w, int(cx + reach) + 1)].float()
    ph, pw = part.shape[1:]
    grid = torch.from_numpy(np.stack([(sx - x0) / pw * 2 - 1, (sy - y0) / ph * 2 - 1], -1).astype(np.float32))
    if config.elastic_px > 0:
        knots = torch.from_numpy(rng.uniform(-1, 1, (1, 2, 6, 6)).astype(np.float32)) * (config.elastic_px / zoom)
        bend = functional.interpolate(knots, (size_px, size_px), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
        grid += bend * torch.tensor([2 / pw, 2 / ph])
    # outside the image: white and empty as at the edge of a slide, or mirrored as if the tissue continued
    pad = "zeros" if rng.random() < 0.5 else "reflection"
    return functional.grid_sample(part[None], grid[None], mode="bilinear", padding_mode=pad, align_corners=False)[0]


def augment_color(rgb: torch.Tensor, rng: np.random.Generator, config: AugmentConfig) -> torch.Tensor:
    """Return the patch, float32 (3, H, W), 0..255, with randomly changed stains, contrast and sensor response."""
    gain = 1 + rng.uniform(-config.stain_gain, config.stain_gain, 3)
    offset = rng.uniform(-config.stain_offset, config.stain_offset, 3) * np.array([1, 1, 0.3])
    sensor = np.eye(3) + rng.uniform(-config.hue_mix, config.hue_mix, (3, 3))
    strength = math.exp(rng.uniform(-config.gamma, config.gamma))
    mix = torch.from_numpy((UNMIX @ np.diag(gain) @ STAINS @ sensor * strength).astype(np.float32))
    shift = torch.from_numpy((offset @ STAINS).astype(np.float32))
    density = -torch.log((rgb + 1) * (1 / 256))
    tissue = density.mean(0, keepdim=True).clamp(max=0.15) * (1 / 0.15)  # clear glass stays clear
    density = torch.einsum("chw,cd->dhw", density, mix) + shift[:, None, None] * tissue
    out = 256 * torch.exp(-density) - 1
    glare = float(rng.uniform(-12, 6))
    return (out + glare).clamp(0, 255)


def degrade(rgb: torch.Tensor, rng: np.random.Generator, config: AugmentConfig) -> torch.Tensor:
    """Return the patch, float32 (3, H, W), 0..255, with random blur, sharpening, loss of resolution, JPEG and noise."""
    size = rgb.shape[1:]
    if rng.random() < config.low_resolution_p:
        factor = float(rng.uniform(1.3, 2.2))
        small = functional.interpolate(rgb[None], scale_factor=1 / factor, mode="bilinear", antialias=True)
        rgb = functional.interpolate(small, size, mode="bilinear")[0]
    elif rng.random() < config.blur_p:
        rgb = _blur(rgb, float(rng.uniform(0.4, 1.4)))
    elif rng.random() < config.blur_p:
        rgb = rgb + float(rng.uniform(0.2, 0.9)) * (rgb - _blur(rgb, 1.0))  # sharpening, as scanners apply
    if rng.random() < config.noise_p:
        draws = rng.standard_normal(rgb.shape, dtype=np.float32)
        rgb = rgb + float(rng.uniform(1, 6)) * torch.from_numpy(draws)
    rgb = rgb.clamp(0, 255)
    if rng.random() < config.jpeg_p:
        rgb = _jpeg(rgb, int(rng.integers(35, 90)))
    return rgb


def _power(matrix: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.maximum(values, 1e-12) ** exponent) @ vectors.T)


def _center(rng: np.random.Generator, half: float, side: int) -> float:
    low, high = 0.8 * half, side - 0.8 * half  # up to a tenth of the side of a patch may be outside
    return float(rng.uniform(low, high)) if high > low else side / 2 + float(rng.uniform(-0.1, 0.1)) * half


def _blur(rgb: torch.Tensor, sigma_px: float) -> torch.Tensor:
    reach = math.ceil(2.5 * sigma_px)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma_px) ** 2)
    taps = taps / taps.sum()
    x = functional.pad(rgb[:, None], (reach, reach, reach, reach), mode="reflect")
    return functional.conv2d(functional.conv2d(x, taps.view(1, 1, 1, -1)), taps.view(1, 1, -1, 1))[:, 0]


def _jpeg(rgb: torch.Tensor, quality: int) -> torch.Tensor:
    pixels: NDArray[np.uint8] = rgb.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        decoded = np.array(Image.open(file))
    return torch.from_numpy(decoded).permute(2, 0, 1).float()

"""The augmentations of ``wsiseg.train.augment`` as operations on a whole batch, on the device where training runs.

Random numbers are drawn on the host from the generator that the caller passes, a few per patch; pixels are processed only on
the device. So a batch depends only on the seed and the kind of device, and a part of a batch has the same patches as the whole.
In addition to the augmentations of that module, a patch may get the stain of another training image to a random degree (Macenko
et al. 2009; Reinhard et al. 2001).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wsiseg.train.augment import STAINS, UNMIX, AugmentConfig, Look, restain
from wsiseg.train.jpeg import jpeg_quantized

__all__ = ["PixelBank", "StainStatistics", "augment_batch", "blur_matrix", "macenko_transfer", "reinhard_transfer"]

# Reinhard et al. 2001, equations 4 and 6
_LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
_LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1.0, 1.0, 1.0], [1.0, 1.0, -2.0], [1.0, -1.0, 0.0]])
_GLASS, _FADE = 240.0, 40.0  # no change if the darkest channel is above the first; full change below first - second


@dataclass(frozen=True, slots=True)
class StainStatistics:
    """The stain of an image by two methods, as ``Stain.params`` of ``wsiseg.normalize``; empty if it cannot be fitted."""

    macenko: tuple[float, ...] = ()
    reinhard: tuple[float, ...] = ()


class PixelBank:
    """Images of any sizes in one flat tensor on a device, from which the patches of a batch are sampled at once.

    ``stains`` and ``looks`` are those of each image: needed where an ``AugmentConfig`` mixes stains, or restains.
    """

    def __init__(
        self,
        stacks: Sequence[torch.Tensor],
        device: torch.device,
        stains: Sequence[StainStatistics] = (),
        looks: Sequence[Look] = (),
    ) -> None:
        """Store the images, each uint8 (C, H, W), in which 0 must mean background."""
        self.device, self.stains, self.looks = device, stains, looks
        self.sizes = np.array([s.shape[1:] for s in stacks], np.int64)
        self._first = np.cumsum([0, *(h * w for h, w in self.sizes)])[:-1]
        self._pixels = torch.cat([s.flatten(1).T for s in stacks]).to(device)

    def sample(self, images: NDArray[np.int64], x: torch.Tensor, y: torch.Tensor, mirror: NDArray[np.bool_]) -> torch.Tensor:
        """Return bilinear samples, 0..255.

        Parameters
        ----------
        images : int64 (N,)
            Number of the image of each patch.
        x, y : float32 (N, P, P)
            Positions of the samples in the image, px; the center of the first pixel is at 0.5.
        mirror : bool (N,)
            Whether positions outside the image are mirrored; otherwise they are 0.

        Returns
        -------
        float32 (N, C, P, P)
        """
        h, w, first = (self._each(v) for v in (*self.sizes[images].T, self._first[images]))
        mirrored = self._each(mirror)
        x, y = x - 0.5, y - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = x - x0, y - y0
        x0, y0 = x0.long(), y0.long()
        out: torch.Tensor | None = None
        rows = [(_folded(y0 + d, h), share) for d, share in ((0, 1 - fy), (1, fy))]
        columns = [(_folded(x0 + d, w), share) for d, share in ((0, 1 - fx), (1, fx))]
        for (row, row_in), wy in rows:
            for (column, column_in), wx in columns:
                weight = wx * wy * (mirrored | (row_in & column_in))
                values = self._pixels.index_select(0, (first + row * w + column).flatten()).float()
                values *= weight.flatten()[:, None]
                out = values if out is None else out.add_(values)
        assert out is not None
        return out.view(*x.shape, -1).permute(0, 3, 1, 2).contiguous()

    def _each(self, values: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)[:, None, None]


def augment_batch(
    bank: PixelBank,
    chosen: NDArray[np.int64],
    magnify: NDArray[np.float64],
    size_px: int,
    rng: np.random.Generator,
    config: AugmentConfig,
    part: slice = slice(None),
) -> torch.Tensor:
    """Return augmented patches: image and targets are transformed together, then color and sharpness of the image change.

    Parameters
    ----------
    bank
        Its first three channels are the inverted RGB.
    chosen : int64 (N,)
        Number of the image of each patch.
    magnify : float64 (N,)
        Additional magnification of each patch.
    size_px
        Side of a patch, px.
    part
        Which of the N patches to compute.

    Returns
    -------
    float32 (n, C, size_px, size_px)
        0..255, the first three channels RGB.
    """
    n, looks = len(chosen), bank.looks
    x, y, mirror = _places(rng, bank.sizes[chosen], magnify, size_px, config, bank.device, part)
    restained = (rng.random(n) < config.restain_p) & (len(looks) > 0)
    other, share = rng.integers(max(1, len(looks)), size=n), rng.uniform(0.4, 1.3, n)
    look = _looks(rng, chosen, config, bank.stains)
    blur = _blurs(rng, n, config)
    noise = np.where(rng.random(n) < config.noise_p, rng.uniform(1, 6, n), 0)
    seeds = rng.integers(1 << 62, size=n)
    quality = np.where(rng.random(n) < config.jpeg_p, rng.integers(35, 90, n), 0)
    patches = bank.sample(chosen[part], x, y, mirror[part])
    rgb = 255 - patches[:, :3]
    for k in np.flatnonzero(restained[part]):
        rgb[k] = restain(rgb[k], looks[chosen[part][k]], looks[other[part][k]], float(share[part][k]))
    rgb = _recolored(rgb, *(values[part] for values in look))
    rgb = _refocused(rgb, *(values[part] for values in blur))
    for k in np.flatnonzero(noise[part]):
        source = torch.Generator(bank.device).manual_seed(int(seeds[part][k]))
        rgb[k] += float(noise[part][k]) * torch.randn(rgb.shape[1:], generator=source, device=bank.device)
    rgb = rgb.clamp(0, 255)
    squeezed = np.flatnonzero(quality[part])
    if len(squeezed):
        where = torch.from_numpy(squeezed).to(bank.device)
        rgb[where] = jpeg_quantized(rgb[where], _on(quality[part][squeezed], rgb))
    patches[:, :3] = rgb
    return patches


def macenko_transfer(source: Sequence[float], target: Sequence[float]) -> NDArray[np.float64]:
    """Return the 3x3 matrix that maps optical densities from one stain to another; the residual of the stains is unchanged.

    Both stains are (hematoxylin r, g, b, eosin r, g, b, 99th percentiles of the two concentrations).
    """
    stains_from, stains_to = (np.array(p[:6], np.float64).reshape(2, 3).T for p in (source, target))
    unmix = np.linalg.pinv(stains_from)
    gain = np.array(target[6:8]) / np.array(source[6:8])
    return np.asarray(stains_to @ np.diag(gain) @ unmix + np.eye(3) - stains_from @ unmix)


def reinhard_transfer(source: Sequence[float], target: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrix (3, 3) and offset (3,) of the transfer in log10 LMS.

    Both stains are (means, standard deviations) of l, alpha and beta.
    """
    gain = np.minimum(np.array(target[3:6]) / np.array(source[3:6]), 3.0)
    return _LAB.T @ np.diag(gain) @ _LAB, _LAB.T @ (np.array(target[:3]) - gain * np.array(source[:3]))


def blur_matrix(sigma_px: torch.Tensor, size_px: int) -> torch.Tensor:
    """Return the Gaussian blur along one axis as matrices (N, P, P), mirrored at the ends without repeating them."""
    k = torch.arange(size_px, device=sigma_px.device, dtype=sigma_px.dtype)
    last = size_px - 1

    def bell(distance: torch.Tensor) -> torch.Tensor:
        return torch.exp(-0.5 * (distance / sigma_px[:, None, None]) ** 2)

    i, j = k[:, None], k[None]
    weight = bell(i - j) + bell(i + j) * (j > 0) + bell(2 * last - i - j) * (j < last)
    return weight / weight.sum(2, keepdim=True)


def _folded(index: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices mirrored into 0..size-1, and a mask of those that were inside."""
    inside = (index >= 0) & (index < size)
    folded = torch.remainder(index, 2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded), inside


def _places(
    rng: np.random.Generator, sizes: NDArray[np.int64], magnify: NDArray[np.float64], size_px: int, config: AugmentConfig,
    device: torch.device, part: slice,
) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.bool_]]:  # fmt: skip
    """Return the position of each patch pixel in its image, with the random transformations of ``cut_patch``."""
    n = len(sizes)
    zoom = magnify * np.exp(rng.uniform(math.log(config.scale_min), math.log(config.scale_max), n))
    half = 0.5 * size_px / zoom
    angle = rng.integers(4, size=n) * math.pi / 2
    angle = angle + np.where(rng.random(n) < config.free_rotation_p, rng.uniform(-math.pi / 4, math.pi / 4, n), 0)
    flip = np.where(rng.random(n) < 0.5, 1.0, -1.0)
    slack = sizes[:, ::-1] / 2 - 0.8 * half[:, None]  # a patch may reach a tenth of its side over the edge
    shift = rng.uniform(-1, 1, (n, 2)) * np.where(slack > 0, slack, 0.1 * half[:, None])
    knots = rng.uniform(-1, 1, (n, 2, 6, 6)) * (config.elastic_px / zoom)[:, None, None, None]
    mirror = rng.random(n) < 0.5
    cos, sin = np.cos(angle) * half, np.sin(angle) * half
    affine = np.stack([cos * flip, -sin, sin * flip, cos, *(sizes[:, ::-1] / 2 + shift).T], 1)[part]
    turn = torch.from_numpy(affine.astype(np.float32)).to(device)[:, :, None, None]
    steps = (torch.arange(size_px, device=device) + 0.5) / size_px * 2 - 1
    u, v = steps[None, None, :], steps[None, :, None]
    x, y = turn[:, 0] * u + turn[:, 1] * v + turn[:, 4], turn[:, 2] * u + turn[:, 3] * v + turn[:, 5]
    if config.elastic_px > 0:
        bend = torch.from_numpy(knots[part].astype(np.float32)).to(device)
        knot = torch.eye(6, device=device)[None, None]
        spread = functional.interpolate(
            knot, (size_px, 6), mode="bicubic", align_corners=True
        )  # interpolation along one axis, as a matrix
        bend = spread @ bend @ spread.transpose(2, 3)
        x, y = x + bend[:, 0], y + bend[:, 1]
    return x, y, mirror


def _looks(
    rng: np.random.Generator, chosen: NDArray[np.int64], config: AugmentConfig, stains: Sequence[StainStatistics]
) -> tuple[NDArray[np.float64], ...]:
    """Draw color changes: density matrix, density shift, glare, and Reinhard's matrix and offset (NaN: none)."""
    n = len(chosen)
    gain = 1 + rng.uniform(-config.stain_gain, config.stain_gain, (n, 3))
    offset = rng.uniform(-config.stain_offset, config.stain_offset, (n, 3)) * np.array([1, 1, 0.3])
    sensor = np.eye(3) + rng.uniform(-config.hue_mix, config.hue_mix, (n, 3, 3))
    strength = np.exp(rng.uniform(-config.gamma, config.gamma, n))
    glare = rng.uniform(-12, 6, n)
    mix = (UNMIX * gain[:, None, :]) @ STAINS @ sensor * strength[:, None, None]
    transfer = np.full((n, 3, 4), np.nan)
    other, kind, share = rng.integers(max(1, len(stains)), size=n), rng.random(n), rng.uniform(0.3, 1, n)
    for k in range(n if stains else 0):
        mine, theirs = stains[chosen[k]], stains[other[k]]
        if kind[k] < config.macenko_mix_p and mine.macenko and theirs.macenko:
            matrix = macenko_transfer(mine.macenko, theirs.macenko)
            mix[k] = ((1 - share[k]) * np.eye(3) + share[k] * matrix).T @ mix[k]
        elif (
            config.macenko_mix_p <= kind[k] < config.macenko_mix_p + config.reinhard_mix_p and mine.reinhard and theirs.reinhard
        ):
            matrix, shift = reinhard_transfer(mine.reinhard, theirs.reinhard)
            transfer[k] = np.c_[(1 - share[k]) * np.eye(3) + share[k] * matrix, share[k] * shift]
    return mix, offset @ STAINS, glare, transfer


def _recolored(
    rgb: torch.Tensor,
    mix: NDArray[np.float64],
    shift: NDArray[np.float64],
    glare: NDArray[np.float64],
    transfer: NDArray[np.float64],
) -> torch.Tensor:
    moved = np.flatnonzero(np.isfinite(transfer[:, 0, 0]))
    if len(moved):
        where = torch.from_numpy(moved).to(rgb.device)
        rgb[where] = _reinhard(rgb[where], _on(transfer[moved], rgb))
    density = -torch.log((rgb + 1) * (1 / 256))
    tissue = density.mean(1, keepdim=True).clamp_(max=0.15).mul_(1 / 0.15)  # clear glass stays clear
    density = torch.bmm(_on(mix.transpose(0, 2, 1), rgb), density.flatten(2)).view_as(rgb)
    density += _on(shift, rgb)[:, :, None, None] * tissue
    return density.neg_().exp_().mul_(256).add_(_on(glare - 1, rgb)[:, None, None, None]).clamp_(0, 255)


def _reinhard(rgb: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
    lms = torch.einsum("kc,nchw->nkhw", _on(_LMS, rgb), (rgb + 1) * (1 / 256)).log10()
    lms = torch.bmm(transfer[:, :, :3], lms.flatten(2)).view_as(rgb) + transfer[:, :, 3, None, None]
    new = torch.einsum("kc,nchw->nkhw", _on(np.linalg.inv(_LMS), rgb), 10 ** lms.clamp(-5, 0.5)) * 256 - 1
    tissue = ((_GLASS - rgb.amin(1, keepdim=True)) / _FADE).clamp(0, 1)
    return rgb + tissue * (new.clamp(0, 255) - rgb)


def _blurs(rng: np.random.Generator, n: int, config: AugmentConfig) -> tuple[NDArray[np.float64], ...]:
    """Draw the weight of the unblurred patch, sigma of the Gaussian (0: none), and factor of lost resolution (0: none)."""
    factor = np.where(rng.random(n) < config.low_resolution_p, rng.uniform(1.3, 2.2, n), 0)
    blurred = (rng.random(n) < config.blur_p) & (factor == 0)
    sharpened = (rng.random(n) < config.blur_p) & (factor == 0) & ~blurred
    sigma = np.where(blurred, rng.uniform(0.4, 1.4, n), np.where(sharpened, 1.0, 0))
    own = np.where(sharpened, 1 + rng.uniform(0.2, 0.9, n), 0)  # a scanner's sharpening
    return own, sigma, factor


def _refocused(
    rgb: torch.Tensor, own: NDArray[np.float64], sigma: NDArray[np.float64], factor: NDArray[np.float64]
) -> torch.Tensor:
    """Blur, sharpen and reduce resolution, which all are multiplications by a matrix along each axis."""
    at = np.flatnonzero((sigma > 0) | (factor > 0))
    if len(at) == 0:
        return rgb
    side = rgb.shape[2]
    matrix = blur_matrix(_on(np.where(sigma[at] > 0, sigma[at], 1), rgb), side)
    for k in np.flatnonzero(factor[at]):
        whole = torch.eye(side, device=rgb.device)[None, None]
        coarse = functional.interpolate(whole, (int(side / factor[at][k]), side), mode="bilinear", antialias=True)
        matrix[k] = functional.interpolate(coarse, (side, side), mode="bilinear")[0, 0]
    where = torch.from_numpy(at).to(rgb.device)
    chosen = rgb[where]
    smooth = matrix[:, None] @ chosen @ matrix[:, None].transpose(2, 3)
    keep = _on(own[at], rgb)[:, None, None, None]
    rgb[where] = keep * chosen + (1 - keep) * smooth
    return rgb


def _on(values: NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(like.device)

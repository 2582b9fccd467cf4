"""Labels and a real patch -> a synthetic patch: its own nuclei painted over, new ones given the texture of real ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.errors import InputError

__all__ = ["in_paint", "rough_nuclei"]

_RED = 0  # the light that hematoxylin takes and eosin leaves
_REMOVED_PX = 3  # around what is found: nuclei end softly
_SHIFTS = 48
_EDGE_SIGMA_PX = 0.8
_REACH = 3.0  # of a Gaussian, sigmas


def rough_nuclei(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bool (H, W): pixels that are probably nuclear in an H&E picture uint8 (H, W, 3) without outlines.

    Otsu's threshold on the optical density of the red channel, smoothed by 1 px; holes are filled, objects
    under 20 px dropped. A picture of one color has no nuclei.
    """
    density = ndimage.gaussian_filter(-np.log((rgb[..., _RED].astype(np.float64) + 1) / 256), 1.0)
    counts, edges = np.histogram(density, 256)
    if density.max() - density.min() < 0.05:
        return np.zeros(density.shape, np.bool_)
    middle = (edges[1:] + edges[:-1]) / 2
    below, above = np.cumsum(counts), counts.sum() - np.cumsum(counts)
    first = np.cumsum(counts * middle)
    with np.errstate(divide="ignore", invalid="ignore"):  # a class may be empty
        between = below * above * (first / below - (first[-1] - first) / above) ** 2
    mask = ndimage.binary_fill_holes(density > middle[np.nanargmax(between)])
    parts, n = ndimage.label(mask)
    large = np.bincount(parts.ravel(), minlength=n + 1) >= 20
    large[0] = False
    return np.asarray(large[parts])


def in_paint(
    rgb: NDArray[np.uint8], nuclear: NDArray[np.bool_], labels: NDArray[np.int32], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Replace the nuclei of a real patch by synthetic ones.

    Nuclear pixels take the colors of the background around them plus its grain, copied from background elsewhere in the patch.
    Synthetic nuclei take, in the same way, the colors of the real nuclei nearby plus the grain of real nuclei, each a little
    darker or lighter as real nuclei differ among themselves. Edges are as soft as a microscope makes them.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
    nuclear : bool (H, W)
        Where the real nuclei are (``rough_nuclei``).
    labels : int32 (H, W)
        Synthetic nuclei, 0 background.

    Returns
    -------
    (uint8 (H, W, 3), bool (H, W))
        The picture, and which pixels may have changed; all others are the real patch's.

    Raises
    ------
    InputError
        Sizes differ, or the patch has no nuclear pixel or no background to take texture from.
    """
    if rgb.shape[:2] != nuclear.shape or nuclear.shape != labels.shape:
        raise InputError(f"in_paint: expected one size, got {rgb.shape[:2]}, {nuclear.shape} and {labels.shape} (H, W).")
    removed = ndimage.binary_dilation(nuclear, iterations=_REMOVED_PX)
    core = ndimage.binary_erosion(nuclear, iterations=1)
    if removed.all() or not core.any():
        raise InputError("in_paint: the patch has no background, or no nuclei, to take texture from. Choose another patch.")
    picture = rgb.astype(np.float32)
    background = np.where(removed[..., None], _texture(picture, ~removed, 6.0, rng), picture)
    tone = _tones(picture, core, labels, rng)
    nucleus = _texture(picture, core, 4.0, rng) + tone[labels]
    share = ndimage.gaussian_filter((labels > 0).astype(np.float32), _EDGE_SIGMA_PX, truncate=_REACH)
    share = np.where(share > 1e-4, share, 0)[..., None]
    seam = ndimage.gaussian_filter(removed.astype(np.float32), _EDGE_SIGMA_PX, truncate=_REACH)[..., None]
    background = np.where(removed[..., None], picture + (background - picture) * np.minimum(1, 2 * seam), picture)
    out = background + (nucleus - background) * share
    changed = removed | (share[..., 0] > 0)
    return np.where(changed[..., None], np.clip(np.round(out), 0, 255).astype(np.uint8), rgb), changed


def _texture(
    picture: NDArray[np.float32], source: NDArray[np.bool_], sigma_px: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Colors of the source pixels, spread over the whole patch, and their grain, brought from elsewhere by random shifts."""
    smooth = _spread(picture, source, sigma_px)
    grain = np.where(source[..., None], picture - smooth, 0)
    filled = np.array(source)
    h, w = source.shape
    for dy, dx in zip(rng.integers(0, h, _SHIFTS).tolist(), rng.integers(0, w, _SHIFTS).tolist(), strict=True):
        usable = np.roll(source, (dy, dx), (0, 1)) & ~filled
        if usable.any():
            grain[usable] = np.roll(grain * source[..., None], (dy, dx), (0, 1))[usable]
            filled |= usable
        if filled.all():
            break
    return smooth + grain


def _spread(picture: NDArray[np.float32], source: NDArray[np.bool_], sigma_px: float) -> NDArray[np.float32]:
    """Carry colors outwards by normalized convolution (Knutsson and Westin 1993), wider where the source is far."""
    # where neither reaches, the mean of all
    total = np.zeros_like(picture) + picture[source].mean(0) * np.float32(1e-9)
    weight = np.full(source.shape, 1e-9, np.float32)
    for sigma, scale in ((sigma_px, 1.0), (4 * sigma_px, 1e-3)):
        weight += ndimage.gaussian_filter(source.astype(np.float32), sigma) * np.float32(scale)
        total += ndimage.gaussian_filter(picture * source[..., None], (sigma, sigma, 0)) * np.float32(scale)
    return np.asarray(total / weight[..., None])


def _tones(
    picture: NDArray[np.float32], core: NDArray[np.bool_], labels: NDArray[np.int32], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Differences of brightness of the real nuclei among themselves, one drawn for each synthetic nucleus; (N + 1, 1)."""
    parts, n = ndimage.label(core)
    gray = picture.mean(2)
    means = ndimage.mean(gray, parts, np.arange(1, n + 1))
    sizes = np.bincount(parts.ravel(), minlength=n + 1)[1:]
    apart = means - np.average(means, weights=sizes)
    drawn = rng.choice(apart, size=int(labels.max()) + 1, p=sizes / sizes.sum()) * 0.7
    drawn[0] = 0
    return drawn.astype(np.float32)[:, None]

"""Paint a synthetic patch: remove the nuclei of a real patch and draw labeled nuclei with the texture of real ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from wsiseg.errors import InputError

__all__ = ["in_paint", "rough_nuclei"]

_RED = 0  # channel absorbed by hematoxylin but hardly by eosin
_REMOVED_PX = 3  # margin around removed nuclei, because their edges are soft
_SHIFTS = 48
_EDGE_SIGMA_PX = 0.8
_REACH = 3.0  # truncation of a Gaussian, sigmas


def rough_nuclei(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a mask, bool (H, W), of the pixels of an H&E picture, uint8 (H, W, 3), that are probably nuclear.

    The mask is Otsu's threshold on the optical density of the red channel, smoothed by 1 px; holes are filled, and objects
    under 20 px removed. It is empty for a picture of one color.
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

    Nuclear pixels get the colors of the surrounding background plus its grain, copied from background elsewhere in the patch.
    Synthetic nuclei get the colors of real nuclei nearby plus the grain of real nuclei; the brightness of each varies as among
    real nuclei. Edges are smoothed as by a microscope.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        The real patch.
    nuclear : bool (H, W)
        Mask of its nuclei (``rough_nuclei``).
    labels : int32 (H, W)
        Synthetic nuclei, 0 for background.
    rng
        Source of all random numbers.

    Returns
    -------
    (uint8 (H, W, 3), bool (H, W))
        The picture, and a mask of the pixels that may have changed.

    Raises
    ------
    InputError
        Sizes differ, or the patch has no nuclear pixel or no background.
    """
    if rgb.shape[:2] != nuclear.shape or nuclear.shape != labels.shape:
        raise InputError(f"in_paint: expected one size, got {rgb.shape[:2]}, {nuclear.shape} and {labels.shape} (H, W).")
    removed = ndimage.binary_dilation(nuclear, iterations=_REMOVED_PX)
    core = ndimage.binary_erosion(nuclear, iterations=1)
    if removed.all() or not core.any():
        raise InputError(
            "in_paint: the patch has no background or no nuclei, which are the source of texture. Choose another patch."
        )
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
    """Return a texture for the whole patch: colors spread from the source pixels, plus their grain, randomly shifted."""
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
    """Extrapolate colors by normalized convolution (Knutsson and Westin 1993), with a wider kernel far from the source."""
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
    """Return a brightness difference, drawn from those among real nuclei, for each synthetic nucleus; (N + 1, 1)."""
    parts, n = ndimage.label(core)
    gray = picture.mean(2)
    means = ndimage.mean(gray, parts, np.arange(1, n + 1))
    sizes = np.bincount(parts.ravel(), minlength=n + 1)[1:]
    apart = means - np.average(means, weights=sizes)
    drawn = rng.choice(apart, size=int(labels.max()) + 1, p=sizes / sizes.sum()) * 0.7
    drawn[0] = 0
    return drawn.astype(np.float32)[:, None]

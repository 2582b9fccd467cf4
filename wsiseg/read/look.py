"""Measure how a slide looks: color, sharpness, compression, ink and folds of its tissue, comparable between slides."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsiseg.read._window import RGB
from wsiseg.read.mask_window import tissue_window
from wsiseg.read.sample import stain_sample
from wsiseg.read.slide import Slide
from wsiseg.read.tissue import SlideSurvey, TissueMask, grown
from wsiseg.types import Box

__all__ = ["slide_look"]

LOOK_MPP = 0.5
"""Microns per px at which sharpness is judged, so that slides of 20x and 40x can be compared."""
PATCHES, PATCH_PX = 32, 128
MIN_PATCH_TISSUE, MIN_WINDOW_TISSUE = 0.5, 0.7
FAINT_OD, STAINED_OD, DARK_OD = 0.05, 0.1, 0.25
"""Mean optical density (base 10) from which a px is used to measure the stain, to judge its hue, and from which it may be a
fold."""
FOLD_TIMES, FOLD_STAIN_TIMES, FOLD_UM = 1.4, (1.2, 1.3), 6.0
"""Density of a fold, and its hematoxylin and eosin, against the third quartile of tissue; all smoothed by a Gaussian of this
sigma, so that nuclei are no folds. Both stains count, since in dark epithelium or lymph follicles it is hematoxylin alone."""
BROWN_SHARE = 0.42
"""Blue's share of the optical density from which a px is brown: hematoxylin has 0.24, eosin 0.35, DAB 0.48."""
WINDOW_PX, WINDOW_DETAIL, UNSHARP_TIMES = 32, 20.0, 0.35
"""Sharpness is also judged in windows of 16 um that hold detail (variance, 0 to 255 squared); out of focus are those below
this share of the third quartile of all."""
REFERENCE_STAINS = ((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581))
"""Optical densities (r, g, b) of hematoxylin and eosin: the reference of Macenko et al. 2009 (ISBI)."""
GRID_PX = 8

FloatArray = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def slide_look(slide: Slide, survey: SlideSurvey, tissue: TissueMask) -> dict[str, float]:
    """Return how a slide looks: those columns of ``wsiseg.schema.TRUST`` that can be measured, and ``colored_mm2``.

    32 patches of 64 um, spread evenly over the tissue, are read at 0.5 um/px, and 32 of 128 px at level 0.

    Raises
    ------
    TileReadError
        The pixels cannot be decoded.
    """
    view, meta = survey.view, slide.meta
    h, w = view.rgb.shape[:2]
    on = tissue_window(tissue, Box(0, 0, w, h), w / meta.width_px)
    ink = _ink(view.rgb, view.ink)
    colored = view.colored & on & ~ink & ~view.unscanned
    px_mm2 = survey.tissue.px_w * survey.tissue.px_h * meta.mpp**2 * 1e-6
    out = {"colored_mm2": float(colored.sum()) * px_mm2}
    if (ink | colored).any():
        out["ink_frac"] = float(ink.sum()) / float((ink | colored).sum())
    if colored.any():
        out["fold_frac"] = _folded(_density(view.rgb), colored, FOLD_UM / (px_mm2**0.5 * 1e3))
    rgb, where = stain_sample(slide, tissue, meta.mpp / LOOK_MPP, n_patches=PATCHES, patch_wpx=PATCH_PX)
    if where.any():
        out |= _stains(rgb[where])
        out |= _focus(_patches(rgb, where))
    native, where = stain_sample(slide, tissue, 1.0, n_patches=PATCHES, patch_wpx=PATCH_PX)
    steps = [b for p, _ in _patches(native, where) if (b := _blocking(p)) is not None]
    if steps:
        out["jpeg_blocking"] = float(np.median(steps))
    return out


def _ink(rgb: RGB, found: Mask) -> Mask:
    """Return pen marks: ink that the mask left out, and transparent blue ink over tissue (H&E itself has less green)."""
    r, g, b = (rgb[..., k].astype(np.int16) for k in range(3))
    blue = (b - r > 60) & (g - r > 4) & (b - g > 25)
    return found | (blue & grown(blue, 1)) if blue.any() else found


def _patches(rgb: RGB, on: Mask) -> list[tuple[FloatArray, Mask]]:
    """Return the patches of a stack that are mostly tissue, each as gray float64 (h, w) and its tissue mask."""
    n = len(rgb) // PATCH_PX
    pairs = zip(np.split(rgb, n), np.split(on, n), strict=True) if n else ()
    return [(p.mean(axis=2), o) for p, o in pairs if o.mean() >= MIN_PATCH_TISSUE]


def _density(rgb: npt.NDArray[np.uint8]) -> FloatArray:
    return np.asarray(-np.log10((rgb.astype(np.float64) + 1) / 256))


def _stains(rgb: npt.NDArray[np.uint8]) -> dict[str, float]:
    density = _density(rgb)
    density = density[density.mean(axis=1) > FAINT_OD]
    if not len(density):
        return {}
    share = density / density.sum(axis=1, keepdims=True)
    stained = share[density.mean(axis=1) > STAINED_OD]
    across = np.cross(*REFERENCE_STAINS)
    off = density @ (across / np.linalg.norm(across))
    return {
        "stain_residual": float((off**2).sum()) / float((density**2).sum()),
        **({"brown_frac": float((stained[:, 2] > BROWN_SHARE).mean())} if len(stained) else {}),
        **({"od_green_high": float(np.percentile(stained[:, 1], 90))} if len(stained) else {}),
        "od_red_frac": float(np.median(share[:, 0])),
        "od_blue_frac": float(np.median(share[:, 2])),
    }


def _folded(density: FloatArray, on: Mask, sigma_px: float) -> float:
    """Return the share of tissue (on) that is as dark as two layers of it would be."""
    from scipy import ndimage

    weight = np.maximum(ndimage.gaussian_filter(on.astype(np.float64), sigma_px)[on], 1e-9)
    smooth = np.stack(
        [ndimage.gaussian_filter(np.where(on, density[..., k], 0.0), sigma_px)[on] / weight for k in range(3)], axis=1
    )
    values = np.column_stack([smooth.mean(axis=1), np.maximum(smooth @ np.linalg.pinv(np.array(REFERENCE_STAINS)), 0)])
    limits = np.percentile(values, 75, axis=0) * (FOLD_TIMES, *FOLD_STAIN_TIMES)
    return float((values > np.maximum(limits, (DARK_OD, 0.0, 0.0))).all(axis=1).mean())


def _focus(patches: list[tuple[FloatArray, Mask]]) -> dict[str, float]:
    """Return how sharp patches are, and which share of their windows is far less sharp than the others.

    Sharpness is the energy of detail finer than 1 px, divided by that finer than 4 px (Gaussian sigmas): 0 blurred, 1 noise.
    """
    from scipy import ndimage

    sharp, windows = [], []
    for gray, on in patches:
        fine, coarse = ((gray - ndimage.gaussian_filter(gray, sigma)) ** 2 for sigma in (1.0, 4.0))
        if (total := float(coarse[on].mean())) > 1.0:
            sharp.append(float(fine[on].mean()) / total)
        of, detail, tissue = (_block_means(v, WINDOW_PX) for v in (fine, coarse, on.astype(np.float64)))
        good = (tissue > MIN_WINDOW_TISSUE) & (detail > WINDOW_DETAIL)
        windows.append(of[good] / detail[good])
    if not sharp:
        return {}
    out = {"sharpness": float(np.median(sharp)), "sharpness_low": float(np.percentile(sharp, 10))}
    each = np.concatenate(windows)
    if len(each):
        out["unsharp_frac"] = float((each < UNSHARP_TIMES * np.percentile(each, 75)).mean())
    return out


def _block_means(values: FloatArray, side: int) -> FloatArray:
    h, w = (n // side for n in values.shape)
    return np.asarray(values[: h * side, : w * side].reshape(h, side, w, side).mean(axis=(1, 3)))


def _blocking(gray: FloatArray) -> float | None:
    """Return the mean step across the likeliest grid of 8 px divided by the step elsewhere, minus 1: near 0 without blocks."""
    found = []
    for turned in (gray, gray.T):
        bend = np.abs(turned[:, 1:-2] - turned[:, :-3] - turned[:, 3:] + turned[:, 2:-1])
        step = np.abs(np.diff(turned, axis=1))[:, 1:-1] + bend
        by_phase = step[:, : step.shape[1] // GRID_PX * GRID_PX].reshape(len(turned), -1, GRID_PX).mean(axis=(0, 1))
        rest = float(np.delete(by_phase, int(by_phase.argmax())).mean())
        if rest > 0:
            found.append(float(by_phase.max()) / rest - 1)
    return float(np.mean(found)) if found else None

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
MIN_PATCH_TISSUE = 0.5
FAINT_OD, DARK_OD = 0.05, 0.25
"""Mean optical density (base 10) from which a px is used to measure the stain, and from which it is a fold."""
FOLD_TIMES = 2.0
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
        density = _density(view.rgb[colored]).mean(axis=1)
        out["fold_frac"] = float((density > max(FOLD_TIMES * float(np.median(density)), DARK_OD)).mean())
    rgb, where = stain_sample(slide, tissue, meta.mpp / LOOK_MPP, n_patches=PATCHES, patch_wpx=PATCH_PX)
    if where.any():
        out |= _stains(rgb[where])
        sharp = [s for p, o in _patches(rgb, where) if (s := _sharpness(p, o)) is not None]
        if sharp:
            out |= {"sharpness": float(np.median(sharp)), "sharpness_low": float(np.percentile(sharp, 10))}
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
    across = np.cross(*REFERENCE_STAINS)
    off = density @ (across / np.linalg.norm(across))
    return {
        "stain_residual": float((off**2).sum()) / float((density**2).sum()),
        "od_red_frac": float(np.median(share[:, 0])),
        "od_blue_frac": float(np.median(share[:, 2])),
    }


def _sharpness(gray: FloatArray, on: Mask) -> float | None:
    """Return the energy of detail finer than 1 px, divided by that finer than 4 px (Gaussian sigmas): 0 blurred, 1 noise."""
    from scipy import ndimage

    fine = gray - ndimage.gaussian_filter(gray, 1.0)
    coarse = gray - ndimage.gaussian_filter(gray, 4.0)
    total = float((coarse[on] ** 2).mean())
    return float((fine[on] ** 2).mean()) / total if total > 1.0 else None


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

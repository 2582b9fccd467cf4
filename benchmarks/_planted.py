"""Plant defects of three strengths in clean H&E pictures, which QC should find in ``benchmarks/foreign.py``."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

RGB = NDArray[np.uint8]
FloatArray = NDArray[np.float64]

HEMATOXYLIN, EOSIN = (0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)
"""Macenko et al. 2009."""
DAB = (0.268, 0.570, 0.776)
"""Ruifrok and Johnston 2001."""
FAST_RED = (0.214, 0.851, 0.478)
PEN_COLORS = ((20, 60, 170), (15, 120, 80), (25, 25, 28))


def density(rgb: RGB) -> FloatArray:
    return np.asarray(-np.log10((rgb.astype(np.float64) + 1) / 256))


def picture(od: FloatArray) -> RGB:
    return np.clip(np.rint(256 * 10.0**-od - 1), 0, 255).astype(np.uint8)


def unmixed(rgb: RGB) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return concentrations of hematoxylin and eosin, and the density that they leave."""
    stains = np.array([HEMATOXYLIN, EOSIN])
    od = density(rgb)
    c = np.maximum(od @ np.linalg.pinv(stains), 0)
    return c[..., 0], c[..., 1], od - c @ stains


def dab(rgb: RGB, share: float, random: np.random.Generator) -> RGB:
    """Hematoxylin stays; what eosin stained is brown on a share of the cells' surroundings, and pale elsewhere."""
    h, e, _ = unmixed(rgb)
    spots = ndimage.gaussian_filter(random.normal(size=rgb.shape[:2]), 25)
    brown = spots > np.quantile(spots, 1 - share)
    brown_od = ndimage.gaussian_filter(brown.astype(float), 3) * (0.25 + 1.2 * e + 0.4 * h)
    return picture(0.7 * h[..., None] * HEMATOXYLIN + brown_od[..., None] * DAB + 0.08 * e[..., None] * np.array(DAB))


def nuclear_ihc(rgb: RGB, share: float, random: np.random.Generator) -> RGB:
    """Nuclei of a share of the area are brown (Ki-67, hormone receptors), the others blue; no eosin."""
    h, e, _ = unmixed(rgb)
    spots = ndimage.gaussian_filter(random.normal(size=rgb.shape[:2]), 40)
    where = ndimage.gaussian_filter((spots > np.quantile(spots, 1 - share)).astype(float), 2)
    return picture((0.6 * h * (1 - where))[..., None] * HEMATOXYLIN + (1.1 * h * where + 0.05 * e)[..., None] * DAB)


def pen(rgb: RGB, strokes: int, random: np.random.Generator) -> RGB:
    """Thick strokes across the picture, each a ninth of its side wide, through which some tissue is seen."""
    height, width = rgb.shape[:2]
    out = rgb.astype(np.float64)
    for k in range(strokes):
        canvas = Image.new("L", (width, height))
        y0, y1 = random.uniform(0.1, 0.9, 2) * height
        ImageDraw.Draw(canvas).line((0, y0, width, y1), fill=255, width=max(8, min(width, height) // 9))
        cover = 0.85 * ndimage.gaussian_filter(np.asarray(canvas, np.float64) / 255, 2)[..., None]
        out = out * (1 - cover) + np.array(PEN_COLORS[k % 3]) * cover
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def blur(rgb: RGB, sigma_px: float) -> RGB:
    return np.rint(ndimage.gaussian_filter(rgb.astype(np.float64), (sigma_px, sigma_px, 0))).astype(np.uint8)


def focus_strip(rgb: RGB, share: float, sigma_px: float) -> RGB:
    """A strip of the scan out of focus, over a share of the height in its middle."""
    height = rgb.shape[0]
    top, end = round(height * (1 - share) / 2), round(height * (1 + share) / 2)
    out = rgb.copy()
    out[top:end] = blur(rgb, sigma_px)[top:end]
    return out


def folds(rgb: RGB, share: float, random: np.random.Generator) -> RGB:
    """Two to three layers of tissue in bands that cover a share of the picture."""
    height, width = rgb.shape[:2]
    canvas = Image.new("L", (width, height))
    y0, y1 = random.uniform(0.3, 0.7, 2) * height
    ImageDraw.Draw(canvas).line((0, y0, width, y1), fill=255, width=max(2, round(share * height)))
    times = 1 + 1.4 * ndimage.gaussian_filter(np.asarray(canvas, np.float64) / 255, 4)[..., None]
    return picture(density(rgb) * times)


def frozen(rgb: RGB, strength: float, mpp: float, random: np.random.Generator) -> RGB:
    """Like a frozen section: clefts of ice crystals of some 10 um, smudged chromatin, a bluish stain."""
    um = 1 / mpp
    noise = ndimage.gaussian_filter(random.normal(size=rgb.shape[:2]), 5 * um)
    holes = ndimage.gaussian_filter((noise > np.quantile(noise, 1 - 0.25 * strength)).astype(float), 0.4 * um)[..., None]
    od = density(blur(rgb, 0.6 * strength * um))
    od = od * (1 - 0.95 * holes) + 0.04 * strength * np.array(HEMATOXYLIN)
    return picture(od)


def jpeg(rgb: RGB, quality: int) -> RGB:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


Plant = Callable[[RGB, float, np.random.Generator], tuple[RGB, float]]

PLANTED: dict[str, tuple[tuple[str, Plant], ...]] = {
    "DAB": tuple((f"{s:.0%} brown", lambda r, m, g, s=s: (dab(r, s, g), m)) for s in (0.1, 0.3, 0.6)),
    "nuclear IHC": tuple((f"{s:.0%} of nuclei", lambda r, m, g, s=s: (nuclear_ihc(r, s, g), m)) for s in (0.1, 0.3, 0.6)),
    "pen": tuple((f"{n} strokes", lambda r, m, g, n=n: (pen(r, n, g), m)) for n in (1, 2, 3)),
    "blur": tuple((f"sigma {s} um", lambda r, m, g, s=s: (blur(r, s / m), m)) for s in (0.5, 1.0, 2.0)),
    "mpp said too small": tuple((f"by {f}", lambda r, m, g, f=f: (r, m / f)) for f in (1.5, 2.0, 3.0)),
    "mpp said too large": tuple((f"by {f}", lambda r, m, g, f=f: (r, m * f)) for f in (1.5, 2.0, 3.0)),
    "focus strip": tuple((f"{s:.0%} high", lambda r, m, g, s=s: (focus_strip(r, s, 1.5 / m), m)) for s in (0.2, 0.35, 0.5)),
    "frozen-like": tuple((f"strength {s}", lambda r, m, g, s=s: (frozen(r, s, m, g), m)) for s in (0.5, 1.0, 1.5)),
    "folds": tuple((f"{s:.0%} of the area", lambda r, m, g, s=s: (folds(r, s, g), m)) for s in (0.05, 0.12, 0.25)),
    "channels swapped": (("red and blue", lambda r, m, g: (np.ascontiguousarray(r[..., ::-1]), m)),
                         ("green and blue", lambda r, m, g: (np.ascontiguousarray(r[..., [0, 2, 1]]), m)),
                         ("red and green", lambda r, m, g: (np.ascontiguousarray(r[..., [1, 0, 2]]), m))),
    "JPEG": tuple((f"quality {q}", lambda r, m, g, q=q: (jpeg(r, q), m)) for q in (30, 15, 6)),
}  # fmt: skip
"""By kind: three strengths, weakest first, as functions of picture, microns per px and a random generator."""

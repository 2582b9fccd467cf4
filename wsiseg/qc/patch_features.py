"""Compute features of a patch, from pixels, outlines and nucleus columns, that predict whether its segmentation fails.

The patch is not segmented again: the polygon table contains the network's probabilities and the shapes of nuclei, and the
picture of the patch shows how well the outlines fit. Signs of a failed segmentation are dark spots without an outline, pale
areas with one, outlines that do not follow edges of the picture, blur, and an unusual stain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError
from wsiseg.schema.quality import OF_NUCLEI, OF_ORIENTATIONS, OF_OUTLINES, OF_PIXELS

__all__ = ["FEATURES", "NUCLEUS_COLUMNS", "PICTURE_FEATURES", "patch_features"]

FloatArray = npt.NDArray[np.float64]

NUCLEUS_COLUMNS = ("area_um2", "perimeter_um", "major_um", "minor_um", "center_prob", "material_prob")
"""Columns of the polygon table that ``patch_features`` uses."""

PICTURE_FEATURES = (*OF_NUCLEI, *OF_OUTLINES, *OF_PIXELS)
"""Names of the features that ``patch_features`` returns, in order."""

FEATURES = (*PICTURE_FEATURES, *OF_ORIENTATIONS)
"""Names of all features of a patch, in the order of its feature vector."""

SMALL_UM2 = 12.0
"""Area of a disc of 4 um diameter; smaller objects are expected to be debris, or nuclei cut off by the section."""

DARK_DENSITY = 0.4
"""Optical density in red above which a pixel counts as dark in a patch without nuclei: between stroma and pale nuclei."""

_RIM_PX, _RING_PX = 2, 8
"""Half widths around an outline: pixels within the rim count neither as nucleus nor as background, those of the ring beyond
it are the local background."""


def patch_features(
    rgb: npt.NDArray[np.uint8], labels: npt.NDArray[np.int32], nuclei: Mapping[str, npt.NDArray[Any]]
) -> FloatArray:
    """Return the features of one patch, float64 (22,) in the order of ``PICTURE_FEATURES``, all finite.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        Picture of the patch at 0.25 um per px.
    labels : int32 (H, W)
        The outlined nuclei as labels on the same pixels, 0 outside nuclei.
    nuclei
        ``NUCLEUS_COLUMNS`` of the nuclei with a centroid in the patch.

    Raises
    ------
    InputError
        ``rgb`` and ``labels`` differ in height or width.
    """
    if rgb.shape[:2] != labels.shape:
        raise InputError(f"Expected pixels and labels of equal height and width, got {rgb.shape[:2]} and {labels.shape}.")
    density = -np.log10((rgb.astype(np.float64) + 1) / 256)
    values = {**_nucleus_features(nuclei, labels.size), **_outline_features(density, labels), **_pixel_features(rgb, density)}
    return np.array([values[name] for name in PICTURE_FEATURES], np.float64)


def _nucleus_features(nuclei: Mapping[str, npt.NDArray[Any]], n_px: int) -> dict[str, float]:
    area, perimeter, major, minor, center, material = (np.asarray(nuclei[k], np.float64) for k in NUCLEUS_COLUMNS)
    if area.size == 0:
        return dict.fromkeys(OF_NUCLEI, 0.0)
    area, major, minor = np.maximum(area, 1e-3), np.maximum(major, 1e-3), np.maximum(minor, 1e-3)
    center, material = center / 255, material / 255
    values = (
        math.log1p(area.size * 65_536 / n_px),
        center.mean(),
        np.percentile(center, 25),
        material.mean(),
        np.percentile(material, 25),
        (center - material).mean(),
        np.abs(center - material).mean(),
        (4 * math.pi * area / np.maximum(perimeter, 1e-3) ** 2).clip(0, 2).mean(),
        (4 * area / (math.pi * major * minor))
        .clip(0, 2)
        .mean(),  # area over that of the fitted ellipse: low for ragged outlines
        (major / minor).clip(1, 20).mean(),
        np.log(area).std(),
        (area < SMALL_UM2).mean(),
    )
    return dict(zip(OF_NUCLEI, map(float, values), strict=True))


def _outline_features(density: FloatArray, labels: npt.NDArray[np.int32]) -> dict[str, float]:
    """Return features of how well the outlines fit the picture.

    The red channel is used because hematoxylin absorbs red and eosin hardly does (Ruifrok and Johnston 2001, Anal. Quant.
    Cytol. Histol. 23:291). A pixel is dark if its density is above the mean of nuclei and of the ring around them.
    """
    from scipy import ndimage

    inside = labels > 0
    grown, ring = (_grow(inside, d) for d in (_RIM_PX, _RING_PX))
    core = inside & ~_grow(~inside, _RIM_PX)
    around = ring & ~grown
    red = density[..., 0]
    smooth = ndimage.gaussian_filter(red, 1.0)
    if not core.any() or not around.any():
        return {**dict.fromkeys(OF_OUTLINES, 0.0), "dark_outside_frac": float((~inside & (smooth > DARK_DENSITY)).mean())}
    dark, pale = float(smooth[core].mean()), float(smooth[around].mean())
    is_dark = smooth > (dark + pale) / 2
    outside = is_dark & ~grown
    counts = np.bincount(labels[core])
    shade = np.bincount(labels[core], smooth[core])[counts > 0] / counts[counts > 0]
    slope = np.hypot(*np.gradient(smooth))
    rim = inside ^ _grow(inside, 1)
    return {
        "contrast": (dark - pale) / (float(red.std()) + 1e-3),
        "dark_outside_frac": float(outside.sum()) / max(1, int((~grown).sum())),
        "dark_outside_share": float(outside.sum()) / max(1, int(is_dark.sum())),
        "pale_inside_frac": float((core & ~is_dark).sum()) / int(core.sum()),
        "pale_nuclei_frac": float((shade < (dark + pale) / 2).mean()),
        "edge": float(slope[rim].mean()) / max(float(slope.mean()), 1e-6),
    }


def _grow(mask: npt.NDArray[np.bool_], px: int) -> npt.NDArray[np.bool_]:
    """Return the mask grown by a square of ``px`` to each side (two passes of running maxima)."""
    from scipy import ndimage

    return np.asarray(ndimage.maximum_filter(mask, 2 * px + 1, mode="nearest"), np.bool_)


def _pixel_features(rgb: npt.NDArray[np.uint8], density: FloatArray) -> dict[str, float]:
    """Return sharpness, and density and hue of the stain.

    Sharpness is the log of the variance of the Laplacian (Pech-Pacheco et al. 2000) divided by the variance of the picture, so
    that it does not depend on contrast. Hue is a point (x, y) in the optical-density plane of van der Laak et al. (2000,
    Cytometry 39:275), which depends on the ratio of dyes and not on their amount.
    """
    gray = rgb.astype(np.float64).mean(axis=2)
    inner = gray[1:-1, 1:-1]
    laplace = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * inner
    mean = density.mean(axis=2)
    stained = mean > 0.08
    by_channel = density[stained].mean(axis=0) if stained.any() else np.zeros(3)
    total = max(float(by_channel.mean()), 1e-6)
    return {
        "sharpness": math.log10((float(laplace.var()) + 1e-3) / (float(inner.var()) + 1.0)),
        "od_mean": float(mean.mean()),
        "hue_x": float(by_channel[0]) / total - 1 if stained.any() else 0.0,
        "hue_y": float(by_channel[1] - by_channel[2]) / (math.sqrt(3) * total) if stained.any() else 0.0,
    }

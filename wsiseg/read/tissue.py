"""Tissue of a slide, found once on a thumbnail: a slide constant, stored beside the results."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.read._thumbnail import block_means, thumbnail_plan
from wsiseg.read._window import RGB
from wsiseg.read.slide import Slide
from wsiseg.types import Box

__all__ = ["TissueMask", "fit_tissue", "pen_marks", "tissue_cells", "tissue_frac", "tissue_px_in", "tissue_window"]

THUMBNAIL_UM = 8.0
"""Wanted side of a mask px: a nucleus or two."""
MAX_SIDE_PX = 4096
CHROMA_LIMITS = (8, 18)
"""Otsu's threshold on chroma (largest minus smallest channel, white balanced) is kept in these limits, so that a slide that is
all tissue, or all glass, is not cut in two."""
DARK_OD = 0.35
"""Optical density (base 10, mean of channels) above which even a weakly colored px is tissue: folds, dense frozen sections."""
MIN_SPECK_UM2 = 4000.0
MAX_HOLE_UM2 = 50_000.0
MARGIN_UM = 40.0
"""Dilation: at least three nuclei, so that none at a border is lost."""

_TEXT_KEY = "wsiseg:tissue"


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """Where a slide has tissue.

    Attributes
    ----------
    mask : uint8 (h, w)
        1 tissue, 0 none.
    px_w, px_h
        Level-0 px per mask px.
    x0, y0
        Level-0 px of the top-left corner of mask px (0, 0). Outside the mask there is no tissue.
    """

    mask: npt.NDArray[np.uint8]
    px_w: float
    px_h: float
    x0: float = 0.0
    y0: float = 0.0

    def to_png(self) -> bytes:
        """Return the mask as PNG (255 tissue) that carries its own place; the same mask gives the same bytes."""
        from PIL import Image, PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_text(_TEXT_KEY, " ".join(float(v).hex() for v in (self.px_w, self.px_h, self.x0, self.y0)))
        buffer = io.BytesIO()
        Image.fromarray(self.mask * np.uint8(255)).save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()

    @classmethod
    def load(cls, source: str | Path | bytes) -> TissueMask:
        """Read what ``to_png`` wrote, from a file or its bytes.

        Raises
        ------
        FormatError
            Not a PNG, or one that does not say where it lies (a foreign mask: ``tissue_from_file``).
        """
        from PIL import Image

        where = "tissue mask" if isinstance(source, bytes) else f"tissue mask {source}"
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                place = image.info.get(_TEXT_KEY)
                pixels = np.asarray(image.convert("L"))
        except (OSError, SyntaxError, ValueError) as err:
            raise FormatError(f"{where}: not a readable PNG: {err}") from err
        if not isinstance(place, str):
            raise FormatError(f"{where}: no text {_TEXT_KEY!r} that tells its place. Expected a mask written by wsiseg.")
        return cls((pixels > 0).astype(np.uint8), *(float.fromhex(v) for v in place.split()))


def fit_tissue(slide: Slide) -> TissueMask:
    """Find the tissue of a slide on a thumbnail of about 8 um a px.

    A px is tissue if it is colored (chroma above Otsu's threshold, within ``CHROMA_LIMITS``) or dark, and no pen mark. Holes
    up to ``MAX_HOLE_UM2`` are filled, specks below ``MIN_SPECK_UM2`` dropped, the rest grown by ``MARGIN_UM``. A slide without
    tissue gives an empty mask.

    Raises
    ------
    TileReadError
        The thumbnail's level cannot be decoded.
    """
    meta = slide.meta
    long_side = max(meta.width_px, meta.height_px)
    wanted = min(MAX_SIDE_PX, max(1, math.ceil(long_side * meta.mpp / THUMBNAIL_UM)))
    level, block = thumbnail_plan(slide.level_sizes_px, wanted)
    level_w, level_h = slide.level_sizes_px[level]
    px_w, px_h = block * meta.width_px / level_w, block * meta.height_px / level_h
    mask = tissue_of_thumbnail(block_means(slide, level, block), meta.mpp * math.sqrt(px_w * px_h))
    return TissueMask(mask, px_w, px_h)


def tissue_of_thumbnail(rgb: RGB, um_per_px: float) -> npt.NDArray[np.uint8]:
    """Return 1 where a thumbnail shows tissue: uint8 (h, w) of an uint8 (h, w, 3) with ``um_per_px`` um a px."""
    from scipy import ndimage

    balanced = _white_balanced(rgb)
    chroma = ndimage.uniform_filter((balanced.max(axis=2) - balanced.min(axis=2)).astype(np.float32), 3, mode="nearest")
    density = -np.log10((balanced.astype(np.float32) + 1) / 256).mean(axis=2)
    colored = chroma > np.clip(_otsu(np.minimum(chroma, 255).astype(np.uint8)), *CHROMA_LIMITS)
    dark = (density > DARK_OD) & (chroma > CHROMA_LIMITS[0])
    px_um2 = um_per_px * um_per_px
    ink = _without_small(pen_marks(rgb), MIN_SPECK_UM2 / px_um2)  # single px are JPEG noise, or pigment
    if ink.any():
        # Ink fades out: what is greener than any H&E and touches ink belongs to it.
        faint = balanced[..., 1] - balanced[..., 0] > 6
        ink = _grown(ndimage.binary_propagation(ink, mask=ink | faint), 2)
    found = (colored | dark) & ~ink
    found = _without_small(found, MIN_SPECK_UM2 / px_um2)
    if not found.any():
        return np.zeros(found.shape, np.uint8)
    found = ~_without_small(~found, MAX_HOLE_UM2 / px_um2) & ~ink
    grown = _grown(found, max(1, round(MARGIN_UM / um_per_px)))
    return (grown & ~(ink & ~found)).astype(np.uint8)


def pen_marks(rgb: RGB) -> npt.NDArray[np.bool_]:
    """Return True (h, w) where a px uint8 (h, w, 3) has the color of marker ink: green or blue, red, black.

    In H&E, whatever the balance, green is never much above red (both stains absorb green most), eosin and blood keep about as
    much blue as green, and nothing is both dark and gray.
    """
    r, g, b = (rgb[..., k].astype(np.int16) for k in range(3))
    green_or_blue = (g - r > 24) & (np.maximum(g, b) - r > 32)
    red = (r > 110) & (5 * g < 2 * r) & (5 * b < 2 * r) & (r - np.maximum(g, b) > 80) & (np.abs(g - b) < 40) & (b < g + 20)
    top = np.maximum(np.maximum(r, g), b)
    black = (top < 45) & (top - np.minimum(np.minimum(r, g), b) < 12)
    found: npt.NDArray[np.bool_] = green_or_blue | red | black
    return found


def _white_balanced(rgb: RGB) -> npt.NDArray[np.int16]:
    """Scale channels so that the slide's glass is white; a slide without glass (brightest px below 200) is left as it is."""
    white = np.percentile(rgb.reshape(-1, 3), 99, axis=0)
    gain = np.where(white.min() >= 200, 255.0 / np.maximum(white, 1), 1.0)
    return np.minimum(rgb * gain, 255).astype(np.int16)


def _otsu(values: npt.NDArray[np.uint8]) -> int:
    """Return the threshold of largest between-class variance (Otsu 1979); values above it are the upper class."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = np.cumsum(counts)
    mass = np.cumsum(counts * np.arange(256))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (mass[-1] * below / below[-1] - mass) ** 2 / (below * (below[-1] - below))
    return int(np.nan_to_num(variance, nan=0.0, posinf=0.0).argmax())


def _without_small(mask: npt.NDArray[np.bool_], min_px: float) -> npt.NDArray[np.bool_]:
    from scipy import ndimage

    labels, n = ndimage.label(mask)
    keep = np.bincount(labels.ravel(), minlength=n + 1) >= min_px
    keep[0] = False
    kept: npt.NDArray[np.bool_] = keep[labels]
    return kept


def _grown(mask: npt.NDArray[np.bool_], radius_px: int) -> npt.NDArray[np.bool_]:
    from scipy import ndimage

    near: npt.NDArray[np.bool_] = ndimage.distance_transform_edt(~mask) <= radius_px if mask.any() else mask
    return near


def tissue_frac(tissue: TissueMask, box: Box, scale: float = 1.0) -> float:
    """Return which fraction of a box is tissue, exactly (mask px that the box cuts count by area).

    Parameters
    ----------
    tissue
        The slide's mask.
    box
        In working px at ``scale`` working px per level-0 px; at the default 1.0, level-0 px. Outside the mask: no tissue.
    """
    area = box.w * box.h / (scale * scale)
    if area <= 0:
        return 0.0
    y = _cover(box.y / scale, box.y1 / scale, tissue.y0, tissue.px_h, tissue.mask.shape[0])
    x = _cover(box.x / scale, box.x1 / scale, tissue.x0, tissue.px_w, tissue.mask.shape[1])
    covered = float(y[1] @ tissue.mask[y[0]][:, x[0]].astype(np.float64) @ x[1])
    return min(1.0, covered / area)


def tissue_px_in(tissue: TissueMask, box: Box, scale: float = 1.0) -> int:
    """Return how many px of a box (working px at ``scale``) are tissue: its exact tissue area, rounded to whole px."""
    return round(tissue_frac(tissue, box, scale) * box.w * box.h)


def tissue_cells(tissue: TissueMask, region: Box, cell_px: int) -> npt.NDArray[np.float64]:
    """Return the exact tissue area of each square cell of a grid over ``region``, level-0 px^2, float64 (H, W).

    Cells begin at the region's corner; those at its right and lower end are cut there. Cells of twice the side have the sum.
    """
    ends = []
    axes = ((region.y, region.h, tissue.y0, tissue.px_h), (region.x, region.w, tissue.x0, tissue.px_w))
    for (start, length, origin, px), n in zip(axes, tissue.mask.shape, strict=True):
        borders = start + np.minimum(np.arange(-(-length // cell_px) + 1) * cell_px, length)
        ends.append(np.clip((borders - origin) / px, 0, n))
    strip = 256  # a mask has up to 4096 px a side: in strips, so that its sums never stand in memory whole
    width = tissue.mask.shape[1]
    rows = np.concatenate([_between(tissue.mask[:, k : k + strip], ends[0]) for k in range(0, width, strip)], axis=1)
    cells = np.concatenate([_between(rows[k : k + strip].T, ends[1]).T for k in range(0, len(rows), strip)])
    return cells * (tissue.px_w * tissue.px_h)


def _between(values: npt.NDArray[Any], at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the integral of columns of px between following places ``at`` (px), float64 (len(at) - 1, w)."""
    total = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0, dtype=np.float64)])
    whole = np.minimum(at.astype(np.int64), len(values) - 1)
    integral = total[whole] + (at - whole)[:, None] * values[whole]  # linear between whole px
    return np.diff(integral, axis=0)


def tissue_window(tissue: TissueMask, box: Box, scale: float = 1.0) -> npt.NDArray[np.bool_]:
    """Return bool (box.h, box.w): whether the center of each px of a box (working px at ``scale``) is on tissue."""
    y = np.floor(((np.arange(box.y, box.y1) + 0.5) / scale - tissue.y0) / tissue.px_h).astype(np.int64)
    x = np.floor(((np.arange(box.x, box.x1) + 0.5) / scale - tissue.x0) / tissue.px_w).astype(np.int64)
    h, w = tissue.mask.shape
    inside_y, inside_x = (y >= 0) & (y < h), (x >= 0) & (x < w)
    rows = tissue.mask[np.clip(y, 0, h - 1)][:, np.clip(x, 0, w - 1)] > 0
    window: npt.NDArray[np.bool_] = rows & inside_y[:, None] & inside_x[None, :]
    return window


def _cover(lo: float, hi: float, origin: float, px: float, n: int) -> tuple[slice, npt.NDArray[np.float64]]:
    """Return which mask px an interval of level-0 px touches, and by which length each (level-0 px)."""
    first = min(max(math.floor((lo - origin) / px), 0), n)
    last = min(max(math.ceil((hi - origin) / px), first), n)
    edges = origin + px * np.arange(first, last + 1)
    return slice(first, last), np.maximum(np.minimum(edges[1:], hi) - np.maximum(edges[:-1], lo), 0.0)

"""Tissue of a slide, found once on a thumbnail: a slide constant, stored beside the results."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.read._thumbnail import block_means, thumbnail_plan
from wsiseg.read._window import RGB
from wsiseg.read.slide import Slide
from wsiseg.types import Box

__all__ = [
    "SlideSurvey",
    "TissueMask",
    "fit_tissue",
    "pen_marks",
    "survey_slide",
    "tissue_cells",
    "tissue_frac",
    "tissue_px_in",
    "tissue_window",
]

THUMBNAIL_UM = 8.0
"""Wanted side of a mask px: a nucleus or two."""
MAX_SIDE_PX = 4096
MIN_SIDE_PX = 128
"""A picture of a few fields is looked at more closely, or its mask would be of a dozen px."""
CHROMA_LIMITS = (8, 18)
"""Otsu's threshold on chroma (largest minus smallest channel, white balanced) is kept in these limits, so that a slide that is
all tissue, or all glass, is not cut in two."""
DARK_OD = 0.35
"""Optical density (base 10, mean of channels) above which even a weakly colored px is tissue: folds, dense frozen sections."""
GLASS_OD = 0.1
"""Optical density of the white-balanced picture below which a px may be glass."""
GLASS_MIN, GLASS_MAX_CHROMA, GLASS_MAX_PINK = 120, 32, 8
"""Of glass under any lamp: its least channel, largest chroma, and by how much green may lie below both others. Brightest px
that are darker, of more color or pinker are tissue, and the picture is not white balanced by them."""
FLAT_MAX_DIFF, GLASS_MIN_FLAT_FRAC = 6, 0.1
"""Pinker ones are glass after all where so large a share of the picture differs from them by so little in each channel."""
BLANK_GLASS_FRAC = 0.95
NUCLEUS_UM, SPOT_UM, SPOT_MARGIN_UM = 6.0, 40.0, 16.0
SPOT_CHROMA = 6
SPOT_DEPTH = 12.0
"""How much darker than its surroundings (0 to 255, smoothed over ``NUCLEUS_UM``) a spot is; noise and JPEG stay below half."""
UNSCANNED_MAX = 6
"""Greatest channel of what was never scanned: 0, and what JPEG makes of it."""
MIN_SPECK_UM2 = 4000.0
MIN_SPECK_FRAC = 1 / 64
"""Of a picture's area: in one of a few fields a single nucleus is no speck."""
MAX_HOLE_UM2 = 50_000.0
MARGIN_UM = 40.0
"""Dilation: at least three nuclei, so that none at a border is lost."""

_TEXT_KEY = "wsiseg:tissue"

_Mask = npt.NDArray[np.bool_]


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


@dataclass(frozen=True, slots=True, eq=False)
class SlideSurvey:
    """What a slide shows, by area (0 to 1), and its tissue mask. What is neither is pale or dark and not recognized.

    ``tissue_frac`` includes the margin of the mask, which lies on glass too: the four may sum to more than 1.
    """

    tissue: TissueMask
    tissue_frac: float
    glass_frac: float
    ink_frac: float
    unscanned_frac: float

    @property
    def is_blank(self) -> bool:
        """Return whether there is no tissue, and what was scanned is plain glass but for dust."""
        scanned_frac = 1.0 - self.unscanned_frac
        return self.tissue_frac == 0 and scanned_frac > 0 and self.glass_frac >= BLANK_GLASS_FRAC * scanned_frac


def fit_tissue(slide: Slide) -> TissueMask:
    """Find the tissue of a slide on a thumbnail of about 8 um a px, at least 128 px long (see ``tissue_of_thumbnail``).

    A slide without tissue gives an empty mask; a picture without glass is tissue throughout, ink apart.

    Raises
    ------
    TileReadError
        The thumbnail's level cannot be decoded.
    """
    return survey_slide(slide).tissue


def survey_slide(slide: Slide) -> SlideSurvey:
    """Find the tissue of a slide as ``fit_tissue`` does, and measure how much of it is glass, ink or not scanned.

    Raises
    ------
    TileReadError
        The thumbnail's level cannot be decoded.
    """
    meta = slide.meta
    long_side = max(meta.width_px, meta.height_px)
    wanted = min(MAX_SIDE_PX, max(MIN_SIDE_PX, math.ceil(long_side * meta.mpp / THUMBNAIL_UM)))
    level, block = thumbnail_plan(slide.level_sizes_px, wanted)
    level_w, level_h = slide.level_sizes_px[level]
    px_w, px_h = block * meta.width_px / level_w, block * meta.height_px / level_h
    areas = _areas(block_means(slide, level, block), meta.mpp * math.sqrt(px_w * px_h))
    fracs = (float(area.mean()) for area in areas)
    return SlideSurvey(TissueMask(areas[0].astype(np.uint8), px_w, px_h), *fracs)


def tissue_of_thumbnail(rgb: RGB, um_per_px: float) -> npt.NDArray[np.uint8]:
    """Return 1 where a thumbnail shows tissue: uint8 (h, w) of an uint8 (h, w, 3) with ``um_per_px`` um a px.

    A px is tissue if it is colored (chroma above Otsu's threshold, within ``CHROMA_LIMITS``), dark, or between spots that are
    colored and darker than what is around them, as nuclei in pale tissue are (``_spots``), and no pen mark. Specks are dropped:
    what is smaller than ``MIN_SPECK_UM2``, and in a small picture than ``MIN_SPECK_FRAC`` of it. Holes up to ``MAX_HOLE_UM2``
    are filled; where no larger piece of glass is left, all is tissue. The rest is grown by ``MARGIN_UM``. Black that was never
    scanned is neither tissue nor ink.
    """
    return _areas(rgb, um_per_px)[0].astype(np.uint8)


def _areas(rgb: RGB, um_per_px: float) -> tuple[_Mask, _Mask, _Mask, _Mask]:
    """Return where a thumbnail shows tissue, glass, ink and nothing scanned: bool (h, w) each."""
    px_um2 = um_per_px * um_per_px
    void = _unscanned(rgb, MIN_SPECK_UM2 / px_um2)
    balanced = _white_balanced(rgb, ~void)
    chroma = _chroma(balanced)
    colored, dark, light = _stained(balanced, chroma, ~void, um_per_px)
    near_px = max(1, round(SPOT_MARGIN_UM / um_per_px))
    near_spots = _grown(_spots(balanced, chroma, um_per_px), near_px)
    ink = _ink(rgb, balanced, void, MIN_SPECK_UM2 / px_um2)
    glass = light & ~colored & ~ink & ~void
    found = (colored | dark) & ~ink & ~void
    speck_px = min(MIN_SPECK_UM2 / px_um2, MIN_SPECK_FRAC * found.size)
    large = _without_small((found | near_spots) & ~ink & ~void, speck_px)
    if not large.any():
        return large, glass, ink, void
    found = (found | ~_grown(~near_spots, near_px)) & large  # what lies between spots, and no rim around them
    hole_px = MAX_HOLE_UM2 / px_um2
    if not _without_small((glass & ~found) | void, hole_px).any():
        found = ~ink & ~void
    found = ~_without_small(~found, hole_px) & ~ink & ~void
    grown = _grown(found, max(1, round(MARGIN_UM / um_per_px)))
    return grown & ~((ink | void) & ~found), glass, ink, void


def _stained(
    balanced: npt.NDArray[np.int16], chroma: npt.NDArray[np.float32], scanned: _Mask, um_per_px: float
) -> tuple[_Mask, _Mask, _Mask]:
    """Return where a white-balanced thumbnail is colored, dark and colored, and as light as glass: bool (h, w) each."""
    from scipy import ndimage

    side = max(3, _odd_px(3 * THUMBNAIL_UM, um_per_px))
    chroma = ndimage.uniform_filter(chroma, side, mode="nearest")
    density = -np.log10((balanced.astype(np.float32) + 1) / 256).mean(axis=2)
    limit = np.clip(_otsu(np.minimum(chroma[scanned], 255).astype(np.uint8)), *CHROMA_LIMITS)
    return chroma > limit, (density > DARK_OD) & (chroma > CHROMA_LIMITS[0]), density < GLASS_OD


def _spots(balanced: npt.NDArray[np.int16], chroma: npt.NDArray[np.float32], um_per_px: float) -> _Mask:
    """Return True in colored spots of up to ``SPOT_UM`` that are darker than their surroundings, as nuclei are.

    A step between scanned fields is no spot, and dust is gray.
    """
    from scipy import ndimage

    side = _odd_px(NUCLEUS_UM, um_per_px)
    light = ndimage.uniform_filter(balanced.mean(axis=2, dtype=np.float32), side, mode="nearest")
    chroma = ndimage.uniform_filter(chroma, side, mode="nearest")
    around = ndimage.grey_closing(light, max(3, _odd_px(SPOT_UM, um_per_px)), mode="nearest")
    found: _Mask = (around - light > SPOT_DEPTH) & (chroma > SPOT_CHROMA)
    return found


def _chroma(rgb: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return (np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)).astype(np.float32)


def _odd_px(um: float, um_per_px: float) -> int:
    """Return the odd number of px, at least 1, whose length is nearest to ``um``."""
    return 2 * max(0, round((um / um_per_px - 1) / 2)) + 1


def _unscanned(rgb: RGB, min_px: float) -> _Mask:
    """Return True where converters left black in place of what was not scanned: areas of plain black, unlike ink."""
    black: _Mask = rgb.max(axis=2) <= UNSCANNED_MAX
    return _without_small(black, min_px) if black.any() else black


def _ink(rgb: RGB, balanced: npt.NDArray[np.int16], void: _Mask, min_px: float) -> _Mask:
    """Return True on pen marks and their faint borders; a px that touches what was not scanned is half black, and no ink."""
    from scipy import ndimage

    ink = _without_small(pen_marks(rgb) & ~_grown(void, 2), min_px)  # single px are JPEG noise, or pigment
    if not ink.any():
        return ink
    # Ink fades out: what is greener than any H&E and touches ink belongs to it.
    faint = balanced[..., 1] - balanced[..., 0] > 6
    return _grown(ndimage.binary_propagation(ink, mask=ink | faint), 2)


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


def _white_balanced(rgb: RGB, scanned: npt.NDArray[np.bool_]) -> npt.NDArray[np.int16]:
    """Scale channels so that the slide's glass is white; a slide whose brightest px are dark or colored has none."""
    if not scanned.any():
        return rgb.astype(np.int16)
    white = np.percentile(rgb[scanned], 99, axis=0)
    is_glass = white.min() >= GLASS_MIN and white.max() - white.min() <= GLASS_MAX_CHROMA
    if is_glass and min(white[0], white[2]) - white[1] > GLASS_MAX_PINK:
        is_glass = (np.abs(rgb[scanned] - white) <= FLAT_MAX_DIFF).all(axis=1).mean() >= GLASS_MIN_FLAT_FRAC
    gain = np.where(is_glass, 255.0 / np.maximum(white, 1), 1.0)
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


def _grown(mask: _Mask, radius_px: int) -> _Mask:
    """Return True within ``radius_px`` of a True px."""
    from scipy import ndimage

    if not mask.any():
        return mask
    if radius_px <= 3:  # the same, and several times as fast
        v, u = np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
        return cast("_Mask", ndimage.binary_dilation(mask, u * u + v * v <= radius_px * radius_px))
    return cast("_Mask", ndimage.distance_transform_edt(~mask) <= radius_px)


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

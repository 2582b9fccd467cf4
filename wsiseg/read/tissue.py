"""Find the tissue of a slide, once per slide and on a thumbnail; the mask is stored with the results."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.read._thumbnail import block_means, thumbnail_plan
from wsiseg.read._window import RGB
from wsiseg.read.slide import Slide

__all__ = [
    "UNSCANNED_MAX",
    "SlideSurvey",
    "ThumbnailView",
    "TissueMask",
    "fit_tissue",
    "grown",
    "pen_marks",
    "survey_slide",
]

THUMBNAIL_UM = 8.0
"""Intended side of a mask px: one or two nuclei."""
MAX_SIDE_PX = 4096
MIN_SIDE_PX = 128
"""Small pictures get a finer thumbnail; otherwise their mask would have only a dozen px."""
CHROMA_LIMITS = (8, 18)
"""Otsu's threshold on chroma (largest minus smallest channel, white balanced) is clipped to these limits, so that a slide
that is all tissue or all glass is not divided into two classes."""
DARK_OD = 0.35
"""Optical density (base 10, mean of channels) above which even a weakly colored px is tissue: folds, dense frozen sections."""
GLASS_OD = 0.1
"""Optical density of the white-balanced picture below which a px may be glass."""
GLASS_MIN, GLASS_MAX_CHROMA, GLASS_MAX_PINK = 120, 32, 8
"""Limits for glass under any lamp: darkest channel, chroma, and how far green may be below both others. If the brightest px
are beyond these limits, they are tissue and are not used for the white balance."""
FLAT_MAX_DIFF, GLASS_MIN_FLAT_FRAC = 6, 0.1
"""Pinker px still count as glass if at least this fraction of the picture differs from them by at most this in each channel."""
BLANK_GLASS_FRAC = 0.95
NUCLEUS_UM, SPOT_UM, SPOT_MARGIN_UM = 6.0, 40.0, 16.0
SPOT_CHROMA = 6
SPOT_DEPTH = 12.0
"""How much darker than its surroundings (0 to 255, smoothed over ``NUCLEUS_UM``) a spot is; noise and JPEG stay below half."""
UNSCANNED_MAX = 6
"""Largest channel value of an unscanned px: 0, plus what JPEG compression adds."""
MIN_SPECK_UM2 = 4000.0
MIN_SPECK_FRAC = 1 / 64
"""Fraction of the picture's area: in a picture of a few fields a single nucleus is not a speck."""
MAX_HOLE_UM2 = 50_000.0
MARGIN_UM = 40.0
"""Dilation of at least three nuclei, so that nuclei at a border are not lost."""

_TEXT_KEY, _TEXT_UNSCANNED = "wsiseg:tissue", "wsiseg:unscanned"

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class TissueMask:
    """The tissue mask of a slide.

    Attributes
    ----------
    mask : uint8 (h, w)
        1 tissue, 0 none.
    px_w, px_h
        Level-0 px per mask px.
    x0, y0
        Level-0 px of the top-left corner of mask px (0, 0). Outside the mask there is no tissue.
    has_unscanned
        Whether the slide has areas of plain black where nothing was scanned.
    """

    mask: npt.NDArray[np.uint8]
    px_w: float
    px_h: float
    x0: float = 0.0
    y0: float = 0.0
    has_unscanned: bool = False

    def to_png(self) -> bytes:
        """Return the mask as PNG (255 tissue) that also states its position; the same mask gives the same bytes."""
        from PIL import Image, PngImagePlugin

        info = PngImagePlugin.PngInfo()
        info.add_text(_TEXT_KEY, " ".join(float(v).hex() for v in (self.px_w, self.px_h, self.x0, self.y0)))
        if self.has_unscanned:
            info.add_text(_TEXT_UNSCANNED, "1")
        buffer = io.BytesIO()
        Image.fromarray(self.mask * np.uint8(255)).save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()

    @classmethod
    def load(cls, source: str | Path | bytes) -> TissueMask:
        """Read what ``to_png`` wrote, from a file or its bytes.

        Raises
        ------
        FormatError
            The file is not a PNG, or has no position (read masks of other programs with ``tissue_from_file``).
        """
        from PIL import Image

        where = "tissue mask" if isinstance(source, bytes) else f"tissue mask {source}"
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                place, black = image.info.get(_TEXT_KEY), _TEXT_UNSCANNED in image.info
                pixels = np.asarray(image.convert("L"))
        except (OSError, SyntaxError, ValueError) as err:
            raise FormatError(f"{where}: not a readable PNG: {err}") from err
        if not isinstance(place, str):
            raise FormatError(f"{where}: no text {_TEXT_KEY!r} with its position. Expected a mask written by wsiseg.")
        px_w, px_h, x0, y0 = (float.fromhex(v) for v in place.split())
        return cls((pixels > 0).astype(np.uint8), px_w, px_h, x0, y0, black)


@dataclass(frozen=True, slots=True, eq=False)
class ThumbnailView:
    """The thumbnail on which a slide's tissue was found, and what was found: arrays of the tissue mask's shape.

    Attributes
    ----------
    rgb : uint8 (h, w, 3)
    colored, ink, unscanned : bool (h, w)
        Tissue before the mask's margin is added; pen marks; plain black.
    spot : float32 (h, w)
        How much darker a px is than its surroundings at the scale of a nucleus (0 to 255, white balanced).
    chroma : float32 (h, w)
        Largest minus smallest channel, white balanced and smoothed alike.
    """

    rgb: RGB
    colored: _Mask
    ink: _Mask
    unscanned: _Mask
    spot: npt.NDArray[np.float32]
    chroma: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class SlideSurvey:
    """Fractions of a slide's area (0 to 1) that are tissue, glass, ink or not scanned, and its tissue mask.

    Other area is pale or dark and not recognized. ``tissue_frac`` includes the margin of the mask, which also covers glass, so
    the four may sum to more than 1.
    """

    tissue: TissueMask
    tissue_frac: float
    glass_frac: float
    ink_frac: float
    unscanned_frac: float
    view: ThumbnailView

    @property
    def is_blank(self) -> bool:
        """Return whether there is no tissue, and what was scanned is plain glass apart from dust."""
        scanned_frac = 1.0 - self.unscanned_frac
        return self.tissue_frac == 0 and scanned_frac > 0 and self.glass_frac >= BLANK_GLASS_FRAC * scanned_frac


def fit_tissue(slide: Slide) -> TissueMask:
    """Find the tissue of a slide on a thumbnail of about 8 um/px, at least 128 px long (see ``tissue_of_thumbnail``).

    A slide without tissue gives an empty mask; a picture without glass is all tissue, except for ink.

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
    wide, glass, view = _survey_thumbnail(block_means(slide, level, block), meta.mpp * math.sqrt(px_w * px_h))
    fracs = [float(area.mean()) for area in (wide, glass, view.ink, view.unscanned)]
    tissue = TissueMask(wide.astype(np.uint8), px_w, px_h, has_unscanned=bool(view.unscanned.any()))
    return SlideSurvey(tissue, fracs[0], fracs[1], fracs[2], fracs[3], view)


def tissue_of_thumbnail(rgb: RGB, um_per_px: float) -> npt.NDArray[np.uint8]:
    """Return 1 where a thumbnail uint8 (h, w, 3) of ``um_per_px`` shows tissue, 0 elsewhere: uint8 (h, w).

    A px is tissue if it is no pen mark and is colored (chroma above Otsu's threshold, within ``CHROMA_LIMITS``), dark, or
    between spots that are colored and darker than their surroundings, as nuclei in pale tissue are (``_spots``). Specks smaller
    than ``MIN_SPECK_UM2`` (in a small picture: than ``MIN_SPECK_FRAC`` of it) are dropped and holes up to ``MAX_HOLE_UM2``
    filled; if no larger piece of glass is left, all is tissue. The mask is then grown by ``MARGIN_UM``. Unscanned black is
    neither tissue nor ink.
    """
    return _survey_thumbnail(rgb, um_per_px)[0].astype(np.uint8)


def _survey_thumbnail(rgb: RGB, um_per_px: float) -> tuple[_Mask, _Mask, ThumbnailView]:
    """Return masks of tissue and of glass, bool (h, w) each, and the view with the other masks of a thumbnail."""
    px_um2 = um_per_px * um_per_px
    void = _unscanned(rgb, MIN_SPECK_UM2 / px_um2)
    balanced = _white_balanced(rgb, ~void)
    chroma = _chroma(balanced)
    colored, dark, light = _stained(balanced, chroma, ~void, um_per_px)
    near_px = max(1, round(SPOT_MARGIN_UM / um_per_px))
    spot, spot_chroma = _spots(balanced, chroma, um_per_px)
    near_spots = grown((spot > SPOT_DEPTH) & (spot_chroma > SPOT_CHROMA), near_px)
    ink = _ink(rgb, balanced, void, MIN_SPECK_UM2 / px_um2)
    glass = light & ~colored & ~ink & ~void
    found = (colored | dark) & ~ink & ~void
    speck_px = min(MIN_SPECK_UM2 / px_um2, MIN_SPECK_FRAC * found.size)
    large = _without_small((found | near_spots) & ~ink & ~void, speck_px)
    if not large.any():
        return large, glass, ThumbnailView(rgb, large, ink, void, spot, spot_chroma)
    found = (found | ~grown(~near_spots, near_px)) & large  # the area between spots, without a rim around them
    hole_px = MAX_HOLE_UM2 / px_um2
    if not _without_small((glass & ~found) | void, hole_px).any():
        found = ~ink & ~void
    found = ~_without_small(~found, hole_px) & ~ink & ~void
    wide = grown(found, max(1, round(MARGIN_UM / um_per_px)))
    return wide & ~((ink | void) & ~found), glass, ThumbnailView(rgb, found, ink, void, spot, spot_chroma)


def _stained(
    balanced: npt.NDArray[np.int16], chroma: npt.NDArray[np.float32], scanned: _Mask, um_per_px: float
) -> tuple[_Mask, _Mask, _Mask]:
    """Return three masks of a white-balanced thumbnail, bool (h, w): colored; dark and colored; as light as glass."""
    from scipy import ndimage

    side = max(3, _odd_px(3 * THUMBNAIL_UM, um_per_px))
    chroma = ndimage.uniform_filter(chroma, side, mode="nearest")
    density = -np.log10((balanced.astype(np.float32) + 1) / 256).mean(axis=2)
    limit = np.clip(_otsu(np.minimum(chroma[scanned], 255).astype(np.uint8)), *CHROMA_LIMITS)
    return chroma > limit, (density > DARK_OD) & (chroma > CHROMA_LIMITS[0]), density < GLASS_OD


def _spots(
    balanced: npt.NDArray[np.int16], chroma: npt.NDArray[np.float32], um_per_px: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return how much darker each px is than the px within ``SPOT_UM``, and its chroma: float32 (h, w) each.

    Nuclei are dark and colored; a step between scanned fields is not such a spot, and dust is gray.
    """
    from scipy import ndimage

    side = _odd_px(NUCLEUS_UM, um_per_px)
    light = ndimage.uniform_filter(balanced.mean(axis=2, dtype=np.float32), side, mode="nearest")
    chroma = ndimage.uniform_filter(chroma, side, mode="nearest")
    around = ndimage.grey_closing(light, max(3, _odd_px(SPOT_UM, um_per_px)), mode="nearest")
    return around - light, chroma


def _chroma(rgb: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return (np.maximum(np.maximum(r, g), b) - np.minimum(np.minimum(r, g), b)).astype(np.float32)


def _odd_px(um: float, um_per_px: float) -> int:
    """Return the odd number of px, at least 1, whose length is nearest to ``um``."""
    return 2 * max(0, round((um / um_per_px - 1) / 2)) + 1


def _unscanned(rgb: RGB, min_px: float) -> _Mask:
    """Return True where converters filled unscanned area with black: areas of plain black, unlike ink."""
    black: _Mask = rgb.max(axis=2) <= UNSCANNED_MAX
    return _without_small(black, min_px) if black.any() else black


def _ink(rgb: RGB, balanced: npt.NDArray[np.int16], void: _Mask, min_px: float) -> _Mask:
    """Return True on pen marks and their faint borders; px that touch an unscanned area are half black, and not ink."""
    from scipy import ndimage

    ink = _without_small(pen_marks(rgb) & ~grown(void, 2), min_px)  # single px are JPEG noise, or pigment
    if not ink.any():
        return ink
    # Ink fades out at its border: px that touch ink and are greener than any H&E are ink too.
    faint = balanced[..., 1] - balanced[..., 0] > 6
    return grown(ndimage.binary_propagation(ink, mask=ink | faint), 2)


def pen_marks(rgb: RGB) -> npt.NDArray[np.bool_]:
    """Return True (h, w) where a px uint8 (h, w, 3) has the color of marker ink: green or blue, red, black.

    In H&E, whatever the white balance, green is never much above red (both stains absorb green most), eosin and blood have
    about as much blue as green, and nothing is both dark and gray.
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


def grown(mask: _Mask, radius_px: int) -> _Mask:
    """Return True within ``radius_px`` of a True px."""
    from scipy import ndimage

    if not mask.any():
        return mask
    if radius_px <= 3:  # the same result, several times as fast
        v, u = np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
        return cast("_Mask", ndimage.binary_dilation(mask, u * u + v * v <= radius_px * radius_px))
    return cast("_Mask", ndimage.distance_transform_edt(~mask) <= radius_px)

"""Draw a slide of a run next to its nuclear density, with a color scale and a scale bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wsiseg.errors import InputError
from wsiseg.export.overlay import save_picture
from wsiseg.results.folder import RunFolder
from wsiseg.results.maps import slide_maps_of
from wsiseg.results.reopen import reopen_slide
from wsiseg.results.slide_record import slide_record
from wsiseg.write import MapLevel

__all__ = ["Density", "density_picture", "density_png", "tissue_density"]

VIRIDIS = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99), (170, 220, 50),
    (253, 231, 37),
)  # fmt: skip
"""Nine colors of matplotlib's viridis (CC0) at equal steps: perceptually uniform, also for color-blind readers."""

PANEL_PX = 1100
MAX_CELLS = 1 << 20
SMOOTH_UM = (25.0, 150.0)
INK = (30, 30, 30)
MARGIN_PX = 24
MIN_ROOM_PX = 120
"""Minimum size of a panel, px, needed for the color scale and the scale bar."""

Array = NDArray[np.float64]


class Density(NamedTuple):
    """Smoothed density, float64 (H, W), 1/mm^2, NaN outside the tissue; and the standard deviation of the smoothing, um."""

    per_mm2: Array
    sigma_um: float


def tissue_density(maps: MapLevel) -> Density:
    """Return nuclei per mm^2 of tissue: the Gaussian-smoothed count of nuclei divided by the Gaussian-smoothed tissue area.

    Sigma is 1/80 of the slide's longer side, limited to 25 to 150 um. If the tissue is not known (an imported slide), the whole
    slide counts as tissue, and only positions near nuclei are shown.
    """
    from scipy.ndimage import gaussian_filter

    um = maps.cell_px * maps.mpp
    sigma_um = float(np.clip(max(maps.values.shape[1:]) * um / 80, *SMOOTH_UM))
    sigma = sigma_um / um
    count = np.nan_to_num(maps.named("nuclei_per_mm2").astype(np.float64))
    tissue = maps.named("tissue_frac").astype(np.float64)
    known = not np.isnan(tissue).all()
    area = gaussian_filter(tissue if known else np.ones_like(count), sigma, mode="constant")
    smooth = gaussian_filter(count, sigma, mode="constant")
    shown = tissue > 0 if known else smooth > 0.02 * smooth.max(initial=0.0)
    return Density(np.where(shown, smooth / np.maximum(area, 1e-3), np.nan), sigma_um)


def density_png(run: Path, slide_id: str, out: Path, path_map: Sequence[str] = ()) -> Density:
    """Write a PNG with a slide's thumbnail next to its nuclear density in color; return the density shown.

    Raises
    ------
    InputError
        The slide is not in the run or has no table, or ``out`` does not end in ``.png``.
    SlideOpenError
        The slide file is missing, or is not the file that was segmented.
    """
    if out.suffix.lower() != ".png":
        raise InputError(f"Expected a picture file that ends in .png, got {out}.")
    folder = RunFolder(run)
    record = slide_record(folder, slide_id)
    row = record.row
    maps = slide_maps_of(run, slide_id, MAX_CELLS)
    slide = reopen_slide(folder, record, path_map)
    try:
        thumbnail = slide.thumbnail(PANEL_PX)
    finally:
        slide.close()
    density = tissue_density(maps)
    title = f"{slide_id}: {row.n_nuclei:,} nuclei"
    if row.nuclei_per_mm2:
        title += f", {row.nuclei_per_mm2:,.0f} per mm² of tissue"
    picture = density_picture(thumbnail, density, slide.meta.width_px * slide.meta.mpp, title)
    save_picture(picture, out, slide_id)
    return density


def density_picture(thumbnail: NDArray[np.uint8], density: Density, width_um: float, title: str = "") -> NDArray[np.uint8]:
    """Return a picture, uint8 (H, W, 3): the thumbnail, the density in color over the thumbnail, color scale and scale bar.

    Parameters
    ----------
    thumbnail : uint8 (h, w, 3)
        The whole slide.
    density
        Density of the whole slide, on any grid.
    width_um
        Width of the slide, um.
    """
    height, width = thumbnail.shape[:2]
    values = _resized(density.per_mm2, width, height)
    seen = density.per_mm2[np.isfinite(density.per_mm2)]
    top = nice_ceil(float(np.quantile(seen, 0.995)) if seen.size else 1.0)
    colored = _blend(thumbnail, values, top)
    beside = width <= 1.4 * height  # otherwise, for wide slides, one panel above the other
    room_w, room_h = max(width, MIN_ROOM_PX), max(height, MIN_ROOM_PX)  # space for color scale and scale bar
    step_x, step_y = (room_w + MARGIN_PX, 0) if beside else (0, room_h + MARGIN_PX)
    head = 2 * MARGIN_PX + 8
    bar_x = MARGIN_PX + step_x + room_w + MARGIN_PX
    canvas = Image.new("RGB", (bar_x + 150, head + step_y + room_h + 3 * MARGIN_PX), (255, 255, 255))
    for k, panel in enumerate((thumbnail, colored)):
        canvas.paste(Image.fromarray(panel), (MARGIN_PX + k * step_x, head + k * step_y))
    draw = ImageDraw.Draw(canvas)
    _write(draw, (MARGIN_PX, 16), title, 20)
    _draw_color_scale(canvas, draw, (bar_x, head + step_y, room_h), top)
    _draw_scale_bar(draw, (MARGIN_PX, head + step_y + room_h + 12), width, width_um)
    note = f"smoothed, sigma {density.sigma_um / 1000:.3f} mm"
    note_x = MARGIN_PX + step_x + room_w - 250
    below = 0 if note_x >= 2 * MARGIN_PX else 32  # too narrow for both: below the ruler
    _write(draw, (max(note_x, MARGIN_PX), head + step_y + room_h + 12 + below), note, 15)
    return np.asarray(canvas)


def nice_ceil(value: float) -> float:
    """Return the smallest of 1, 2, 2.5, 4, 5, 8 times a power of ten that is not below ``value`` (1 for values up to 0)."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(m * power for m in (1.0, 2.0, 2.5, 4.0, 5.0, 8.0, 10.0) if m * power >= value * (1 - 1e-9))


def _blend(rgb: NDArray[np.uint8], values: Array, top: float) -> NDArray[np.uint8]:
    """Return the picture in light gray, with the density in color over it where it is not NaN."""
    gray = 255 - (255 - rgb.mean(axis=2, keepdims=True)) * 0.5
    alpha = np.where(np.isfinite(values), 0.72, 0.0)[:, :, None]
    mixed = gray * (1 - alpha) + _colors(np.nan_to_num(values) / top) * alpha
    out: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return out


def _colors(share: Array) -> Array:
    """Return the colors, float64 (..., 3) in 0 to 255, of positions on the color scale, 0 to 1."""
    at = np.linspace(0, 1, len(VIRIDIS))
    return np.stack([np.interp(share, at, [c[k] for c in VIRIDIS]) for k in range(3)], axis=-1)


def _resized(values: Array, width: int, height: int) -> Array:
    """Return a map resampled to the size of a picture, smooth where it has values, with a sharp border to NaN."""
    inside = np.isfinite(values)
    planes = [Image.fromarray(p.astype(np.float32)) for p in (np.where(inside, values, 0), inside)]
    total, weight = (np.asarray(p.resize((width, height), Image.Resampling.BILINEAR), np.float64) for p in planes)
    return np.where(weight > 0.5, total / np.maximum(weight, 1e-6), np.nan)


def _draw_color_scale(canvas: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int, int], top: float) -> None:
    x, y, height = place
    label = 30
    length = min(height, 600) - label
    shares = np.linspace(1, 0, length)[:, None].repeat(26, axis=1)
    canvas.paste(Image.fromarray(np.rint(_colors(shares)).astype(np.uint8)), (x, y + label))
    _write(draw, (x, y), "nuclei / mm²", 18)
    for k in range(5):
        at = y + label + round((length - 1) * (1 - k / 4))
        draw.line((x + 26, at, x + 32, at), fill=INK, width=1)
        _write(draw, (x + 36, at - 9), f"{top * k / 4:,.0f}{'+' if k == 4 else ''}", 16)


def _draw_scale_bar(draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, width_um: float) -> None:
    length_um = nice_ceil(width_um / 10)
    px = length_um / width_um * width
    x, y = place
    draw.rectangle((x, y, x + px, y + 5), fill=INK)
    _write(draw, (x, y + 10), f"{length_um / 1000:g} mm", 16)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int) -> None:
    """Draw a line of text with Pillow's built-in font, which has no superscript 2: the 2 is drawn small and raised."""
    x, y = float(place[0]), place[1]
    for k, piece in enumerate(text.split("²")):
        if k:
            draw.text((x, y - 1), "2", fill=INK, font=ImageFont.load_default(round(size * 0.65)))
            x += draw.textlength("2", font=ImageFont.load_default(round(size * 0.65)))
        draw.text((x, y), piece, fill=INK, font=ImageFont.load_default(size))
        x += draw.textlength(piece, font=ImageFont.load_default(size))

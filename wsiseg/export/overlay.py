"""Draw a region of a slide with the outline of every nucleus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from wsiseg.errors import InputError
from wsiseg.read import read_working
from wsiseg.results.folder import RunFolder
from wsiseg.results.reopen import reopen_slide
from wsiseg.results.slide_record import slide_record
from wsiseg.tables import atomic_path, read_nuclei
from wsiseg.types import Box

__all__ = ["densest_region", "load_region", "overlay_png", "parse_region", "save_picture"]

OUTLINE_RGB = (70, 255, 130)
"""A light green: high contrast on hematoxylin blue and eosin pink, also with red-green color blindness."""

MAX_PICTURE_PX = 4096


def save_picture(picture: NDArray[np.uint8], out: Path, slide_id: str) -> None:
    """Write uint8 (H, W, 3) as PNG.

    A text chunk marks the file as a picture, so that it is not read as a slide (see ``wsiseg.results.listing``).
    """
    text = PngInfo()
    text.add_itxt("wsiseg:picture", f"nuclei of slide {slide_id}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as partial:
        Image.fromarray(picture).save(partial, format="PNG", pnginfo=text)


def parse_region(text: str) -> Box | None:
    """Return the box of a text ``"x,y,w,h"`` (level-0 px); None for an empty text. Raises ``InputError`` for other texts."""
    if not text:
        return None
    try:
        x, y, w, h = (int(v) for v in text.split(","))
    except ValueError as err:
        raise InputError(f"Expected a region as x,y,w,h in whole level-0 pixels, got {text!r}.") from err
    return Box(x, y, w, h)


def load_region(table: Path, region: Box) -> list[Any]:
    """Return the shapely polygons of a table that intersect ``region`` (level-0 px); only row groups near it are read."""
    import shapely

    found = read_nuclei(table, region, ["geometry"])
    return list(shapely.from_wkb(found["geometry"].to_numpy(zero_copy_only=False)))


def densest_region(table: Path, width_px: int, height_px: int) -> Box:
    """Return the box of the given size (level-0 px) with the most nuclei, on a grid with steps of half that size."""
    columns = read_nuclei(table, columns=["cx", "cy"])
    cx, cy = (np.asarray(columns[c], dtype=np.float64) for c in ("cx", "cy"))
    if cx.size == 0:
        return Box(0, 0, width_px, height_px)
    step_x, step_y = max(1, width_px // 2), max(1, height_px // 2)
    gx, gy = (cx // step_x).astype(np.int64), (cy // step_y).astype(np.int64)
    counts = np.zeros((int(gy.max()) + 2, int(gx.max()) + 2), np.int64)
    np.add.at(counts, (gy, gx), 1)
    windows = counts[:-1, :-1] + counts[1:, :-1] + counts[:-1, 1:] + counts[1:, 1:]
    row, column = np.unravel_index(int(windows.argmax()), windows.shape)
    return Box(int(column) * step_x, int(row) * step_y, width_px, height_px)


def overlay_png(
    run: Path,
    slide_id: str,
    out: Path,
    region: Box | None = None,
    *,
    outlines: bool = True,
    side_by_side: bool = False,
    path_map: Sequence[str] = (),
) -> Box:
    """Write a PNG of a region of a slide with nuclear outlines; return the level-0 region shown.

    Parameters
    ----------
    region
        Level-0 px; ``None``: the 1600 x 1000 px with the most nuclei. A large region is drawn from a coarser level, with at
        most 4096 px to a side.
    outlines
        Draw the outlines; otherwise only the tissue.
    side_by_side
        Show the same region without outlines next to it.
    path_map
        ``OLD=NEW`` pairs for slide files that were moved since the run, as in ``schedule.path_map``.

    Raises
    ------
    InputError
        The slide is not in the run, the region is outside the slide, or ``out`` does not end in ``.png``.
    SlideOpenError
        The slide file is missing, or is not the file that was segmented.
    """
    if out.suffix.lower() != ".png":
        raise InputError(f"Expected a picture file that ends in .png, got {out}.")
    folder = RunFolder(run)
    record = slide_record(folder, slide_id)
    row = record.row
    width, height = row.width_px or 0, row.height_px or 0
    table = folder.table(slide_id)
    if not table.is_file():
        raise InputError(f"Slide {slide_id} has no polygon table in {run}: {row.error or 'not finished yet'}.")
    if region is None:
        region = densest_region(table, 1600, 1000)
        x, y = (max(0, min(v, side - n)) for v, side, n in ((region.x, width, 1600), (region.y, height, 1000)))
        region = Box(x, y, region.w, region.h)  # clipped to the slide, so that there is no white margin
    if region.w <= 0 or region.h <= 0:
        raise InputError(f"Expected --region x,y,w,h with w and h above 0 level-0 px, got {region.w} x {region.h}.")
    if region.x1 <= 0 or region.y1 <= 0 or region.x >= width or region.y >= height:
        raise InputError(
            f"Region {region.x},{region.y},{region.w},{region.h} is outside slide {slide_id}, whose size is "
            f"{width} x {height} level-0 px."
        )
    slide = reopen_slide(folder, record, path_map)
    try:
        zoom = min(1.0, MAX_PICTURE_PX / max(region.w, region.h))
        size = max(1, round(region.w * zoom)), max(1, round(region.h * zoom))
        window = Box(round(region.x * zoom), round(region.y * zoom), *size)
        rgb = read_working(slide, window, zoom)
    finally:
        slide.close()
    picture = draw_outlines(rgb, load_region(table, region), region, zoom) if outlines else rgb
    if side_by_side:
        gap = np.full((rgb.shape[0], 8, 3), 255, np.uint8)
        picture = np.concatenate([rgb, gap, picture], axis=1)
    save_picture(picture, out, slide_id)
    return region


def draw_outlines(rgb: NDArray[np.uint8], polygons: list[Any], region: Box, zoom: float) -> NDArray[np.uint8]:
    """Return a copy of a picture, uint8 (H, W, 3), with outlines drawn on it.

    ``polygons`` and ``region`` are in level-0 px; ``zoom`` is picture px per level-0 px.
    """
    scale = 2  # draw at twice the size, then halve, for smooth lines
    height, width = rgb.shape[:2]
    canvas = Image.fromarray(rgb).resize((width * scale, height * scale), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    factor = zoom * scale
    width_px = max(2, round(1.5 * scale * min(1.0, zoom * 1.5)))
    for polygon in polygons:
        ring = (np.asarray(polygon.exterior.coords) - (region.x, region.y)) * factor
        draw.line([(float(x), float(y)) for x, y in ring], fill=OUTLINE_RGB, width=width_px)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))

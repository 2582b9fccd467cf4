"""Draw the pictures of a comparison: the map of a slide, and the places where two segmentations disagree most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from wsiseg.errors import WsisegError, one_line
from wsiseg.evaluation.compare.cells import Cells
from wsiseg.evaluation.compare.pairing import SlidePair
from wsiseg.evaluation.compare.slide import SlideComparison, Worst
from wsiseg.evaluation.gallery import Crop, draw_gallery
from wsiseg.log import log
from wsiseg.read import read_working
from wsiseg.read.slide import Slide
from wsiseg.results.folder import RunFolder
from wsiseg.results.reopen import reopen_slide
from wsiseg.results.slide_record import slide_record
from wsiseg.tables.windows import RingWindows
from wsiseg.types import Box

__all__ = ["chosen_places", "draw_disagreements", "draw_map", "map_path"]

LEGEND = (
    "yellow: A   cyan: B   x only in B   + only in A   M one in A, several in B   S one in B, several in A   o outline differs"
)
WORDS = {"missed": "only in B", "extra": "only in A", "merged": "one in A", "split": "one in B", "outline": "outline differs"}
MAP_SIDE_PX = 440
PQ_RGB = np.array([[84, 8, 22], [190, 55, 40], [240, 150, 90], [250, 220, 160], [255, 252, 240]], np.float64)
"""Colors of panoptic quality from 0 (dark) to 1 (pale), monotone in lightness, so that they are also readable in gray."""
DIFFERENCE_RGB = np.array([[5, 62, 120], [110, 165, 210], [245, 245, 245], [235, 160, 90], [150, 60, 10]], np.float64)
"""Colors of the count of A relative to B: -100 % (blue, fewer in A), equal (white), +100 % (brown, more in A)."""
NOTHING_RGB = (226, 229, 233)

RGB = npt.NDArray[np.uint8]


def map_path(out: Path, slide_id: str) -> Path:
    """Return the path of the picture of a slide's map."""
    return out / "maps" / f"{slide_id}.png"


def draw_map(cells: Cells, size_px: tuple[int, int]) -> Image.Image:
    """Return the map of a slide in two panels, panoptic quality and difference of counts; cells without nuclei are gray."""
    across = max(1, -(-size_px[0] // cells.side_px), int(cells.column.max(initial=0)) + 1)
    down = max(1, -(-size_px[1] // cells.side_px), int(cells.row.max(initial=0)) + 1)
    more = (cells.n_a - cells.n_b) / np.maximum(np.maximum(cells.n_a, cells.n_b), 1)
    panels = [
        ("panoptic quality (A against B)", _shaded(cells.pq, PQ_RGB), PQ_RGB, ("0", "0.5", "1")),
        ("nuclei: A relative to B", _shaded((more + 1) / 2, DIFFERENCE_RGB), DIFFERENCE_RGB, ("fewer", "equal", "more")),
    ]
    zoom = MAP_SIDE_PX / max(across, down)
    width, height = max(1, round(across * zoom)), max(1, round(down * zoom))
    step, font = max(width, 300) + 24, ImageFont.load_default(14)
    sheet = Image.new("RGB", (2 * step, height + 76), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (title, rgb, scale, words) in enumerate(panels):
        grid = np.full((down, across, 3), NOTHING_RGB, np.uint8)
        grid[cells.row, cells.column] = rgb
        left = k * step
        pen.text((left, 2), title, fill="black", font=font)
        sheet.paste(Image.fromarray(grid).resize((width, height), Image.Resampling.NEAREST), (left, 24))
        bar = _shaded(np.linspace(0, 1, 220), scale)[None]
        sheet.paste(Image.fromarray(bar).resize((220, 12)), (left, height + 34))
        for at, word in zip((0, 110, 220), words, strict=True):
            pen.text((left + at, height + 50), word, fill="black", font=font, anchor=("la", "ma", "ra")[at // 110])
    return sheet


def _shaded(share: npt.NDArray[Any], scale: npt.NDArray[np.float64]) -> RGB:
    place = np.clip(share, 0, 1) * (len(scale) - 1)
    low = np.minimum(place.astype(np.int64), len(scale) - 2)
    return np.rint(scale[low] + (scale[low + 1] - scale[low]) * (place - low)[..., None]).astype(np.uint8)


def chosen_places(slides: Sequence[SlideComparison], n: int) -> list[tuple[SlideComparison, Worst]]:
    """Return the places with the most unmatched nuclei, no two of them adjacent, from as many slides as possible."""
    most = max(3, -(-n // max(1, sum(s.status == "done" for s in slides))))
    ranked = sorted(
        ((s, w) for s in slides for w in s.worst), key=lambda p: (-p[1].unmatched, p[0].slide_id, p[1].y_px, p[1].x_px)
    )
    chosen: list[tuple[SlideComparison, Worst]] = []
    for slide, place in ranked:
        own = [w for s, w in chosen if s is slide]
        beside = any(max(abs(w.x_px - place.x_px), abs(w.y_px - place.y_px)) < 2 * w.side_px for w in own)
        if len(chosen) < n and len(own) < most and not beside:
            chosen.append((slide, place))
    return chosen


def draw_disagreements(
    slides: Sequence[SlideComparison], pairs: Sequence[SlidePair], out: Path, path_map: Sequence[str], n: int
) -> Path | None:
    """Draw the places of largest disagreement of all slides as one picture; return its path, or None if there are none."""
    places = chosen_places(slides, n) if n else []
    if not places:
        return None
    by_id = {p.slide_id: p for p in pairs}
    crops: list[Crop] = []
    for slide_id in dict.fromkeys(s.slide_id for s, _ in places):
        crops += _crops(by_id[slide_id], [w for s, w in places if s.slide_id == slide_id], path_map)
    return draw_gallery(crops, out / "disagreements.jpg", legend=LEGEND, words=WORDS)


def _crops(pair: SlidePair, places: Sequence[Worst], path_map: Sequence[str]) -> Iterator[Crop]:
    slide, why = _pixels_of(pair, path_map)
    if slide is None:
        log.warning("%s: the places of slide %s are shown without pixels: %s", pair.a, pair.slide_id, why)
    try:
        with RingWindows(pair.a) as first, RingWindows(pair.b) as second:
            for w in places:
                box = Box(w.x_px, w.y_px, w.side_px, w.side_px)
                a, b = (table.near(box.x, box.y, box.x1, box.y1).drawn(box) for table in (first, second))
                rgb = np.full((box.h, box.w, 3), 255, np.uint8) if slide is None else read_working(slide, box, 1.0)
                yield Crop(f"{pair.slide_id}  x {w.x_px} y {w.y_px}  {w.side_px} px", rgb, b, a)
    finally:
        if slide is not None:
            slide.close()


def _pixels_of(pair: SlidePair, path_map: Sequence[str]) -> tuple[Slide | None, str]:
    """Return the open slide, whose path is known from either run, and an empty text; or None and the reason."""
    why = ""
    for table in (pair.a, pair.b):
        folder = RunFolder(table.parent.parent)
        try:
            return reopen_slide(folder, slide_record(folder, table.stem), path_map), ""
        except (WsisegError, OSError) as err:
            why = why or one_line(err)
    return None, why

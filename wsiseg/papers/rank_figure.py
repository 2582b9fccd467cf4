"""Draw the figure of a ranking with Pillow: PQ by set, PQ of each set tested on each other one, fusion of the best sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from wsiseg.papers.rank_scores import RankedSet
from wsiseg.tables import atomic_path

__all__ = ["draw_ranking"]

_PANEL = (620, 400)
_COLORS = ((38, 84, 124), (217, 95, 2), (27, 158, 119), (117, 112, 179), (231, 41, 138), (102, 102, 102))
_LOW, _HIGH = np.array((247, 247, 240)), np.array((20, 80, 120))
_TEXT, _SMALL = 15, 13


def draw_ranking(
    ranked: Sequence[RankedSet],
    matrices: Mapping[str, npt.NDArray[np.float64]],
    fusion: Mapping[str, Sequence[tuple[int, float]]],
    path: Path,
) -> Path:
    """Draw a ranking as a sheet of panels; the file is written atomically.

    Parameters
    ----------
    ranked
        Sets in their order, with PQ by network: bars, and the order of the matrices.
    matrices
        By network: mean PQ; rows: set trained on, columns: set tested on, both in the order of ``ranked``; the last column
        may be all sets together.
    fusion
        By network: (number of best sets, mean PQ) points.
    path
        The ``.png`` to write.
    """
    panels = [_bars(ranked), *(_matrix(name, values, [r.name for r in ranked]) for name, values in matrices.items())]
    if any(len(points) > 1 for points in fusion.values()):
        panels.append(_curves(fusion))
    columns = min(2, len(panels))
    sheet = Image.new("RGB", (columns * _PANEL[0], -(-len(panels) // columns) * _PANEL[1]), "white")
    for i, panel in enumerate(panels):
        sheet.paste(panel, ((i % columns) * _PANEL[0], (i // columns) * _PANEL[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        sheet.save(partial, format="PNG", optimize=True)
    return path


def _panel(title: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", _PANEL, "white")
    pen = ImageDraw.Draw(image)
    pen.text((16, 10), title, fill="black", font=ImageFont.load_default(_TEXT))
    return image, pen


def _bars(ranked: Sequence[RankedSet]) -> Image.Image:
    image, pen = _panel("PQ on the unified test set, by the set trained on")
    networks = list(ranked[0].pq) if ranked else []
    left, top, right, bottom = 50, 70, _PANEL[0] - 16, _PANEL[1] - 46
    high = _whole_scale(0.0, max((v for r in ranked for v in r.pq.values()), default=0.0))[1]
    _grid(pen, (left, top, right, bottom), 0.0, high)
    step = (right - left) / max(1, len(ranked))
    wide = 0.8 * step / max(1, len(networks))
    for i, r in enumerate(ranked):
        for k, network in enumerate(networks):
            x = left + i * step + 0.1 * step + k * wide
            y = bottom - (bottom - top) * r.pq[network] / high
            pen.rectangle((x, y, x + wide - 2, bottom), fill=_COLORS[k % len(_COLORS)])
            pen.text((x + wide / 2, y - 2), f"{100 * r.pq[network]:.1f}", fill="black", anchor="mb", font=_font())
        pen.text((left + (i + 0.5) * step, bottom + 6), r.name, fill="black", anchor="mt", font=_font())
    _legend(pen, networks)
    return image


def _matrix(network: str, values: npt.NDArray[np.float64], names: Sequence[str]) -> Image.Image:
    image, pen = _panel(f"{network}: PQ %, trained on (rows), tested on (columns)")
    left, top = 120, 80
    heads = [*names, "all"][: values.shape[1]]
    wide, tall = (_PANEL[0] - left - 16) / max(1, len(heads)), (_PANEL[1] - top - 20) / max(1, len(names))
    highest = float(np.nanmax(values, initial=0)) or 1.0
    for j, head in enumerate(heads):
        pen.text((left + (j + 0.5) * wide, top - 6), head, fill="black", anchor="mb", font=_font())
    for i, name in enumerate(names):
        pen.text((left - 8, top + (i + 0.5) * tall), name, fill="black", anchor="rm", font=_font())
        for j in range(len(heads)):
            value = float(values[i, j])
            share = 0.0 if math.isnan(value) else value / highest
            fill = tuple(int(c) for c in _LOW + share * (_HIGH - _LOW))
            box = (left + j * wide, top + i * tall, left + (j + 1) * wide - 2, top + (i + 1) * tall - 2)
            pen.rectangle(box, fill=fill)
            text = "-" if math.isnan(value) else f"{100 * value:.1f}"
            middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            pen.text(middle, text, fill="white" if share > 0.55 else "black", anchor="mm", font=_font(_TEXT))
    return image


def _curves(fusion: Mapping[str, Sequence[tuple[int, float]]]) -> Image.Image:
    image, pen = _panel("PQ on the unified test set, by the number of best sets fused")
    left, top, right, bottom = 50, 70, _PANEL[0] - 30, _PANEL[1] - 46
    values = [v for points in fusion.values() for _, v in points]
    low, high = _whole_scale(min(values), max(values))
    most = max(k for points in fusion.values() for k, _ in points)
    _grid(pen, (left, top, right, bottom), low, high)
    for k in range(1, most + 1):
        pen.text(
            (left + (right - left) * (k - 1) / max(1, most - 1), bottom + 6), str(k), fill="black", anchor="mt", font=_font()
        )
    for n, points in enumerate(fusion.values()):
        at = [
            (left + (right - left) * (k - 1) / max(1, most - 1), bottom - (bottom - top) * (v - low) / (high - low))
            for k, v in points
        ]
        pen.line(at, fill=_COLORS[n % len(_COLORS)], width=3)
        for x, y in at:
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=_COLORS[n % len(_COLORS)])
    _legend(pen, list(fusion))
    return image


def _grid(pen: ImageDraw.ImageDraw, box: tuple[int, int, int, int], low: float, high: float) -> None:
    left, top, right, bottom = box
    for k in range(5):
        y = bottom - (bottom - top) * k / 4
        pen.line((left, y, right, y), fill=(225, 225, 225))
        pen.text((left - 6, y), f"{100 * (low + (high - low) * k / 4):.0f}", fill="black", anchor="rm", font=_font())


def _whole_scale(low: float, high: float) -> tuple[float, float]:
    """Return limits around the values such that a quarter of the range is a whole percent."""
    start = math.floor(100 * low)
    return start / 100, (start + 4 * max(1, math.ceil((100 * high - start) / 4))) / 100


def _legend(pen: ImageDraw.ImageDraw, names: Sequence[str]) -> None:
    x = 50.0
    for k, name in enumerate(names):
        pen.rectangle((x, 40, x + 12, 52), fill=_COLORS[k % len(_COLORS)])
        pen.text((x + 18, 46), name, fill="black", anchor="lm", font=_font())
        x += 40 + 8 * len(name)


def _font(size: int = _SMALL) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)

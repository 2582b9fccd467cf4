"""Draw the curve of a training run with Pillow: one panel of losses, one of scores."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

from wsiseg.tables import atomic_path

__all__ = ["draw_curves"]

_PANEL = (640, 300)
_MARGIN = 48
_COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")


def draw_curves(curve: Path, picture: Path) -> None:
    """Draw the losses and the validation scores of ``curve.jsonl`` as two panels of a PNG."""
    lines = [json.loads(text) for text in curve.read_text(encoding="utf-8").splitlines()]
    names = sorted({name for line in lines for name in line} - {"step", "lr", "seconds"})
    losses = [n for n in names if n == "loss" or n.endswith(("_ce", "_dice", "_mse"))]
    width, height = _PANEL
    image = Image.new("RGB", (width, 2 * height), "white")
    draw = ImageDraw.Draw(image)
    _panel(draw, 0, lines, losses, "loss")
    _panel(draw, height, lines, [n for n in names if n not in losses], "validation")
    with atomic_path(picture) as partial:
        image.save(partial, format="PNG")


def _panel(draw: ImageDraw.ImageDraw, top: int, lines: list[dict[str, float]], names: list[str], title: str) -> None:
    width, height = _PANEL
    box = (_MARGIN, top + 24, width - 150, top + height - 24)
    draw.rectangle(box, outline="#999999")
    draw.text((box[0], top + 8), title, fill="black")
    values = [line[n] for line in lines for n in names if n in line]
    if not values:
        return
    low, high = min(values), max(values)
    last = max(line["step"] for line in lines) or 1
    span = (high - low) or 1.0
    draw.text((4, box[1]), f"{high:.3f}", fill="black")
    draw.text((4, box[3] - 10), f"{low:.3f}", fill="black")
    draw.text((box[2] - 40, box[3] + 4), f"step {last}", fill="black")
    for i, name in enumerate(names):
        color = _COLORS[i % len(_COLORS)]
        points = [
            (box[0] + (box[2] - box[0]) * line["step"] / last, box[3] - (box[3] - box[1]) * (line[name] - low) / span)
            for line in lines
            if name in line
        ]
        if len(points) > 1:
            draw.line(points, fill=color, width=2)
        latest = next(line[name] for line in reversed(lines) if name in line)
        draw.text((box[2] + 8, box[1] + 14 * i), f"{name} {latest:.3f}", fill=color)

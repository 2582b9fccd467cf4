"""Draw the worst windows of a model as one picture for its model card.

Each crop is shown twice, plain and marked. True nuclei are outlined in one color, predicted ones in another; a sign at the
center of a nucleus shows the error: ``x`` missed, ``+`` extra, ``M`` merged, ``S`` split, ``o`` wrong outline (see
``failures``). Signs are used in addition to colors for color-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from wsiseg.errors import FormatError
from wsiseg.metrics.contingency import contingency
from wsiseg.metrics.failures import ABSENT, MERGED, OUTLINE, SPLIT, failures
from wsiseg.metrics.scores import scores_of
from wsiseg.tables import atomic_path

__all__ = ["Crop", "draw_gallery"]

TRUTH_RGB = (0, 255, 255)
PRED_RGB = (255, 225, 0)
_SIGNS = {MERGED: "M", SPLIT: "S", OUTLINE: "o", ABSENT: "x"}
_PANEL_PX = 400
_CAPTION_PX = 44
_GAP_PX = 8
WORDS = {k: k for k in ("missed", "extra", "merged", "split", "outline")}
LEGEND = (
    "cyan: truth   yellow: predicted   x missed   + extra   M merged   S split   o wrong outline   (left: the image itself)"
)


@dataclass(frozen=True, slots=True, eq=False)
class Crop:
    """One window: picture uint8 (s, s, 3), label images of truth and prediction (s, s), and its title (set, image, place)."""

    title: str
    rgb: npt.NDArray[np.uint8]
    truth: npt.NDArray[Any]
    pred: npt.NDArray[Any]


def draw_gallery(
    crops: Sequence[Crop], path: str | Path, columns: int = 2, legend: str = LEGEND, words: Mapping[str, str] = WORDS
) -> Path:
    """Write crops as a sheet, two panels each, with their scores below; ``.png`` or ``.jpg``, complete or not at all.

    Parameters
    ----------
    legend
        Explanation of colors and signs.
    words
        Names of the kinds of ``FAILURE_KINDS`` in the captions.

    Raises
    ------
    FormatError
        There is no crop, or ``path`` has another suffix.
    """
    path = Path(path)
    if path.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise FormatError(f"{path}: a gallery is written as .png or .jpg, not {path.suffix!r}.")
    if not crops:
        raise FormatError(f"{path}: expected at least one crop, got none. Check that the images have nuclei.")
    columns = min(columns, len(crops))
    width, height = 2 * _PANEL_PX + 2 * _GAP_PX, _PANEL_PX + _CAPTION_PX + _GAP_PX
    rows = -(-len(crops) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height + _CAPTION_PX), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP_PX, 10), legend, fill="black", font=ImageFont.load_default(20))
    for i, crop in enumerate(crops):
        left, top = (i % columns) * width, _CAPTION_PX + (i // columns) * height
        plain = Image.fromarray(crop.rgb).resize((_PANEL_PX, _PANEL_PX), Image.Resampling.BICUBIC)
        marked, caption = _marked(plain, crop, words)
        sheet.paste(plain, (left, top))
        sheet.paste(marked, (left + _PANEL_PX + 2, top))
        pen.text((left + 4, top + _PANEL_PX + 2), f"{crop.title}\n{caption}", fill="black", font=ImageFont.load_default(16))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        if path.suffix.lower() == ".png":
            sheet.save(partial, format="PNG", optimize=True)
        else:
            sheet.save(partial, format="JPEG", quality=80, optimize=True)
    return path


def _marked(plain: Image.Image, crop: Crop, words: Mapping[str, str]) -> tuple[Image.Image, str]:
    """Return the panel with outlines and signs, and the crop's scores as text."""
    table = contingency(crop.pred, crop.truth)
    scores, kinds = scores_of(table), failures(table)
    pixels = np.asarray(plain).copy()
    for labels, color in ((crop.truth, TRUTH_RGB), (crop.pred, PRED_RGB)):
        pixels[_outline(_enlarged(labels))] = color
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    zoom = _PANEL_PX / crop.truth.shape[0]
    signs = [
        (crop.truth, kinds.truth_ids, kinds.truth_kind, _SIGNS),
        (crop.pred, kinds.pred_ids, kinds.pred_kind, {ABSENT: "+"}),
    ]
    for labels, ids, kind, names in signs:
        for ident, value in zip(ids, kind, strict=True):
            if value in names:
                rows, cols = np.nonzero(labels == ident)
                middle = ((cols.mean() + 0.5) * zoom, (rows.mean() + 0.5) * zoom)
                pen.text(middle, names[value], fill="white", anchor="mm", stroke_width=3, stroke_fill="black",
                         font=ImageFont.load_default(22))  # fmt: skip
    n = kinds.counts()
    wrong = ", ".join(f"{n[k]} {word}" for k, word in words.items() if n[k])
    return picture, f"PQ {scores.pq:.2f}   Dice {scores.dice:.2f}   {scores.n_truth} nuclei: {wrong or 'all matched'}"


def _enlarged(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    index = (np.arange(_PANEL_PX) * labels.shape[0]) // _PANEL_PX
    return labels[np.ix_(index, (np.arange(_PANEL_PX) * labels.shape[1]) // _PANEL_PX)]


def _outline(labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return the pixels of instances within 2 px of another value, an inner outline of constant width."""
    edge = np.zeros(labels.shape, bool)
    for step in (1, 2):
        for axis in (0, 1):
            for shift in (-step, step):
                edge |= np.roll(labels, shift, axis) != labels
    edge[:2], edge[-2:], edge[:, :2], edge[:, -2:] = False, False, False, False  # the border of the crop is not an outline
    return edge & (labels != 0)

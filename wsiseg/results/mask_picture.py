"""Draw a slide's tissue mask on its thumbnail, ``RUN/slides/<slide_id>.mask.jpg``, to show what was left out."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from wsiseg.read import Slide, SlideSurvey, TissueMask, grown, tissue_window
from wsiseg.types import Box, SlideMeta

__all__ = ["mask_picture", "picture_base"]

SIDE_PX = 1000
QUALITY = 85
MASK, EMPTY, WITH_NUCLEI, INK = (0, 120, 60), (30, 80, 220), (220, 20, 20), (255, 0, 200)
STRIP_PX = 26
MIN_BOX_PX = 9
SMALL_PX = 1 << 24
"""Slides with fewer px are read again for a sharper picture."""


def picture_base(slide: Slide, survey: SlideSurvey) -> bytes:
    """Return the slide's thumbnail (longer side ``SIDE_PX``) with pen marks outlined, as PNG."""
    from PIL import Image

    rgb, ink = survey.view.rgb, survey.view.ink
    factor = SIDE_PX / max(rgb.shape)
    h, w = (max(1, round(side * factor)) for side in rgb.shape[:2])
    small = slide.meta.width_px * slide.meta.height_px <= SMALL_PX and factor > 1
    picture = Image.fromarray(slide.thumbnail(2 * SIDE_PX) if small else rgb)
    shown = np.array(
        picture.resize((w, h), Image.Resampling.LANCZOS if max(picture.size) > SIDE_PX else Image.Resampling.BICUBIC)
    )
    if ink.any():
        inked = np.asarray(Image.fromarray(ink).resize((w, h), Image.Resampling.NEAREST))
        shown[inked & grown(~inked, 2)] = INK
    out = io.BytesIO()
    Image.fromarray(shown).save(out, "PNG")
    return out.getvalue()


def mask_picture(base: bytes, tissue: TissueMask, meta: SlideMeta, windows: Sequence[tuple[Box, int | None]]) -> bytes:
    """Return the picture as JPEG; equal arguments give equal bytes.

    Parameters
    ----------
    base
        Result of ``picture_base``.
    tissue
        The mask as used.
    meta
        The slide.
    windows
        Windows sampled outside the mask, level-0 px, with the number of nuclei outside the mask (``None``: the window failed).
    """
    from PIL import Image, ImageDraw

    with Image.open(io.BytesIO(base)) as image:
        rgb = np.array(image.convert("RGB"))
    h, w = rgb.shape[:2]
    scale = w / meta.width_px
    on = tissue_window(tissue, Box(0, 0, w, h), scale)
    rgb[on & grown(~np.pad(on, 2, mode="edge"), 2)[2:-2, 2:-2]] = MASK
    picture = Image.new("RGB", (w, h + STRIP_PX), "white")
    picture.paste(Image.fromarray(rgb))
    draw = ImageDraw.Draw(picture)
    for box, count in windows:
        x, y = (box.x + box.w / 2) * scale, (box.y + box.h / 2) * scale
        half = max(MIN_BOX_PX, box.w * scale) / 2
        color = WITH_NUCLEI if count else EMPTY
        draw.rectangle((x - half, y - half, x + half, y + half), outline=color, width=2)
        if count:
            words = str(count)
            left = min(x + half + 3, w - draw.textlength(words) - 3)
            draw.rectangle((left - 2, y - half, left + draw.textlength(words) + 1, y - half + 12), fill="white")
            draw.text((left, y - half), words, fill=color)
    _legend(draw, h, w, bool(windows))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def _legend(draw: object, top: int, width: int, sampled: bool) -> None:
    from PIL import ImageDraw

    assert isinstance(draw, ImageDraw.ImageDraw)
    entries = [(MASK, "tissue mask"), (INK, "pen")]
    if sampled:
        entries += [(EMPTY, "sampled: no nucleus"), (WITH_NUCLEI, "sampled: nuclei")]
    x = 6.0
    for color, words in entries:
        length = draw.textlength(words)
        if x + 14 + length > width:
            return
        draw.rectangle((x, top + 9, x + 9, top + 18), outline=color, width=2)
        draw.text((x + 14, top + 8), words, fill=(0, 0, 0))
        x += 28 + length

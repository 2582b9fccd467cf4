"""Thumbnails as exact block means, so that a thumbnail px covers a whole number of level px."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from wsiseg.read._window import RGB
from wsiseg.types import SlideMeta

__all__ = ["LevelReader", "block_means", "level_thumbnail", "thumbnail_plan"]

_STRIP_PX = 16_000_000  # decoded at once: bounds memory where a slide has no coarse level


class LevelReader(Protocol):
    """The part of ``Slide`` that a thumbnail needs."""

    meta: SlideMeta
    level_sizes_px: tuple[tuple[int, int], ...]

    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        """Read a window in px of ``level``: uint8 (h, w, 3)."""


def thumbnail_plan(level_sizes_px: tuple[tuple[int, int], ...], max_side_px: int) -> tuple[int, int]:
    """Return (level, side of a block in px of that level) from which to make a thumbnail.

    The level is the coarsest one whose longer side is at least ``max_side_px``, or level 0 if none is.
    """
    level = 0
    for k, size in enumerate(level_sizes_px):
        if max(size) >= max_side_px and size[0] <= level_sizes_px[level][0]:
            level = k
    return level, max(1, -(-max(level_sizes_px[level]) // max_side_px))


def level_thumbnail(slide: LevelReader, max_side_px: int) -> RGB:
    """Return a thumbnail of the whole slide, uint8 (h, w, 3), with sides of at most ``max_side_px``.

    Each pixel is the mean of a square block of pixels of one level (see ``thumbnail_plan``).
    """
    return block_means(slide, *thumbnail_plan(slide.level_sizes_px, max_side_px))


def block_means(slide: LevelReader, level: int, block_px: int) -> RGB:
    """Return the rounded mean of every ``block_px`` square of a level; pixels beyond the slide count as white.

    The last px of a slide narrower than a block are repeated instead: averaged with white, its tissue would look like glass.

    Returns
    -------
    uint8 (ceil(height / block_px), ceil(width / block_px), 3)
    """
    width_px, height_px = slide.level_sizes_px[level]
    columns, rows = -(-width_px // block_px), -(-height_px // block_px)
    out = np.empty((rows, columns, 3), np.uint8)
    step = max(1, _STRIP_PX // (columns * block_px * block_px))
    area = block_px * block_px
    for row in range(0, rows, step):
        n = min(step, rows - row)
        strip = _strip(slide, level, row * block_px, columns * block_px, n * block_px, block_px)
        if block_px == 1:
            out[row : row + n] = strip
            continue
        sums = strip.reshape(n, block_px, columns * block_px * 3).sum(axis=1, dtype=np.uint32)
        sums = sums.reshape(n, columns, block_px, 3).sum(axis=2, dtype=np.uint32)
        out[row : row + n] = (sums + area // 2) // area
    return out


def _strip(slide: LevelReader, level: int, y: int, w: int, h: int, block_px: int) -> RGB:
    """Read whole rows, the last px of a slide that is thinner than a block repeated up to its end."""
    width_px, height_px = slide.level_sizes_px[level]
    if min(width_px, height_px) >= block_px:
        return slide.read_level(level, 0, y, w, h)
    thin_w, thin_h = (size if size < block_px else side for size, side in ((width_px, w), (height_px, h)))
    return np.pad(slide.read_level(level, 0, y, thin_w, thin_h), ((0, h - thin_h), (0, w - thin_w), (0, 0)), mode="edge")

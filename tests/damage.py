"""Slides that are damaged on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import tifffile


def with_damaged_tiles(slide: Path, to: Path, tile: tuple[int, int] | None = None) -> Path:
    """Copy a slide; of one tile of level 0 (column, row), or of all, the second half is zeros."""
    shutil.copy(slide, to)
    with tifffile.TiffFile(to) as tiff:
        page = tiff.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        if tile is not None:
            places = [places[tile[1] * -(-page.imagewidth // page.tilewidth) + tile[0]]]
    with to.open("r+b") as file:
        for offset, count in places:
            file.seek(offset + count // 2)
            file.write(bytes(count - count // 2))
    return to

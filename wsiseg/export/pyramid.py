"""Write a slide as a tiled TIFF pyramid at a chosen resolution, in bounded memory, for viewers that do not read slides.

In color (JPEG tiles, levels as pages: what OpenSlide reads), or hematoxylin alone as bright on dark (JPEG 2000 tiles, levels as
SubIFDs of an OME-TIFF: what Xenium Explorer reads).
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError
from wsiseg.export.text import NAMESPACE
from wsiseg.read import Slide, read_working
from wsiseg.read.working import working_size
from wsiseg.summarize import RUIFROK_JOHNSTON
from wsiseg.summarize.features import OD_STEPS, od_tables
from wsiseg.types import Box

__all__ = ["Progress", "Pyramid", "image_scale", "write_pyramid"]

TILE_PX = 1024
SMALLEST_PX = 1024
"""The last level has no longer side."""

NEAR = 0.1
"""A level of the slide is not resampled if its microns per pixel are within this fraction of the requested ones."""

BRIGHTEST_OD = 1.5
"""Optical density of hematoxylin that is shown as 255."""

JPEG_QUALITY = 85
Pixels = npt.NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
"""Takes a slide's id, how many pieces are done, and how many there are."""


@dataclass(frozen=True, slots=True)
class Pyramid:
    """What was written: size of the finest level, its um per px, and how many of its px a level-0 px of the slide is."""

    width_px: int
    height_px: int
    mpp: float
    scale: float


def image_scale(slide: Slide, mpp: float) -> float:
    """Return px of the image per level-0 px of the slide: 1 or that of a level if one is near ``mpp``, never above 1."""
    meta = slide.meta
    for downsample in sorted(meta.level_downsamples or (1.0,)):
        if float(downsample).is_integer() and abs(meta.mpp * downsample - mpp) <= NEAR * mpp:
            return 1.0 / downsample
    return min(1.0, meta.mpp / mpp)


def write_pyramid(
    slide: Slide, out: Path, mpp: float, *, hematoxylin: bool = False, progress: Progress | None = None
) -> Pyramid:
    """Write a TIFF pyramid of a slide.

    Parameters
    ----------
    mpp
        um per px of the finest level; a slide that is coarser is written as it is.
    hematoxylin
        One channel, uint8: optical density of hematoxylin (Ruifrok and Johnston's vectors), 0 to ``BRIGHTEST_OD``.
    progress
        Called after each tile of the finest level.

    Raises
    ------
    TileReadError
        Pixels of the slide cannot be decoded.
    InputError
        ``mpp`` is not positive.
    """
    import tifffile

    if not mpp > 0:
        raise InputError(f"Expected an image of more than 0 um per px, got {mpp:g}.")
    scale = image_scale(slide, mpp)
    width, height = working_size(slide.meta, scale)
    table = od_tables(RUIFROK_JOHNSTON)[0] if hematoxylin else None

    n_tiles, done = -(-width // TILE_PX) * -(-height // TILE_PX), 0

    def from_slide(x: int, y: int, w: int, h: int) -> Pixels:
        nonlocal done
        rgb = read_working(slide, Box(x, y, w, h), scale)
        done += 1
        if progress is not None:
            progress(slide.meta.slide_id, done, n_tiles)
        return rgb if table is None else _brightness(rgb, table)

    read: Callable[[int, int, int, int], Pixels] = from_slide
    shape = (height, width) if hematoxylin else (height, width, 3)
    n_levels = 1
    while max(height, width) >> (n_levels - 1) > SMALLEST_PX:
        n_levels += 1
    result = Pyramid(width, height, slide.meta.mpp / scale, scale)
    kind: dict[str, Any] = {"photometric": "minisblack", "compression": "jpeg2000"}
    if not hematoxylin:
        kind = {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": JPEG_QUALITY}}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder, tifffile.TiffWriter(out, bigtiff=True, ome=hematoxylin) as tiff:
        for k in range(n_levels):
            half = None
            if k + 1 < n_levels:
                smaller = (-(-shape[0] // 2), -(-shape[1] // 2), *shape[2:])
                half = np.memmap(Path(folder) / f"{k}.raw", np.uint8, "w+", shape=smaller)
            places: dict[str, Any] = {"subfiletype": int(k > 0)}
            if hematoxylin and k == 0:
                places = {"subifds": n_levels - 1, "metadata": _ome_facts(result.mpp, slide.meta.slide_id)}
            elif k > 0 or not hematoxylin:
                places["metadata"] = None
            per_cm = 1e4 / (result.mpp * 2**k)
            tiff.write(
                _tiles(read, shape, half), shape=shape, dtype=np.uint8, tile=(TILE_PX, TILE_PX), resolution=(per_cm, per_cm),
                resolutionunit="CENTIMETER", **kind, **places,
            )  # fmt: skip
            if half is not None:
                shape, read = half.shape, _reader(half)
    return result


def _ome_facts(mpp: float, slide_id: str) -> dict[str, Any]:
    return {
        "UUID": str(uuid.uuid5(NAMESPACE, f"hematoxylin {slide_id}")),  # else a random one
        "axes": "YX", "SignificantBits": 8, "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm", "Channel": {"Name": ["Hematoxylin"]},
    }  # fmt: skip


def _reader(level: Pixels) -> Callable[[int, int, int, int], Pixels]:
    return lambda x, y, w, h: np.asarray(level[y : y + h, x : x + w])


def _tiles(read: Callable[[int, int, int, int], Pixels], shape: tuple[int, ...], half: Pixels | None) -> Iterator[Pixels]:
    """Yield the tiles of a level, those at its right and lower side filled up; put the level of half the size into ``half``."""
    for y in range(0, shape[0], TILE_PX):
        for x in range(0, shape[1], TILE_PX):
            tile = read(x, y, min(TILE_PX, shape[1] - x), min(TILE_PX, shape[0] - y))
            if half is not None:
                small = _halved(tile)
                half[y // 2 : y // 2 + small.shape[0], x // 2 : x // 2 + small.shape[1]] = small
            rest = [(0, TILE_PX - n) for n in tile.shape[:2]] + [(0, 0)] * (tile.ndim - 2)
            yield np.pad(tile, rest, mode="edge") if max(r[1] for r in rest) else np.ascontiguousarray(tile)


def _halved(tile: Pixels) -> Pixels:
    """Return means of 2 x 2 px, rounded; an odd last row or column counts twice."""
    odd = [(0, n % 2) for n in tile.shape[:2]] + [(0, 0)] * (tile.ndim - 2)
    even = np.pad(tile, odd, mode="edge").astype(np.uint16)
    total = even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)


def _brightness(rgb: Pixels, table: npt.NDArray[np.int32]) -> Pixels:
    """Return the optical density of hematoxylin, uint8 (h, w)."""
    density = table[0][rgb[..., 0]] + table[1][rgb[..., 1]] + table[2][rgb[..., 2]]
    return (np.clip(density, 0, int(BRIGHTEST_OD * OD_STEPS)) * 255 // int(BRIGHTEST_OD * OD_STEPS)).astype(np.uint8)

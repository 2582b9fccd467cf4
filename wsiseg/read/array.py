"""Slides that live in an array: NumPy in memory, or Zarr on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import InputError, SlideOpenError, TileReadError
from wsiseg.read._hostile import refuse_absurd_size
from wsiseg.read._thumbnail import level_thumbnail
from wsiseg.read._window import RGB, read_on_white
from wsiseg.types import MppSource, SlideMeta

__all__ = ["ArraySlide", "open_zarr"]


class ArraySlide:
    """A slide of one or more array levels.

    Parameters
    ----------
    pixels
        uint8 (H, W, 3): NumPy, Zarr, or anything sliced alike.
    mpp
        um per px of ``pixels``.
    coarser
        Further levels, each a whole fraction of the size of ``pixels``.

    Raises
    ------
    InputError
        An array of another shape or dtype, or a level that is no whole fraction.
    """

    def __init__(
        self,
        pixels: Any,
        *,
        mpp: float,
        mpp_source: MppSource = "user",
        slide_id: str = "array",
        path: str = "",
        cohort: str = "",
        vendor: str = "array",
        reader: str = "array",
        size_bytes: int = 0,
        mtime_ns: int = 0,
        coarser: tuple[Any, ...] = (),
    ) -> None:
        self._levels = (pixels, *coarser)
        for level in self._levels:
            if len(level.shape) != 3 or level.shape[2] != 3 or level.dtype != np.uint8:
                raise InputError(f"slide {slide_id}: expected uint8 (H, W, 3), got {level.dtype} {tuple(level.shape)}.")
        height_px, width_px = (int(n) for n in pixels.shape[:2])
        refuse_absurd_size(width_px, height_px, f"slide {slide_id}")
        factors = [width_px // max(int(level.shape[1]), 1) for level in self._levels]
        sizes = [(f * level.shape[0], f * level.shape[1]) for f, level in zip(factors, self._levels, strict=True)]
        if any(size != (height_px, width_px) for size in sizes):
            raise InputError(f"slide {slide_id}: expected every level to be a whole fraction of {width_px} x {height_px} px.")
        self.level_sizes_px = tuple((int(level.shape[1]), int(level.shape[0])) for level in self._levels)
        self.meta = SlideMeta(
            slide_id=slide_id,
            path=path,
            width_px=width_px,
            height_px=height_px,
            mpp=mpp,
            mpp_source=mpp_source,
            level_downsamples=tuple(float(f) for f in factors),
            vendor=vendor,
            cohort=cohort,
            reader=reader,
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
        )

    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        """Read a window in px of ``level``: uint8 (h, w, 3), white outside the slide.

        Raises
        ------
        TileReadError
            A chunk of a Zarr array cannot be decoded.
        """
        pixels = self._levels[level]
        try:
            return read_on_white(
                lambda x0, y0, w0, h0: np.array(pixels[y0 : y0 + h0, x0 : x0 + w0]),
                x,
                y,
                w,
                h,
                *self.level_sizes_px[level],
            )
        except (OSError, RuntimeError, ValueError) as err:
            raise TileReadError(
                f"slide {self.meta.slide_id}: window x={x} y={y} w={w} h={h} of level {level} cannot be read: {err}"
            ) from err

    def thumbnail(self, max_side_px: int) -> RGB:
        """Return the whole slide as block means, no side longer than ``max_side_px``: uint8 (h, w, 3)."""
        return level_thumbnail(self, max_side_px)

    def close(self) -> None:
        """Let go of the arrays."""
        self._levels = ()


def open_zarr(path: Path, *, slide_id: str, mpp: float | None, cohort: str, size_bytes: int, mtime_ns: int) -> ArraySlide:
    """Open a Zarr array uint8 (H, W, 3) as a slide; um per px from the user or the array's attribute ``mpp``.

    Raises
    ------
    SlideOpenError
        Not such an array.
    MissingMppError
    """
    import zarr

    from wsiseg.read.mpp import resolve_mpp

    try:
        array = zarr.open_array(path, mode="r")
        stated = str(array.attrs.get("mpp", ""))
        value, source = resolve_mpp(
            {"openslide.mpp-x": stated, "openslide.mpp-y": stated}, user_mpp=mpp, vendor="zarr", where=f"Zarr array {path}"
        )
        return ArraySlide(
            array,
            mpp=value,
            mpp_source=source,
            slide_id=slide_id,
            path=str(path),
            cohort=cohort,
            vendor="zarr",
            reader="zarr",
            size_bytes=size_bytes,
            mtime_ns=mtime_ns,
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise SlideOpenError(f"{path}: cannot be opened as a Zarr array uint8 (H, W, 3): {err}") from err

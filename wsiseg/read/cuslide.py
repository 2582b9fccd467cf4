"""Read SVS and tiled TIFF with cuCIM's ``CuImage``: the same pixels as OpenSlide's, decoded on the CPU several times faster.

OpenSlide is the reference. A file is read here only if its layout gives equal pixels in both readers, and if they agree
on probe windows when it is opened. cuCIM returns garbage for a tile that it cannot decode and only prints a line to the
process's standard output; that line is captured, and the window is read by OpenSlide, which raises the error.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tifffile

from wsiseg.errors import TileReadError, plain_text
from wsiseg.read._damage import DECODER_ERRORS
from wsiseg.read._levels import LevelSlide
from wsiseg.read._window import RGB
from wsiseg.read.openslide import OpenSlideSlide

__all__ = ["CuSlide", "library_version", "refusal"]

_VENDORS = ("aperio", "generic-tiff")
_COMPRESSIONS = {1: "none", 5: "LZW", 7: "JPEG", 8: "Deflate"}
_PHOTOMETRICS = (2, 6)  # RGB, YCbCr
_PROBE_PX = 96
_PROBE_AT = ((0.0, 0.0), (0.5, 0.5), (1.0, 1.0), (0.31, 0.67))
_COMPLAINT = re.compile(rb"error|fail", re.IGNORECASE)
_print_lock = threading.Lock()


def library_version() -> str:
    """Return cuCIM's version. Raises ``ImportError`` if it is not installed."""
    import cucim

    return str(cucim.__version__)  # type: ignore[attr-defined]


def refusal(slide: OpenSlideSlide) -> str:
    """Return in one line why ``CuImage`` must not read a slide; empty if it may (``CuSlide`` still compares probe windows)."""
    try:
        import cucim  # noqa: F401
    except ImportError as err:
        return f"cuCIM is not installed ({err})"
    vendor = slide.meta.vendor
    if vendor not in _VENDORS:
        return f"cuCIM reads no {vendor} files"
    if plain_text(slide.meta.path) != slide.meta.path:
        return "cuCIM opens no file whose name is not UTF-8"
    try:
        with tifffile.TiffFile(slide.meta.path) as tiff:
            page = tiff.pages[0]
            return _layout_refusal(page, slide.meta.size_bytes)
    except (*DECODER_ERRORS, tifffile.TiffFileError) as err:
        return f"the TIFF directory cannot be checked: {err}"


def _layout_refusal(page: tifffile.TiffPage, size_bytes: int) -> str:
    compression = int(page.compression)
    if compression not in _COMPRESSIONS:
        return f"compression {compression} ({getattr(page.compression, 'name', '?')}) decodes to other pixels than in OpenSlide"
    if not page.is_tiled or page.bitspersample != 8 or page.samplesperpixel != 3 or int(page.planarconfig) != 1:
        return "not a tiled TIFF of 8-bit interleaved RGB"
    if int(page.photometric) not in _PHOTOMETRICS:
        return f"photometric interpretation {int(page.photometric)}, expected RGB or YCbCr"
    offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
    if (counts == 0).any():
        return "some tiles are absent, which cuCIM does not fill as OpenSlide does"
    if (offsets + counts).max() > size_bytes:
        return "some tiles are beyond the end of the file (truncated)"
    return ""


class CuSlide(LevelSlide):
    """A slide whose pixels ``CuImage`` decodes on the CPU.

    Metadata, levels whose downsample is not a whole number, and damaged windows come from OpenSlide.

    Raises
    ------
    TileReadError
        From the constructor: ``CuImage`` does not open the file, or its pixels differ from OpenSlide's in a probe window.
    """

    def __init__(self, slide: OpenSlideSlide) -> None:
        from cucim import CuImage  # type: ignore[attr-defined]

        self._openslide = slide
        self.level_sizes_px = slide.level_sizes_px
        try:
            with _decoder_complaints():
                self._image = CuImage(slide.meta.path)
        except DECODER_ERRORS as err:
            raise TileReadError(f"cuCIM cannot open {slide.meta.path}: {err}") from err
        sizes = tuple(tuple(size) for size in self._image.resolutions["level_dimensions"])
        if sizes != self.level_sizes_px:
            raise TileReadError(f"{slide.meta.path}: cuCIM reports levels of {sizes} px, OpenSlide {self.level_sizes_px}")
        self.meta = slide.meta
        self._probe()

    def _probe(self) -> None:
        for level, (width_px, height_px) in enumerate(self.level_sizes_px):
            if not self._fast(level):
                continue
            for fx, fy in _PROBE_AT:
                x, y = int(fx * (width_px - _PROBE_PX // 2)), int(fy * (height_px - _PROBE_PX // 2))
                ours = self.read_level(level, x, y, _PROBE_PX, _PROBE_PX)
                theirs = self._openslide.read_level(level, x, y, _PROBE_PX, _PROBE_PX)
                if not np.array_equal(ours, theirs):
                    raise TileReadError(f"pixels differ from OpenSlide's at level {level}, x={x}, y={y}")

    def _fast(self, level: int) -> bool:
        # At other levels the two libraries round positions differently.
        return float(self.meta.level_downsamples[level]).is_integer()

    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        """Read a window in px of ``level``: uint8 (h, w, 3), white outside the slide; pixels equal to OpenSlide's.

        Raises
        ------
        TileReadError
            The pixels cannot be decoded. The slide stays usable for other windows.
        """
        if not self._fast(level):
            return self._openslide.read_level(level, x, y, w, h)
        return super().read_level(level, x, y, w, h)

    def _read_inside(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        factor = int(self.meta.level_downsamples[level])
        try:
            with _decoder_complaints() as lines:
                region = self._image.read_region((x * factor, y * factor), (w, h), level=level)
                pixels: RGB = np.asarray(region)
        except DECODER_ERRORS:
            return self._openslide.read_level(level, x, y, w, h)
        if lines or pixels.shape != (h, w, 3) or pixels.dtype != np.uint8:
            return self._openslide.read_level(level, x, y, w, h)
        return pixels

    def close(self) -> None:
        """Close the file."""
        self._image.close()
        self._openslide.close()


@contextmanager
def _decoder_complaints() -> Iterator[list[str]]:
    """Collect the error lines that cuCIM prints to C's stdout or stderr inside the block; all other output is passed on."""
    found: list[str] = []
    flush = ctypes.CDLL(None).fflush
    with _print_lock:
        flush(None)
        sinks = {fd: os.memfd_create("printed") for fd in (1, 2)}
        saved = {fd: os.dup(fd) for fd in sinks}
        for fd, sink in sinks.items():
            os.dup2(sink, fd)
        try:
            yield found
        finally:
            flush(None)
            for fd, sink in sinks.items():
                os.dup2(saved[fd], fd)
                os.close(saved[fd])
                printed = os.pread(sink, os.lseek(sink, 0, os.SEEK_END), 0)
                os.close(sink)
                if _COMPLAINT.search(printed):
                    found += printed.decode(errors="replace").splitlines()
                elif printed:
                    os.write(fd, printed)

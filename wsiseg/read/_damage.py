"""Damaged files: the errors that decoders raise for wrong bytes, and sizes that no slide has."""

from __future__ import annotations

import struct
import zlib

from wsiseg.errors import SlideOpenError

__all__ = ["DECODER_ERRORS", "MAX_SIDE_PX", "MAX_SLIDE_PX", "MAX_TILE_PX", "require_plausible_size"]

DECODER_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError,
    TypeError, ValueError, struct.error, zlib.error,
)  # fmt: skip
"""Errors that Pillow, tifffile and cuCIM raise for damaged files, as seen by benchmarks/fuzz.py."""

MAX_SIDE_PX = 2**24
MAX_SLIDE_PX = 2**40
"""Limits of 16 million px per side (about 4 m) and 10^12 px in all, a hundred times the largest slides."""

MAX_TILE_PX = 2**28
"""Limit for one tile of the file, because every reader decodes a tile whole, however small the window it needs."""


def require_plausible_size(width_px: int, height_px: int, where: str, tile_px: int = 0) -> None:
    """Raise ``SlideOpenError`` if a file states a size that no slide has: it is damaged, or made to exhaust the memory."""
    ok = 0 < width_px <= MAX_SIDE_PX and 0 < height_px <= MAX_SIDE_PX and width_px * height_px <= MAX_SLIDE_PX
    if not ok:
        raise SlideOpenError(
            f"{where}: states {width_px} x {height_px} px, expected 1 to {MAX_SIDE_PX} per side and at most {MAX_SLIDE_PX} in "
            "all. The file is damaged; copy it again from its source."
        )
    if tile_px > MAX_TILE_PX:
        raise SlideOpenError(
            f"{where}: states tiles of {tile_px} px, expected at most {MAX_TILE_PX}, as each is decoded whole. Convert it to a "
            "TIFF with tiles of 256 to 1024 px per side."
        )

"""Code shared by the readers: metadata of a file, windows, and thumbnails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsiseg.read._thumbnail import level_thumbnail
from wsiseg.read._window import RGB, read_on_white
from wsiseg.read.mpp import Mpp
from wsiseg.types import SlideMeta

__all__ = ["LevelSlide", "SlideFile"]


@dataclass(frozen=True, slots=True)
class SlideFile:
    """A slide file with its known metadata, as passed to its reader.

    Attributes
    ----------
    path
        The file; for a DICOM folder or a Zarr array, the folder.
    slide_id, cohort, size_bytes, mtime_ns
        Copied to ``meta``.
    mpp
        The user's um per level-0 px, or ``None`` for the sources of ``wsiseg.read.mpp``.
    cache_bytes
        Maximum bytes of decoded tiles that the reader keeps.
    """

    path: Path
    slide_id: str
    mpp: float | None
    cohort: str
    size_bytes: int
    mtime_ns: int
    cache_bytes: int

    def meta(self, size_px: tuple[int, int], mpp: Mpp) -> SlideMeta:
        """Return what is known of the slide once its size (width, height; level-0 px) and um per px are."""
        return SlideMeta(
            slide_id=self.slide_id,
            path=str(self.path),
            width_px=size_px[0],
            height_px=size_px[1],
            mpp=mpp.value,
            mpp_source=mpp.source,
            mpp_note=mpp.note,
            cohort=self.cohort,
            size_bytes=self.size_bytes,
            mtime_ns=self.mtime_ns,
        )


class LevelSlide:
    """Base of readers that decode windows inside a level."""

    meta: SlideMeta
    level_sizes_px: tuple[tuple[int, int], ...]

    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        """Read a window in px of ``level``: uint8 (h, w, 3), white outside the slide and where the file has no pixels.

        Raises
        ------
        TileReadError
            The pixels cannot be decoded. The slide stays usable for other windows.
        """
        return read_on_white(lambda *box: self._read_inside(level, *box), x, y, w, h, *self.level_sizes_px[level])

    def _read_inside(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        """Decode a window that is inside the level."""
        raise NotImplementedError

    def thumbnail(self, max_side_px: int) -> RGB:
        """Return the whole slide as block means, no side longer than ``max_side_px``: uint8 (h, w, 3)."""
        return level_thumbnail(self, max_side_px)

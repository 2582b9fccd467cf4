"""The ``Slide`` protocol, and the choice of a reader for each file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Protocol

from wsiseg.errors import SlideOpenError, TileReadError
from wsiseg.read._damage import DECODER_ERRORS
from wsiseg.read._levels import SlideFile
from wsiseg.read._mpp_text import MppClaim
from wsiseg.read._window import RGB
from wsiseg.read.files import slide_files, slide_id_of
from wsiseg.read.layout import TiffPicture, is_plain, is_tiff, missing_at_end, mpp_claims, picture_of, refusal
from wsiseg.read.tiff import TiffSlide, refuse_layout
from wsiseg.types import SlideMeta

__all__ = [
    "DEFAULT_CACHE_BYTES",
    "Slide",
    "content_digest",
    "fingerprint",
    "layout_words",
    "open_slide",
]

DEFAULT_CACHE_BYTES = 64 * 1024 * 1024
_READERS = ("auto", "cucim", "openslide")


class Slide(Protocol):
    """An open slide.

    Threads of one process may share it: ``read_level`` and ``thumbnail`` may run at the same time, and a window that cannot be
    decoded raises only in the thread that reads it. Call ``close`` only when no thread reads (``wsiseg.run.handles`` counts
    them). Processes do not share it: each opens its own.
    """

    meta: SlideMeta
    level_sizes_px: tuple[tuple[int, int], ...]

    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        """Read a window in px of ``level``: uint8 (h, w, 3), white (255) outside the slide; ``TileReadError``."""

    def thumbnail(self, max_side_px: int) -> RGB:
        """Return the whole slide as block means, no side longer than ``max_side_px``: uint8 (h, w, 3)."""

    def close(self) -> None:
        """Close the file."""


def fingerprint(path: str | Path) -> tuple[int, int]:
    """Return (size in bytes, time of last change in ns) of a slide, by which a run detects changes.

    For a slide of several files: the sum of sizes and the latest time.

    Raises
    ------
    SlideOpenError
        The file does not exist.
    """
    try:
        stats = [os.stat(file) for file in slide_files(path)]
    except OSError as err:
        raise SlideOpenError(f"{path}: cannot be opened: {err.strerror or err}") from err
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)


def content_digest(path: str | Path, *, alone: bool = False) -> str:
    """Return a hash (16 hex digits) of a slide's size and samples of its bytes, to detect changes that keep size and time.

    It reads both ends of a file and 16 places between (192 KiB in all), and for a folder or a slide of several files (see
    ``slide_files``) the names, sizes and beginnings of up to 32 files. This takes a fraction of a second, also on slow storage.
    ``alone`` leaves the other files out.

    Raises
    ------
    SlideOpenError
        The slide cannot be read.
    """
    p = Path(path)
    found = hashlib.sha256()
    try:
        files = slide_files(p)
        if not p.is_dir():
            _add_samples(found, p)
            files = [] if alone else [f for f in files if f != p]
        if p.is_dir() or files:
            root = p if p.is_dir() else p.parent
            found.update("\n".join(f"{f.relative_to(root)} {f.stat().st_size}" for f in files).encode(errors="surrogateescape"))
            for file in files[:: max(1, -(-len(files) // 32))]:
                with file.open("rb") as stream:
                    found.update(stream.read(4096))
    except OSError as err:
        raise SlideOpenError(f"{path}: cannot be read: {err.strerror or err}") from err
    return found.hexdigest()[:16]


def _add_samples(found: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        found.update(f"{size} ".encode() + stream.read(65536))
        for k in range(1, 17):
            stream.seek(size * k // 17)
            found.update(stream.read(4096))
        stream.seek(max(0, size - 65536))
        found.update(stream.read(65536))


def open_slide(
    path: str | Path,
    *,
    mpp: float | None = None,
    cohort: str = "",
    reader: str = "auto",
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Slide:
    """Open a slide with the fastest reader that gives OpenSlide's pixels.

    Parameters
    ----------
    path
        A slide file, a plain image, a DICOM folder, or a Zarr array (folder ``*.zarr``).
    mpp
        um per level-0 px; has priority over what the file states.
    cohort
        The slide's cancer type or study; copied to ``meta``.
    reader
        ``auto``: cuCIM's CuImage if possible, else OpenSlide with the reason in ``meta.reader_note``. ``openslide``.
        ``cucim``: CuImage, or an error if that is not possible. Plain images and Zarr arrays have only one reader.
    cache_bytes
        Maximum bytes of decoded tiles that the reader keeps.

    Raises
    ------
    SlideOpenError
        The file is missing, truncated, or not a slide.
    MissingMppError, ImplausibleMppError, AnisotropicMppError
        See ``wsiseg.read.mpp``.
    """
    if reader not in _READERS:
        raise SlideOpenError(f"Expected reader to be one of {_READERS}, got {reader!r}.")
    p = Path(path)
    size_bytes, mtime_ns = fingerprint(p)
    file = SlideFile(p, slide_id_of(p), mpp, cohort, size_bytes, mtime_ns, cache_bytes)
    if p.is_dir() and p.suffix == ".zarr":
        from wsiseg.read.array import open_zarr

        return open_zarr(file)
    slide = _open_file(file)
    if slide.meta.reader != "openslide":
        if reader == "cucim" and slide.meta.reader == "tifffile":
            slide.close()
            raise SlideOpenError(f"{p}: reader cucim cannot be used: it does not show {slide.meta.layout}. Use reader auto.")
        return slide
    return slide if reader == "openslide" else _with_cucim(slide, strict=reader == "cucim")


def _open_file(file: SlideFile) -> Slide:
    """Open a file (or DICOM folder) by OpenSlide, Pillow or tifffile, whichever shows its pixels correctly."""
    from wsiseg.read.openslide import OpenSlideSlide, detect_vendor

    p = file.path
    vendor = None if p.is_dir() else detect_vendor(p)
    picture: TiffPicture | None = None
    claims: tuple[MppClaim, ...] = ()
    if not p.is_dir():
        picture, claims = _tiff_facts(p, vendor)
    layout = picture.words if picture is not None else ""
    if picture is not None:
        refuse_layout(p, picture)
        by_pillow = vendor is None and is_plain(picture, opaque=False)
        if not is_plain(picture) and not by_pillow:
            return TiffSlide(file, vendor=vendor or "tiff")
    try:
        if vendor is None and not p.is_dir():
            from wsiseg.read.image import open_image

            return open_image(file, claims=claims, layout=layout)
        return OpenSlideSlide(file, claims=claims, layout=layout)
    except SlideOpenError as err:
        other = ("Unsupported TIFF compression", "not a slide or image", "cannot be decoded")  # tifffile may support it
        if picture is None or not any(text in str(err) for text in other):
            raise
        return TiffSlide(file, vendor=vendor or "tiff")


def _tiff_facts(p: Path, vendor: str | None) -> tuple[TiffPicture | None, tuple[MppClaim, ...]]:
    """Return the picture of a TIFF (``None``: not a TIFF, or a scanner's format) and the mpp that its texts state."""
    picture, claims = _picture(p)
    if picture is None or vendor in (None, "generic-tiff"):
        return picture, claims
    if vendor == "aperio":  # its thumbnail, label and focal planes are separate pages, which OpenSlide recognizes
        return dataclasses.replace(picture, stack=(), others=()), claims
    return None, claims


def _picture(p: Path) -> tuple[TiffPicture | None, tuple[MppClaim, ...]]:
    with p.open("rb") as stream:
        if not is_tiff(stream.read(4)):
            return None, ()
    import tifffile

    try:
        with tifffile.TiffFile(p) as tiff:
            picture = picture_of(tiff)
            missing = missing_at_end(tiff) if refusal(picture) else ""
            claims = tuple(mpp_claims(picture))
    except (*DECODER_ERRORS, tifffile.TiffFileError):
        return None, ()  # the reader that opens it raises the error
    if missing:
        raise SlideOpenError(f"{p}: {picture.words}: {missing}: truncated. Copy it again from its source.")
    return picture, claims


def layout_words(path: str | Path) -> str:
    """Describe how a file read by OpenSlide stores its pixels, from its TIFF directory (empty if it is not a TIFF)."""
    p = Path(path)
    picture = None if p.is_dir() else _picture(p)[0]
    return "" if picture is None else picture.words


def _with_cucim(slide: Slide, *, strict: bool) -> Slide:
    """Return a ``CuSlide`` over an OpenSlide slide if CuImage may read it, else the slide with the reason in its note."""
    from wsiseg.read.cuslide import CuSlide, refusal
    from wsiseg.read.openslide import OpenSlideSlide

    assert isinstance(slide, OpenSlideSlide)
    reason = refusal(slide)
    if not reason:
        try:
            there = CuSlide(slide)
        except TileReadError as err:
            reason = str(err)
        else:
            there.meta = dataclasses.replace(slide.meta, reader="cucim")
            return there
    if strict:
        slide.close()
        raise SlideOpenError(f"{slide.meta.path}: reader cucim cannot be used: {reason}. Use reader auto or openslide.")
    slide.meta = dataclasses.replace(slide.meta, reader_note=reason)
    return slide

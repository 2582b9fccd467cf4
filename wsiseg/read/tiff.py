"""Read TIFFs in layouts that OpenSlide and Pillow do not decode correctly, window by window with tifffile.

These are three single-channel pages (OME-TIFF), samples of 16 bits or floats, RGB tagged as gray, palettes, alpha, rotated
images, and compressions that OpenSlide lacks. A picture that is not H&E colour is refused with its samples, bits and planes.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from wsiseg.errors import InputError, SlideOpenError, TileReadError
from wsiseg.read._damage import DECODER_ERRORS, require_plausible_size
from wsiseg.read._levels import LevelSlide, SlideFile
from wsiseg.read._window import ALL_TRANSPARENT, RGB, hides_all, over_white
from wsiseg.read.layout import (
    CMYK,
    MINISBLACK,
    PALETTE,
    TiffPicture,
    colour_order,
    mpp_claims,
    picture_of,
    refusal,
    resolution_tags,
)
from wsiseg.read.mpp import resolve_mpp
from wsiseg.read.samples import Depth, cmyk_to_rgb, depth_of, looks_bright, to_u8

__all__ = ["TiffSlide", "refuse_layout"]

_TURNED, _MIRRORED_X, _MIRRORED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
_PREMULTIPLIED, _UNASSOCIATED = 1, 2  # TIFF's ExtraSamples
_ALPHA_KINDS = (_PREMULTIPLIED, _UNASSOCIATED)
_SAMPLED_SEGMENTS, _SAMPLED_PX = 64, 2**24


def refuse_layout(path: Path | str, picture: TiffPicture) -> None:
    """Raise ``SlideOpenError`` if a picture cannot be read as H&E colour; the message names its samples, bits and planes."""
    reason = refusal(picture)
    if reason:
        raise SlideOpenError(f"{path}: {picture.words}: {reason}. Expected H&E colour: red, green and blue samples.")


class TiffSlide(LevelSlide):
    """A TIFF slide read by tifffile, upright (the Orientation tag is applied), with a bounded cache of decoded segments.

    Parameters
    ----------
    file
        The slide.
    vendor
        OpenSlide's name of it, if it supports the format.
    properties
        OpenSlide's properties of the file, if it supports the format.

    Raises
    ------
    SlideOpenError
        The file is damaged, is not H&E colour, or has a compression that no installed package decodes.
    MissingMppError, ImplausibleMppError, AnisotropicMppError
    """

    def __init__(self, file: SlideFile, *, vendor: str = "tiff", properties: Mapping[str, str] = MappingProxyType({})) -> None:
        self._lock = threading.Lock()
        self._cache: OrderedDict[tuple[int, int, int], npt.NDArray[Any] | None] = OrderedDict()
        self._cache_bytes, self._cached_bytes = file.cache_bytes, 0
        self._where = f"slide {file.slide_id} ({file.path})"
        try:
            self._tiff = tifffile.TiffFile(file.path)
        except (*DECODER_ERRORS, tifffile.TiffFileError) as err:
            raise SlideOpenError(f"{file.path}: not a readable TIFF: {err}. Is the file complete?") from err
        weakref.finalize(self, self._tiff.close)
        try:
            self._open(file, vendor, properties)
        except InputError:
            self._tiff.close()
            raise
        except (*DECODER_ERRORS, tifffile.TiffFileError) as err:
            self._tiff.close()
            hint = "" if "pip install" in str(err) else " Is the file complete?"
            raise SlideOpenError(f"{file.path}: cannot be decoded as a TIFF: {err}.{hint}") from err

    def _open(self, file: SlideFile, vendor: str, properties: Mapping[str, str]) -> None:
        path = file.path
        picture = picture_of(self._tiff)
        refuse_layout(path, picture)
        self._picture, self._orientation = picture, picture.orientation
        stored = [(int(pages[0].imagewidth), int(pages[0].imagelength)) for pages in picture.levels]
        for pages in picture.levels:
            page = pages[0]
            segment_px = page.tilewidth * page.tilelength if page.is_tiled else page.rowsperstrip * page.imagewidth
            if not page.is_tiled:
                segment_px = min(segment_px, page.imagewidth * page.imagelength)
            require_plausible_size(page.imagewidth, page.imagelength, f"slide {path}", segment_px)
            _refuse_truncated(path, pages, file.size_bytes)
        turned = self._orientation in _TURNED
        self.level_sizes_px: tuple[tuple[int, int], ...] = tuple((h, w) if turned else (w, h) for w, h in stored)
        self._order = colour_order(picture.channels, picture.colours) or (0, 1, 2)
        coloured = int(picture.page.samplesperpixel) > 3 and int(picture.page.photometric) != CMYK
        kinds = [int(kind) for kind in picture.page.extrasamples] if coloured else []
        self._alpha = next(((3 + k, kind) for k, kind in enumerate(kinds) if kind in _ALPHA_KINDS), (0, 0))
        self._depth = self._alpha_depth = Depth()
        seen = self._sampled()
        try:
            colours = seen[..., list(self._order)] if picture.samples > 3 and int(picture.page.photometric) != CMYK else seen
            self._depth = depth_of(colours, picture.declared_bits if seen.dtype.kind == "u" else 0)
            if self._alpha[1]:  # writers leave it at 0 to 1, or at 65,535, although colours are 0 to 255 or of 12 bits
                self._alpha_depth = depth_of(seen[..., self._alpha[0]])
        except ValueError as err:
            raise SlideOpenError(f"{path}: {picture.words}: {err}. Convert it to 8 bits.") from err
        self._refuse_dark(path, seen)
        facts = {**properties, **resolution_tags(picture.page)}
        found = resolve_mpp(facts, user_mpp=file.mpp, vendor=vendor, where=f"slide {path}", claims=mpp_claims(picture))
        width_px, height_px = self.level_sizes_px[0]
        words = [picture.words, *([self._depth.words] if seen.dtype != np.uint8 else [])]
        if picture.samples > 3 and int(picture.page.photometric) != CMYK and not self._alpha[1]:
            words.append(f"{picture.samples - 3} further sample(s) ignored")
        self.meta = dataclasses.replace(
            file.meta((width_px, height_px), found),
            level_downsamples=tuple((width_px / w + height_px / h) / 2 for w, h in self.level_sizes_px),
            vendor=vendor,
            reader="tifffile",
            layout=", ".join(words),
        )

    def _refuse_dark(self, path: Path, seen: npt.NDArray[Any]) -> None:
        """Raise ``SlideOpenError`` if samples (n, channels) of the slide are darker than any brightfield, or transparent."""
        picture, (alpha, kind) = self._picture, self._alpha
        if kind and hides_all(seen[..., :3], seen[..., alpha]):
            raise SlideOpenError(f"{path}: {picture.words}: {ALL_TRANSPARENT}")
        is_declared = seen.dtype == np.uint8 or picture.declared_bits > 0  # the range is known
        if (is_declared and int(picture.page.photometric) != MINISBLACK) or looks_bright(self._shown(seen[np.newaxis])):
            return
        deep = "" if is_declared else (
            f" The brightest sample is {seen.max():g}, so {self._depth.words}, but 99 % are below {np.percentile(seen, 99):g}: "
            "it may have been written with fewer bits and contain a few wrong pixels. Convert it to 8 bits."
        )  # fmt: skip
        raise SlideOpenError(
            f"{path}: {picture.words}: no pixel is bright in all three samples, as glass and stained tissue are. Expected "
            f"H&E colour; is it fluorescence? If it is colour, save it with photometric RGB.{deep}"
        )

    def _sampled(self) -> npt.NDArray[Any]:
        """Return samples (n, channels): all of the coarsest level if it is small, else of segments spread evenly over it."""
        level = len(self.level_sizes_px) - 1
        pages = self._picture.levels[level]
        page = pages[0]
        plane = -(-len(page.dataoffsets) // (1 if int(page.planarconfig) == 1 else int(page.samplesperpixel)))
        rows = page.tilelength if page.is_tiled else page.rowsperstrip
        columns = -(-page.imagewidth // page.tilewidth) if page.is_tiled else 1
        if page.dtype == np.uint8 and int(page.photometric) != MINISBLACK and not self._alpha[1]:
            wanted = range(1)  # nothing to fit: one read checks that the compression can be decoded
        elif page.imagewidth * page.imagelength <= _SAMPLED_PX:
            wanted = range(plane)
        else:
            wanted = range(0, plane, -(-plane // _SAMPLED_SEGMENTS))
        found = []
        failed: Exception | None = None
        for k in wanted:
            x, y = (k % columns) * page.tilewidth if page.is_tiled else 0, k // columns * rows
            w = min(page.tilewidth if page.is_tiled else page.imagewidth, page.imagewidth - x)
            try:
                values, absent = self._stored(level, x, y, w, min(rows, page.imagelength - y))
            except (*DECODER_ERRORS, tifffile.TiffFileError) as err:
                failed = err  # a damaged tile: the rest of the slide can be read
                continue
            if not absent.all():
                found.append(values[~absent])
        if failed is not None and not found:
            raise failed
        return np.concatenate(found) if found else np.zeros((1, self._picture.samples), page.dtype)

    def _read_inside(self, level: int, x: int, y: int, w: int, h: int) -> RGB:
        width_px, height_px = self.level_sizes_px[level]
        flip_x, flip_y, turned = (self._orientation in kind for kind in (_MIRRORED_X, _MIRRORED_Y, _TURNED))
        at_x, at_y = width_px - x - w if flip_x else x, height_px - y - h if flip_y else y
        box = (at_y, at_x, h, w) if turned else (at_x, at_y, w, h)
        try:
            values, absent = self._stored(level, *box)
            rgb = self._shown(values)
        except (*DECODER_ERRORS, tifffile.TiffFileError) as err:
            raise TileReadError(
                f"{self._where}: window x={x} y={y} w={w} h={h} of level {level} cannot be decoded: {err}. "
                "The file is damaged there; copy it again from its source if you can."
            ) from err
        rgb[absent] = 255
        if turned:
            rgb = rgb.transpose(1, 0, 2)
        return np.ascontiguousarray(rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])

    def _stored(self, level: int, x: int, y: int, w: int, h: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Return samples (h, w, channels) of a window as it is stored, and which px (h, w) have none (absent tiles)."""
        pages = self._picture.levels[level]
        page = pages[0]
        values = np.zeros((h, w, self._picture.samples), page.dtype)
        absent = np.zeros((h, w), np.bool_)
        tile_w = page.tilewidth if page.is_tiled else page.imagewidth
        tile_h = page.tilelength if page.is_tiled else page.rowsperstrip
        columns, rows = -(-page.imagewidth // tile_w), -(-page.imagelength // tile_h)
        planes = int(page.samplesperpixel) if int(page.planarconfig) == 2 else 1
        for row in range(y // tile_h, min(rows, -(-(y + h) // tile_h))):
            for column in range(x // tile_w, min(columns, -(-(x + w) // tile_w))):
                top, left = row * tile_h, column * tile_w
                y0, y1, x0, x1 = max(y, top), min(y + h, top + tile_h), max(x, left), min(x + w, left + tile_w)
                there = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
                channel = 0
                for number in range(len(pages)):
                    for plane in range(planes):
                        tile = self._segment(level, number, (plane * rows + row) * columns + column)
                        if tile is None:
                            absent[there] = True
                            channel += 1 if planes > 1 or len(pages) > 1 else int(page.samplesperpixel)
                            continue
                        part = tile[y0 - top : y1 - top, x0 - left : x1 - left]
                        values[(*there, slice(channel, channel + part.shape[2]))] = part
                        channel += part.shape[2]
        return values, absent

    def _segment(self, level: int, number: int, index: int) -> npt.NDArray[Any] | None:
        """Return one tile or strip (h, w, samples), ``None`` if the file has none."""
        key = (level, number, index)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            page = self._picture.levels[level][number]
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            tile = None
            if count and offset:
                self._tiff.filehandle.seek(offset)
                data = self._tiff.filehandle.read(count)
                if len(data) < count:
                    raise TileReadError(f"{count} bytes expected at {offset}, the file ends after {len(data)} (truncated)")
                tile = _decoded(page, data, index)
            self._cache[key] = tile
            self._cached_bytes += 0 if tile is None else tile.nbytes
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= 0 if old is None else old.nbytes
            return tile

    def _shown(self, values: npt.NDArray[Any]) -> RGB:
        """Convert samples (..., channels) to RGB uint8 (..., 3)."""
        page = self._picture.page
        if int(page.photometric) == PALETTE:
            colours = (np.asarray(page.colormap).T >> (self._picture.palette_bits - 8)).astype(np.uint8)
            return np.ascontiguousarray(colours[values[..., 0]])
        if int(page.photometric) == CMYK:
            return cmyk_to_rgb(to_u8(values[..., :4], self._depth))
        alpha, kind = self._alpha
        if not kind:
            return np.ascontiguousarray(to_u8(values[..., list(self._order)], self._depth))
        shown = to_u8(values[..., list(self._order)], self._depth)
        rgba = np.concatenate([shown, to_u8(values[..., alpha : alpha + 1], self._alpha_depth)], axis=-1)
        if kind == _UNASSOCIATED:
            return over_white(rgba)
        return np.minimum(rgba[..., :3].astype(np.uint16) + (255 - rgba[..., 3:]), 255).astype(np.uint8)  # premultiplied

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()
        self._cache.clear()


def _refuse_truncated(path: Path, pages: tuple[Any, ...], size_bytes: int) -> None:
    """Raise ``SlideOpenError`` if tiles or strips are beyond the end of the file."""
    ends = np.concatenate([np.add(page.dataoffsets, page.databytecounts, dtype=np.int64) for page in pages])
    cut = int((ends > size_bytes).sum())
    if cut:
        raise SlideOpenError(
            f"{path}: {cut} of {len(ends)} tiles or strips are beyond the end of the file ({size_bytes} bytes): truncated. "
            "Copy it again from its source."
        )


def _decoded(page: Any, data: bytes, index: int) -> npt.NDArray[Any]:
    decode: Callable[..., Any] = page.decode
    try:
        tile, _, shape = decode(data, index, jpegtables=page.jpegtables)
    except (AttributeError, ImportError, KeyError, ValueError) as err:
        if "imagecodecs" not in str(err) and not isinstance(err, ImportError):  # tifffile's own decoder may lack its module
            raise
        name = getattr(page.compression, "name", page.compression)
        raise RuntimeError(f"compression {name} needs the package imagecodecs: pip install imagecodecs") from err
    if tile is None:
        raise TileReadError(f"segment {index} contains no data that can be decoded")
    found: npt.NDArray[Any] = tile[0, : shape[1], : shape[2]]
    return found

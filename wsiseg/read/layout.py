"""How a TIFF stores its picture (samples, bits, planes, photometric, orientation), and which layouts show H&E colour.

Three samples per px can be stored interleaved, in separate planes, as three single-channel pages that OME-XML names R, G and
B, or as a palette. ``picture_of`` finds the pages that make one picture. ``refusal`` returns why a picture cannot be read as
H&E colour: one channel (gray), channels that are no colour, several pictures or planes, no defined conversion to 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import tifffile

from wsiseg.read._damage import DECODER_ERRORS
from wsiseg.read._mpp_text import MppClaim, claims_of_text, number, ome_images

__all__ = [
    "TiffPicture",
    "colour_order",
    "missing_at_end",
    "foreign_channels",
    "is_plain",
    "is_tiff",
    "mpp_claims",
    "picture_of",
    "refusal",
    "resolution_tags",
]

RGB, MINISBLACK, PALETTE, CMYK, YCBCR = 2, 1, 3, 5, 6
_MASK_PAGE, _MASK = 4, 4  # bit of NewSubfileType, and photometric interpretation, of a transparency mask
_MAX_PAGES = 200  # that are examined: a longer stack is refused for its first pages already
_SIDE_IMAGES = re.compile(r"label|macro|thumb|overview|preview|barcode|slide ?image", re.IGNORECASE)
_NAMES = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2}
_NO_NAME = re.compile(r"((tl )?brightfield|rgb|h&e|he|channel|ch|c|image|plane|sample)?[ _:#.0-9-]*", re.IGNORECASE)
_KINDS = {"u": "", "b": "", "i": " signed", "f": " floating point", "c": " complex"}
_UNITS = {2: "inch", 3: "centimeter"}
_PURE = {(255, 0, 0): 0, (0, 255, 0): 1, (0, 0, 255): 2}


@dataclass(frozen=True, slots=True)
class TiffPicture:
    """The pages of a TIFF that make one picture, and their layout.

    Attributes
    ----------
    levels
        Pages of each level, finest first: one page, or one per plane.
    samples
        Channels of the picture in all: samples of a page, or pages of one sample.
    channels
        Names of the channels in the file (may be fewer than channels, or empty strings).
    stack
        Axes other than x, y and channel that are longer than 1, as ``Z 5``.
    others
        Sizes of further pictures of that size in the file.
    files
        Names of the files that contain its pages, if there are several.
    declared_bits
        Significant bits of a sample, if the file states them and they are fewer than the container's; else 0.
    image
        Index of the OME image, from 0.
    palette_bits
        16, or 8 if the writer put colors of 8 bits into the palette.
    """

    levels: tuple[tuple[Any, ...], ...]
    samples: int
    channels: tuple[str, ...] = ()
    colours: tuple[int | None, ...] = ()
    stack: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    declared_bits: int = 0
    image: int = 0
    texts: tuple[str, ...] = field(default=())
    palette_bits: int = 16
    files: tuple[str, ...] = ()

    @property
    def page(self) -> Any:
        """Return the first page of the finest level."""
        return self.levels[0][0]

    @property
    def orientation(self) -> int:
        """Return the Orientation tag, 1 (as stored) if it is absent or invalid."""
        tag = self.page.tags.get(274)
        return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1

    @property
    def words(self) -> str:
        """Describe in one line how the picture is stored."""
        page = self.page
        kind = _KINDS.get(getattr(page.dtype, "kind", "?"), " unknown")
        plural, bits = "s" * (self.samples != 1), _bits(page)
        parts = [f"{self.samples} sample{plural} of {bits}{kind} bit{'s' * (bits != '1')}", _name(page, "photometric")]
        planes = len(self.levels[0])
        if planes > 1:
            parts.append(f"{planes} pages of one sample each")
        elif self.samples > 1:
            parts.append("separate planes" if int(page.planarconfig) == 2 else "interleaved")
        parts.append(f"tiles {page.tilewidth}x{page.tilelength}" if page.is_tiled else f"strips of {page.rowsperstrip} rows")
        parts.append(f"compression {_name(page, 'compression')}")
        if self.orientation != 1:
            parts.append(f"orientation {self.orientation}")
        if any(self.channels):
            parts.append("channels " + ", ".join(name or "?" for name in self.channels))
        return ", ".join(parts)


def is_tiff(head: bytes) -> bool:
    """Return whether a file with these first bytes is a TIFF or BigTIFF."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def picture_of(tiff: tifffile.TiffFile) -> TiffPicture:
    """Find the picture of a TIFF: OME-TIFF's largest image, else the largest page with its coarser levels and planes.

    A thumbnail may come before it. Transparency masks, and pictures of less than a quarter of its px, do not count.

    Raises
    ------
    The classes of ``DECODER_ERRORS``, ``tifffile.TiffFileError``
        The directory is damaged.
    """
    if tiff.is_ome:
        found = _ome_picture(tiff)
        if found is not None:
            return found
    pages = list(_pages(tiff))
    first = max(pages, key=lambda page: int(page.imagewidth) * int(page.imagelength))  # of equal ones the first
    size = int(first.imagewidth), int(first.imagelength)
    alike, reduced, others = [], [], []
    for page in pages:
        w, h = int(page.imagewidth), int(page.imagelength)
        if (w, h) == size:
            alike.append(page)
        elif page.is_reduced and _reduced(page, first):
            reduced.append(page)
        elif 4 * w * h >= size[0] * size[1] and not page.is_reduced and not _coarser(w, h, *size):
            others.append(f"{w} x {h} px")
    texts = tuple(dict.fromkeys((str(first.description or ""), str(pages[0].description or ""))))
    names = _imagej_channels(tiff) if len(alike) == 3 and first.samplesperpixel == 1 else ()
    if names:
        return TiffPicture((tuple(alike),), 3, names, declared_bits=_declared(first), texts=texts)
    stack = (f"{len(alike)} pages of {first.imagewidth} x {first.imagelength} px",) if len(alike) > 1 else ()
    levels = [(first,), *((page,) for page in [*(first.pages or []), *reduced] if _reduced(page, first))]
    return TiffPicture(
        tuple(sorted(levels, key=lambda pages: -pages[0].imagewidth)),
        int(first.samplesperpixel),
        stack=stack,
        others=tuple(others),
        declared_bits=_declared(first),
        texts=texts,
        palette_bits=8 if int(first.photometric) == PALETTE and np.asarray(first.colormap).max(initial=0) <= 255 else 16,
    )


def _pages(tiff: tifffile.TiffFile) -> Iterator[Any]:
    """Yield the pages that may show the picture: the first, and others that have samples and are no transparency mask."""
    for k in range(_MAX_PAGES):
        try:
            page = tiff.pages[k]
        except IndexError:
            return
        page = page.aspage() if not isinstance(page, tifffile.TiffPage) else page
        is_mask = int(page.subfiletype) & _MASK_PAGE or int(page.photometric) == _MASK
        if k == 0 or (not is_mask and page.imagewidth and page.imagelength):
            yield page


def _imagej_channels(tiff: tifffile.TiffFile) -> tuple[str, ...]:
    """Return the names of an ImageJ file's three pages if they are red, green and blue; empty if they are not.

    They are if their labels are such names, or if they are the three channels of a composite whose lookup tables, if it has
    any, run to pure red, green and blue. Whether it shows transmitted light is judged later, by its brightness.
    """
    facts = (tiff.imagej_metadata or {}) if tiff.is_imagej else {}
    labels = tuple(str(name).strip() for name in facts.get("Labels", ()))
    if [_NAMES.get(name.lower()) for name in labels] == [0, 1, 2]:
        return labels
    if facts.get("channels") != 3 or facts.get("slices", 1) != 1 or facts.get("frames", 1) != 1:
        return ()
    brightest = [np.asarray(table)[:, -1] for table in facts.get("LUTs", ())]
    colours = [_PURE.get((int(r), int(g), int(b))) for r, g, b in brightest]
    if facts.get("mode") in ("composite", "color") and (not colours or colours == [0, 1, 2]):
        return ("red", "green", "blue")
    return ()


def _reduced(page: Any, first: Any) -> bool:
    """Return whether a page shows the same picture at a smaller size, stored in the same way."""
    alike = all(getattr(page, name) == getattr(first, name) for name in ("samplesperpixel", "bitspersample", "photometric"))
    small = 1 <= page.imagewidth < first.imagewidth and page.imagelength >= 1
    if not (alike and small and page.dtype == first.dtype):
        return False
    x, y = first.imagewidth / page.imagewidth, first.imagelength / page.imagelength
    return abs(x - y) <= 0.02 * x + 2 / min(page.imagewidth, page.imagelength) * x


def _ome_picture(tiff: tifffile.TiffFile) -> TiffPicture | None:
    try:
        series = list(tiff.series)
    except (*DECODER_ERRORS, tifffile.TiffFileError):
        return None
    text = str(tiff.ome_metadata or "")
    images = ome_images(text)
    sizes = [dict(zip(s.axes, s.shape, strict=True)) for s in series]
    if not series or any("Y" not in size or "X" not in size for size in sizes[:1]):
        return None
    named = [images[k][0] if k < len(images) else "" for k in range(len(series))]
    px = [s.get("X", 0) * s.get("Y", 0) * (not _SIDE_IMAGES.search(name)) for s, name in zip(sizes, named, strict=True)]
    best = int(np.argmax(px)) if any(px) else 0
    wide, high = sizes[best]["X"], sizes[best]["Y"]
    others = [
        f"{named[k] or k} {sizes[k]['X']} x {sizes[k]['Y']} px"
        for k in range(len(series))
        if k != best and 4 * px[k] >= px[best] and not _coarser(sizes[k]["X"], sizes[k]["Y"], wide, high)
    ]
    chosen = series[best]
    stack = [f"{axis} {n}" for axis, n in zip(chosen.axes, chosen.shape, strict=True) if axis not in "YXSC" and n > 1]
    planes, inside = sizes[best].get("C", 1), sizes[best].get("S", 1)
    if planes > 1 and inside > 1:
        stack.append(f"C {planes}, each of {inside} samples")
    levels = [tuple(page.aspage() for page in level.pages[:planes] if page is not None) for level in chosen.levels]
    levels = [pages for pages in levels if len(pages) == len(levels[0])]
    if not levels or not levels[0]:
        return None
    names, colours, bits = _ome_channels(images[best][1] if best < len(images) else None)
    first = levels[0][0]
    samples = planes * inside if len(levels[0]) == planes else int(first.samplesperpixel)
    declared = bits if 0 < bits < 8 * first.dtype.itemsize else _declared(first)
    texts = (text, str(first.description or ""))
    files = tuple(sorted({str(page.parent.filename) for page in levels[0]}))
    return TiffPicture(
        tuple(levels), samples, names, colours, tuple(stack), tuple(others), declared, best, texts,
        files=files if len(files) > 1 else (),
    )  # fmt: skip


def _coarser(w: int, h: int, wide: int, high: int) -> bool:
    """Return whether a picture of w x h px may be a coarser level of one of wide x high (of writers without SubIFDs)."""
    return w < 0.75 * wide and abs(wide / w - high / h) <= 0.02 * wide / w + 2 / min(w, h) * wide / w


def _ome_channels(pixels: Any) -> tuple[tuple[str, ...], tuple[int | None, ...], int]:
    """Return names of the channels, which of them is pure red, green or blue by its colour, and the significant bits."""
    if pixels is None:
        return (), (), 0
    names, colours = [], []
    for node in pixels:
        if str(node.tag).rpartition("}")[2] != "Channel":
            continue
        names.append(str(node.get("Name") or node.get("Fluor") or ""))
        rgba = str(node.get("Color", ""))
        value = int(rgba) & 0xFFFFFFFF if re.fullmatch(r"-?[0-9]{1,10}", rgba) else 0
        colours.append(_PURE.get((value >> 24, value >> 16 & 255, value >> 8 & 255)))
    return tuple(names), tuple(colours), int(number(pixels.get("SignificantBits")) or 0)


def _declared(page: Any) -> int:
    bits = page.bitspersample
    return bits if isinstance(bits, int) and page.dtype is not None and 8 < bits < 8 * page.dtype.itemsize else 0


def _bits(page: Any) -> str:
    bits = page.bitspersample
    return "/".join(str(b) for b in bits) if isinstance(bits, tuple) else str(bits)


def _name(page: Any, tag: str) -> str:
    value = getattr(page, tag)
    return f"{getattr(value, 'name', value)}".upper()


def foreign_channels(names: Sequence[str]) -> list[str]:
    """Return the names that are neither a colour of RGB nor a plain number: stains, markers, wavelengths."""
    known = {*_NAMES, "a", "alpha"}
    return [name for name in names if name.strip().lower() not in known and not _NO_NAME.fullmatch(name.strip())]


def colour_order(names: Sequence[str], colours: Sequence[int | None] = ()) -> tuple[int, int, int] | None:
    """Return the indices of the red, green and blue channels by name or colour; ``None`` if the file does not state them."""
    for colors in ([_NAMES.get(name.strip().lower()) for name in names], list(colours)):
        if len(colors) >= 3 and sorted(v for v in colors[:3] if v is not None) == [0, 1, 2]:
            return colors.index(0), colors.index(1), colors.index(2)
    return None


def is_plain(picture: TiffPicture, *, opaque: bool = True) -> bool:
    """Return whether OpenSlide and Pillow decode a picture correctly: one page of three 8-bit samples, RGB or YCbCr, upright.

    With ``opaque=False``: whether Pillow does, which also reads palettes, CMYK, alpha and orientation of interleaved samples.
    """
    page = picture.page
    alone = len(picture.levels[0]) == 1 and page.index == 0  # those two read a file's first page
    if not alone or page.bitspersample != 8 or getattr(page.dtype, "kind", "") != "u":
        return False
    if picture.samples == int(page.samplesperpixel) == 3 and int(page.photometric) in (RGB, YCBCR):
        return picture.orientation == 1 or not opaque
    if picture.palette_bits == 8:
        return False  # Pillow reads 16
    few = {RGB: 4, CMYK: 4, PALETTE: 1}.get(int(page.photometric), 0)
    return not opaque and picture.samples == few and int(page.planarconfig) == 1


def refusal(picture: TiffPicture) -> str:
    """Return why a picture cannot be read as H&E colour; empty if it can."""
    page, samples = picture.page, picture.samples
    photometric = int(page.photometric)
    one_a_sample = len(picture.channels) >= samples > 1  # else the name is of the picture as a whole
    if picture.files:
        return f"its pages are in several files ({', '.join(picture.files)}): save them as one file of red, green and blue"
    if picture.stack:
        return f"it is a stack ({', '.join(picture.stack)}): save the plane to segment as a separate file"
    if picture.others:
        return f"it contains further pictures of full resolution ({', '.join(picture.others)}): save each as a separate file"
    if page.dtype is None or isinstance(page.bitspersample, tuple):
        return "samples of these bits have no defined conversion to 8 bits"
    if one_a_sample and foreign_channels(picture.channels):
        return f"its channels are {', '.join(picture.channels)}, not red, green and blue: is it fluorescence?"
    if photometric == PALETTE and samples == 1 and page.dtype.kind == "u":
        return "" if page.bitspersample <= 8 else "a palette of more than 8 bits"
    if samples < 3:
        what = "it is gray, or one channel of several" if samples == 1 else "and no three of these are red, green and blue"
        return f"H&E colour needs 3 samples, {what}"
    if page.dtype.kind not in "uf" or page.bitspersample < 8:
        return "samples of these bits have no defined conversion to 8 bits"
    if photometric not in (MINISBLACK, RGB, CMYK, YCBCR):
        return f"photometric interpretation {_name(page, 'photometric')} has no defined conversion to RGB"
    if photometric == YCBCR and page.bitspersample != 8:
        return "YCbCr is read with 8 bits only"
    if photometric == CMYK and (samples < 4 or page.dtype.kind != "u" or int(page.compression) in (6, 7)):
        return "CMYK is read with 4 unsigned samples, not in JPEG"
    if photometric == MINISBLACK and samples > 3 and colour_order(picture.channels, picture.colours) is None:
        return f"which of its {samples} samples are red, green and blue is not stated: save it with photometric RGB"
    return ""


def missing_at_end(tiff: tifffile.TiffFile) -> str:
    """Return what is missing at the end of a TIFF, empty if nothing. A truncated file may look like one of another layout."""
    size = int(tiff.filehandle.size)
    missing = n = 0
    for k in range(_MAX_PAGES):
        try:
            page = tiff.pages[k]
        except IndexError:
            break
        ends = np.add(page.dataoffsets, page.databytecounts, dtype=np.int64)
        missing, n = missing + int((ends > size).sum()), n + len(ends)
    if missing:
        return f"{missing} of {n} tiles or strips are beyond the end of the file ({size} bytes)"
    tiff.filehandle.seek(int(tiff.pages.next_page_offset or 0))  # the offset of the next page is stored here, 0: none
    order: Literal["little", "big"] = "little" if tiff.byteorder == "<" else "big"
    beyond = int.from_bytes(tiff.filehandle.read(int(tiff.tiff.offsetsize)), order) >= size
    return f"its next page would be beyond the end of the file ({size} bytes)" if beyond else ""


def mpp_claims(picture: TiffPicture) -> list[MppClaim]:
    """Return the microns per px that the texts of a picture state."""
    page, tags = picture.page, resolution_tags(picture.page)
    found: list[MppClaim] = []
    x, y = (number(tags.get(f"tiff.{axis}Resolution")) for axis in "XY")
    for text in dict.fromkeys(picture.texts):
        found += claims_of_text(text, x_resolution=x, y_resolution=y, width_px=page.imagewidth, image=picture.image)
    return found


def resolution_tags(page: Any) -> dict[str, str]:
    """Return the resolution tags that a page has, under OpenSlide's names."""
    found = {}
    for name, code in (("XResolution", 282), ("YResolution", 283)):
        tag = page.tags.get(code)
        if tag is not None and isinstance(tag.value, tuple) and len(tag.value) == 2 and tag.value[1]:
            found[f"tiff.{name}"] = repr(tag.value[0] / tag.value[1])
    unit = page.tags.get(296)
    return {**found, "tiff.ResolutionUnit": _UNITS.get(int(unit.value) if unit is not None else 2, "none")}

"""Plain images (PNG, JPEG, untiled TIFF and others) as one-level slides, decoded whole into memory."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from wsiseg.errors import SlideOpenError
from wsiseg.read._damage import DECODER_ERRORS
from wsiseg.read._levels import SlideFile
from wsiseg.read._mpp_text import MppClaim
from wsiseg.read._window import ALL_TRANSPARENT, RGB, hides_all, over_white
from wsiseg.read.array import ArraySlide
from wsiseg.read.mpp import resolve_mpp, tag_claim

__all__ = ["MAX_IMAGE_PX", "open_image"]

Image: TypeAlias = Any  # PIL.Image.Image: Pillow is loaded when a picture is opened

MAX_IMAGE_PX = 2**31
"""Largest plain image in px: it is decoded whole (3 bytes per px), and a small file can state any size."""

MAX_BOMB_PX, MAX_BOMB_RATIO = 2**26, 400
"""Images above ``MAX_BOMB_PX`` may have at most ``MAX_BOMB_RATIO`` px per byte of the file (a JPEG slide has 1 to 10)."""

_COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr")
_ALPHA_MODES = ("RGBA", "RGBa", "P", "PA")
_GRAY_MODES = {
    "1": "1 sample of 1 bit",
    "L": "1 sample of 8 bits",
    "LA": "1 sample of 8 bits and alpha",
    "La": "1 sample of 8 bits and alpha",
    "I": "1 sample of 32 bits",
    "F": "1 sample of 32 floating point bits",
}
_COLOUR_HELD = {
    "P": "a palette of 3 samples",
    "PA": "a palette of 3 samples and alpha",
    "RGBA": "3 samples and alpha",
    "RGBa": "3 samples and alpha",
    "CMYK": "4 samples (CMYK)",
}
_TIFF_UNITS = {2: "inch", 3: "centimeter"}
_BRIGHT_U8 = 64


def open_image(file: SlideFile, *, claims: Sequence[MppClaim] = (), layout: str = "") -> ArraySlide:
    """Open a PNG, JPEG, TIFF, BMP, WebP or JPEG 2000 picture as a slide of one level, upright, alpha over white.

    Microns per px come from the user, from ``claims`` or from resolution tags (see ``wsiseg.read.mpp``).

    Raises
    ------
    SlideOpenError
        The file is not an image, truncated, not H&E colour, or larger than ``MAX_IMAGE_PX`` px.
    MissingMppError, ImplausibleMppError, AnisotropicMppError
    """
    properties, pixels, held = _decode(file.path, file.size_bytes)
    claims = [*claims, *_dpi_claims(properties)]
    found = resolve_mpp(properties, user_mpp=file.mpp, vendor="image", where=f"image {file.path}", claims=claims)
    size_px = pixels.shape[1], pixels.shape[0]
    about = dataclasses.replace(file.meta(size_px, found), vendor="image", reader="pillow", layout=layout or held)
    return ArraySlide(pixels, mpp=found.value, slide_id=file.slide_id, about=about)


def _decode(path: Path, size_bytes: int) -> tuple[dict[str, str], RGB, str]:
    """Return resolution tags, pixels uint8 (h, w, 3), and how the picture is stored, in words."""
    import PIL.Image

    limit, PIL.Image.MAX_IMAGE_PIXELS = (
        PIL.Image.MAX_IMAGE_PIXELS,
        None,
    )  # replaced by the limit below
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged tags that we do not read
            with PIL.Image.open(path) as image:
                _refuse_size(path, *image.size, size_bytes)
                held = _refuse_mode(path, image)
                properties = _resolution(image)
                pixels = _upright_rgb(path, image, held)
                if " of 16 bits" in held and pixels.size and pixels.min() < 255 and pixels.max() < _BRIGHT_U8:
                    raise SlideOpenError(
                        f"image {path}: {held}: only {8 + int(pixels.max()).bit_length()} bits are in use, although glass "
                        "would use all: it was written with fewer bits. Expected 8 bits, or all 16 in use; convert it."
                    )
                return properties, pixels, held
    except PIL.UnidentifiedImageError as err:
        raise SlideOpenError(
            f"{path}: not a slide or image that OpenSlide or Pillow can read. Is the file complete, and is it a slide?"
        ) from err
    except SlideOpenError:
        raise
    except DECODER_ERRORS as err:
        raise SlideOpenError(f"image {path}: cannot be decoded: {err}. Is the file complete?") from err
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _refuse_size(path: Path, width_px: int, height_px: int, size_bytes: int) -> None:
    if width_px * height_px > MAX_BOMB_PX and width_px * height_px > MAX_BOMB_RATIO * size_bytes:
        raise SlideOpenError(
            f"image {path}: a file of {size_bytes} bytes states {width_px} x {height_px} px, like a decompression bomb. "
            f"Expected at most {MAX_BOMB_RATIO} px per byte above {MAX_BOMB_PX} px. Convert it to a tiled TIFF."
        )
    if width_px * height_px > MAX_IMAGE_PX:
        raise SlideOpenError(
            f"image {path}: states {width_px} x {height_px} px, expected at most {MAX_IMAGE_PX} px in all for a "
            "plain image. Convert it to a tiled pyramidal TIFF."
        )


def _refuse_mode(path: Path, image: Image) -> str:
    """Return how a picture is stored; raise ``SlideOpenError`` if that is not H&E colour."""
    mode = str(image.mode)
    if mode.startswith("I;") or mode in _GRAY_MODES:
        held = _GRAY_MODES.get(mode, "1 sample of 16 bits")
        raise SlideOpenError(
            f"image {path}: {held}: H&E colour needs 3 samples, it is gray, or one channel of several. Expected H&E colour: "
            "red, green and blue samples."
        )
    if mode not in _COLOUR_MODES:
        raise SlideOpenError(
            f"image {path}: Pillow mode {mode!r} has no defined conversion to RGB of 8 bits. Expected H&E colour; convert it "
            "to RGB."
        )
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and image.format not in ("MPO", "TIFF"):  # further frames of an MPO are previews; TIFFs were checked before
        raise SlideOpenError(f"image {path}: contains {frames} frames, expected one picture. Save each as a separate file.")
    bits = 16 if image.format == "PNG" and _png_bits(path) == 16 else 8
    deep = _jpeg2000_bits(path) if image.format == "JPEG2000" else 8
    if deep > 8:
        raise SlideOpenError(
            f"image {path}: {_COLOUR_HELD.get(mode, '3 samples')} of {deep} bits, JPEG2000: Pillow does not convert them to 8 "
            "bits correctly. Convert it to 8 bits, or to a TIFF of 16."
        )
    return f"{_COLOUR_HELD.get(mode, '3 samples')} of {bits} bits, {image.format}"


def _png_bits(path: Path) -> int:
    with path.open("rb") as stream:
        return int(stream.read(25)[24])


def _jpeg2000_bits(path: Path) -> int:
    """Return the bits of the first sample from the codestream's SIZ marker (ISO 15444-1, A.5.1), 8 if there is none."""
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
    at = head.find(b"\xff\x4f\xff\x51")
    return (head[at + 42] & 0x7F) + 1 if 0 <= at < len(head) - 42 else 8


def _upright_rgb(path: Path, image: Image, held: str) -> RGB:
    """Decode to uint8 (h, w, 3), rotated by the EXIF or TIFF orientation, with alpha over white.

    Raises
    ------
    SlideOpenError
        Alpha is 0 throughout.
    """
    from PIL import ImageOps

    see_through = image.mode in _ALPHA_MODES or "transparency" in image.info
    upright = ImageOps.exif_transpose(image)
    if see_through:
        rgba = np.asarray(upright.convert("RGBA"))
        if hides_all(rgba[..., :3], rgba[..., 3]):
            raise SlideOpenError(f"image {path}: {held}: {ALL_TRANSPARENT}")
        return over_white(rgba)
    return np.asarray(upright.convert("RGB"))


def _resolution(image: Image) -> dict[str, str]:
    """Return the resolution that a picture states, under OpenSlide's names for a TIFF's tags, else as ``dpi.*``."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return {
            "tiff.XResolution": str(tags.get(282)),
            "tiff.YResolution": str(tags.get(283)),
            "tiff.ResolutionUnit": _TIFF_UNITS.get(tags.get(296, 2), "none"),
        }
    x, y = image.info.get("dpi", (None, None))
    return {} if x is None or image.info.get("jfif_unit", 1) == 0 else {"dpi.x": str(float(x)), "dpi.y": str(float(y))}


def _dpi_claims(properties: dict[str, str]) -> list[MppClaim]:
    claim = tag_claim(properties.get("dpi.x"), properties.get("dpi.y"), "inch", "the picture's resolution")
    return [] if claim is None else [claim]

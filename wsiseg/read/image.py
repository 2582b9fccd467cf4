"""Plain images (PNG, JPEG, untiled TIFF) as one-level slides, decoded whole into memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from wsiseg.errors import SlideOpenError
from wsiseg.read._hostile import DECODER_ERRORS
from wsiseg.read._window import RGB, over_white
from wsiseg.read.array import ArraySlide
from wsiseg.read.mpp import resolve_mpp

__all__ = ["MAX_IMAGE_PX", "open_image"]

MAX_IMAGE_PX = 2**31
"""Largest plain image in px: it is decoded whole (3 bytes a px), and a small file can claim any size."""

MAX_BOMB_PX, MAX_BOMB_RATIO = 2**26, 400
"""Above so many px, an image with more px a byte of its file than this holds no tissue (a JPEG slide has 1 to 10)."""

_MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr")  # 8 bits a channel; others have no defined way to 8 bits
_TIFF_UNITS = {2: "inch", 3: "centimeter"}


def open_image(path: Path, *, slide_id: str, mpp: float | None, cohort: str, size_bytes: int, mtime_ns: int) -> ArraySlide:
    """Open a PNG, JPEG or TIFF as a slide of one level.

    Microns per px come from the user or from a TIFF's resolution tags (see ``wsiseg.read.mpp``).

    Raises
    ------
    SlideOpenError
        Not an image, truncated, not 8 bits a channel, or more than ``MAX_IMAGE_PX`` px.
    MissingMppError, AnisotropicMppError
    """
    properties, pixels = _decode(path, size_bytes)
    value, source = resolve_mpp(properties, user_mpp=mpp, vendor="image", where=f"image {path}")
    return ArraySlide(
        pixels,
        mpp=value,
        mpp_source=source,
        slide_id=slide_id,
        path=str(path),
        cohort=cohort,
        vendor="image",
        reader="pillow",
        size_bytes=size_bytes,
        mtime_ns=mtime_ns,
    )


def _decode(path: Path, size_bytes: int) -> tuple[dict[str, str], RGB]:
    from PIL import Image, UnidentifiedImageError

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # ours below is the one that counts, and it can say why
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of damaged tags that we do not read
            with Image.open(path) as image:
                width_px, height_px = image.size
                if width_px * height_px > MAX_BOMB_PX and width_px * height_px > MAX_BOMB_RATIO * size_bytes:
                    raise SlideOpenError(
                        f"image {path}: {size_bytes} bytes claim {width_px} x {height_px} px, as decompression bombs do. "
                        f"Expected at most {MAX_BOMB_RATIO} px a byte above {MAX_BOMB_PX} px. Convert it to a tiled TIFF."
                    )
                if width_px * height_px > MAX_IMAGE_PX:
                    raise SlideOpenError(
                        f"image {path}: claims {width_px} x {height_px} px, expected at most {MAX_IMAGE_PX} px in all for a "
                        "plain image. Convert it to a tiled pyramidal TIFF."
                    )
                if image.mode not in _MODES:
                    raise SlideOpenError(
                        f"image {path}: expected 8 bits a channel, got Pillow mode {image.mode!r}. Convert it to RGB."
                    )
                properties: dict[str, str] = {}
                tags = getattr(image, "tag_v2", None)
                if tags is not None:
                    properties = {"tiff.XResolution": str(tags.get(282)), "tiff.YResolution": str(tags.get(283))}
                    properties["tiff.ResolutionUnit"] = _TIFF_UNITS.get(tags.get(296, 2), "none")
                if image.mode in ("RGBA", "LA", "P"):
                    return properties, over_white(np.asarray(image.convert("RGBA")))
                return properties, np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as err:
        raise SlideOpenError(
            f"{path}: not a slide or image that OpenSlide or Pillow knows. Is the file complete, and is it a slide?"
        ) from err
    except SlideOpenError:
        raise
    except DECODER_ERRORS as err:
        raise SlideOpenError(f"image {path}: cannot be decoded: {err}. Is the file complete?") from err
    finally:
        Image.MAX_IMAGE_PIXELS = limit

"""Parse microns per px from texts in a file: OME-XML, ImageJ, Aperio, libvips and Leica, with all units that they use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from wsiseg.types import MppSource

__all__ = ["MppClaim", "claims_of_text", "number", "ome_images", "um_per_unit"]

_MAX_TEXT = 64 * 1024 * 1024

_UM_PER_UNIT = {
    "pm": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "micrometer": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "dm": 1e5,
    "decimeter": 1e5,
    "m": 1e6,
    "meter": 1e6,
    "in": 25400.0,
    "inch": 25400.0,
    "inche": 25400.0,
    "thou": 25.4,
    "mil": 25.4,
    "li": 25400.0 / 12,
    "ft": 304800.0,
    "foot": 304800.0,
    "yd": 914400.0,
    "pt": 25400.0 / 72,
}


@dataclass(frozen=True, slots=True)
class MppClaim:
    """One statement of a file: um per px in x and y (``nan``: stated, but not usable), and where in the file it was found."""

    source: MppSource
    where: str
    x: float
    y: float


def um_per_unit(unit: str) -> float | None:
    r"""Return the length of a unit in um, ``None`` if it is not a unit of length (``pixel``, ``reference frame``, empty).

    Case and spelling are those seen in files: ``\u00B5m`` written out, the Greek letter and the micro sign, ``Âµm`` of a wrong
    decoding, plurals, British endings.
    """
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), unit).strip().strip('"').replace("\u03bc", "\u00b5")
    if text in ("M", "Mm"):
        return None  # a million meters, or a misspelling: unusable either way
    text = text.replace("Âµ", "µ").replace("\u212b", "å").replace("Å", "å").lower()
    text = text.replace("metre", "meter").replace("µmeter", "µm").replace("ång", "ang").replace("ström", "strom")
    return _UM_PER_UNIT.get(text, _UM_PER_UNIT.get(text.removesuffix("s").removesuffix(".")))


def number(text: object) -> float | None:
    """Return the positive finite number that a text states (a decimal comma is accepted), else ``None``."""
    try:
        value = float(str(text).strip().replace(",", "."))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def claims_of_text(
    text: str, *, x_resolution: float | None, y_resolution: float | None, width_px: int, image: int = 0
) -> Iterator[MppClaim]:
    """Yield the microns per px that a TIFF's ImageDescription states.

    Parameters
    ----------
    text
        The description of the page that contains the picture (or of the first page).
    x_resolution, y_resolution
        The resolution tags, px per unit: ImageJ writes its scale there and only the unit into the text.
    width_px
        Width of the picture. A text that describes a larger one (Aperio thumbnail, shrunk libvips copy) is scaled, or not used.
    image
        Index of the OME image that the picture is, from 0.
    """
    if len(text) > _MAX_TEXT:
        return
    if "<OME" in text[:4096] or ":OME" in text[:4096]:
        yield from _ome(text, image)
    elif text.startswith("ImageJ="):
        yield from _imagej(text, x_resolution, y_resolution)
    elif "<scn" in text[:4096]:
        yield from _leica(text)
    elif "vips" in text[:4096] and "<propert" in text:
        yield from _vips(text, width_px)
    else:
        yield from _aperio(text, width_px)


def _xml(text: str) -> ElementTree.Element | None:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities can grow without bound, and no writer of slides uses them
        return None
    try:
        return ElementTree.fromstring(text.strip().strip("\0").encode())
    except (ElementTree.ParseError, ValueError):
        return None


def _local(node: ElementTree.Element) -> str:
    return str(node.tag).rpartition("}")[2]


def ome_images(text: str) -> list[tuple[str, ElementTree.Element]]:
    """Return (name, ``Pixels`` element) of every image of an OME-XML text, in order; empty if it cannot be parsed."""
    root = _xml(text)
    found = []
    for node in [] if root is None else root:
        if _local(node) == "Image":
            pixels = next((child for child in node if _local(child) == "Pixels"), None)
            if pixels is not None:
                found.append((str(node.get("Name", "")), pixels))
    return found


def _ome(text: str, image: int) -> Iterator[MppClaim]:
    images = ome_images(text)
    if image >= len(images):
        return
    pixels = images[image][1]
    sizes = []
    for axis in "XY":
        value, scale = number(pixels.get(f"PhysicalSize{axis}")), um_per_unit(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        sizes.append(value * scale if value is not None and scale is not None else None)
    x, y = sizes[0] or sizes[1], sizes[1] or sizes[0]
    if x is not None and y is not None:
        yield MppClaim("ome", "OME-XML PhysicalSizeX/Y", x, y)


def _imagej(text: str, x_resolution: float | None, y_resolution: float | None) -> Iterator[MppClaim]:
    facts = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    x_scale = um_per_unit(facts.get("unit", ""))
    y_scale = um_per_unit(facts.get("yunit", facts.get("unit", "")))
    if x_scale and y_scale and x_resolution and y_resolution:
        yield MppClaim("imagej", f"ImageJ text (unit={facts['unit'].strip()})", x_scale / x_resolution, y_scale / y_resolution)


def _aperio(text: str, width_px: int) -> Iterator[MppClaim]:
    found = re.search(r'(?:^|[|\r\n;,{])\s*"?MPP"?\s*[=:]\s*([0-9][0-9.,e+-]*)', text, re.IGNORECASE)
    if found is None or (value := number(found[1].rstrip(","))) is None:
        return
    # "46000x32914 [0,100 46000x32914] (256x256) -> 1024x732": a picture shrunk from the scan that the MPP belongs to
    shrunk = re.search(r"\[\d+,\d+ (\d+)x\d+\][^|]*->\s*(\d+)x\d+", text)
    if shrunk and int(shrunk[2]) == width_px:
        value *= int(shrunk[1]) / width_px
    yield MppClaim("aperio", "Aperio text (MPP)" if found[0].count("MPP") else f"text ({found[0].strip()})", value, value)


def _vips(text: str, width_px: int) -> Iterator[MppClaim]:
    root = _xml(text)
    facts: dict[str, str] = {}
    for node in [] if root is None else root.iter():
        if _local(node) == "property":
            pair = {_local(child): str(child.text or "") for child in node}
            facts[pair.get("name", "")] = pair.get("value", "")
    width = number(facts.get("openslide.level[0].width"))
    for x_name, y_name in (("openslide.mpp-x", "openslide.mpp-y"), ("aperio.MPP", "aperio.MPP")):
        x, y = number(facts.get(x_name)), number(facts.get(y_name))
        if x is not None and y is not None:
            same = width is None or width == width_px
            note = "" if same else f" of a scan {width:.0f} px wide, this picture has {width_px}: a part of it, or shrunk"
            yield MppClaim("vips", f"libvips text ({x_name}){note}", x, y)
            return


def _leica(text: str) -> Iterator[MppClaim]:
    root = _xml(text)
    best: tuple[float, float, float] | None = None
    for node in [] if root is None else root.iter():
        if _local(node) != "image":
            continue
        parts = {_local(child): child for child in node}
        if "pixels" not in parts or "view" not in parts:
            continue
        width, height = (number(parts["pixels"].get(name)) for name in ("sizeX", "sizeY"))
        x_nm, y_nm = (number(parts["view"].get(name)) for name in ("sizeX", "sizeY"))
        if width and height and x_nm and y_nm and (best is None or x_nm / width < best[0]):
            best = (x_nm / width, x_nm / width * 1e-3, y_nm / height * 1e-3)
    if best is not None:
        yield MppClaim("leica", "Leica SCN text (view size in nm)", best[1], best[2])

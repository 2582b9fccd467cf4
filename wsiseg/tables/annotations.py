"""Read annotated outlines as named regions: GeoJSON (of QuPath or others), ASAP XML, ImageScope (Aperio) XML.

The format is recognized by the file's content. Lines, points and rulers are not regions: they are left out and counted.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.tables.outlines import Polygon, Tally, iter_outlined, ring_of, with_area

__all__ = ["ANNOTATION_ENDINGS", "Annotations", "Drawn", "read_annotations"]

Float = npt.NDArray[np.float64]

ANNOTATION_ENDINGS = (".geojson.gz", ".json.gz", ".xml.gz", ".geojsonl", ".geojsons", ".geojson", ".ndjson", ".json", ".xml")
"""Endings of files that are taken from a folder (a file given by name may have any ending)."""

MAX_XML_BYTES = 1 << 30
ELLIPSE_POINTS = 512
"""Corners of the polygon that replaces an ellipse; its area is 0.003 % smaller."""

_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """One region as drawn, in the file's own coordinates.

    Attributes
    ----------
    where
        Its name in messages: the file and the place in it.
    polygons
        Each polygon is a list of rings float64 (n, 2): the outer one, then its holes.
    minus
        Rings that are cut out of all polygons (negative regions of ImageScope).
    name, class_name
        ``""`` if the file gives none.
    """

    where: str
    polygons: list[Polygon]
    name: str = ""
    class_name: str = ""
    minus: list[Float] = field(default_factory=list)


@dataclass(slots=True)
class Annotations:
    """The regions of a file, and its frame if stated: the position of (0, 0), and um/px (None: not stated)."""

    path: Path
    format: Literal["geojson", "asap", "imagescope"]
    regions: list[Drawn] = field(default_factory=list)
    origin: Literal["slide", "bounds"] = "slide"
    mpp: float | None = None
    tally: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)


def read_annotations(path: Path) -> Annotations:
    """Read the regions of an annotation file, gzip-compressed or not.

    GeoJSON: a FeatureCollection, list, single feature or geometry; annotations and tiles of QuPath, not its detections; several
    polygons of one feature are one region. The class is the feature's ``classification`` (or ``class``, ``label`` ...).
    ASAP: Polygon, Spline (through its control points) and Rectangle; the class is ``PartOfGroup``. ImageScope: freehand,
    rectangle and ellipse; the class is the layer's name, else its first attribute, else the region's text; negative regions are
    holes of their layer.

    Raises
    ------
    FormatError
        The file has another format, is damaged, or has objects but no region (a file without any object is accepted).
    """
    head = _head(path)
    found = _read_xml(path, head) if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") else _read_geojson(path)
    polygons = [p for drawn in found.regions for p in drawn.polygons]
    kept = {id(p) for p in with_area(polygons, found.tally)}
    for k, drawn in enumerate(found.regions):
        found.regions[k] = Drawn(
            drawn.where, [p for p in drawn.polygons if id(p) in kept], drawn.name, drawn.class_name, drawn.minus
        )
    found.regions = [drawn for drawn in found.regions if drawn.polygons]
    if not found.regions and found.tally.skipped:
        raise FormatError(f"{path}: no region in this file ({'; '.join(found.tally.lines())}). Expected polygons.")
    return found


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as raw:
            head = raw.read(_HEAD_BYTES)
        if head.startswith(_GZIP):
            with gzip.open(path) as packed:
                return packed.read(_HEAD_BYTES)
        return head
    except (OSError, EOFError) as err:
        raise FormatError(f"{path}: cannot be read: {err}") from err


def _read_geojson(path: Path) -> Annotations:
    out = Annotations(path, "geojson")
    facts: dict[str, Any] = {}
    qupath = False
    for outlined in iter_outlined(path, out.tally, facts, regions=True):
        qupath |= outlined.qupath
        name = outlined.properties.get("name")
        if outlined.polygons:
            label = name if isinstance(name, str) and name != outlined.class_name else ""
            out.regions.append(Drawn(outlined.where, outlined.polygons, label, outlined.class_name))
    own = facts.get("wsiseg")
    if qupath and not (isinstance(own, dict) and own.get("frame") == "slide"):
        out.origin = "bounds"
    return out


def _read_xml(path: Path, head: bytes) -> Annotations:
    if b"<!DOCTYPE" in head or b"<!ENTITY" in head:
        raise FormatError(f"{path}: XML with a DOCTYPE, which annotation files do not have. Expected ASAP or ImageScope XML.")
    try:
        with gzip.open(path) if head != _raw_head(path) else path.open("rb") as stream:
            data = stream.read(MAX_XML_BYTES + 1)
        if len(data) > MAX_XML_BYTES:
            raise FormatError(f"{path}: expected at most {MAX_XML_BYTES >> 20} MB of XML, got more.")
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, EOFError, OSError) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: damaged XML ({err}). Save the file again from its program.") from err
    readers: dict[str, Callable[[Path, ElementTree.Element], Annotations]] = {
        "ASAP_Annotations": _read_asap,
        "Annotations": _read_imagescope,
    }
    if root.tag not in readers:
        raise FormatError(
            f"{path}: expected ASAP XML (<ASAP_Annotations>) or ImageScope XML (<Annotations>), got <{root.tag[:60]}>."
        )
    return readers[root.tag](path, root)


def _raw_head(path: Path) -> bytes:
    with path.open("rb") as raw:
        return raw.read(_HEAD_BYTES)


def _read_asap(path: Path, root: ElementTree.Element) -> Annotations:
    out = Annotations(path, "asap")
    for number, node in enumerate(root.iter("Annotation")):
        name, kind = node.get("Name", ""), node.get("Type", "Polygon")
        where = f"{path}, annotation {number} {name!r}"
        if kind.lower() not in ("polygon", "spline", "rectangle"):
            out.tally.skip(f"annotations of type {kind}")
            continue
        if kind.lower() == "spline":
            out.tally.repair("splines read as polygons through their control points")
        points = sorted(node.iter("Coordinate"), key=lambda c: _number(c.get("Order", "0"), where, out.tally))
        group = node.get("PartOfGroup", "")
        drawn = _region(points, where, out.tally)
        if drawn is not None:
            out.regions.append(Drawn(where, [[drawn]], name, "" if group == "None" else group))
    return out


def _read_imagescope(path: Path, root: ElementTree.Element) -> Annotations:
    out = Annotations(path, "imagescope")
    stated = root.get("MicronsPerPixel", "")
    if re.fullmatch(r"\s*[0-9]*[.,]?[0-9]+\s*", stated):
        out.mpp = float(stated.replace(",", ".")) or None
    for layer in root.iter("Annotation"):
        attributes = (a.get("Value") or a.get("Name") or "" for a in layer.findall("Attributes/Attribute"))
        layer_name = layer.get("Name", "") or next(filter(None, attributes), "")
        drawn: list[Drawn] = []
        minus: list[Float] = []
        for node in layer.iter("Region"):
            where = f"{path}, layer {layer.get('Id', '?')} {layer_name!r}, region {node.get('Id', '?')}"
            ring = _imagescope_ring(node, where, out.tally)
            if ring is None:
                continue
            if node.get("NegativeROA", "0") == "1":
                minus.append(ring)
            else:
                text = node.get("Text", "")
                drawn.append(Drawn(where, [[ring]], text, layer_name or text, minus))
        if minus and not drawn:
            out.tally.skip("negative regions of a layer without regions", len(minus))
        out.regions += drawn
    return out


def _imagescope_ring(node: ElementTree.Element, where: str, tally: Tally) -> Float | None:
    """Return the outline of a Region: freehand (0), rectangle (1, all corners or two), ellipse (2, corners of its box)."""
    kinds = {"0": "freehand", "1": "rectangle", "2": "ellipse", "3": "arrow", "4": "ruler", "5": "point"}
    kind = kinds.get(node.get("Type", "0"), f"type {node.get('Type')}")
    points = list(node.iter("Vertex"))
    if kind not in ("freehand", "rectangle", "ellipse"):
        tally.skip(f"regions of the kind {kind}")
        return None
    if kind == "freehand" or (kind == "rectangle" and len(points) > 2):
        return _region(points, where, tally)
    if len(points) < 2:
        tally.skip("outlines of fewer than three points")
        return None
    xy = _coordinates(points, where, tally)
    low, high = xy.min(axis=0), xy.max(axis=0)
    if kind == "rectangle":
        return np.array([low, (high[0], low[1]), high, (low[0], high[1]), low])
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    return (low + high) / 2 + np.stack([np.cos(angle), np.sin(angle)], axis=1) * (high - low) / 2


def _region(points: list[ElementTree.Element], where: str, tally: Tally) -> Float | None:
    return ring_of(_coordinates(points, where, tally), where, tally, closed=False)


def _coordinates(points: list[ElementTree.Element], where: str, tally: Tally) -> Float:
    return np.array([[_number(p.get(axis), where, tally) for axis in "XY"] for p in points], np.float64).reshape(-1, 2)


def _number(text: str | None, where: str, tally: Tally) -> float:
    try:
        return float(text or "")
    except ValueError:
        pass
    try:
        value = float((text or "").replace(",", "."))
    except ValueError:
        raise FormatError(f"{where}: expected a coordinate, got {str(text)[:40]!r}.") from None
    tally.repair("coordinates with a decimal comma")
    return value

"""Read outlines of nuclei from another tool's file, by the same rules for all importers, ``evaluate`` and tissue masks.

Left out and counted (``Tally.skipped``): objects without a geometry, empty geometries, points and lines, rings of fewer than
three different points or without area, and objects that contain nuclei. Repaired and counted (``Tally.repaired``): open rings
in formats with closed ones, trailing commas, numbers written as text. Only content that cannot be interpreted is refused, and
the message names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.tables.jsonstream import iter_objects, open_text

__all__ = ["FLAT", "MAX_COORDINATE_PX", "MAX_RING_POINTS", "Outlined", "Tally", "flat_rings", "iter_outlined", "polygons_of",
           "require_outlines", "ring_of", "with_area"]  # fmt: skip

Float = npt.NDArray[np.float64]
Polygon = list[Float]
"""Rings of one polygon, the outer one first: float64 (n, 2), as in the file."""

MAX_COORDINATE_PX = 2.0**31
MAX_RING_POINTS = 1_000_000
MAX_DEPTH = 20

_EMPTY = "empty geometries"
_SHORT = "outlines of fewer than three points"
FLAT = "outlines without area"
_NONE = "objects without a geometry"
_TYPED = "geometries of type "
_HOLDERS = frozenset(("root", "tmacore"))
_MAYBE_HOLDERS = frozenset(("annotation", "tile"))
_NUCLEI = frozenset(("detection", "cell"))
_NUCLEUS_TEXT = re.compile(
    r'"object_?type"\s*:\s*"(?:Path)?(?:detection|cell)(?:Object)?"|"id"\s*:\s*"Path(?:Detection|Cell)Object"', re.IGNORECASE
)
_CLASS_KEYS = ("classification", "type", "class", "class_name", "cell_type", "label")
_SCAN_CHARS = 1 << 20
_GEOMETRIES = frozenset(
    ("Point", "MultiPoint", "LineString", "MultiLineString", "Polygon", "MultiPolygon", "GeometryCollection")
)


@dataclass(slots=True)
class Tally:
    """Numbers of objects of a file that were left out or repaired, by reason."""

    skipped: dict[str, int] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)

    def skip(self, reason: str, n: int = 1) -> None:
        """Count objects that are left out."""
        if n:
            self.skipped[reason] = self.skipped.get(reason, 0) + n

    def repair(self, what: str, n: int = 1) -> None:
        """Count objects that are repaired."""
        if n:
            self.repaired[what] = self.repaired.get(what, 0) + n

    def lines(self) -> list[str]:
        """Return the counts as lines such as ``left out, empty geometries: 3``."""
        out = [f"left out, {reason}: {n:,}" for reason, n in sorted(self.skipped.items())]
        return out + [f"repaired, {what}: {n:,}" for what, n in sorted(self.repaired.items())]


@dataclass(frozen=True, slots=True, eq=False)
class Outlined:
    """One object of a file with its polygons (none: left out), class (``""``: not stated) and properties."""

    where: str
    polygons: list[Polygon]
    class_name: str = ""
    properties: dict[str, Any] = field(default_factory=dict)
    qupath: bool = False


def iter_outlined(
    path: Path, tally: Tally, facts: dict[str, Any] | None = None, *, regions: bool = False
) -> Iterator[Outlined]:
    """Yield the objects of a GeoJSON file in any of its shapes, one after the other in bounded memory.

    The file may be a FeatureCollection, a list of features, a single feature, a geometry or GeometryCollection, JSON lines or a
    text sequence, compressed or not. Annotations and tiles of QuPath are nuclei only if the file has no detections or cells,
    which they would contain. With ``regions`` annotations and tiles are yielded, and detections and cells are left out.

    Raises
    ------
    FormatError
        The JSON is damaged, or an object is not GeoJSON; the message names the object.
    """
    holds_nuclei: bool | None = None
    for number, item in iter_objects(path, ("features", "geometries"), facts, tally.repaired):
        where = f"{path}, feature {number}"
        for feature in _features(item, where):
            if feature is None:
                tally.skip(_NONE)
                continue
            kind = _object_type(feature)
            if kind in _MAYBE_HOLDERS and holds_nuclei is None and not regions:
                holds_nuclei = _has_nuclei(path)
            if kind in _HOLDERS or (kind in _NUCLEI if regions else kind in _MAYBE_HOLDERS and holds_nuclei):
                tally.skip(f"objects of type {kind}")
                continue
            properties = feature.get("properties")
            properties = properties if isinstance(properties, dict) else {}
            name = _class_of(properties)
            if kind in _MAYBE_HOLDERS and not regions and name.endswith("*"):
                tally.skip(f"regions of the class {name}")
                continue
            yield Outlined(where, _nucleus_polygons(feature, kind, where, tally), name, properties, bool(kind))


def polygons_of(geometry: Any, where: str, tally: Tally, depth: int = 0) -> list[Polygon]:
    """Return the polygons of a GeoJSON geometry or of all parts of a collection.

    Some may have no area: these are removed later for all polygons of a file at once (``flat_rings``, ``with_area``).

    Raises
    ------
    FormatError
        It is not a geometry, or its coordinates are not finite numbers.
    """
    if geometry is None:
        tally.skip(_NONE)
        return []
    if not isinstance(geometry, dict):
        raise FormatError(f"{where}: expected a geometry, got {str(geometry)[:60]!r}.")
    kind = geometry.get("type")
    if kind == "GeometryCollection":
        parts = geometry.get("geometries")
        if not isinstance(parts, list):
            raise FormatError(f"{where}: expected the geometries of a GeometryCollection, got {str(parts)[:60]!r}.")
        if not parts:
            tally.skip(_EMPTY)
        if depth > MAX_DEPTH:
            raise FormatError(f"{where}: expected GeometryCollections in at most {MAX_DEPTH} layers.")
        return [polygon for part in parts for polygon in polygons_of(part, where, tally, depth + 1)]
    if kind not in ("Polygon", "MultiPolygon"):
        if not isinstance(kind, str) or kind not in _GEOMETRIES:
            raise FormatError(f"{where}: expected the 'type' of a GeoJSON geometry, got {str(kind)[:40]!r}.")
        tally.skip(f"{_TYPED}{kind}")
        return []
    coordinates = geometry.get("coordinates")
    if coordinates is not None and not isinstance(coordinates, list):
        raise FormatError(f"{where}: expected the coordinates of a {kind}, got {str(coordinates)[:60]!r}.")
    parts = [coordinates] if kind == "Polygon" else coordinates or [None]
    return [polygon for part in parts if (polygon := _polygon(part, where, tally))]


def ring_of(points: Any, where: str, tally: Tally, *, closed: bool) -> Float | None:
    """Return a ring as float64 (n, 2); None if it is not an outline, which is counted in ``tally``.

    Parameters
    ----------
    closed
        Whether the format repeats the first point at the end; rings that do not are counted as repaired.

    Raises
    ------
    FormatError
        ``points`` is not a list of finite (x, y) numbers below 2^31, or too long.
    """
    if not isinstance(points, list | tuple | np.ndarray):
        raise FormatError(f"{where}: expected a ring as a list of points, got {str(points)[:60]!r}.")
    if len(points) == 0:
        tally.skip(_EMPTY)
        return None
    array = _numbers(points, where, tally)
    if len(array) > MAX_RING_POINTS:
        raise FormatError(f"{where}: expected a ring of at most {MAX_RING_POINTS} points, got {len(array)}.")
    if not (array.min() > -MAX_COORDINATE_PX and array.max() < MAX_COORDINATE_PX):
        odd = array[~(np.abs(array) < MAX_COORDINATE_PX)]
        raise FormatError(f"{where}: expected finite coordinates below 2^31, got {float(odd[0])}.")
    is_closed = len(array) > 1 and array[0, 0] == array[-1, 0] and array[0, 1] == array[-1, 1]
    if len(array) - bool(is_closed) < 3:
        tally.skip(_SHORT)
        return None
    if closed and not is_closed:
        tally.repair("open rings closed")
    return array


def with_area(polygons: list[Polygon], tally: Tally) -> list[Polygon]:
    """Return the polygons whose outer ring encloses an area; the others are counted."""
    if not polygons:
        return polygons
    offsets = np.r_[0, np.cumsum([len(rings[0]) for rings in polygons])].astype(np.int64)
    flat = flat_rings(np.concatenate([rings[0] for rings in polygons]), offsets)
    tally.skip(FLAT, int(flat.sum()))
    return [rings for rings, gone in zip(polygons, flat.tolist(), strict=True) if not gone] if flat.any() else polygons


def require_outlines(n: int, tally: Tally, where: str) -> None:
    """Raise ``FormatError`` if a file has points or lines but no outline, because its nuclei would be lost silently.

    A file whose objects are all empty is accepted and has 0 nuclei.
    """
    if n == 0 and any(reason.startswith(_TYPED) for reason in tally.skipped):
        raise FormatError(
            f"{where}: no outline of a nucleus in this file ({'; '.join(tally.lines())}): points and lines have no area; "
            "give the file with polygons."
        )


def flat_rings(xy: Float, ring_offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which rings (open or closed, none of them empty) enclose no area, bool (N,).

    A ring that crosses itself may have a shoelace sum of 0 and still enclose an area: such rings are checked by GEOS.
    """
    import shapely

    n = len(ring_offsets) - 1
    if n == 0:
        return np.zeros(0, np.bool_)
    start, lengths = ring_offsets[:-1], np.diff(ring_offsets)
    x, y = (xy - np.repeat(xy[start], lengths, axis=0)).T
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    cross[ring_offsets[1:] - 1] = 0.0  # from the last point to the first, which is (0, 0) here
    extent = np.maximum.reduceat(np.maximum(np.abs(x), np.abs(y)), start)
    least = 1e-9 * extent**2  # relative: marks are fractions of the slide
    flat = np.abs(np.add.reduceat(cross, start)) <= 2 * least
    for k in np.flatnonzero(flat).tolist():  # few
        ring = xy[ring_offsets[k] : ring_offsets[k + 1]]
        if lengths[k] >= 4 or (lengths[k] == 3 and bool((ring[0] != ring[-1]).any())):
            flat[k] = shapely.make_valid(shapely.Polygon(ring)).area <= least[k]
    return np.asarray(flat, np.bool_)


def _numbers(points: Any, where: str, tally: Tally) -> Float:
    """Return points as float64 (n, 2); further coordinates of a point (z, m) are left out."""
    try:
        array = np.asarray(points, np.float64)
    except (ValueError, TypeError, OverflowError):
        try:
            array = np.asarray([point[:2] for point in points], np.float64)  # points of different length
        except (ValueError, TypeError, OverflowError, IndexError, KeyError) as err:
            raise FormatError(f"{where}: expected a ring of (x, y) numbers, got broken coordinates ({err}).") from err
    if array.ndim != 2 or array.shape[1] < 2:
        raise FormatError(f"{where}: expected a ring of points (x, y), got broken coordinates of shape {array.shape}.")
    if type(points[0]) is list and isinstance(points[0][0], str):
        tally.repair("numbers written as text")
    return array[:, :2]


def _polygon(rings: Any, where: str, tally: Tally) -> Polygon | None:
    if rings is None or (isinstance(rings, list) and not rings):
        tally.skip(_EMPTY)
        return None
    if not isinstance(rings, list):
        raise FormatError(f"{where}: expected a polygon as a list of rings, got {str(rings)[:60]!r}.")
    outer = ring_of(rings[0], where, tally, closed=True)
    if outer is None:
        return None
    unseen = Tally()  # discarded: a hole without area is not a lost nucleus
    holes = (ring_of(ring, where, unseen, closed=True) for ring in rings[1:])
    return [outer, *(hole for hole in holes if hole is not None)]


def _features(item: Any, where: str, depth: int = 0) -> Iterator[dict[str, Any] | None]:
    """Yield the features of a list item: itself, those of a FeatureCollection, or a geometry as a feature."""
    if item is None:
        yield None
        return
    if not isinstance(item, dict):
        raise FormatError(f"{where}: expected an object, got {type(item).__name__}.")
    kind = item.get("type")
    if kind == "FeatureCollection":
        inner = item.get("features")
        if inner is not None and not isinstance(inner, list):
            raise FormatError(f"{where}: expected a list of features, got {str(inner)[:40]!r}.")
        if depth > MAX_DEPTH:
            raise FormatError(f"{where}: expected FeatureCollections in at most {MAX_DEPTH} layers.")
        for feature in inner or []:
            yield from _features(feature, where, depth + 1)
    elif isinstance(kind, str) and kind in _GEOMETRIES:
        yield {"geometry": item}
    elif kind == "Feature" or "geometry" in item:
        yield item
    else:
        raise FormatError(
            f"{where}: expected a FeatureCollection, a list of features, a feature or a geometry, got the type "
            f"{str(kind)[:40]!r} with the members {sorted(map(str, item))[:6]}."
        )


def _object_type(feature: dict[str, Any]) -> str:
    """Return QuPath's kind of object in lower case (``detection``, ``annotation`` ...), "" if the file is not QuPath's."""
    properties = feature.get("properties")
    if isinstance(properties, dict):
        stated = properties.get("objectType", properties.get("object_type"))
        if isinstance(stated, str):
            return stated.lower()
    old = str(feature.get("id")).lower()  # QuPath up to 0.2 states it in the id: PathDetectionObject, TMACoreObject
    return old.removeprefix("path").removesuffix("object") if old.endswith("object") else ""


def _has_nuclei(path: Path) -> bool:
    """Return whether a file has detections or cells of QuPath: its text is searched, without building the objects."""
    with open_text(path) as stream:
        tail = ""
        while block := stream.read(_SCAN_CHARS):
            if _NUCLEUS_TEXT.search(tail + block):
                return True
            tail = block[-200:]
    return False


def _nucleus_polygons(feature: dict[str, Any], kind: str, where: str, tally: Tally) -> list[Polygon]:
    """Return the polygons of the nucleus; of a QuPath cell without one, those of the cell."""
    nucleus = feature.get("nucleusGeometry")
    if nucleus is not None:
        return polygons_of(nucleus, where, tally)
    found = polygons_of(feature.get("geometry"), where, tally)
    if found and kind == "cell":
        tally.repair("cells without an outline of their nucleus: that of the cell is taken")
    return found


def _class_of(properties: dict[str, Any]) -> str:
    for key in _CLASS_KEYS:
        value = properties.get(key)
        if key == "label" and not isinstance(value, str):
            continue  # a number there is that of the object
        name = _class_name(value, 0)
        if name and name not in _GEOMETRIES:
            return name
    return ""


def _class_name(value: Any, depth: int) -> str:
    """Return a class given as a name, a number, a list of names, or an object with one of these."""
    if isinstance(value, dict):
        inner = (_class_name(value.get(key), depth + 1) for key in ("names", "name", "classification") if depth < 4)
        return next((name for name in inner if name), "")
    if isinstance(value, list):
        return ": ".join(str(v) for v in value if isinstance(v, str | int))
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""

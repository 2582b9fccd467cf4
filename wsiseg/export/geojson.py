"""QuPath (and any) GeoJSON -> nuclei, one feature after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wsiseg.errors import FormatError
from wsiseg.export.incoming import Flag, Incoming, Provenance, Source, from_rings
from wsiseg.export.jsonstream import iter_objects

__all__ = ["CHUNK_NUCLEI", "read_geojson"]

CHUNK_NUCLEI = 16384
_CONTAINERS = ("tmaCore", "root")


def read_geojson(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the polygons of a GeoJSON file: FeatureCollection, list or single feature, also in ``.gz`` or ``.zip``.

    Every part of a MultiPolygon is a nucleus (CellViT puts a whole class into one). Of a QuPath cell the nucleus is taken.
    Holes are filled and flagged. Points and lines are no nuclei: skipped and counted.

    Raises
    ------
    FormatError
        Broken JSON, a feature of another shape, an open ring, coordinates that are not finite.
    """
    rings: list[Any] = []
    wheres: list[str] = []
    rows: list[tuple[int, str, str, float]] = []
    for number, feature in iter_objects(source.path, "features"):
        where = f"{source.path}, feature {number}"
        polygons, name, own_id, prob = _feature(feature, where, provenance)
        for part, polygon in enumerate(polygons):
            if not isinstance(polygon, list) or not polygon:
                raise FormatError(f"{where}: expected a polygon as a list of rings, got {str(polygon)[:60]!r}.")
            rings.append(_closed_ring(polygon[0], where))
            wheres.append(f"{where}, part {part}")
            flags = (Flag.HOLES_FILLED if len(polygon) > 1 else 0) | (Flag.SPLIT if len(polygons) > 1 else 0)
            rows.append((int(flags), name, own_id, prob))
        if len(rings) >= CHUNK_NUCLEI:
            yield _chunk(rings, wheres, rows, source)
            rings, wheres, rows = [], [], []
    if rings:
        yield _chunk(rings, wheres, rows, source)


def _chunk(rings: list[Any], wheres: list[str], rows: list[tuple[int, str, str, float]], source: Source) -> Incoming:
    flags, names, ids, probs = zip(*rows, strict=True)
    own = [int(i) for i in ids] if all(i.removeprefix("-").isdigit() and len(i) < 20 for i in ids) else None
    nuclei = from_rings(
        rings,
        source,
        wheres,
        nucleus_id=None if own is None or max(map(abs, own)) >= 2**63 else np.array(own, np.int64),
        class_name=list(names) if any(names) else None,
        center_prob=np.array(probs) if not np.isnan(probs).all() else None,
    )
    nuclei.flags[:] |= np.array(flags, np.uint8)
    return nuclei


def _feature(feature: Any, where: str, provenance: Provenance) -> tuple[list[Any], str, str, float]:
    """Return polygons (each a list of rings), class, wsiseg's id and score of a feature."""
    if not isinstance(feature, dict):
        raise FormatError(f"{where}: expected an object, got {type(feature).__name__}.")
    if feature.get("type") in ("Polygon", "MultiPolygon"):
        feature = {"geometry": feature}
    properties = feature.get("properties") or {}
    geometry = feature.get("nucleusGeometry") or feature.get("geometry")
    if not isinstance(properties, dict) or not isinstance(geometry, dict):
        raise FormatError(f"{where}: expected a feature with a geometry, got {str(feature)[:80]!r}.")
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if properties.get("objectType") in _CONTAINERS:
        provenance.skip(f"objects of type {properties['objectType']}")
        return [], "", "", float("nan")
    if kind not in ("Polygon", "MultiPolygon"):
        provenance.skip(f"geometries of type {kind}")
        return [], "", "", float("nan")
    if not isinstance(coordinates, list):
        raise FormatError(f"{where}: expected the coordinates of a {kind}, got {str(coordinates)[:60]!r}.")
    metadata = properties.get("metadata")
    own_id = str(metadata.get("nucleus_id", "")) if isinstance(metadata, dict) else ""
    return [coordinates] if kind == "Polygon" else coordinates, _class_of(properties), own_id, _score(properties)


def _class_of(properties: dict[str, Any]) -> str:
    value = properties.get("classification")
    if isinstance(value, dict):
        names = value.get("names")
        value = ": ".join(map(str, names)) if isinstance(names, list) else value.get("name")
    return "" if value is None else str(value)


def _score(properties: dict[str, Any]) -> float:
    """Return our own center probability where the file carries it (0 to 1), else nan."""
    found = properties.get("measurements")
    if isinstance(found, list):
        found = {m.get("name"): m.get("value") for m in found if isinstance(m, dict)}
    value = found.get("Center probability") if isinstance(found, dict) else None
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else float("nan")


def _closed_ring(ring: Any, where: str) -> Any:
    if not isinstance(ring, list):
        raise FormatError(f"{where}: expected a ring as a list of points, got {str(ring)[:60]!r}.")
    if len(ring) < 4 or ring[0] != ring[-1]:
        ends = f"first {str(ring[:1])[:40]}, last {str(ring[-1:])[:40]}"
        raise FormatError(f"{where}: expected a closed ring of 4 points or more (RFC 7946), got {len(ring)} points, {ends}.")
    return ring

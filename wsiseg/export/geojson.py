"""Read nuclei from GeoJSON of QuPath or any other tool, feature by feature."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wsiseg.export.incoming import Flag, Incoming, Provenance, Source, from_rings
from wsiseg.tables.outlines import iter_outlined

__all__ = ["CHUNK_NUCLEI", "read_geojson"]

CHUNK_NUCLEI = 16384
_SCORES = ("Center probability", "Detection probability")


def read_geojson(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the polygons of a GeoJSON file, compressed or not (see ``wsiseg.tables.outlines``).

    Every part of a MultiPolygon is a nucleus (CellViT puts a whole class into one). Of a QuPath cell, its nucleus is used.
    Holes
    are filled and flagged. Objects that are not polygons are left out and counted.

    Raises
    ------
    FormatError
        Invalid JSON, a feature without the expected members, or coordinates that are not finite.
    """
    rings: list[Any] = []
    wheres: list[str] = []
    rows: list[tuple[int, str, str, float]] = []
    facts: dict[str, Any] = {}
    for outlined in iter_outlined(source.path, provenance.tally, facts):
        stated = _states_slide(facts)
        if outlined.qupath and not stated:
            provenance.stated_origin = "bounds"
        metadata = outlined.properties.get("metadata")
        own_id = str(metadata.get("nucleus_id", "")) if isinstance(metadata, dict) else ""
        prob = _score(outlined.properties)
        for part, polygon in enumerate(outlined.polygons):
            rings.append(polygon[0])
            wheres.append(f"{outlined.where}, part {part}")
            flags = (Flag.HOLES_FILLED if len(polygon) > 1 else 0) | (Flag.SPLIT if len(outlined.polygons) > 1 else 0)
            rows.append((int(flags), outlined.class_name, own_id, prob))
        if len(rings) >= CHUNK_NUCLEI:
            yield _chunk(rings, wheres, rows, source)
            rings, wheres, rows = [], [], []
    if rings:
        yield _chunk(rings, wheres, rows, source)


def _chunk(rings: list[Any], wheres: list[str], rows: list[tuple[int, str, str, float]], source: Source) -> Incoming:
    flags, names, ids, probs = zip(*rows, strict=True)
    own = [int(i) for i in ids] if all(i.removeprefix("-").isdecimal() and len(i) < 20 for i in ids) else None
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


def _states_slide(facts: dict[str, Any]) -> bool:
    """Return whether the file is an export of wsiseg which states that coordinates are relative to the slide's corner."""
    own = facts.get("wsiseg")
    return isinstance(own, dict) and own.get("frame") == "slide"


def _score(properties: dict[str, Any]) -> float:
    """Return the detector's probability, 0 to 1, or NaN if the feature has none."""
    found = properties.get("measurements")
    if isinstance(found, list):
        found = {str(m.get("name")): m.get("value") for m in found if isinstance(m, dict)}
    found = found if isinstance(found, dict) else {}
    for value in (*(found.get(name) for name in _SCORES), properties.get("prob"), properties.get("probability")):
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
            return float(value)
    return float("nan")

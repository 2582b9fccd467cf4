"""Read nuclei from CellViT's ``cells.json`` and HoVer-Net's ``.json`` (contours in level-0 px of the whole slide)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from wsiseg.export.geojson import CHUNK_NUCLEI, read_geojson
from wsiseg.export.incoming import Incoming, Provenance, Source, from_rings
from wsiseg.tables.cells import is_geojson, iter_cells, stated_mpp

__all__ = ["read_cellvit"]


def read_cellvit(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the cells of a CellViT ``cells.json`` (any version) or HoVer-Net ``.json``, also compressed (gzip, zip, snappy).

    The GeoJSON of CellViT (one MultiPolygon per class) can be read too.

    Contours and centroids are (x, y); a cell's ``type`` becomes ``class_name`` by the file's ``type_map``, which may map
    numbers to names or names to numbers, anywhere in the file. ``type_prob`` is not used, because it is the
    confidence in the class and not in the nucleus.

    Raises
    ------
    FormatError
        Invalid JSON, or cells without contours.
    """
    if is_geojson(source.path):
        for nuclei in read_geojson(source, provenance):
            provenance.stated_origin = "slide"  # CellViT's GeoJSON is relative to the slide's corner, unlike QuPath's
            yield nuclei
        return
    facts: dict[str, Any] = {}
    provenance.missing += ["center_prob"]
    rings: list[Any] = []
    wheres: list[str] = []
    types: list[Any] = []
    unnamed = False
    for where, ring, kind in iter_cells(source.path, provenance.tally, facts):
        provenance.mpp = provenance.mpp or stated_mpp(facts)
        if ring is None:
            continue
        rings.append(ring)
        wheres.append(where)
        types.append(kind)
        if len(rings) >= CHUNK_NUCLEI:
            unnamed |= _unnamed(types, facts)
            yield from_rings(rings, source, wheres, class_name=_names(types, facts))
            rings, wheres, types = [], [], []
    provenance.mpp = provenance.mpp or stated_mpp(facts)
    if rings:
        unnamed |= _unnamed(types, facts)
        yield from_rings(rings, source, wheres, class_name=_names(types, facts))
    if unnamed:
        provenance.notes.append("class_name holds numbers: the file does not name all of its types")
    if isinstance(facts.get("mag"), int | float):
        provenance.notes.append(f"the file was made at {facts['mag']}x: its coordinates are px of that magnification")


def _type_map(facts: dict[str, Any]) -> dict[str, str]:
    """Return ``{number of a type: its name}``, whether the file has numbers or names as keys."""
    found = facts.get("type_map")
    names: dict[str, str] = {}
    for key, value in found.items() if isinstance(found, dict) else ():
        if isinstance(value, list) and value:  # HoVer-Net's type_info: [name, color]
            value = value[0]
        if isinstance(value, dict):
            value = value.get("name", "")
        by_name = isinstance(value, int) or (isinstance(value, str) and value.isdecimal())
        number, name = (value, key) if by_name and not str(key).isdecimal() else (key, value)
        names[str(number)] = str(name)
    return names


def _unnamed(types: list[Any], facts: dict[str, Any]) -> bool:
    return bool({str(t) for t in types if isinstance(t, int)} - set(_type_map(facts)))


def _names(types: list[Any], facts: dict[str, Any]) -> list[str] | None:
    if all(t is None for t in types):
        return None
    names = _type_map(facts)
    return ["" if t is None else names.get(str(t), str(t)) for t in types]

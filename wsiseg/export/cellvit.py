"""CellViT's ``cells.json`` -> nuclei (contours in level-0 px of the whole slide)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from wsiseg.errors import FormatError
from wsiseg.export.geojson import CHUNK_NUCLEI
from wsiseg.export.incoming import Incoming, Provenance, Source, from_rings
from wsiseg.export.jsonstream import iter_objects

__all__ = ["read_cellvit"]


def read_cellvit(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the cells of a CellViT (or CellViT++) ``cells.json``, also in ``.gz``.

    Contours and centroids are (x, y); a cell's ``type`` becomes ``class_name`` by the file's ``type_map``, its ``type_prob``
    stays unused, for it says how sure the class is, not the nucleus. ``cells.json.snappy`` must be unpacked first.

    Raises
    ------
    FormatError
        Broken JSON, or a cell without a contour of (x, y) points.
    """
    facts: dict[str, Any] = {}
    provenance.missing += ["center_prob"]
    rings: list[Any] = []
    wheres: list[str] = []
    types: list[Any] = []
    for number, cell in iter_objects(source.path, "cells", facts):
        where = f"{source.path}, cell {number}"
        if not isinstance(cell, dict) or not isinstance(cell.get("contour"), list):
            raise FormatError(f"{where}: expected a cell with a 'contour' (CellViT cells.json), got {str(cell)[:60]!r}.")
        if len(cell["contour"]) < 3:
            provenance.skip("contours of fewer than three points")
            continue
        rings.append(cell["contour"])
        wheres.append(where)
        types.append(cell.get("type"))
        if len(rings) >= CHUNK_NUCLEI:
            _facts(facts, provenance)
            yield from_rings(rings, source, wheres, class_name=_names(types, facts))
            rings, wheres, types = [], [], []
    _facts(facts, provenance)
    if rings:
        yield from_rings(rings, source, wheres, class_name=_names(types, facts))


def _names(types: list[Any], facts: dict[str, Any]) -> list[str] | None:
    if all(t is None for t in types):
        return None
    mapped = facts.get("type_map")
    mapped = mapped if isinstance(mapped, dict) else {}
    return ["" if t is None else str(mapped.get(str(t), t)) for t in types]


def _facts(facts: dict[str, Any], provenance: Provenance) -> None:
    """Take the slide's um/px from the file's metadata, where it is a number."""
    meta = facts.get("wsi_metadata")
    if not isinstance(meta, dict):
        return
    for key in ("base_mpp", "slide_mpp", "mpp"):
        value = meta.get(key)
        if isinstance(value, int | float) and np.isfinite(value) and 0 < value < 100:
            provenance.mpp = float(value)
            return

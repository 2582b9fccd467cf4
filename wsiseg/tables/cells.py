"""Read cells of CellViT (``cells.json``) and HoVer-Net (``.json``), by the rules of ``wsiseg.tables.outlines``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.tables.jsonstream import iter_objects, open_text
from wsiseg.tables.outlines import Tally, ring_of

__all__ = ["is_cells_json", "is_geojson", "iter_cells", "stated_mpp"]

Float = npt.NDArray[np.float64]
_CELLS_TEXT = re.compile(r'"(?:cells|nuc|mag|wsi_metadata|type_map|processed_patches|contour)"\s*:')
_IS_CELL = frozenset(("contour", "centroid", "bbox"))
_GEOJSON_TEXT = re.compile(r'"(?:features|geometry|geometries|coordinates)"\s*:')


def iter_cells(path: Path, tally: Tally, facts: dict[str, Any]) -> Iterator[tuple[str, Float | None, Any]]:
    """Yield (where, contour, type) of CellViT's ``cells`` or HoVer-Net's ``nuc``; those without contour are left out.

    The whole file may also be a list of cells, or an object of cells by number (older HoVer-Net).

    Parameters
    ----------
    facts
        Filled with all other members of the file before the first cell is yielded.

    Raises
    ------
    FormatError
        The JSON is damaged, the file has another format, or none of its cells has a contour.
    """
    bare = found = 0
    items = iter_objects(path, ("cells", "nuc"), facts, tally.repaired)
    for number, cell in enumerate(cell for _, item in items for cell in _cells_of(item)):
        if not found and not ({"type_map", "wsi_metadata"} <= set(facts) or "mag" in facts):
            _read_facts(path, facts)
        where = f"{path}, cell {number}"
        if not isinstance(cell, dict) or not _IS_CELL & set(cell):
            raise FormatError(
                f"{where}: expected a cell with a 'contour' (cells.json of CellViT, json of HoVer-Net), got {str(cell)[:60]!r}."
            )
        found += 1
        bare += "contour" not in cell
        contour = cell.get("contour")
        ring = None
        if contour is None:
            tally.skip("cells without a contour")
        else:
            ring = ring_of(contour, where, tally, closed=False)
        yield where, ring, cell.get("type")
    if found and bare == found:
        raise FormatError(
            f"{path}: none of its {found} cells (the first is cell 0) has a contour: this is a list of centers, as CellViT's "
            "cell_detection.json. Give the file with contours (cells.json)."
        )


def _cells_of(item: Any) -> Iterable[Any]:
    """Return the cells of an object whose members are all cells by number, else the item itself."""
    held = item.values() if isinstance(item, dict) and item and not _IS_CELL & set(item) else ()
    return held if held and all(isinstance(v, dict) and _IS_CELL & set(v) for v in held) else (item,)


def _read_facts(path: Path, facts: dict[str, Any]) -> None:
    """Read the other members than the cells, which may come after them, in one pass in bounded memory."""
    for _, item in iter_objects(path, ("cells", "nuc"), facts):
        if isinstance(item, dict) and item and item == facts:  # no array of cells: the item is the whole object
            return


def is_cells_json(path: Path) -> bool:
    """Return whether a JSON file begins like CellViT's or HoVer-Net's, not like GeoJSON."""
    begin = _begin(path)
    return begin.lstrip().startswith(("{", "[")) and bool(_CELLS_TEXT.search(begin)) and not _GEOJSON_TEXT.search(begin)


def is_geojson(path: Path) -> bool:
    """Return whether a JSON file begins like GeoJSON, not like CellViT's or HoVer-Net's cells."""
    begin = _begin(path)
    return bool(_GEOJSON_TEXT.search(begin)) and not _CELLS_TEXT.search(begin)


def _begin(path: Path) -> str:
    with open_text(path) as stream:
        return stream.read(1 << 16)


def stated_mpp(facts: dict[str, Any]) -> float | None:
    """Return the slide's um/px from CellViT's metadata if it is a number or the text of one, else ``None``."""
    meta = facts.get("wsi_metadata")
    if not isinstance(meta, dict):
        return None
    for key in ("base_mpp", "slide_mpp", "mpp"):
        try:
            value = float(meta.get(key) or 0)
        except (TypeError, ValueError):
            continue
        if 0 < value < 100:
            return value
    return None

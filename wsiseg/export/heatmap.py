"""Write a polygon table as a heat map of caMicroscope: one JSON document with values of square cells of the slide.

The form is that of the viewer's code (``apps/heatmap``, ``core/extension/osd-heatmap-overlay.js`` of caMicroscope): a row of
``data`` is x, y of a cell's upper left corner, as fractions of the slide's width and height, and a value for each of
``provenance.analysis.fields``.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import EmptyExportError, InputError
from wsiseg.export.marks import image_facts, short_digest
from wsiseg.export.text import concat, number_text, text_bytes
from wsiseg.tables import atomic_path
from wsiseg.tables.source import Exported, NucleiFile
from wsiseg.write import slide_maps
from wsiseg.write.maps import SlideMaps, TissueOf

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

__all__ = ["FIELDS", "heatmap_cell_px", "write_heatmap"]

FIELDS = {"nuclei per mm2": 0, "mean nuclear area um2": 1, "nuclear area fraction": 2}
"""Names of the fields, and which of ``MAP_NAMES`` each one is."""

CELL_UM = 64.0
MAX_CELLS = 150_000
TOO_MANY_CELLS = 1 << 22
MAX_BYTES = 16_000_000
"""A document of MongoDB, in which caMicroscope keeps heat maps, takes at most 16 MiB."""

ROW_BLOCK = 512


def heatmap_cell_px(source: NucleiFile) -> int:
    """Return the side of a cell, level-0 px: 64 um, doubled until the slide has at most ``MAX_CELLS`` cells."""
    cell = max(4, round(CELL_UM / source.mpp))
    while -(-source.width_px // cell) * -(-source.height_px // cell) > MAX_CELLS:
        cell *= 2
    return cell


def write_heatmap(source: NucleiFile, out: Path, *, cell_px: int | None = None, tissue: TissueOf | None = None) -> Exported:
    """Write a heat map (``.json``): density, mean area and cover of the cells that have tissue or nuclei.

    Parameters
    ----------
    cell_px
        Side of a cell, level-0 px; default ``heatmap_cell_px``.
    tissue
        See ``wsiseg.write.slide_maps``; None: not known, and only cells with nuclei are written.

    Raises
    ------
    InputError
        The size of the slide is not known, or cells are so small that MongoDB would refuse the document.
    EmptyExportError
        The table has no nucleus.
    """
    if source.width_px <= 0 or source.height_px <= 0:
        raise InputError(
            f"{source.path}: a heat map needs the slide's width and height, which this table does not contain. "
            "Import it again with --slide-file, or with --width and --height."
        )
    if source.n_nuclei == 0:
        raise EmptyExportError(f"{source.path}: there is no nucleus, so there is nothing to show in a heat map.")
    cell_px = cell_px or heatmap_cell_px(source)
    if (cells := -(-source.width_px // cell_px) * -(-source.height_px // cell_px)) > TOO_MANY_CELLS:
        raise InputError(
            f"{source.path}: cells of {cell_px} px cut the slide into {cells:,}, and caMicroscope's database takes heat "
            f"maps of up to about 300,000. Choose a larger --cell-px (default here: {heatmap_cell_px(source)})."
        )
    maps = slide_maps(source, None, cell_px, tissue)
    head = _head(source, maps)
    done = len(head)
    with atomic_path(out) as partial, partial.open("wb") as stream:
        stream.write(head)
        for first in range(0, len(maps.count), ROW_BLOCK):
            text = text_bytes(_rows(source, maps, first))
            if len(text) == 0:
                continue
            done += stream.write(text if done > len(head) else text[1:])  # every row begins with a comma
            if done > MAX_BYTES:
                raise InputError(
                    f"{source.path}: a heat map with cells of {cell_px} px is larger than {MAX_BYTES / 1e6:.0f} MB, which "
                    f"caMicroscope's database refuses. Choose a larger --cell-px (default here: {heatmap_cell_px(source)})."
                )
        stream.write(b"]}\n")
    return Exported(out, source.n_nuclei)


def _head(source: NucleiFile, maps: SlideMaps) -> bytes:
    """Return the document up to its rows."""
    size = [maps.cell_px / source.width_px, maps.cell_px / source.height_px]
    fields = [{"name": n, "range": [0, _above(maps, k)]} for n, k in FIELDS.items()]
    analysis: dict[str, Any] = {
        "source": "computer", "type": "heatmap", "computation": "heatmap",
        "execution_id": f"wsiseg_heatmap_{short_digest(source)}", "coordinateSystem": "image", "size": size, "fields": fields,
        "setting": {"mode": "gradient", "field": next(iter(FIELDS))},
    }  # fmt: skip
    image = image_facts(source)
    analysis["study_id"] = image["study"]
    head = json.dumps({"provenance": {"image": image, "analysis": analysis}}, separators=(",", ":"))
    return head[:-1].encode() + b',"data":['


def _above(maps: SlideMaps, which: int) -> float:
    """Return a number of two digits above every value of a map: the viewer leaves out cells at or above the range's end."""
    top = 0.0
    for first in range(0, len(maps.count), ROW_BLOCK):
        values = maps.stack(slice(first, first + ROW_BLOCK))[which]
        top = max(top, float(np.nanmax(values, initial=0.0)))
    if top <= 0:
        return 1.0
    digit = math.floor(math.log10(top)) - 1
    return float(f"{(math.floor(top / 10**digit) + 1)}e{digit}")


def _rows(source: NucleiFile, maps: SlideMaps, first: int) -> pa.StringArray:
    """Return the rows of some lines of cells as JSON arrays; null where a cell has no nucleus to measure."""
    import pyarrow as pa
    import pyarrow.compute as pc

    part = slice(first, first + ROW_BLOCK)
    shown = maps.count[part] > 0
    if maps.tissue_px is not None:
        shown |= maps.tissue_px[part] > 0
    y, x = np.nonzero(shown)
    values = maps.stack(part)
    columns = [_text(x * (maps.cell_px / source.width_px)), _text((y + first) * (maps.cell_px / source.height_px))]
    for k in FIELDS.values():
        kept = values[k][y, x].astype(np.float64)
        text = _text(np.round(kept, 4))
        columns.append(pc.if_else(pa.array(np.isnan(kept)), "null", text))
    pieces: list[Any] = [",["]
    for column in columns:
        pieces += [column, ","]
    return concat(*pieces[:-1], "]")


def _text(values: npt.NDArray[Any]) -> pa.StringArray:
    import pyarrow as pa

    return number_text(pa.array(values))

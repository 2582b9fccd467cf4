"""Write a polygon table as annotation files of two viewers, ASAP XML and ImageScope (Aperio) XML, in bounded memory.

Coordinates are level-0 px relative to the slide's corner. The class of a nucleus is ``PartOfGroup`` in ASAP and the layer in
ImageScope.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import quoteattr

import numpy as np

from wsiseg.export.classes import CLASS_RGB, PLAIN_CLASS, shown_classes
from wsiseg.export.text import concat, decimal_text, join_rings, number_text, text_bytes
from wsiseg.tables import atomic_path
from wsiseg.tables.source import Chunk, Exported, NucleiFile, Selection, iter_chunks

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["write_asap", "write_imagescope"]

DECIMALS = 2
COLORS = CLASS_RGB[:6]


def write_asap(source: NucleiFile, out: Path, selection: Selection | None = None) -> Exported:
    """Write ASAP XML with one Polygon per nucleus, named by its id, in the group of its class."""
    done = 0
    names: dict[str, str] = {}
    with atomic_path(out) as partial, partial.open("wb") as stream:
        stream.write(b'<?xml version="1.0"?>\n<ASAP_Annotations>\n<Annotations>\n')
        for chunk, classes in _chunks(source, selection):
            for name in dict.fromkeys(classes):
                names.setdefault(name, "#{:02X}{:02X}{:02X}".format(*COLORS[len(names) % len(COLORS)]))
            stream.write(text_bytes(_asap(chunk, classes, names)))
            done += len(chunk)
        stream.write(b"</Annotations>\n<AnnotationGroups>\n")
        for name, color in names.items():
            group = f'<Group Name={quoteattr(name)} PartOfGroup="None" Color="{color}"><Attributes/></Group>\n'
            stream.write(group.encode())
        stream.write(b"</AnnotationGroups>\n</ASAP_Annotations>\n")
    return Exported(out, done)


def write_imagescope(source: NucleiFile, out: Path, selection: Selection | None = None) -> Exported:
    """Write ImageScope XML with one layer per class and one region per nucleus, whose text is its id.

    The table is read once per class.
    """
    import pyarrow as pa

    names = list(dict.fromkeys(name for _, classes in _chunks(source, selection) for name in classes)) or [PLAIN_CLASS]
    done = 0
    with atomic_path(out) as partial, partial.open("wb") as stream:
        stated = f' MicronsPerPixel="{source.mpp:.6f}"' if source.mpp > 0 else ""
        stream.write(f'<?xml version="1.0" encoding="UTF-8"?>\n<Annotations{stated}>\n'.encode())
        for k, name in enumerate(names):
            red, green, blue = COLORS[k % len(COLORS)]
            color = red | green << 8 | blue << 16  # COLORREF of Windows: red in the lowest byte
            layer = f'<Annotation Id="{k + 1}" Name={quoteattr(name)} ReadOnly="0" Type="4" LineColor="{color}" Visible="1">\n'
            stream.write(f"{layer}<Attributes/>\n<Regions>\n<RegionAttributeHeaders/>\n".encode())
            n = 0
            for chunk, classes in _chunks(source, selection):
                own = np.array([c == name for c in classes], np.bool_)
                if own.any():
                    numbers = np.zeros(len(chunk), np.int64)
                    numbers[own] = np.arange(n + 1, n + 1 + np.count_nonzero(own))
                    n += int(np.count_nonzero(own))
                    stream.write(text_bytes(_imagescope(chunk, pa.array(numbers)).filter(pa.array(own))))
            stream.write(b"</Regions>\n<Plots/>\n</Annotation>\n")
            done += n
        stream.write(b"</Annotations>\n")
    return Exported(out, done)


def _chunks(source: NucleiFile, selection: Selection | None) -> Iterator[tuple[Chunk, list[str]]]:
    """Yield each chunk with the class names of its nuclei."""
    for chunk in iter_chunks(source, selection or Selection(), ["class_name"]):
        yield chunk, shown_classes(chunk).to_pylist()


def _asap(chunk: Chunk, classes: list[str], names: dict[str, str]) -> pa.StringArray:
    import pyarrow as pa

    order = np.arange(len(chunk.xy)) - np.repeat(chunk.ring_offsets[:-1], np.diff(chunk.ring_offsets))
    x, y = (decimal_text(chunk.xy[:, axis], DECIMALS, trim=True) for axis in (0, 1))
    points = join_rings(
        concat(number_text(pa.array(order)), '" X="', x), y, chunk.ring_offsets, '" Y="', '"/><Coordinate Order="'
    )
    group = pa.array([f'PartOfGroup={quoteattr(c)} Color="{names[c]}"' for c in classes])
    return concat(
        '<Annotation Name="',
        number_text(chunk.table["nucleus_id"]),
        '" Type="Polygon" ',
        group,
        '><Coordinates><Coordinate Order="',
        points,
        '"/></Coordinates></Annotation>\n',
    )


def _imagescope(chunk: Chunk, numbers: pa.Array) -> pa.StringArray:
    x, y = (decimal_text(chunk.xy[:, axis], DECIMALS, trim=True) for axis in (0, 1))
    points = join_rings(x, y, chunk.ring_offsets, '" Y="', '" Z="0"/><Vertex X="')
    number = number_text(numbers)
    return concat(
        '<Region Id="',
        number,
        '" Type="0" Zoom="1" Selected="0" Text="',
        number_text(chunk.table["nucleus_id"]),
        '" NegativeROA="0" InputRegionId="0" Analyze="1" DisplayId="',
        number,
        '"><Attributes/><Vertices><Vertex X="',
        points,
        '" Z="0"/></Vertices></Region>\n',
    )

"""Write and read mark documents of caMicroscope / QuIP: JSON lines with coordinates as fractions of width and height.

The structure is that of ``config/segments.json`` in the QuIP distribution.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.export.geojson import CHUNK_NUCLEI
from wsiseg.export.incoming import Flag, Incoming, Provenance, Source, from_rings
from wsiseg.export.text import concat, join_rings, number_text, text_bytes
from wsiseg.tables import atomic_path
from wsiseg.tables.jsonstream import iter_lines
from wsiseg.tables.outlines import polygons_of
from wsiseg.tables.source import Chunk, Exported, NucleiFile, Selection, iter_chunks

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["image_facts", "read_marks", "short_digest", "write_marks"]

STYLE = '{"style":{"color":"#00fcfc","lineJoin":"round","lineCap":"round","isFill":false},"nommp":true}'
NAMESPACE_URL = "http://u24.bmi.stonybrook.edu/v1"
DECIMALS_PX = 6
"""Decimals of a pixel to which coordinates are rounded after multiplying fractions back; the error of doubles is smaller."""


def write_marks(
    source: NucleiFile,
    out: Path,
    selection: Selection | None = None,
    *,
    name: str = "wsiseg",
    execution_id: str = "",
    study: str = "",
    subject: str = "",
) -> Exported:
    """Write one mark document per line (``.json`` or ``.json.gz``), as mongoimport expects.

    Parameters
    ----------
    name, execution_id
        Name and id of the segmentation in the viewer; the default id is the name with the digest of the run.
    study, subject
        Study and subject of the image; default: from the first three fields of a TCGA barcode, else the slide's id.

    Raises
    ------
    InputError
        The size of the slide is not known, so that fractions of it cannot be computed.
    """
    if source.width_px <= 0 or source.height_px <= 0:
        raise InputError(
            f"{source.path}: mark documents need the slide's width and height, which this table does not contain. "
            "Import it again with --slide-file, or with --width and --height."
        )
    image = image_facts(source, study, subject)
    analysis = {
        "source": "computer",
        "execution_id": execution_id or f"{name}_{short_digest(source)}",
        "name": name,
        "computation": "segmentation",
    }
    tail = json.dumps({"image": image, "analysis": analysis}, separators=(",", ":"))
    done = 0
    with atomic_path(out) as partial, ExitStack() as stack:
        stream: Any = stack.enter_context(partial.open("wb"))
        if out.suffix.lower() == ".gz":
            stream = stack.enter_context(gzip.GzipFile("", "wb", 4, stream, mtime=0))
        for chunk in iter_chunks(source, selection or Selection(), ["area_px"]):
            _write_chunk(stream, chunk, source, json.dumps(name), tail)
            done += len(chunk)
    return Exported(out, done)


def short_digest(source: NucleiFile) -> str:
    """Return the first 8 digits of the run's digest (empty: an imported table)."""
    return str(source.facts.get("digest") or "")[:8]


def image_facts(source: NucleiFile, study: str = "", subject: str = "") -> dict[str, str]:
    """Return how the viewer's documents name an image; study and subject of a TCGA barcode are its first three fields."""
    case = "-".join(source.slide_id.split("-")[:3]) if source.slide_id.startswith("TCGA-") else source.slide_id
    return {
        "slide": source.slide_id,
        "imageid": source.slide_id,
        "study": study or case,
        "specimen": "",
        "subject": subject or case,
    }


def _write_chunk(stream: IO[bytes], chunk: Chunk, source: NucleiFile, name: str, tail: str) -> None:
    size = np.array([source.width_px, source.height_px], np.float64)
    unit = chunk.xy / size
    first = chunk.ring_offsets[:-1]
    x0, y0, x1, y1 = (_text(reduce.reduceat(unit[:, axis], first)) for reduce in (np.minimum, np.maximum) for axis in (0, 1))
    ring = join_rings(_text(unit[:, 0]), _text(unit[:, 1]), chunk.ring_offsets, ",", "],[")
    area = _text(np.rint(chunk.column("area_px")).astype(np.int64))
    physical = _text(np.rint(chunk.column("area_px") * max(1, round(source.scale)) ** 2).astype(np.int64))
    document = concat(
        '{"properties":{"annotations":{"AreaInPixels":', area, ',"PhysicalSize":', physical,
        f',"ns":"{NAMESPACE_URL}","name":{name}}}}},"geometries":{{"type":"FeatureCollection","features":[{{"type":"Feature","properties":'
        f'{STYLE},"geometry":{{"type":"Polygon","coordinates":[[[', ring,
        ']]]},"bound":{"type":"Polygon","coordinates":[[[',
        x0, ",", y0, "],[", x1, ",", y0, "],[", x1, ",", y1, "],[", x0, ",", y1, "],[", x0, ",", y0,
        ']]]}}]},"footprint":', area, ',"parent_id":"self","normalized":"true","bbox":[', x0, ",", y0, ",", x1, ",", y1,
        '],"x":', x0, ',"y":', y0, f',"object_type":"nucleus","provenance":{tail}}}\n',
    )  # fmt: skip
    stream.write(text_bytes(document))


def _text(values: npt.NDArray[Any]) -> pa.StringArray:
    import pyarrow as pa

    return number_text(pa.array(values))


def read_marks(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the polygons of a file with one mark document per line.

    Raises
    ------
    InputError
        The slide's width and height are not given; they are needed to turn fractions into pixels.
    FormatError
        A line is not a mark document, or its coordinates are not fractions from 0 to 1.
    """
    if not source.width_px or not source.height_px:
        raise InputError(
            f"{source.path}: mark documents have fractions of the slide's sides: add --slide-file, or --width and --height."
        )
    size = np.array([source.width_px, source.height_px], np.float64)
    provenance.width_px, provenance.height_px = source.width_px, source.height_px
    provenance.missing += ["center_prob"]
    rings: list[Any] = []
    wheres: list[str] = []
    flags: list[int] = []
    for line, document in iter_lines(source.path):
        where = f"{source.path}, line {line}"
        polygons, normalized = _polygons(document, where, provenance)
        for k, polygon in enumerate(polygons):
            rings.append(_pixels(polygon, size if normalized else np.ones(2), f"{where}, feature {k}"))
            wheres.append(f"{where}, feature {k}")
            flags.append(Flag.HOLES_FILLED if len(polygon) > 1 else 0)
        if len(rings) >= CHUNK_NUCLEI:
            yield _flagged(from_rings(rings, source, wheres), flags)
            rings, wheres, flags = [], [], []
    if rings:
        yield _flagged(from_rings(rings, source, wheres), flags)


def _flagged(nuclei: Incoming, flags: list[int]) -> Incoming:
    nuclei.flags[:] |= np.array(flags, np.uint8)
    return nuclei


def _polygons(document: Any, where: str, provenance: Provenance) -> tuple[list[list[Any]], bool]:
    """Return the polygons of a document (each a list of rings), and whether their coordinates are fractions."""
    try:
        features = document["geometries"]["features"]
        normalized = str(document.get("normalized", "false")).lower() == "true"
        name = document.get("provenance", {}).get("image", {}).get("imageid", "")
        geometries = [f["geometry"] for f in features]
    except (KeyError, TypeError, AttributeError) as err:
        raise FormatError(f"{where}: expected a caMicroscope mark document with geometries.features ({err!r}).") from err
    polygons = [p for k, g in enumerate(geometries) for p in polygons_of(g, f"{where}, feature {k}", provenance.tally)]
    if name and provenance.slide_name and name != provenance.slide_name:
        raise FormatError(
            f"{where}: expected only marks of image {provenance.slide_name}, got one of {name!r}. Split the file by image."
        )
    provenance.slide_name = provenance.slide_name or str(name)
    return polygons, normalized


def _pixels(polygon: list[Any], size: npt.NDArray[np.float64], where: str) -> npt.NDArray[np.float64]:
    ring = np.asarray(polygon[0], np.float64)
    if (size > 1).all() and not (np.abs(ring) <= 2).all():
        raise FormatError(f"{where}: expected fractions of the slide's width and height, 0 to 1, got {ring.max()}.")
    return np.round(ring * size, DECIMALS_PX)

"""Write and read ``AnnotationStore`` of TIAToolbox (SQLite: WKB compressed with zlib, an R-tree, properties as JSON).

The schema is that of ``tiatoolbox.annotation.storage.SQLiteStore`` 1.0.1.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import FormatError
from wsiseg.export.geojson import CHUNK_NUCLEI
from wsiseg.export.incoming import Flag, Incoming, Provenance, Source, from_rings
from wsiseg.export.text import nucleus_uuids
from wsiseg.tables import atomic_path, wkb_polygons
from wsiseg.tables.source import Exported, NucleiFile, Selection, iter_chunks

__all__ = ["read_annotation_store", "write_annotation_store"]

STORE_VERSION = "1.0.1"
ANNOTATIONS = (
    "id INTEGER PRIMARY KEY, key TEXT UNIQUE, objtype TEXT, cx FLOAT NOT NULL, cy FLOAT NOT NULL, "
    "geometry BLOB, properties TEXT, area FLOAT NOT NULL"
)
CREATE = (
    "PRAGMA journal_mode = OFF",
    "PRAGMA synchronous = OFF",
    "BEGIN",
    "CREATE TABLE metadata (key TEXT UNIQUE, value TEXT)",
    "CREATE VIRTUAL TABLE rtree USING rtree(id, min_x, max_x, min_y, max_y)",
    f"CREATE TABLE annotations({ANNOTATIONS})",
)
ZLIB_LEVEL = 4
MAX_WKB_BYTES = 64 * 1024 * 1024
PROPERTIES = ("area_um2", "perimeter_um", "major_um", "minor_um", "orientation_rad", "center_prob", "material_prob")


def write_annotation_store(source: NucleiFile, out: Path, selection: Selection | None = None) -> Exported:
    """Write nuclei as an annotation store (``.db``), level-0 px of the whole slide.

    Properties are the measured columns and ``type`` (the class, or ``Nucleus``). Keys are the UUIDs of nuclei.
    """
    done = 0
    with atomic_path(out) as partial, closing(sqlite3.connect(partial, isolation_level=None)) as db:
        for statement in CREATE:
            db.execute(statement)
        facts = {"version": STORE_VERSION, "compression": "zlib", "compression_level": ZLIB_LEVEL}
        facts["wsiseg"] = {
            "slide_id": source.slide_id,
            "mpp": source.mpp,
            "width_px": source.width_px,
            "height_px": source.height_px,
        }
        db.executemany("INSERT INTO metadata VALUES (?, ?)", [(k, json.dumps(v)) for k, v in facts.items()])
        names = [p for p in PROPERTIES if p in source.columns]
        for chunk in iter_chunks(source, selection or Selection(), [*names, "area_px", "class_name"]):
            n, first = len(chunk), chunk.ring_offsets[:-1]
            low, high = (f.reduceat(chunk.xy, first, axis=0).tolist() for f in (np.minimum, np.maximum))
            center, area = (chunk.column(c).tolist() for c in ("cx", "area_px"))
            cy = chunk.column("cy").tolist()
            wkb = wkb_polygons(chunk.xy, chunk.ring_offsets).to_pylist()
            keys = nucleus_uuids(source.slide_id, chunk.column("nucleus_id")).to_pylist()
            texts = _properties(chunk.table.select([*names, *(c for c in ["class_name"] if c in source.columns)]))
            ids = range(done + 1, done + n + 1)
            # sqlite3 only accepts rows of Python values, so this loops
            db.executemany(
                "INSERT INTO annotations VALUES (?, ?, 'Polygon', ?, ?, ?, ?, ?)",
                zip(ids, keys, center, cy, (zlib.compress(w, ZLIB_LEVEL) for w in wkb), texts, area, strict=True),
            )
            boxes = ((i, a[0], b[0], a[1], b[1]) for i, a, b in zip(ids, low, high, strict=True))
            db.executemany("INSERT INTO rtree VALUES (?, ?, ?, ?, ?)", boxes)
            done += n
        db.execute("COMMIT")
    return Exported(out, done)


def _properties(table: Any) -> list[str]:
    """Return the columns of each row as JSON."""
    rows = table.to_pylist()
    for row in rows:
        row["type"] = row.pop("class_name", None) or "Nucleus"
    return [json.dumps(row, separators=(",", ":")) for row in rows]


def read_annotation_store(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the polygons of an annotation store in the order of their ids.

    The property ``type`` becomes ``class_name``, and ``prob`` (or wsiseg's ``center_prob``) the score. Points and lines are
    left
    out and counted; holes are filled and flagged.

    Raises
    ------
    FormatError
        The file is not such a database, or a geometry cannot be decoded.
    """
    if not source.path.is_file():
        raise FormatError(f"{source.path}: no such file.")
    rows: list[Any] = []
    try:
        with closing(sqlite3.connect(f"{source.path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            stored = dict(db.execute("SELECT key, value FROM metadata"))
            packing = json.loads(stored.get("compression", "null"))
            if packing not in ("zlib", None):
                raise FormatError(f"{source.path}: expected compression zlib or none, got {packing!r}.")
            _facts(stored, provenance)
            for row in db.execute("SELECT id, objtype, geometry, properties FROM annotations ORDER BY id"):
                rows.append(row)
                if len(rows) >= CHUNK_NUCLEI:
                    yield _chunk(rows, packing, source, provenance)
                    rows = []
    except (sqlite3.Error, ValueError) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{source.path}: expected an annotation store of TIAToolbox ({err}).") from err
    if rows:
        yield _chunk(rows, packing, source, provenance)


def _facts(stored: dict[str, str], provenance: Provenance) -> None:
    facts = json.loads(stored.get("wsiseg", "{}"))
    if isinstance(facts, dict) and facts:
        provenance.mpp, provenance.slide_name = facts.get("mpp"), str(facts.get("slide_id") or "")
        provenance.width_px, provenance.height_px = facts.get("width_px"), facts.get("height_px")


def _chunk(rows: list[Any], packing: str | None, source: Source, provenance: Provenance) -> Incoming:
    rings: list[Any] = []
    wheres: list[str] = []
    flags: list[int] = []
    names: list[str] = []
    probs: list[float] = []
    for key, kind, blob, text in rows:
        where = f"{source.path}, annotation {key}"
        if blob is None:
            provenance.skip("objects without a geometry")
            continue
        if kind not in ("Polygon", "MultiPolygon", "GeometryCollection"):
            provenance.skip(f"geometries of type {kind}")
            continue
        outlines, holes = _outlines(blob, packing, where)
        provenance.skip("empty geometries", 0 if outlines else 1)
        name, prob = _class_and_score(text, where)
        for outline in outlines:
            rings.append(outline)
            wheres.append(where)
            names.append(name)
            probs.append(prob)
            flags.append((Flag.HOLES_FILLED if holes else 0) | (Flag.SPLIT if len(outlines) > 1 else 0))
    known = np.array(probs, np.float64)
    nuclei = from_rings(
        rings, source, wheres, class_name=names if any(names) else None, center_prob=None if np.isnan(known).all() else known
    )
    nuclei.flags[:] |= np.array(flags, np.uint8)
    return nuclei


def _outlines(blob: bytes | str, packing: str | None, where: str) -> tuple[list[Any], bool]:
    """Return the outer rings of a stored geometry, and whether it has holes."""
    import shapely

    try:
        if isinstance(blob, str):
            shape = shapely.from_wkt(blob)
        else:
            stream = zlib.decompressobj()
            raw = stream.decompress(blob, MAX_WKB_BYTES) if packing == "zlib" else blob
            if packing == "zlib" and not stream.eof:
                raise FormatError(
                    f"{where}: expected a geometry of at most {MAX_WKB_BYTES} bytes, got a larger or truncated one."
                )
            shape = shapely.from_wkb(raw)
    except (zlib.error, shapely.errors.ShapelyError) as err:
        raise FormatError(f"{where}: expected a geometry as {'zlib-compressed ' if packing else ''}WKB ({err}).") from err
    parts = [p for p in shapely.get_parts(shapely.get_parts(shape)) if p.geom_type == "Polygon" and not p.is_empty]
    return [shapely.get_coordinates(p.exterior) for p in parts], any(len(p.interiors) for p in parts)


def _class_and_score(text: str | None, where: str) -> tuple[str, float]:
    """Return class name and score from the JSON text of properties."""
    try:
        said = json.loads(text or "{}")
    except ValueError as err:
        raise FormatError(f"{where}: expected properties as JSON ({err}).") from err
    if not isinstance(said, dict):
        return "", float("nan")
    own = said.get("center_prob")
    prob = own / 255 if isinstance(own, int) else said.get("prob", said.get("probability"))
    name = said.get("type", said.get("class", ""))
    return "" if name is None else str(name), float(prob) if isinstance(prob, int | float) else float("nan")

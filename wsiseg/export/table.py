"""Write nuclei of another tool as a polygon table with the columns, Hilbert order and metadata of a segmented slide.

Chunks are first written to a temporary Arrow file in the folder of the table and then gathered row group by row group, which
needs memory for only some tens of bytes per nucleus.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import plain_text
from wsiseg.export.incoming import Flag, Incoming, Provenance, checked
from wsiseg.schema import IMPORTED, NUCLEI, SCHEMA_VERSION
from wsiseg.tables import arrow_schema, atomic_path, geo_metadata, hilbert_key, wkb_polygons
from wsiseg.tables.arrow import BBOX_FIELDS, META_KEY
from wsiseg.tables.outlines import FLAT, flat_rings
from wsiseg.types import SlideMeta

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Imported", "write_imported_table"]

ROW_GROUP_ROWS = 16384
DICTIONARIES = ("class_name", "tile_id", "import_flags", "center_prob")
OPTIONAL = ("center_prob", "material_prob", "class_name")
"""Columns that are null if the source does not have them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Imported:
    """Result of an import: nuclei written, nuclei with each flag, objects left out or repaired, and notes for the user."""

    path: Path
    slide_id: str
    n_nuclei: int
    width_px: int
    height_px: int
    flags: dict[str, int]
    skipped: dict[str, int]
    repaired: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def write_imported_table(
    chunks: Iterable[Incoming], out: Path, meta: SlideMeta, provenance: Provenance, *, strict: bool = False
) -> Imported:
    """Write the polygon table of one slide from a reader's chunks.

    Parameters
    ----------
    meta
        The slide; ``meta.mpp`` is used for columns in um, and ``width_px, height_px`` may be 0 if they are unknown.
    provenance
        Filled in by the reader while its chunks are read, then written into the file metadata under ``imported``.
    strict
        Raise for rings that cross themselves instead of flagging them.

    Notes
    -----
    ``nucleus_id`` is ``y * 2**31 + x`` of the centroid's pixel, increased where two nuclei share a pixel, unless the source has
    ids of wsiseg. ``tile_id`` is -1. Perimeters are lengths of rings. ``center_prob`` is the detector's score, or null;
    ``material_prob`` is null.

    Raises
    ------
    FormatError
        As raised by the reader, or ``strict`` is set and a ring is invalid.
    """
    import pyarrow as pa

    spill = out.with_name(f".{out.name}.{os.getpid()}.spill.partial")
    try:
        kept = _spill((c for raw in chunks if len(c := _with_area(raw, provenance))), spill, meta, str(out), strict)
        meta = _with_size(meta, kept, provenance)
        with pa.memory_map(str(spill)) as mapped:
            _write(pa.ipc.open_file(mapped), kept, out, _schema(kept, meta, provenance))
    finally:
        spill.unlink(missing_ok=True)
    counts = {flag.name: int(kept.flag_counts[k]) for k, flag in enumerate(Flag) if kept.flag_counts[k] and flag.name}
    tally = provenance.tally
    return Imported(
        out, meta.slide_id, len(kept.ids), meta.width_px, meta.height_px, counts, dict(tally.skipped), dict(tally.repaired),
        tuple(provenance.notes),
    )  # fmt: skip


def _with_area(nuclei: Incoming, provenance: Provenance) -> Incoming:
    """Return the nuclei whose ring has a nonzero area; count the others in ``provenance``."""
    flat = flat_rings(nuclei.xy, nuclei.ring_offsets)
    if not flat.any():
        return nuclei
    provenance.skip(FLAT, int(flat.sum()))
    return nuclei.taken(np.flatnonzero(~flat))


def _with_size(meta: SlideMeta, kept: _Kept, provenance: Provenance) -> SlideMeta:
    """Return the slide; if its size is unknown, the extent of its polygons is used."""
    if meta.width_px > 0 and meta.height_px > 0:
        return meta
    provenance.notes.append("the slide's size is not known: width and height are the extent of its polygons")
    reach = (1, 1) if kept.bbox is None else (max(1, math.ceil(kept.bbox[2])), max(1, math.ceil(kept.bbox[3])))
    return dataclasses.replace(meta, width_px=meta.width_px or reach[0], height_px=meta.height_px or reach[1])


def _write(batches: Any, kept: _Kept, out: Path, schema: pa.Schema) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    order = kept.order()
    firsts = np.concatenate([[0], np.cumsum(kept.lengths)]).astype(np.int64)
    leaves = [f.name for f in schema if f.name not in ("geometry", "bbox")] + [f"bbox.{b}" for b in BBOX_FIELDS]
    layout = {"compression": "zstd", "compression_level": 3, "use_dictionary": list(DICTIONARIES), "write_statistics": leaves}
    with atomic_path(out) as partial, pq.ParquetWriter(str(partial), schema, **layout) as writer:
        for first in range(0, len(order), ROW_GROUP_ROWS):
            rows = order[first : first + ROW_GROUP_ROWS]
            table = _gather(batches, firsts, rows).append_column("nucleus_id", pa.array(kept.ids[rows]))
            writer.write_table(table.select(schema.names).cast(schema), row_group_size=len(rows))


@dataclasses.dataclass(slots=True)
class _Kept:
    """What is kept in memory of each nucleus: centroid and id."""

    centroids: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int64]
    lengths: list[int]
    flag_counts: npt.NDArray[np.int64]
    bbox: tuple[float, float, float, float] | None
    on_lattice: bool

    def order(self) -> npt.NDArray[np.int64]:
        """Return row numbers sorted by the Hilbert key of the centroid, then by id."""
        cells = [np.clip(np.floor(self.centroids[:, a]), 0, 2**32 - 1).astype(np.uint32) for a in (0, 1)]
        return np.lexsort((self.ids, hilbert_key(*cells)))


def _spill(chunks: Iterable[Incoming], path: Path, meta: SlideMeta, where: str, strict: bool) -> _Kept:
    """Write the chunks to a temporary Arrow file; return what is kept in memory."""
    import pyarrow as pa

    schema = arrow_schema([c for c in (*NUCLEI, *IMPORTED) if c.name != "nucleus_id"], nullable=True)
    centroids, ids, lengths = [np.empty((0, 2))], [np.empty(0, np.int64)], []
    counts, lattice = np.zeros(len(Flag), np.int64), True
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    own = True
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for raw in chunks:
            nuclei, columns = checked(raw, meta.mpp, where, strict=strict)
            writer.write_batch(_batch(nuclei, columns, schema))
            centroid = np.stack([columns["cx"], columns["cy"]], axis=1)
            centroids.append(centroid)
            own &= nuclei.nucleus_id is not None
            ids.append(_pixel_ids(centroid) if nuclei.nucleus_id is None else nuclei.nucleus_id)
            lengths.append(len(nuclei))
            counts += [int(np.count_nonzero(nuclei.flags & f)) for f in Flag]
            lattice &= bool((nuclei.xy == np.rint(nuclei.xy)).all())
            low, high = np.minimum(low, nuclei.xy.min(0)), np.maximum(high, nuclei.xy.max(0))
    where_all, id_all = np.concatenate(centroids), np.concatenate(ids)
    if not own:
        id_all = _pixel_ids(where_all)
    bbox = (float(low[0]), float(low[1]), float(high[0]), float(high[1])) if lengths else None
    return _Kept(where_all, _distinct(id_all), lengths, counts, bbox, lattice)


def _pixel_ids(centroid: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    cell = np.floor(centroid).astype(np.int64)
    return cell[:, 1] * 2**31 + cell[:, 0]


def _distinct(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the ids, with repeated ones increased until all differ; the first of equal ids keeps its value."""
    order = np.argsort(ids, kind="stable")
    ranked = ids[order]
    # the smallest strictly increasing sequence not below the sorted ids: running maximum of (id - position), plus position
    position = np.arange(len(ids))
    lifted = np.maximum.accumulate(ranked - position) + position if len(ids) else ranked
    out = np.empty_like(ids)
    out[order] = lifted
    return out


def _batch(nuclei: Incoming, columns: dict[str, npt.NDArray[Any]], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    n, first = len(nuclei), nuclei.ring_offsets[:-1]
    edges = [_outward(np.minimum.reduceat(nuclei.xy[:, a], first), up=False) for a in (0, 1)]
    edges += [_outward(np.maximum.reduceat(nuclei.xy[:, a], first), up=True) for a in (0, 1)]
    arrays: dict[str, Any] = {
        "geometry": wkb_polygons(nuclei.xy, nuclei.ring_offsets),
        "bbox": pa.StructArray.from_arrays([pa.array(e) for e in edges], fields=list(schema.field("bbox").type)),
        "tile_id": pa.array(np.full(n, -1, np.int32)),
        "import_flags": pa.array(nuclei.flags),
        "class_name": pa.array(nuclei.class_name) if nuclei.class_name else pa.nulls(n, pa.string()),
        "center_prob": _prob(nuclei.center_prob, n),
        "material_prob": pa.nulls(n, pa.uint8()),
    }
    for name, values in columns.items():
        arrays.setdefault(name, pa.array(values.astype(schema.field(name).type.to_pandas_dtype())))
    return pa.record_batch([arrays[name] for name in schema.names], schema=schema)


def _prob(values: npt.NDArray[np.float64] | None, n: int) -> pa.Array:
    import pyarrow as pa

    if values is None:
        return pa.nulls(n, pa.uint8())
    unknown = ~((values >= 0) & (values <= 1))
    return pa.array(np.rint(np.where(unknown, 0, values) * 255).astype(np.uint8), mask=unknown)


def _outward(values: npt.NDArray[np.float64], *, up: bool) -> npt.NDArray[np.float32]:
    near = values.astype(np.float32)
    wrong = near < values if up else near > values
    return np.where(wrong, np.nextafter(near, np.float32(np.inf if up else -np.inf)), near)


def _gather(batches: Any, firsts: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Return rows of the temporary Arrow file in the given order, reading only the batches that contain them."""
    import pyarrow as pa

    owner = np.searchsorted(firsts, rows, side="right") - 1
    grouped = np.argsort(owner, kind="stable")
    pieces = []
    for k in np.unique(owner).tolist():
        mine = rows[grouped][owner[grouped] == k] - firsts[k]
        pieces.append(pa.Table.from_batches([batches.get_batch(k)]).take(pa.array(mine)))
    back = np.empty(len(rows), np.int64)
    back[grouped] = np.arange(len(rows))
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(back))


def _schema(kept: _Kept, meta: SlideMeta, provenance: Provenance) -> pa.Schema:

    missing = sorted({*provenance.missing, "material_prob"})
    imported = {
        "format": provenance.format,
        "files": provenance.files[:1000],
        "sha256": provenance.sha256,
        "missing": missing,
        "notes": provenance.notes,
        "skipped": provenance.skipped,
        **({"repaired": provenance.tally.repaired} if provenance.tally.repaired else {}),
        "perimeter": "length of the ring",
    }
    forgotten = ("path", "mtime_ns", "reader", "reader_note", "layout", "mpp_note")
    slide = {k: v for k, v in dataclasses.asdict(meta).items() if k not in forgotten}
    slide["file"] = plain_text(Path(meta.path).name)
    facts = {
        "schema": SCHEMA_VERSION,
        "slide": slide,
        "scale": 1.0,
        "snap_step_px": 1.0 if kept.on_lattice else 0.0,
        "n_nuclei": len(kept.ids),
        "frame": "level-0 px, origin at the top-left corner of pixel (0, 0), x right, y down",
        "imported": imported,
    }
    return arrow_schema((*NUCLEI, *IMPORTED), nullable=OPTIONAL, metadata={"geo": geo_metadata(kept.bbox), META_KEY: facts})

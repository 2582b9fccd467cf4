"""Write and read part files: one finished tile each, compact Parquet in working px, verified by a checksum when read.

A part contains the seconds it took, so the parts of two runs may differ in bytes; only its nuclei are written to a table.
"""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.schema import BATCH_COLUMNS, PART_DENSITIES, PARTS
from wsiseg.tables import atomic_write_bytes
from wsiseg.tables.arrow import arrow_schema
from wsiseg.types import PolygonBatch, Tile, TileStats
from wsiseg.write.rings import CodedRings, Coding, decode_rings, encode_rings

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["DENSITY_COLUMNS", "PartHeader", "load_part", "read_densities", "read_part", "read_part_header", "write_part"]

PART_VERSION = 1
PART_KEY = "wsiseg_part"

DENSITY_COLUMNS = tuple(c.name for c in PART_DENSITIES)
"""Columns that a batch may have besides: sums of ``wsiseg.summarize.sum_od``, in its order."""

SEAL = b"wsiseg-part-crc32="
"""Text before the file's checksum, once and near its end: eight hex digits, the CRC-32 with those digits set to zero."""
BLANK = b"00000000"


@dataclass(frozen=True, slots=True)
class PartHeader:
    """The metadata of a part.

    Attributes
    ----------
    digest
        Config digest of the run that made it.
    stats
        Additive pixel sums of the tile's core.
    status
        ``empty`` if the core has neither tissue nor nuclei, else ``done``.
    seconds
        Wall seconds by stage up to writing.
    coding, n_steps
        Encoding of the rings, and their total number of steps.
    bounds_wpx
        xmin, ymin, xmax, ymax over all rings, working px; None without nuclei.
    events
        Counts of fallbacks because memory was full: ``window_halved``, ``separated_on_cpu``, ``kept_on_host``,
        ``summed_on_cpu``; and ``device_peak_bytes``, the most memory in use.
    densities
        Whether it has ``DENSITY_COLUMNS``.
    """

    digest: str
    slide_id: str
    tile_id: int
    n_nuclei: int
    stats: TileStats
    status: Literal["done", "empty"]
    seconds: dict[str, float]
    coding: Coding
    n_steps: int
    bounds_wpx: tuple[int, int, int, int] | None
    events: dict[str, int] = field(default_factory=dict)
    densities: bool = False


def write_part(
    path: Path,
    batch: PolygonBatch,
    tile: Tile,
    stats: TileStats,
    seconds: dict[str, float],
    digest: str,
    events: Mapping[str, int] | None = None,
) -> int:
    """Write one tile's nuclei and sums to ``path`` atomically; return the bytes written.

    Parameters
    ----------
    path
        Part file; its folder must exist.
    batch
        The nuclei that the tile owns; an empty batch gives a small, valid part. ``DENSITY_COLUMNS`` are kept where it has them.
    tile, stats, seconds, digest, events
        Stored in the header (see ``PartHeader``).

    Raises
    ------
    ValueError
        The batch lacks a column of ``BATCH_COLUMNS``, has one of another length, or a ring is not closed.
    OSError
        The operating system's own error.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(batch)
    rings = encode_rings(batch.xy, batch.ring_offsets)
    header = _header(batch, tile, stats, seconds, digest, rings)
    if events:
        header["events"] = dict(events)
    if DENSITY_COLUMNS[0] in batch.columns:
        header["densities"] = True
    schema = arrow_schema((*PART_DENSITIES, *PARTS) if "densities" in header else PARTS)
    arrays = [_column(batch, field.name, field.type, n) for field in schema if field.name in batch.columns]
    missing = sorted({c.name for c in BATCH_COLUMNS} - set(batch.columns))
    if missing:
        raise ValueError(f"Slide {tile.slide_id}, tile {tile.tile_id}: the batch lacks the columns {missing}.")
    offsets = (rings.step_offsets * rings.coding.dtype.itemsize).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(rings.steps))]
    arrays += [pa.array(np.ascontiguousarray(rings.anchors[:, 0])), pa.array(np.ascontiguousarray(rings.anchors[:, 1]))]
    arrays.append(pa.Array.from_buffers(pa.binary(), n, buffers))
    sink = io.BytesIO()
    options = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(sink, schema, store_schema=False, **options) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        writer.add_key_value_metadata({PART_KEY: json.dumps(header, sort_keys=True), "seal": (SEAL + BLANK).decode()})
    data = _sealed(sink.getvalue())
    atomic_write_bytes(path, data)
    return len(data)


def read_part_header(path: Path) -> PartHeader | None:
    """Return a part's header after checking the whole file; None if the file does not exist.

    Raises
    ------
    FormatError
        The file is truncated, altered, or not a part; the tile must be done again.
    """
    data = _read_whole(path)
    return None if data is None else _open(path, data)[0]


def read_part(path: Path) -> tuple[PartHeader, PolygonBatch]:
    """Return a part's header and nuclei, exactly as they were written.

    Raises
    ------
    FormatError
        The file is missing, truncated, altered, or not a part.
    """
    header, rings, columns = load_part(path)
    xy, ring_offsets = decode_rings(rings)
    return header, PolygonBatch(xy, ring_offsets, columns)


def read_densities(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the ids of a part's nuclei, int64 (N,), and the sums of their optical densities, int64 (N, 5).

    Raises
    ------
    FormatError
        See ``read_part``; or the part has no such sums.
    """
    data = _read_whole(path)
    if data is None:
        raise FormatError(f"Part {path} is missing. Run the same command again to redo its tile.")
    header, reader = _open(path, data)
    if not header.densities:
        raise FormatError(f"Part {path} has no sums of optical density. Run the same command again, with --features.")
    table = reader.read(columns=["nucleus_id", *DENSITY_COLUMNS])
    return table["nucleus_id"].to_numpy(), np.stack([table[name].to_numpy() for name in DENSITY_COLUMNS], axis=1)


def load_part(path: Path) -> tuple[PartHeader, CodedRings, dict[str, npt.NDArray[Any]]]:
    """Return a part's header, its rings as steps, and its columns. Raises ``FormatError``, see ``read_part``."""
    data = _read_whole(path)
    if data is None:
        raise FormatError(f"Part {path} is missing. Run the same command again to redo its tile.")
    header, reader = _open(path, data)
    table = reader.read().combine_chunks()
    columns = {c.name: table[c.name].to_numpy() for c in BATCH_COLUMNS}
    anchors = np.stack([table["anchor_x"].to_numpy(), table["anchor_y"].to_numpy()], axis=1)
    if header.n_nuclei == 0:
        steps, offsets = np.empty(0, header.coding.dtype), np.zeros(1, np.int64)
    else:
        values = table["steps"].chunk(0)
        offsets = np.frombuffer(values.buffers()[1], np.int32)[: header.n_nuclei + 1].astype(np.int64)
        offsets //= header.coding.dtype.itemsize
        steps = np.frombuffer(values.buffers()[2], header.coding.dtype)[: header.n_steps]
    return header, CodedRings(header.coding, steps, offsets, anchors), columns


def _column(batch: PolygonBatch, name: str, kind: Any, n: int) -> pa.Array:
    import pyarrow as pa

    values = np.ascontiguousarray(batch.columns[name])
    if values.shape != (n,):
        raise ValueError(f"Column {name}: expected {n} values, one per ring, got shape {values.shape}.")
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False))


def _header(
    batch: PolygonBatch, tile: Tile, stats: TileStats, seconds: dict[str, float], digest: str, rings: CodedRings
) -> dict[str, Any]:
    n = len(batch)
    x, y = batch.xy[:, 0], batch.xy[:, 1]  # one axis at a time: numpy reduces (V, 2) ten times slower
    return {
        "version": PART_VERSION,
        "digest": digest,
        "slide_id": tile.slide_id,
        "tile_id": tile.tile_id,
        "n_nuclei": n,
        "stats": {k: int(v) for k, v in dataclasses.asdict(stats).items()},
        "seconds": {k: round(float(v), 6) for k, v in seconds.items()},
        "coding": dataclasses.asdict(rings.coding),
        "n_steps": len(rings.steps),
        "bounds_wpx": [int(v) for v in (x.min(), y.min(), x.max(), y.max())] if n else None,
    }


def _sealed(data: bytes) -> bytes:
    place = data.rindex(SEAL) + len(SEAL)
    return data[:place] + f"{zlib.crc32(data):08x}".encode() + data[place + len(BLANK) :]


def _read_whole(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _open(path: Path, data: bytes) -> tuple[PartHeader, Any]:
    """Verify the checksum before parsing, so that damaged bytes are never parsed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    place = data.rfind(SEAL) + len(SEAL)
    digits = data[place : place + len(BLANK)]
    if place < len(SEAL) or f"{zlib.crc32(data[:place] + BLANK + data[place + len(BLANK) :]):08x}".encode() != digits:
        raise FormatError(f"Part {path}: truncated or altered (checksum differs). Remove it to redo its tile.")
    try:
        reader = pq.ParquetFile(pa.BufferReader(data))
        raw = json.loads(reader.metadata.metadata[PART_KEY.encode()])
        if raw["version"] != PART_VERSION:
            raise ValueError(f"expected part version {PART_VERSION}, got {raw['version']}")
        return _parsed(raw), reader
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as err:
        raise FormatError(f"Part {path}: not a part of this version of wsiseg ({err}). Remove it to redo its tile.") from err


def _parsed(raw: dict[str, Any]) -> PartHeader:
    stats = TileStats(**raw["stats"])
    return PartHeader(
        digest=raw["digest"],
        slide_id=raw["slide_id"],
        tile_id=raw["tile_id"],
        n_nuclei=raw["n_nuclei"],
        stats=stats,
        status="done" if raw["n_nuclei"] or stats.tissue_px else "empty",
        seconds=raw["seconds"],
        coding=Coding(**raw["coding"]),
        n_steps=raw["n_steps"],
        bounds_wpx=None if raw["bounds_wpx"] is None else tuple(raw["bounds_wpx"]),
        events=raw.get("events", {}),
        densities=bool(raw.get("densities")),
    )

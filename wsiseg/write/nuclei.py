"""Write a slide's parts as one GeoParquet 1.1 table: level-0 px, Hilbert order, small row groups, reproducible bytes.

Memory stays small because polygons are kept as steps (about 70 bytes per nucleus) until their row group is written.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.config import WriteConfig
from wsiseg.errors import FormatError, InputError, WsisegError, plain_text
from wsiseg.schema import BATCH_COLUMNS, NUCLEI, SCHEMA_VERSION
from wsiseg.tables import arrow_schema, atomic_path, geo_metadata, hilbert_key, wkb_polygons
from wsiseg.tables.arrow import BBOX_FIELDS, META_KEY
from wsiseg.types import SlideMeta
from wsiseg.write.parts import PartHeader, load_part, read_part_header
from wsiseg.write.rings import CodedRings, decode_rings, recode, widest

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TableSummary", "level0_coordinates", "outward_float32", "write_nuclei_table"]

Array = npt.NDArray[Any]

SNAP_PER_WPX = 16
"""If working px are not level-0 px, coordinates are snapped to multiples of a power of two of at most 1/16 working px."""

STEP_BY_COLUMN = {"cx": 1 / 16, "cy": 1 / 16, "perimeter_um": 1 / 32, "major_um": 1 / 32, "minor_um": 1 / 32,
                  "orientation_rad": 1 / 256}  # fmt: skip
"""Steps to which measured columns are rounded (finer digits are noise and take space); areas are not rounded."""

GEOMETRY_ZSTD_LEVEL = 1
"""WKB of pixel edges is smaller and compressed ten times faster at level 1 than at 3 to 15, which search short matches."""

FORGOTTEN_FACTS = ("path", "mtime_ns", "reader", "reader_note", "layout", "mpp_note")
"""Facts of where, when and by which reader a slide was read: kept in the run's records only, because tables must not differ by
them."""


@dataclass(frozen=True, slots=True)
class TableSummary:
    """The written table: rows, bytes, row groups, and xmin, ymin, xmax, ymax in level-0 px (None if empty)."""

    n_nuclei: int
    n_bytes: int
    n_row_groups: int
    bbox: tuple[float, float, float, float] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Gathered:
    """All nuclei of a slide, rings as steps."""

    rings: CodedRings
    columns: dict[str, Array]
    tile_id: npt.NDArray[np.int32]


def write_nuclei_table(
    parts: Sequence[Path], out: Path, meta: SlideMeta, scale: float, facts: dict[str, object], config: WriteConfig
) -> TableSummary:
    """Write a slide's polygon table (``wsiseg.schema.NUCLEI``) from its part files.

    Parameters
    ----------
    parts
        Part files of the slide, each once, in any order; none or only empty ones give a valid empty table.
    out
        The table; its folder must exist.
    meta
        The slide; ``meta.mpp`` is used for the columns in um.
    scale
        Working px per level-0 px. 1: coordinates are whole pixels, as traced. Otherwise each is snapped by one monotone map per
        axis (see ``level0_coordinates``).
    facts
        Entries of the ``wsiseg`` file metadata in JSON types (model, config digest, versions): nothing that differs between two
        runs on the same input.
    config
        Row group size and compression of the columns other than geometry.

    Raises
    ------
    FormatError
        A part is missing, damaged, or of another slide or config.
    WsisegError
        Two parts have the same nucleus, which is a defect of wsiseg.
    InputError
        ``scale`` is not a positive number.
    OSError
        The operating system's own error; ``out`` is then unchanged.
    """
    import pyarrow.parquet as pq

    if not 0 < scale < math.inf:
        raise InputError(f"Slide {meta.slide_id}: expected a positive scale (working px per level-0 px), got {scale!r}.")
    headers = _headers(parts, meta.slide_id)
    nuclei = _gather(parts, headers)
    order = _order(nuclei, meta.slide_id)
    bbox = _bounds(headers, scale)
    schema = arrow_schema(NUCLEI, metadata={"geo": geo_metadata(bbox), META_KEY: _table_facts(meta, scale, len(order), facts)})
    n_groups = math.ceil(len(order) / config.row_group_rows)
    with atomic_path(out) as partial:
        with pq.ParquetWriter(str(partial), schema, **_layout(schema, config.zstd_level)) as writer:
            for first in range(0, len(order), config.row_group_rows):
                rows = order[first : first + config.row_group_rows]
                writer.write_table(_row_group(nuclei, rows, schema, meta.mpp, scale), row_group_size=len(rows))
        n_bytes = partial.stat().st_size
    return TableSummary(len(order), n_bytes, n_groups, bbox)


def snap_step_px(scale: float) -> float:
    """Return the step of table coordinates in level-0 px: 1 at scale 1, else a power of two in (1/32, 1/16] working px."""
    return 1.0 if scale == 1.0 else 2.0 ** math.floor(-math.log2(scale * SNAP_PER_WPX))


def level0_coordinates(wpx: npt.NDArray[np.integer], scale: float) -> npt.NDArray[np.float64]:
    """Return working-px lattice coordinates in level-0 px.

    At scale 1 they are the same whole numbers. Otherwise each is rounded to a multiple of ``snap_step_px``, s: short binary
    numbers, which compress well and are exact in all readers. The map of each axis is strictly increasing (working px are >= 16
    steps apart), so a ring on pixel edges stays valid, with the same turns. No coordinate moves by more than s/2, so an area
    changes by at most L s/2 + n (s/2)², with L the length of the ring in level-0 px and n its vertices.
    """
    if scale == 1.0:
        return wpx.astype(np.float64)
    step = snap_step_px(scale)
    return np.floor(wpx.astype(np.float64) / (scale * step) + 0.5) * step


def outward_float32(values: npt.NDArray[np.float64], *, up: bool) -> npt.NDArray[np.float32]:
    """Return the nearest float32 that is not below (``up``) or not above ``values``."""
    near = values.astype(np.float32)
    inward = near < values if up else near > values
    beyond = np.nextafter(near, np.float32(np.inf if up else -np.inf), dtype=np.float32)
    return np.where(inward, beyond, near)


def _headers(parts: Sequence[Path], slide_id: str) -> list[PartHeader]:
    headers = []
    for path in parts:
        header = read_part_header(path)
        if header is None:
            raise FormatError(f"Slide {slide_id}: part {path} is missing. Run the same command again to redo its tile.")
        headers.append(header)
        for what, got, expected in (("slide", header.slide_id, slide_id), ("config", header.digest, headers[0].digest)):
            if got != expected:
                raise FormatError(f"Part {path}: expected one of {what} {expected}, got {got}. Remove it to redo its tile.")
    return headers


def _gather(parts: Sequence[Path], headers: Sequence[PartHeader]) -> _Gathered:
    """Read all parts into arrays of their final size, so that nothing is in memory twice."""
    coding = widest([h.coding for h in headers if h.n_nuclei])
    n = sum(h.n_nuclei for h in headers)
    doubled = coding.kind == "deltas"
    n_steps = sum(h.n_steps * (2 if doubled and h.coding.kind == "runs" else 1) for h in headers)
    dtypes = {f.name: f.type.to_pandas_dtype() for f in arrow_schema(BATCH_COLUMNS)}
    columns: dict[str, Array] = {name: np.empty(n, dtype) for name, dtype in dtypes.items()}
    steps, offsets = np.empty(n_steps, coding.dtype), np.zeros(n + 1, np.int64)
    anchors, tile_id = np.empty((n, 2), np.int32), np.empty(n, np.int32)
    row = step = 0
    for path, header in zip(parts, headers, strict=True):
        if header.n_nuclei == 0:
            continue
        _, rings, values = load_part(path)
        rings = recode(rings, coding)
        end, step_end = row + header.n_nuclei, step + len(rings.steps)
        for name, column in columns.items():
            column[row:end] = values[name]
        steps[step:step_end], anchors[row:end], tile_id[row:end] = rings.steps, rings.anchors, header.tile_id
        offsets[row + 1 : end + 1] = rings.step_offsets[1:] + step
        row, step = end, step_end
    return _Gathered(CodedRings(coding, steps, offsets, anchors), columns, tile_id)


def _order(nuclei: _Gathered, slide_id: str) -> npt.NDArray[np.int64]:
    """Return the order of rows by Hilbert key of the centroid's working px, then by id, whatever the order of the parts."""
    ids = nuclei.columns["nucleus_id"]
    by_id = np.argsort(ids, kind="stable")
    twin = np.flatnonzero(np.diff(ids[by_id]) == 0)
    if twin.size:
        pair = by_id[twin[0] : twin[0] + 2]
        tiles = nuclei.tile_id[pair].tolist()
        raise WsisegError(
            f"Slide {slide_id}: nucleus_id {ids[pair[0]]} is in tiles {tiles[0]} and {tiles[1]} ({twin.size} such ids): "
            "expected each marker in the core of exactly one tile. This is a defect of wsiseg: please report it."
        )
    cells = [np.clip(np.floor(nuclei.columns[c]), 0, 2**32 - 1).astype(np.uint32) for c in ("cx_wpx", "cy_wpx")]
    return np.lexsort((ids, hilbert_key(*cells)))


def _bounds(headers: Sequence[PartHeader], scale: float) -> tuple[float, float, float, float] | None:
    bounds = np.array([h.bounds_wpx for h in headers if h.bounds_wpx is not None], np.int64)
    if not len(bounds):
        return None
    xmin, ymin, xmax, ymax = level0_coordinates(np.concatenate([bounds[:, :2].min(0), bounds[:, 2:].max(0)]), scale).tolist()
    return xmin, ymin, xmax, ymax


def _table_facts(meta: SlideMeta, scale: float, n_nuclei: int, facts: dict[str, object]) -> dict[str, object]:
    slide = {k: v for k, v in dataclasses.asdict(meta).items() if k not in FORGOTTEN_FACTS}
    slide["file"] = plain_text(meta.file or Path(meta.path).name)
    own = {"schema": SCHEMA_VERSION, "slide": slide, "scale": scale, "n_nuclei": n_nuclei, "snap_step_px": snap_step_px(scale)}
    return {**own, **facts}


def _layout(schema: pa.Schema, zstd_level: int) -> dict[str, Any]:
    """Return the encoding of each column, chosen by measurements on realistic rings (benchmarks/tables.py)."""
    bbox = [f"bbox.{name}" for name in BBOX_FIELDS]
    split = [*bbox, "cx", "cy"]  # floats of similar size: split by byte, their high bytes compress to almost nothing
    plain = [f.name for f in schema if f.name not in {"bbox", "cx", "cy"}]
    encodings = {"nucleus_id": "DELTA_BINARY_PACKED", "geometry": "DELTA_LENGTH_BYTE_ARRAY"}
    leaves = [*split, *plain]
    return {
        "version": "2.6",
        "compression": dict.fromkeys(leaves, "zstd"),
        "compression_level": {**dict.fromkeys(leaves, zstd_level), "geometry": GEOMETRY_ZSTD_LEVEL},
        "use_dictionary": [name for name in plain if name not in encodings],
        "column_encoding": {**dict.fromkeys(split, "BYTE_STREAM_SPLIT"), **encodings},
        "write_statistics": [name for name in leaves if name != "geometry"],
    }


def _row_group(nuclei: _Gathered, rows: npt.NDArray[np.int64], schema: pa.Schema, mpp: float, scale: float) -> pa.Table:
    import pyarrow as pa

    wpx, ring_offsets = decode_rings(_take(nuclei.rings, rows))
    first = ring_offsets[:-1]
    lattice = level0_coordinates(wpx, scale)
    edges = [outward_float32(np.minimum.reduceat(lattice[:, axis], first), up=False) for axis in (0, 1)]
    edges += [outward_float32(np.maximum.reduceat(lattice[:, axis], first), up=True) for axis in (0, 1)]
    arrays: dict[str, Any] = {
        "geometry": wkb_polygons(lattice, ring_offsets),
        "bbox": pa.StructArray.from_arrays([pa.array(e) for e in edges], fields=list(schema.field("bbox").type)),
        "tile_id": pa.array(nuclei.tile_id[rows]),
    }
    for name, values in _measures({k: v[rows] for k, v in nuclei.columns.items()}, mpp, scale).items():
        arrays[name] = pa.array(values)
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _take(rings: CodedRings, rows: npt.NDArray[np.int64]) -> CodedRings:
    """Return the rings of ``rows``, in that order; Arrow copies the ragged rows."""
    import pyarrow as pa

    width = rings.coding.dtype.itemsize
    offsets = rings.step_offsets * width
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(rings.steps)]
    taken = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers).take(pa.array(rows))
    new_offsets = np.frombuffer(taken.buffers()[1], np.int64)[: len(rows) + 1] // width
    steps = np.frombuffer(taken.buffers()[2], rings.coding.dtype)[: int(new_offsets[-1])]
    return CodedRings(rings.coding, steps, new_offsets, rings.anchors[rows])


def _measures(batch: dict[str, Array], mpp: float, scale: float) -> dict[str, Array]:
    """Return the numeric columns in the units of the table."""
    um = mpp / scale
    values = {
        "cx": batch["cx_wpx"] / scale,
        "cy": batch["cy_wpx"] / scale,
        "area_px": batch["area_wpx"] / scale**2,
        "area_um2": batch["area_wpx"] * um**2,
        "perimeter_um": batch["perimeter_wpx"].astype(np.float64) * um,
        "major_um": batch["major_wpx"].astype(np.float64) * um,
        "minor_um": batch["minor_wpx"].astype(np.float64) * um,
        "orientation_rad": batch["orientation_rad"].astype(np.float64),
    }
    floats = {k: (np.rint(v / s) * s if (s := STEP_BY_COLUMN.get(k)) else v).astype(np.float32) for k, v in values.items()}
    kept: dict[str, Array] = {k: batch[k] for k in ("nucleus_id", "center_prob", "material_prob")}
    return {**kept, **floats}

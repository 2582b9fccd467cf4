"""Read a slide's polygon table as chunks of rings and columns, one row group at a time, for a window or a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.tables.arrow import column_limits, read_table_meta
from wsiseg.tables.columns import add_derived, companion_of, stored_names
from wsiseg.tables.companions import cells_of
from wsiseg.tables.features import DERIVED_NAMES, FEATURE_NAMES
from wsiseg.tables.geo import wkb_rings
from wsiseg.types import Box

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CELL_GEOMETRY", "Chunk", "Exported", "NucleiFile", "Selection", "iter_chunks", "open_nuclei", "shifted",
           "with_cells", "with_features"]  # fmt: skip

CELL_GEOMETRY = "cell_geometry"

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NucleiFile:
    """A polygon table and its slide's metadata (level-0 px; mpp in um/px).

    ``imported`` is the provenance of a table imported from another tool's file (empty: wsiseg segmented the slide), ``step_px``
    the step of its coordinates (0: any float), ``columns`` the names of those that can be read, ``companion`` the features file
    (see ``with_features``), and ``cells`` the file of its cells (see ``with_cells``).
    """

    path: Path
    slide_id: str
    file: str
    cohort: str
    width_px: int
    height_px: int
    mpp: float
    bounds_x: int
    bounds_y: int
    scale: float
    step_px: float
    n_nuclei: int
    columns: tuple[str, ...]
    imported: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    companion: Path | None = None
    cells: Path | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which nuclei to read: those with their centroid in ``region`` (half-open, level-0 px), at most ``sample`` of them.

    Windows that partition the slide therefore partition its nuclei. A sample is the nuclei whose ids have the smallest hashes:
    it is the same every time, spread over the slide, and part of every larger sample.
    """

    region: Box | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        """Raise ``InputError`` for an empty region or sample."""
        if self.region is not None and (self.region.w <= 0 or self.region.h <= 0):
            raise InputError(f"Expected a region (x,y,w,h) with w and h above 0, got {self.region.w} x {self.region.h}.")
        if self.sample is not None and self.sample < 1:
            raise InputError(f"Expected a sample of 1 nucleus or more, got {self.sample}.")


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Nuclei of one row group: closed rings ``xy[ring_offsets[k]:ring_offsets[k + 1]]`` (level-0 px) and their columns."""

    xy: Float
    ring_offsets: Int
    table: pa.Table

    def __len__(self) -> int:
        """Return the number of nuclei."""
        return len(self.ring_offsets) - 1

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column as a NumPy array (nulls become nan)."""
        return np.asarray(self.table[name].to_numpy(zero_copy_only=False))


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export.

    ``n_repaired`` polygons were made invalid by rounding and repaired; ``n_dropped`` had no area left. ``empty`` is the reason
    if there was no nucleus to write, ``error`` the reason if the table could not be read; in both cases ``path`` is the
    table's.
    """

    path: Path
    n_nuclei: int
    n_repaired: int = 0
    n_dropped: int = 0
    n_files: int = 1
    empty: str = ""
    error: str = ""


def open_nuclei(path: str | Path) -> NucleiFile:
    """Open a slide's polygon table and return its metadata.

    Raises
    ------
    FormatError
        The file is not a table of wsiseg, or lacks columns or metadata that an export needs.
    FileNotFoundError
        The file does not exist.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    facts = read_table_meta(path)
    names = tuple(pq.read_schema(str(path)).names)
    missing = sorted({"nucleus_id", "geometry", "cx", "cy", "area_px"} - set(names))
    if missing:
        raise FormatError(f"{path}: expected a nuclei table, but the columns {missing} are missing; it has {list(names)}.")
    try:
        slide = facts["slide"]
        return NucleiFile(
            path=path,
            slide_id=str(slide["slide_id"]),
            file=str(slide.get("file") or slide["slide_id"]),
            cohort=str(slide.get("cohort") or ""),
            width_px=int(slide["width_px"]),
            height_px=int(slide["height_px"]),
            mpp=float(slide["mpp"]),
            bounds_x=int(slide.get("bounds_x") or 0),
            bounds_y=int(slide.get("bounds_y") or 0),
            scale=float(facts["scale"]),
            step_px=float(facts.get("snap_step_px") or 0.0),
            n_nuclei=int(pq.read_metadata(str(path)).num_rows),
            columns=names,
            imported=dict(facts.get("imported") or {}),
            facts=facts,
        )
    except (KeyError, TypeError, ValueError) as err:
        raise FormatError(f"{path}: the file metadata lacks a fact of the slide ({err!r}).") from err


def with_features(source: NucleiFile) -> NucleiFile:
    """Return the table with the features as further columns: derived ones, and those of its features file if it exists."""
    companion = companion_of(source.path)
    columns = (*source.columns, *DERIVED_NAMES, *(FEATURE_NAMES if companion is not None else ()))
    return replace(source, columns=columns, companion=companion)


def with_cells(source: NucleiFile) -> NucleiFile:
    """Return the table with the WKB of its cells as the column ``CELL_GEOMETRY``.

    Raises
    ------
    FormatError
        The table has no cells (``wsiseg cells`` makes them).
    """
    return replace(source, columns=(*source.columns, CELL_GEOMETRY), cells=cells_of(source.path))


def iter_chunks(source: NucleiFile, selection: Selection, columns: Sequence[str] = ()) -> Iterator[Chunk]:
    """Yield the selected nuclei in table order, one chunk per row group; row groups outside the region are not read.

    Parameters
    ----------
    columns
        Columns in addition to ``nucleus_id``, ``cx``, ``cy``; those that the table does not have are left out.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limit = _sample_limit(source, selection)
    wanted = list(dict.fromkeys(["nucleus_id", "cx", "cy", *(c for c in columns if c in source.columns)]))
    beside = [c for c in wanted if c in FEATURE_NAMES]
    stored = stored_names([c for c in wanted if c != CELL_GEOMETRY])
    with ExitStack() as stack:
        file = stack.enter_context(pq.ParquetFile(str(source.path)))
        companion = stack.enter_context(pq.ParquetFile(str(source.companion))) if source.companion and beside else None
        cells = stack.enter_context(pq.ParquetFile(str(source.cells))) if source.cells and CELL_GEOMETRY in wanted else None
        for group in range(file.num_row_groups):
            if selection.region is not None and _outside(file.metadata.row_group(group), selection.region):
                continue
            try:
                table = add_derived(file.read_row_group(group, columns=[*stored, "geometry"]), wanted)
                if companion is not None:  # its rows and row groups are those of the table
                    for field_, column in _columns(companion.read_row_group(group, columns=beside)):
                        table = table.append_column(field_, column)
                if cells is not None:  # the same is true for the cells
                    table = table.append_column(CELL_GEOMETRY, cells.read_row_group(group, columns=["geometry"])["geometry"])
            except (OSError, pa.ArrowException) as err:
                raise FormatError(f"{source.path}: row group {group} cannot be read ({err}).") from err
            table = table.select([*wanted, "geometry"])
            keep = _keep(table, selection.region, limit)
            if not keep.all():
                table = table.filter(pa.array(keep))
            if table.num_rows == 0:
                continue
            xy, offsets = wkb_rings(table["geometry"])
            yield Chunk(xy, offsets, table.drop_columns(["geometry"]).combine_chunks())


def shifted(chunk: Chunk, dx: float, dy: float) -> Chunk:
    """Return the same nuclei with their rings moved by (dx, dy) px."""
    return chunk if dx == 0 and dy == 0 else Chunk(chunk.xy + np.array([dx, dy]), chunk.ring_offsets, chunk.table)


def _columns(table: pa.Table) -> list[tuple[pa.Field, pa.ChunkedArray]]:
    return list(zip(table.schema, table.columns, strict=True))


def _outside(group: Any, region: Box) -> bool:
    limits = column_limits(group, ("cx", "cy"))
    if limits is None:
        return False
    (x0, x1), (y0, y1) = limits
    return bool(x1 < region.x or x0 >= region.x1 or y1 < region.y or y0 >= region.y1)


def _keep(table: pa.Table, region: Box | None, limit: np.uint64 | None) -> npt.NDArray[np.bool_]:
    keep = np.ones(table.num_rows, np.bool_)
    if region is not None:
        cx, cy = (table[c].to_numpy() for c in ("cx", "cy"))
        keep &= (cx >= region.x) & (cx < region.x1) & (cy >= region.y) & (cy < region.y1)
    if limit is not None:
        keep &= _hash(table["nucleus_id"].to_numpy()) <= limit
    return keep


def _sample_limit(source: NucleiFile, selection: Selection) -> np.uint64 | None:
    """Return the largest hash in the sample, by a first pass over ids and centroids (8 bytes per nucleus in memory)."""
    import pyarrow.parquet as pq

    if selection.sample is None:
        return None
    hashes = []
    with pq.ParquetFile(str(source.path)) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["nucleus_id", "cx", "cy"])
            hashes.append(_hash(table["nucleus_id"].to_numpy())[_keep(table, selection.region, None)])
    found = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    if len(found) <= selection.sample:
        return None
    return np.uint64(np.partition(found, selection.sample - 1)[selection.sample - 1])


def _hash(ids: Int) -> npt.NDArray[np.uint64]:
    """Mix ids one to one (splitmix64: Steele, Lea and Flood 2014), so that no two nuclei share a hash."""
    z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))

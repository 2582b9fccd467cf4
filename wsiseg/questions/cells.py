"""``wsiseg cells``: grow the nuclei of a run into cells and write them as own tables (``RUN/cells/<slide_id>.parquet``).

Nuclei are rasterized, grown (``wsiseg.separate.expand``) and traced like nuclei. Consecutive rows of a table are near each
other, so they are processed together in a window that extends twice the distance beyond them. It contains everything that can
affect them, so the result equals that of the whole slide at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError, MissingMppError, WsisegError
from wsiseg.labels import rasterize_rings
from wsiseg.questions.ordered import in_order, worker_pool
from wsiseg.schema import CELLS, SCHEMA_VERSION
from wsiseg.separate import expand
from wsiseg.tables import arrow_schema, atomic_path, geo_metadata, open_nuclei, read_nuclei, read_table_meta, table_fingerprint
from wsiseg.tables.arrow import BBOX_FIELDS, META_KEY
from wsiseg.tables.companions import cells_path
from wsiseg.tables.geo import wkb_polygons, wkb_rings
from wsiseg.tables.source import NucleiFile
from wsiseg.types import Box, Instances
from wsiseg.vectorize import vectorize
from wsiseg.write.nuclei import level0_coordinates, outward_float32

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["CellOptions", "SlideCells", "cells_of_slide", "grow_cells"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]

WINDOW_PX = 1 << 23
"""Maximum area of a window, working px; ranges of rows are halved until theirs is smaller (of one nucleus it may be larger)."""

MAX_EXPAND_PX = 1000


@dataclass(slots=True)
class SlideCells:
    """Result of one slide; ``error``: why there are no cells (empty if there are).

    ``n_covered`` nuclei have no cell, because other nuclei cover them or they are outside the slide.
    """

    slide_id: str
    path: Path
    n_nuclei: int = 0
    n_covered: int = 0
    area_mean_um2: float = math.nan
    skipped: bool = False
    error: str = ""


Progress = Callable[[str, int, int], None]
"""Function called with a slide's id, the number of its row groups that are done, and the number that it has."""


@dataclass(frozen=True, slots=True)
class CellOptions:
    """Options of ``wsiseg cells``.

    Attributes
    ----------
    expand_um
        Maximum distance of a cell's border from its nucleus, um, above 0.
    workers
        Number of processes, which share the row groups of a slide; the result does not depend on it.
    overwrite
        Replace existing cells.
    """

    expand_um: float
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Raise ``InputError`` for impossible values."""
        if not 0 < self.expand_um < math.inf:
            raise InputError(f"Expected a distance above 0 um, got {self.expand_um:g}.")
        if self.workers < 1:
            raise InputError(f"Expected --workers to be 1 or more, got {self.workers}.")


def grow_cells(tables: Sequence[Path], options: CellOptions, progress: Progress | None = None) -> Iterator[SlideCells]:
    """Write the cells of each slide into its run folder and yield the results; slides that have cells are skipped."""
    with worker_pool(options.workers) as pool:
        for table in tables:
            try:
                yield cells_of_slide(table, options, pool, progress)
            except BrokenProcessPool:
                lost = "a worker process was killed, perhaps because memory ran out: try again with fewer --workers"
                yield SlideCells(table.stem, cells_path(table), error=lost)
            except (WsisegError, OSError) as err:
                yield SlideCells(table.stem, cells_path(table), error=str(err))


def cells_of_slide(
    table: Path, options: CellOptions, pool: Executor | None = None, progress: Progress | None = None
) -> SlideCells:
    """Write ``RUN/cells/<slide_id>.parquet`` (``wsiseg.schema.CELLS``) with the rows and row groups of the nuclei's table.

    Parameters
    ----------
    table
        The slide's polygon table, ``RUN/nuclei/<slide_id>.parquet``.
    pool
        Processes that compute the row groups; None: this process.
    progress
        Called after each row group.

    Raises
    ------
    MissingMppError
        The slide's um/px is not known.
    InputError
        There are cells of another distance and ``overwrite`` is not set, or the distance exceeds ``MAX_EXPAND_PX``.
    FormatError
        The table cannot be read.
    """
    import pyarrow.parquet as pq

    source, expand_um = open_nuclei(table), options.expand_um
    if not source.mpp > 0:
        raise MissingMppError(f"{table}: the slide's um/px is not known, so {expand_um:g} um cannot be converted to px.")
    out = cells_path(table)
    result = SlideCells(table.stem, out, source.n_nuclei)
    facts = {"schema": SCHEMA_VERSION, "of": table_fingerprint(table), "expand_um": expand_um, "scale": source.scale}
    if out.is_file() and not options.overwrite:
        there = read_table_meta(out)
        if there == facts:
            result.skipped = True
            return result
        if there.get("of") == facts["of"]:
            raise InputError(f"{out}: there are cells of {there.get('expand_um')} um. Add --overwrite to replace them.")
    reach_px = expand_um / source.mpp * source.scale
    if reach_px > MAX_EXPAND_PX:
        raise InputError(f"{table}: {expand_um:g} um are {reach_px:,.0f} px; expected at most {MAX_EXPAND_PX} px.")
    geo = geo_metadata((0, 0, source.width_px, source.height_px) if source.n_nuclei else None)
    geo["columns"]["geometry"].pop("bbox", None)
    measured = {c.name for c in CELLS} - {"nucleus_id"}
    schema = arrow_schema(CELLS, nullable=measured, metadata={"geo": geo, META_KEY: facts})
    out.parent.mkdir(parents=True, exist_ok=True)
    area = 0.0
    layout: dict[str, Any] = {"compression": "zstd", "use_dictionary": False, "column_encoding": {"geometry": "PLAIN"}}
    # without what only its own process needs: this goes to the workers
    work = partial(_group, replace(source, facts={}), math.floor(reach_px * reach_px), schema)
    n_groups = pq.read_metadata(str(table)).num_row_groups
    with atomic_path(out) as unfinished, pq.ParquetWriter(str(unfinished), schema, **layout) as writer:
        for k, cells in enumerate(in_order(work, range(n_groups), pool, options.workers), 1):
            if progress is not None:
                progress(table.stem, k, n_groups)
            if not cells.num_rows:
                continue
            writer.write_table(cells, row_group_size=max(1, cells.num_rows))
            result.n_covered += cells["geometry"].null_count
            area += float(np.nansum(cells["area_um2"].to_numpy().astype(np.float64)))
    if source.n_nuclei > result.n_covered:
        result.area_mean_um2 = area / (source.n_nuclei - result.n_covered)
    return result


def _group(source: NucleiFile, reach_squared: int, schema: pa.Schema, group: int) -> pa.Table:
    """Return the cells of one row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pad = math.isqrt(reach_squared) * 2 + 2
    try:
        with pq.ParquetFile(str(source.path)) as file:
            own = file.read_row_group(group, columns=["nucleus_id", "bbox"])
        if not own.num_rows:
            return schema.empty_table()
        ends = _ends(own) * source.scale
        around = _Around(source, _window(ends, pad, source), reach_squared)
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{source.path}: row group {group} cannot be read ({err}).") from err
    parts = [around.cells(own["nucleus_id"].to_numpy()[a:b], box) for a, b, box in _windows(ends, pad, source)]
    return pa.concat_tables([_table(*part, source, schema) for part in parts])


def _ends(table: pa.Table) -> Float:
    """Return the bounding boxes, float64 (N, 4), level-0 px."""
    boxes = table["bbox"].combine_chunks()
    return np.stack([boxes.field(name).to_numpy().astype(np.float64) for name in BBOX_FIELDS], axis=1)


def _window(ends: Float, pad: int, source: NucleiFile) -> Box:
    """Return the window (working px) around these bounding boxes, extended by ``pad`` px and clipped to the slide."""
    x0, y0 = (math.floor(v) - pad for v in ends[:, :2].min(axis=0))
    x1, y1 = (math.ceil(v) + pad for v in ends[:, 2:].max(axis=0))
    if source.width_px > 0 and source.height_px > 0:
        x0, y0 = max(0, x0), max(0, y0)
        x1, y1 = (min(end, round(side * source.scale)) for end, side in ((x1, source.width_px), (y1, source.height_px)))
    return Box(x0, y0, max(1, x1 - x0), max(1, y1 - y0))


def _windows(ends: Float, pad: int, source: NucleiFile) -> Iterator[tuple[int, int, Box]]:
    """Yield ranges of rows, in order, and the window of each."""
    waiting = [(0, len(ends))]
    while waiting:
        a, b = waiting.pop()
        box = _window(ends[a:b], pad, source)
        if box.w * box.h <= WINDOW_PX or b - a == 1:
            yield a, b, box
        else:
            waiting += [((a + b) // 2, b), (a, (a + b) // 2)]


class _Around:
    """All nuclei that can reach into a window, from which smaller windows in it are computed."""

    def __init__(self, source: NucleiFile, box: Box, reach_squared: int) -> None:
        low = math.floor(box.x / source.scale), math.floor(box.y / source.scale)
        high = math.ceil(box.x1 / source.scale), math.ceil(box.y1 / source.scale)
        region = Box(low[0], low[1], high[0] - low[0], high[1] - low[1])
        self.table = read_nuclei(source.path, region, ["nucleus_id", "geometry", "area_px", "bbox"]).combine_chunks()
        self.ends = _ends(self.table) * source.scale
        self.source, self.reach_squared = source, reach_squared

    def cells(self, ids: Int, box: Box) -> tuple[Int, Labels, Box]:
        """Return ``ids``, the label image of their cells (k + 1 for ``ids[k]``, 0 elsewhere), and its window."""
        import pyarrow as pa

        x0, y0, x1, y1 = self.ends.T
        near = self.table.filter(pa.array((x0 <= box.x1) & (x1 >= box.x) & (y0 <= box.y1) & (y1 >= box.y)))
        there = near["nucleus_id"].to_numpy()
        xy, offsets = wkb_rings(near["geometry"])
        xy = xy * self.source.scale
        if not self.source.imported:
            xy = np.rint(xy)  # undo the rounding of coordinates in the table
        sorted_ids = np.sort(there)
        order = np.lexsort(
            (-there, -near["area_px"].to_numpy())
        )  # draw the smallest last, of equal ones the one with the lowest id
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        drawn = np.searchsorted(sorted_ids, there[order]) + 1  # labels in the order of ids, so that ties go to the lowest id
        labels = rasterize_rings(xy, offsets, (box.h, box.w), ids=drawn, ring_polygons=rank, origin=(box.x, box.y))
        cells = expand(labels, self.reach_squared)
        own = np.zeros(len(sorted_ids) + 1, np.int32)
        own[np.searchsorted(sorted_ids, ids) + 1] = np.arange(1, len(ids) + 1)
        return ids, own[cells], box


def _table(ids: Int, labels: Labels, box: Box, source: NucleiFile, schema: pa.Schema) -> pa.Table:
    """Return the cells of a window as a table; a label without a pixel is a row of nulls."""
    import pyarrow as pa
    import shapely

    px = np.bincount(labels.ravel(), minlength=len(ids) + 1)[1:]
    shown = np.flatnonzero(px)
    renumbered = np.zeros(len(ids) + 1, np.int32)
    renumbered[shown + 1] = np.arange(1, len(shown) + 1)
    xy, offsets, holes = _traced(renumbered[labels], px[shown], box)
    lattice = level0_coordinates(xy, source.scale)
    wkb = np.full(len(ids), None, object)
    wkb[shown] = wkb_polygons(lattice, offsets).to_numpy(zero_copy_only=False) if len(shown) else []
    for k, rings in holes.items():
        outer = lattice[offsets[k] : offsets[k + 1]]
        inner = [level0_coordinates(ring[::-1], source.scale) for ring in rings]
        wkb[shown[k]] = shapely.to_wkb(shapely.Polygon(outer, inner), byte_order=1)
    ends = np.full((len(ids), 4), np.nan)
    if len(shown):
        reduced = [f.reduceat(lattice[:, axis], offsets[:-1]) for f in (np.minimum, np.maximum) for axis in (0, 1)]
        ends[shown] = np.stack(reduced, axis=1)
    fields = [pa.array(outward_float32(ends[:, k], up=k > 1)) for k in range(4)]
    boxes = pa.StructArray.from_arrays(fields, fields=list(schema.field("bbox").type), mask=pa.array(px == 0))
    area = np.where(px > 0, px * (source.mpp / source.scale) ** 2, np.nan).astype(np.float32)
    arrays = [pa.array(ids), pa.array(wkb, pa.binary()), boxes, pa.array(area, from_pandas=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def _traced(labels: Labels, px: Int, box: Box) -> tuple[npt.NDArray[np.int32], Int, dict[int, list[npt.NDArray[np.int32]]]]:
    """Return the outer rings of labels 1..n (working px of the slide), and the rings of holes by label."""
    flat = labels.ravel()
    at = np.flatnonzero(flat)
    pixel = np.empty(len(px), np.int64)
    pixel[flat[at][::-1] - 1] = at[::-1]  # reversed, so that the first pixel of each label is written last
    anchors = np.stack([pixel % box.w, pixel // box.w], axis=1).astype(np.int32)
    nothing = np.broadcast_to(np.zeros((), np.uint8), (2, *labels.shape))
    batch = vectorize(Instances(labels, anchors), np.ascontiguousarray(nothing), box, box)
    holes = {}
    for k in np.flatnonzero(batch.columns["area_wpx"] > px).tolist():
        ring = batch.xy[batch.ring_offsets[k] : batch.ring_offsets[k + 1]]
        low, high = ring.min(axis=0), ring.max(axis=0)
        part = Box(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))
        filled = rasterize_rings(ring, np.array([0, len(ring)]), (part.h, part.w), origin=(part.x, part.y)) > 0
        window = labels[part.y - box.y : part.y1 - box.y, part.x - box.x : part.x1 - box.x]
        holes[k] = _hole_rings(filled & (window != k + 1), part)
    return batch.xy, batch.ring_offsets, holes


def _hole_rings(hole: npt.NDArray[np.bool_], box: Box) -> list[npt.NDArray[np.int32]]:
    """Return the outer ring of each 4-connected part of a mask."""
    from scipy.ndimage import label

    parts, n = label(hole)
    parts = parts.astype(np.int32)
    xy, offsets, _ = _traced(parts, np.bincount(parts.ravel(), minlength=n + 1)[1:] + hole.size, box)
    return [xy[offsets[k] : offsets[k + 1]] for k in range(n)]

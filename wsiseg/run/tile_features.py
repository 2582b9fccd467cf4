"""Features in the pass (``segment --features``): densities while a tile's pixels are there, the rest at its slide's end.

A nucleus is wholly in the window of its tile, as it was traced there, so its sums are those of ``wsiseg features`` unless a
nucleus of *another* tile overlaps it: one in its hole, or one beside it that a halo smaller than a nucleus has cut otherwise.
Those few are found when the slide is finished and measured from the slide again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.pipeline import with_densities
from wsiseg.read import read_working, working_size
from wsiseg.read.slide import Slide
from wsiseg.run.context import WorkerContext
from wsiseg.run.feature_pieces import drawing_order
from wsiseg.run.feature_table import feature_facts, write_measured
from wsiseg.run.job import SlideJob
from wsiseg.summarize import RUIFROK_JOHNSTON, neighbors, od_tables, solidity, sum_od
from wsiseg.tables import read_nuclei
from wsiseg.tables.windows import RingWindows
from wsiseg.types import Box, PolygonBatch, Tile
from wsiseg.write import read_densities

__all__ = ["finish_features", "measured_in_tile"]

Array = npt.NDArray[Any]
Int = npt.NDArray[np.int64]


def measured_in_tile(job: SlideJob, batch: PolygonBatch, rgb: npt.NDArray[np.uint8], at: Box) -> PolygonBatch:
    """Return a tile's nuclei with the sums of their densities; ``rgb`` are the pixels of ``at``, working px, as read."""
    return with_densities(batch, rgb, at, Box(0, 0, *working_size(job.meta, job.scale)), od_tables(RUIFROK_JOHNSTON))


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A finished table's columns: ``box`` int64 (4, N) in working px."""

    ids: Int
    area: Array
    tile_id: Array
    box: Int


def finish_features(job: SlideJob, tiles: Sequence[Tile], parts: Sequence[Path], context: WorkerContext) -> None:
    """Write the features of a slide whose table is written, from the sums of its parts.

    Raises
    ------
    TileReadError, SlideOpenError
        Nuclei that overlap those of another tile cannot be measured again.
    """
    import pyarrow.parquet as pq

    table = context.folder.table(job.meta.slide_id)
    read = read_nuclei(table, columns=["nucleus_id", "area_px", "tile_id", "bbox", "cx", "cy"])
    boxes = read["bbox"].combine_chunks()
    edges = np.stack([np.asarray(boxes.field(f), np.float64) for f in ("xmin", "ymin", "xmax", "ymax")])
    ids, area, tile_id = (read[name].to_numpy() for name in ("nucleus_id", "area_px", "tile_id"))
    known = _Known(ids, area, tile_id, np.rint(edges * job.scale).astype(np.int64))
    sums = _sums(known.ids, parts)
    pairs = _near_pairs(known, {t.tile_id: t.core for t in tiles})
    involved = np.unique(pairs)
    shapes: list[Array] = []
    solid = [np.empty(0, np.float32)]
    with pq.ParquetFile(str(table)) as file:
        first = 0
        for k in range(file.num_row_groups):
            rings = file.read_row_group(k, columns=["geometry"])["geometry"].combine_chunks()
            solid.append(solidity(rings))
            own = involved[(involved >= first) & (involved < first + len(rings))]
            shapes.append(_shapes(rings, own - first))
            first += len(rings)
    lost = _overlapped(known, pairs, involved, shapes)
    if len(lost):
        with context.slide(job.meta.slide_id) as (_, slide):
            _measure_again(job, slide, table, known, lost, sums)
    xy_um = np.stack([read[c].to_numpy().astype(np.float64) for c in ("cx", "cy")], axis=1) * job.meta.mpp
    facts = feature_facts(job.meta.slide_id, "ruifrok", RUIFROK_JOHNSTON)
    write_measured(table, facts, sums, np.concatenate(solid), neighbors(xy_um))


def _sums(ids: Int, parts: Sequence[Path]) -> Int:
    """Return the sums of the parts in the order of the table."""
    found = [read_densities(path) for path in parts]
    of = np.concatenate([np.empty(0, np.int64), *(part_ids for part_ids, _ in found)])
    sums = np.concatenate([np.empty((0, 5), np.int64), *(part_sums for _, part_sums in found)])
    order = np.argsort(of)
    return np.ascontiguousarray(sums[order[np.searchsorted(of[order], ids)]])


def _near_pairs(known: _Known, cores: dict[int, Box]) -> Int:
    """Return rows (P, 2) of nuclei of different tiles whose boxes overlap.

    Where two nuclei overlap, one of them extends beyond its core, and the other is as near to the border of its core.
    """
    core = np.zeros((4, max(cores, default=0) + 1), np.int64)
    for k, box in cores.items():
        core[:, k] = box.x, box.y, box.x1, box.y1
    own = core[:, known.tile_id]
    beyond = np.maximum(own[:2] - known.box[:2], known.box[2:] - own[2:]).max(axis=0, initial=0)
    out = np.flatnonzero(beyond > 0)
    if not len(out):
        return np.empty((0, 2), np.int64)
    reach = int(beyond.max())
    near = np.flatnonzero(((known.box[:2] < own[:2] + reach) | (known.box[2:] > own[2:] - reach)).any(axis=0))
    import shapely

    tree = shapely.STRtree(shapely.box(*known.box[:, near]))
    asked, found = tree.query(shapely.box(*known.box[:, out]))
    a, b = out[asked], near[found]
    apart = (known.box[:2, a] >= known.box[2:, b]) | (known.box[2:, a] <= known.box[:2, b])
    kept = (known.tile_id[a] != known.tile_id[b]) & ~apart.any(axis=0)
    both = np.sort(np.stack([a[kept], b[kept]], axis=1), axis=1)
    return np.unique(both, axis=0)


def _shapes(rings: Any, rows: Int) -> Array:
    import pyarrow as pa
    import shapely

    return np.asarray(shapely.from_wkb(rings.take(pa.array(rows)).to_numpy(zero_copy_only=False)), object)


def _overlapped(known: _Known, pairs: Int, involved: Int, shapes: Sequence[Array]) -> Int:
    """Return the rows of nuclei that lose pixels to a smaller one (of equals: one of lesser id) of another tile."""
    if not len(pairs):
        return np.empty(0, np.int64)
    import shapely

    there = np.concatenate(shapes)
    one, other = (there[np.searchsorted(involved, pairs[:, side])] for side in (0, 1))
    a, b = pairs[shapely.relate_pattern(one, other, "T********")].T
    first_loses = (known.area[a] > known.area[b]) | ((known.area[a] == known.area[b]) & (known.ids[a] > known.ids[b]))
    return np.unique(np.where(first_loses, a, b))


def _measure_again(job: SlideJob, slide: Slide, table: Path, known: _Known, lost: Int, sums: Int) -> None:
    """Sum the densities of a few nuclei as ``wsiseg features`` does: all rings that intersect their boxes are drawn."""
    width, height = working_size(job.meta, job.scale)
    shares = od_tables(RUIFROK_JOHNSTON)
    with RingWindows(table) as rings:
        for row in lost.tolist():
            x0, y0, x1, y1 = known.box[:, row].tolist()
            x0, y0 = max(0, x0), max(0, y0)
            box = Box(x0, y0, max(0, min(x1, width) - x0), max(0, min(y1, height) - y0))
            near = rings.near(*(v / job.scale for v in (box.x, box.y, box.x1, box.y1)))
            labels = near.drawn(box, drawing_order(near, known.ids, known.area), job.scale)
            own = (near.rows[np.maximum(labels, 1) - 1] == row) & (labels > 0)
            sums[row] = 0
            sum_od(sums, np.array([row]), own.astype(np.int32), read_working(slide, box, job.scale), shares)

"""``wsiseg neighbors``: find the neighbors of every nucleus; write their edges, and counts and means over them.

Edges are written piece by piece. Memory: the centroid and sums of each nucleus, and all triangles of a Delaunay triangulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError, MissingMppError, WsisegError
from wsiseg.questions.graphs import delaunay_edges, density_grid, iter_pairs
from wsiseg.schema import DERIVED, EDGES, FEATURES, NEIGHBOR_STATISTICS, NEIGHBORS, NUCLEI, SCHEMA_VERSION, Column
from wsiseg.tables import arrow_schema, atomic_path, features_path, open_nuclei, read_table_meta, table_fingerprint
from wsiseg.tables.arrow import META_KEY
from wsiseg.tables.columns import read_columns
from wsiseg.tables.features import FEATURE_NAMES

__all__ = ["NeighborOptions", "SlideNeighbors", "find_neighbors", "neighbors_of_slide"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]

GROUP_ROWS = 1 << 18
MAX_CELLS = 1 << 24
MEASURED = {c.name: c for c in (*NUCLEI, *DERIVED, *FEATURES) if c.unit not in ("", "level-0 px") and c.arrow != "string"}
"""Columns whose mean over neighbors can be requested."""


@dataclass(frozen=True, slots=True)
class NeighborOptions:
    """Options of ``wsiseg neighbors``.

    Attributes
    ----------
    radii_um
        Nuclei whose centroids are at most this far apart are neighbors; the edges of the largest radius are written.
    delaunay
        Also use the Delaunay triangulation of the centroids: nuclei that share an edge are neighbors.
    max_edge_um
        Longer edges of the triangulation are left out; None: no limit.
    means
        Columns whose mean over the neighbors of each nucleus is written.
    density_step_um
        Also write maps of nuclei per mm2 within each radius, with this distance between values; None: no maps.
    edges
        Write the edges; without them only counts, means and maps.
    workers
        Number of processes; each computes one slide at a time.
    overwrite
        Compute slides again that have results.
    """

    radii_um: tuple[float, ...] = ()
    delaunay: bool = False
    max_edge_um: float | None = None
    means: tuple[str, ...] = ("area_um2",)
    density_step_um: float | None = None
    edges: bool = True
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not self.radii_um and not self.delaunay:
            raise InputError("Expected --radius-um, --delaunay or both, which define the neighbors.")
        if self.density_step_um is not None and not self.radii_um:
            raise InputError("Expected --radius-um with --density-step-um, for the disc in which nuclei are counted.")
        for value in (*self.radii_um, *(v for v in (self.max_edge_um, self.density_step_um) if v is not None)):
            if not 0 < value < np.inf:
                raise InputError(f"Expected radii and maximum edge lengths above 0 um, got {value:g}.")
        if unknown := [m for m in self.means if m not in MEASURED]:
            raise InputError(f"Expected columns for the mean from {', '.join(MEASURED)}, got {unknown[0]!r}.")

    def facts(self) -> dict[str, Any]:
        """Return the options that decide the result, as they are stored in the metadata of each file."""
        stated: dict[str, Any] = {"radii_um": sorted(set(self.radii_um)), "delaunay": self.delaunay, "means": list(self.means)}
        stated |= {"max_edge_um": self.max_edge_um, "density_step_um": self.density_step_um, "point": "centroid"}
        return stated if self.edges else {**stated, "edges": False}


@dataclass(slots=True)
class SlideNeighbors:
    """Result of one slide: numbers of nuclei, and of edges by kind.

    ``skipped``: it had results already; ``error``: why there are none (empty if there are).
    """

    slide_id: str
    n_nuclei: int = 0
    n_edges: dict[str, int] = field(default_factory=dict)
    skipped: bool = False
    notes: list[str] = field(default_factory=list)
    error: str = ""


def find_neighbors(tables: Sequence[Path], out: Path, options: NeighborOptions) -> Iterator[SlideNeighbors]:
    """Write the neighbors of each slide below ``out`` and yield the results; slides that have results are skipped."""
    if options.workers <= 1 or len(tables) <= 1:
        for table in tables:
            yield _found(table, out, options)
        return
    # spawn: a forked child would share thread pools of this process
    with ProcessPoolExecutor(min(options.workers, len(tables)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(_found, tables, [out] * len(tables), [options] * len(tables))


def _found(table: Path, out: Path, options: NeighborOptions) -> SlideNeighbors:
    try:
        return neighbors_of_slide(table, out, options)
    except (WsisegError, OSError) as err:
        return SlideNeighbors(table.stem, error=str(err))


def neighbors_of_slide(table: Path, out: Path, options: NeighborOptions) -> SlideNeighbors:
    """Write the neighbors of one slide; ``out/nuclei/<slide_id>.parquet`` is written last, when all others are complete.

    Raises
    ------
    MissingMppError
        The slide's um/px is not known.
    InputError
        ``out`` has this slide with other options, and ``overwrite`` is not set.
    FormatError
        The table cannot be read, or lacks a column.
    """
    source = open_nuclei(table)
    if not source.mpp > 0:
        raise MissingMppError(f"{table}: the slide's um/px is unknown, so distances cannot be computed.")
    facts = {"schema": SCHEMA_VERSION, "slide_id": table.stem, "of": table_fingerprint(table), **options.facts()}
    if set(options.means) & set(FEATURE_NAMES):
        if not features_path(table).is_file():
            raise FormatError(
                f"{features_path(table)}: there are no features. Measure them with: wsiseg features {table.parent.parent}"
            )
        facts["features"] = table_fingerprint(features_path(table))
    target = out / "nuclei" / f"{table.stem}.parquet"
    if target.is_file() and not options.overwrite:
        there = read_table_meta(target)
        if there == facts:
            return SlideNeighbors(table.stem, source.n_nuclei, skipped=True)
        if differing := [k for k, v in options.facts().items() if there.get(k) != v]:
            was = ", ".join(f"{k} {there.get(k)}" for k in differing)
            raise InputError(f"{target}: made with other options ({was}). Choose another --out, or add --overwrite.")
    found = SlideNeighbors(table.stem, source.n_nuclei)
    columns = read_columns(table, None, ["nucleus_id", "cx", "cy", *options.means])
    xy = np.stack([columns[c].to_numpy().astype(np.float64) for c in ("cx", "cy")], axis=1)
    values = [columns[m].to_numpy().astype(np.float64) for m in options.means]
    slide = _Slide(table.stem, source.mpp, columns["nucleus_id"].to_numpy(), xy, values, out, facts)
    made: _Made = [(NEIGHBORS[0], slide.ids)]
    if options.radii_um:
        made += _by_radius(slide, options, found)
    if options.density_step_um is not None:
        _write_maps(slide, (source.width_px, source.height_px), options)
    if options.delaunay:
        made += _by_triangles(slide, options, found)
    _write_nuclei(target, made, facts)
    return found


_Made = list[tuple[Column, npt.NDArray[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Slide:
    """Nuclei of a slide (ids, centroids in level-0 px, values to average), and folder and metadata of its results."""

    slide_id: str
    mpp: float
    ids: Int
    xy: Float
    values: list[Float]
    out: Path
    facts: dict[str, Any]


def _by_radius(slide: _Slide, options: NeighborOptions, found: SlideNeighbors) -> _Made:
    """Write the edges of the largest radius; return the columns of each radius."""
    radii = sorted(set(options.radii_um))
    sums = [_Sums(len(slide.ids), slide.values) for _ in radii]
    n = 0
    with _edge_file(slide, "radius", options) as add_edges:
        for i, j, squared in iter_pairs(slide.xy, radii[-1] / slide.mpp):
            once = i < j
            add_edges(i[once], j[once], np.sqrt(squared[once]) * slide.mpp)
            n += int(np.count_nonzero(once))
            for radius, total in zip(radii, sums, strict=True):
                near = squared <= (radius / slide.mpp) ** 2
                total.add(i[near], j[near])
    found.n_edges["radius"] = n
    made: _Made = []
    for radius, total in zip(radii, sums, strict=True):
        made += total.columns(f"within_{radius:g}um", f"within {radius:g} um", options.means)
    return made


def _by_triangles(slide: _Slide, options: NeighborOptions, found: SlideNeighbors) -> _Made:
    """Write the edges of the triangulation; return its columns."""
    n = len(slide.ids)
    i, j, length_px = delaunay_edges(slide.xy)
    length_um = length_px * slide.mpp
    if n > 1 and not len(i):
        found.notes.append(f"its {n:,} nuclei form no triangle, so the Delaunay graph has no edge")
    elif n > 1 and (alone := n - len(np.union1d(i, j))):
        found.notes.append(f"{alone:,} nuclei have the same centroid as another one, and so no Delaunay edge")
    if options.max_edge_um is not None:
        short = length_um <= options.max_edge_um
        i, j, length_um = i[short], j[short], length_um[short]
    with _edge_file(slide, "delaunay", options) as add_edges:
        for first in range(0, len(i), GROUP_ROWS):
            part = slice(first, first + GROUP_ROWS)
            add_edges(i[part], j[part], length_um[part])
    found.n_edges["delaunay"] = len(i)
    start, end = np.concatenate([i, j]), np.concatenate([j, i])
    order = np.argsort(start * n + end, kind="stable")
    total = _Sums(n, slide.values)
    total.add(start[order], end[order])
    lengths = np.bincount(start[order], np.concatenate([length_um, length_um])[order], n)
    mean = np.divide(lengths, total.n, out=np.full(n, np.nan), where=total.n > 0)
    made = total.columns("delaunay", "joined to it by a Delaunay edge", options.means)
    return [made[0], (NEIGHBOR_STATISTICS[1], mean.astype(np.float32)), *made[1:]]


def _write_maps(slide: _Slide, size_px: tuple[int, int], options: NeighborOptions) -> None:
    """Write nuclei per mm2 within each radius as float32 TIFF, with the step as its resolution."""
    import tifffile

    step_um = options.density_step_um or 0.0
    size_um = size_px[0] * slide.mpp, size_px[1] * slide.mpp
    if size_um[0] * size_um[1] / step_um**2 > MAX_CELLS:
        raise InputError(f"Slide {slide.slide_id}: more than {MAX_CELLS:,} densities: use a larger step than {step_um:g} um.")
    for radius in sorted(set(options.radii_um)):
        density = density_grid(slide.xy * slide.mpp, size_um, step_um, radius) * 1e6
        path = slide.out / "density" / f"{slide.slide_id}.{radius:g}um.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            tifffile.imwrite(
                str(partial),
                density.astype(np.float32),
                resolution=(1e4 / step_um, 1e4 / step_um),
                resolutionunit="CENTIMETER",
                photometric="minisblack",
                compression="zlib",
                metadata=None,
                description=f"nuclei per mm2 within {radius:g} um, every {step_um:g} um from {step_um / 2:g} um",
            )


class _Sums:
    """Number of neighbors of each nucleus, and sums of their values."""

    def __init__(self, n_nuclei: int, values: list[Float]) -> None:
        self.values = [np.nan_to_num(v) for v in values]
        self.known = [~np.isnan(v) for v in values]
        self.n = np.zeros(n_nuclei, np.int64)
        self.sums = np.zeros((len(values), n_nuclei))
        self.n_known = np.zeros((len(values), n_nuclei), np.int64)

    def add(self, i: Int, j: Int) -> None:
        """Add pairs (i, j); all pairs of a nucleus i must be in one call."""
        if not len(i):
            return
        first, size = int(i[0]), int(i[-1] - i[0]) + 1
        rows, at = slice(first, first + size), i - first
        self.n[rows] += np.bincount(at, minlength=size)
        for k, (values, known) in enumerate(zip(self.values, self.known, strict=True)):
            self.sums[k, rows] += np.bincount(at, values[j], size)
            self.n_known[k, rows] += np.bincount(at, known[j], size).astype(np.int64)

    def columns(self, suffix: str, words: str, names: Sequence[str]) -> _Made:
        """Return the columns of the count and of the mean of each value (NaN if no neighbor has a value)."""
        count, _, average = NEIGHBOR_STATISTICS
        made: _Made = [(count.of(of=suffix, words=words), self.n.astype(np.int32))]
        for name, sums, n in zip(names, self.sums, self.n_known, strict=True):
            mean = np.divide(sums, n, out=np.full(len(n), np.nan), where=n > 0)
            column = average.of(column=name, of=suffix, unit=MEASURED[name].unit)
            made.append((column, mean.astype(np.float32)))
        return made


@contextmanager
def _edge_file(slide: _Slide, kind: str, options: NeighborOptions) -> Iterator[Callable[[Int, Int, Float], None]]:
    """Yield a function that adds edges (row i, row j, length in um) to the slide's file of this kind, if edges are written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = slide.out / kind / f"{slide.slide_id}.parquet"
    if not options.edges:
        path.unlink(missing_ok=True)  # of an earlier computation, which this one replaces
        yield lambda i, j, distance_um: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = arrow_schema(EDGES, metadata={META_KEY: slide.facts})
    encodings = {"nucleus_b": "DELTA_BINARY_PACKED", "distance_um": "BYTE_STREAM_SPLIT"}
    layout: dict[str, Any] = {"compression": "zstd", "use_dictionary": ["nucleus_a"], "column_encoding": encodings}
    with atomic_path(path) as partial, pq.ParquetWriter(str(partial), schema, **layout) as writer:

        def add(i: Int, j: Int, distance_um: Float) -> None:
            if len(i):
                arrays = [pa.array(slide.ids[i]), pa.array(slide.ids[j]), pa.array(distance_um.astype(np.float32))]
                writer.write_table(pa.table(arrays, schema=schema))

        yield add


def _write_nuclei(path: Path, made: _Made, facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [*NEIGHBORS, *(column for column, _ in made[1:])]
    schema = arrow_schema(columns, nullable={c.name for c in columns if c.arrow == "float32"}, metadata={META_KEY: facts})
    arrays = [pa.array(values, from_pandas=True) for _, values in made]  # from_pandas: NaN becomes null
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        pq.write_table(pa.table(arrays, schema=schema), str(partial), compression="zstd", row_group_size=GROUP_ROWS)

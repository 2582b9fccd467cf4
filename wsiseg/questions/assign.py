"""Assign points to the nuclei of a slide, and count them per nucleus and gene, batch by batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.cluster.limits import usable_cores
from wsiseg.coordinates import MIN_INSIDE_FRAC, WARN_OUTSIDE_FRAC, Ground, check_fit, mpp_note, parse_frame
from wsiseg.errors import FormatError, InputError, MissingMppError
from wsiseg.questions.annotated import ground_of_table
from wsiseg.questions.counting import Counts, add_matrix, write_counts
from wsiseg.questions.nucleus_index import NucleusIndex, index_nuclei
from wsiseg.questions.points import PointTable, iter_points, sample_xy, xy_of
from wsiseg.questions.transforms import apply_affine, describe_affine, fit_landmarks, read_matrix, read_spatialdata
from wsiseg.schema import ASSIGNED, SCHEMA_VERSION
from wsiseg.tables import arrow_schema, atomic_path
from wsiseg.tables.arrow import META_KEY
from wsiseg.tables.source import NucleiFile, open_nuclei

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AssignOptions", "Assigned", "assign_points_to_nuclei"]

Float = npt.NDArray[np.float64]

WARN_RESIDUAL_UM = 10.0


@dataclass(frozen=True, slots=True)
class AssignOptions:
    """Options of ``wsiseg assign``.

    Attributes
    ----------
    frame
        Frame of the points' coordinates (``wsiseg.coordinates``), if no transformation is given.
    affine, inverse
        File of the matrix from the points' coordinates to level-0 px; ``inverse``: it maps the slide to the points.
    landmarks
        File of landmarks to which an affine map is fitted.
    transformation, image_transformation
        SpatialData elements: the transformation of the points, and that of the slide's picture, of which the inverse is used.
    divide
        Divisor of the coordinates, applied before the map.
    within_um
        Points in no nucleus are assigned to the nearest one up to this distance, um; 0: they are not assigned.
    min_quality
        Points of lower quality are not counted.
    counts
        AnnData file to write.
    matrix
        10x matrix with the counts of each bin, if the points are bins.
    """

    frame: str = "auto"
    affine: Path | None = None
    inverse: bool = False
    landmarks: Path | None = None
    transformation: Path | None = None
    image_transformation: Path | None = None
    divide: float = 1.0
    within_um: float = 0.0
    min_quality: float | None = None
    counts: Path | None = None
    matrix: Path | None = None

    def __post_init__(self) -> None:
        """Raise ``InputError`` for options that contradict each other."""
        given = [n for n in ("affine", "landmarks", "transformation") if getattr(self, n) is not None]
        if len(given) > 1 or (given and self.frame not in ("", "auto")):
            raise InputError(f"Expected one of --frame, --affine, --landmarks and --transformation, got {given}.")
        if self.inverse and self.affine is None:
            raise InputError("--inverse needs --affine, whose matrix it inverts.")
        if self.image_transformation is not None and self.transformation is None:
            raise InputError("--image-transformation needs --transformation, the transformation of the points.")
        if not (0 < self.divide < math.inf and 0 <= self.within_um < 1000):
            raise InputError(f"Expected --divide above 0 and --within-um of 0 to 1000, got {self.divide} and {self.within_um}.")
        if self.matrix is not None and self.counts is None:
            raise InputError("--matrix needs --counts, the file to which the sums are written.")


@dataclass(slots=True)
class Assigned:
    """Result of an assignment: numbers of points by outcome, of nuclei, genes and pairs of them, and notes for the user."""

    n_points: int = 0
    n_inside: int = 0
    n_near: int = 0
    n_outside_slide: int = 0
    n_without_place: int = 0
    n_low_quality: int = 0
    n_nuclei: int = 0
    n_genes: int = 0
    n_pairs: int = 0
    notes: list[str] = field(default_factory=list)


def assign_points_to_nuclei(
    table: Path,
    points: PointTable,
    out: Path,
    options: AssignOptions | None = None,
    *,
    threads: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Assigned:
    """Write ``wsiseg.schema.ASSIGNED``, one row per point in order, and counts per nucleus and gene if requested.

    Memory: the outlines of the slide (about 500 bytes per nucleus) and a batch of a million points. Results do not depend on
    batches or threads.

    Raises
    ------
    FormatError
        The points are outside the slide, or the table cannot be read.
    InputError
        The position of the points on the slide is not known.
    """
    options = options or AssignOptions()
    source = open_nuclei(table)
    if not source.mpp > 0:
        raise MissingMppError(f"{table}: the slide's um/px is not known, so distances in um cannot be computed.")
    done = Assigned(n_nuclei=source.n_nuclei)
    ground = ground_of_table(source)
    matrix, done.notes = _placement(points, ground, options)
    _check(points, matrix, ground, options, done)
    if options.counts is not None and not points.gene and options.matrix is None:
        done.notes.append(
            f"{points.path}: no column of genes, so all points are counted together (--gene, or --matrix for bins)"
        )
    nuclei = index_nuclei(source)
    counts = Counts()
    kept = _write(points, out, (matrix, ground, nuclei), options, _Sink(done, counts, threads or usable_cores(), on_progress))
    if options.matrix is not None:
        barcodes, rows = kept
        n, missing = add_matrix(counts, options.matrix, barcodes, rows)
        if missing:
            done.notes.append(f"{options.matrix}: {missing:,} of {n:,} barcodes have no position and are not counted")
    if options.counts is not None:
        options.counts.parent.mkdir(parents=True, exist_ok=True)
        done.n_genes, done.n_pairs = write_counts(options.counts, nuclei, source, counts)
    _conclude(points, source, done)
    return done


@dataclass(slots=True)
class _Sink:
    done: Assigned
    counts: Counts
    threads: int
    on_progress: Callable[[int], None]


def _write(
    points: PointTable, out: Path, place: tuple[Float, Ground, NucleusIndex], options: AssignOptions, sink: _Sink
) -> tuple[Any, npt.NDArray[np.int32]]:
    """Write the nucleus of each point; return barcodes and table rows if a matrix will be added, else empty arrays."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    matrix, ground, nuclei = place
    reach_px = options.within_um / float(ground.mpp or 1.0)
    barcodes, rows_kept = list[Any](), list[npt.NDArray[np.int32]]()
    writer = None
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as partial:
        try:
            for table in _batches(points):
                xy = apply_affine(matrix, xy_of(points, table))
                row, distance = nuclei.find(xy, reach_px, sink.threads)
                _tally(sink.done, xy, row, distance, ground)
                if options.counts is not None and options.matrix is None:
                    counted = _good(points, table, row, options, sink.done)
                    sink.counts.add(counted, table[points.gene] if points.gene else None)
                if options.matrix is not None:
                    barcodes.append(table["barcode"])
                    rows_kept.append(row)
                answer = _answer(points, table, (row, distance * float(ground.mpp or 1.0)), nuclei)
                writer = writer or pq.ParquetWriter(str(partial), answer.schema, compression="zstd")
                writer.write_table(answer)
                sink.on_progress(sink.done.n_points)
        finally:
            if writer is not None:
                writer.close()
        if writer is None:
            raise FormatError(f"{points.path}: expected at least one point, got none.")
    if not barcodes:
        return None, np.empty(0, np.int32)
    return pa.chunked_array([c for b in barcodes for c in b.chunks]), np.concatenate(rows_kept)


def _batches(points: PointTable) -> Iterator[pa.Table]:
    for table in iter_points(points):
        if table.num_rows:
            yield table


def _answer(points: PointTable, table: pa.Table, found: tuple[npt.NDArray[np.int32], Float], nuclei: NucleusIndex) -> pa.Table:
    import pyarrow as pa

    row, distance_um = found
    none = row < 0
    ids = nuclei.nucleus_id[np.maximum(row, 0)] if len(nuclei.nucleus_id) else np.zeros(len(row), np.int64)
    schema = arrow_schema(ASSIGNED, nullable=True, metadata={META_KEY: {"schema": SCHEMA_VERSION}})
    arrays = [pa.array(ids, mask=none), pa.array(distance_um.astype(np.float32), mask=none)]
    answer = pa.table(arrays, schema=schema)
    for name in dict.fromkeys([*points.keep, *([points.gene] if points.gene else [])]):
        answer = answer.append_column(table.schema.field(name), table[name])
    return answer


def _good(
    points: PointTable, table: pa.Table, row: npt.NDArray[np.int32], options: AssignOptions, done: Assigned
) -> npt.NDArray[np.int32]:
    """Return the rows, with -1 for points of too low quality, which are not counted."""
    if options.min_quality is None or not points.quality:
        return row
    low = ~(table[points.quality].to_numpy() >= options.min_quality)
    done.n_low_quality += int(low.sum())
    return np.where(low, np.int32(-1), row).astype(np.int32)


def _tally(done: Assigned, xy: Float, row: npt.NDArray[np.int32], distance: Float, ground: Ground) -> None:
    done.n_points += len(xy)
    inside = int((distance == 0).sum())
    done.n_inside += inside
    done.n_near += int((row >= 0).sum()) - inside
    placed = np.isfinite(xy).all(axis=1)
    done.n_without_place += int((~placed).sum())
    left, top, right, bottom = ground.area
    within = (xy[:, 0] >= left) & (xy[:, 0] <= right) & (xy[:, 1] >= top) & (xy[:, 1] <= bottom)
    done.n_outside_slide += int((placed & ~within).sum())


def _placement(points: PointTable, ground: Ground, options: AssignOptions) -> tuple[Float, list[str]]:
    """Return the matrix from the points' coordinates to level-0 px, and notes about it."""
    mpp = float(ground.mpp or 1.0)
    divided = np.diag([1 / options.divide, 1 / options.divide, 1.0])
    if options.affine is not None:
        matrix = read_matrix(options.affine)
        matrix = np.asarray(np.linalg.inv(matrix) if options.inverse else matrix, np.float64) @ divided
    elif options.landmarks is not None:
        matrix, rms, worst, n = fit_landmarks(options.landmarks, options.divide)
        matrix = matrix @ divided
        note = f"{options.landmarks}: least-squares affine map of {n} landmarks; residual {rms:.2f} px "
        note += f"({rms * mpp:.2f} um) root mean square, {worst:.2f} px ({worst * mpp:.2f} um) at most"
        note += ": larger than a nucleus, check the landmarks" if worst * mpp > WARN_RESIDUAL_UM else ""
        note += "; three landmarks leave no residual" if n == 3 else ""
        return matrix, [note, f"map: {describe_affine(matrix)}"]
    elif options.transformation is not None:
        matrix = read_spatialdata(options.transformation) @ divided
        if options.image_transformation is not None:
            matrix = np.linalg.inv(read_spatialdata(options.image_transformation)) @ matrix
    else:
        return _framed(points, ground, options)
    return matrix, [f"map: {describe_affine(matrix)}"]


def _framed(points: PointTable, ground: Ground, options: AssignOptions) -> tuple[Float, list[str]]:
    frame = parse_frame(options.frame)
    if options.frame in ("", "auto") and points.unit != "slide px":
        counted = {
            "um": "um of the instrument's own picture",
            "px": "px of the instrument's own picture",
            "": "an unknown unit",
        }
        raise InputError(
            f"{points.path}: x and y are in {counted[points.unit]}, so their position on the slide is not known. Give "
            "--affine MATRIX, --landmarks CSV or --transformation ELEMENT, or --frame um (or slide, or mpp=UM) if they are "
            "relative to the slide's corner."
        )
    notes = mpp_note(str(points.path), points.stated_mpp, ground.mpp if frame.unit_plain else None)
    factor, dx, dy = frame.on(ground, "slide", str(points.path))
    matrix = np.array([[factor / options.divide, 0, dx], [0, factor / options.divide, dy], [0, 0, 1.0]])
    return matrix, notes


def _check(points: PointTable, matrix: Float, ground: Ground, options: AssignOptions, done: Assigned) -> None:
    """Raise ``FormatError`` if a sample of the points is outside the slide, before all points are read."""
    sample = sample_xy(points)
    sample = sample[np.isfinite(sample).all(axis=1)]
    if not len(sample):
        raise FormatError(
            f"{points.path}: no point has x and y ({points.n_rows or 0:,} rows). Name their columns with --x and --y."
        )
    mapped = any(o is not None for o in (options.affine, options.landmarks, options.transformation))
    n = points.n_rows if points.is_parquet else None
    if not mapped:
        placed = (float(matrix[0, 0]), float(matrix[0, 2]), float(matrix[1, 2]))
        done.notes += check_fit(sample, ground, placed, f"{points.path}: points", n if n and n > len(sample) else None)
        return
    xy = apply_affine(matrix, sample)
    left, top, right, bottom = ground.area
    inside = float(((xy >= (left, top)) & (xy <= (right, bottom))).all(axis=1).mean())
    if inside >= 1 - WARN_OUTSIDE_FRAC:
        return
    low, high = xy.min(axis=0), xy.max(axis=0)
    text = (
        f"{points.path}: {1 - inside:.1%} of {len(xy):,} sampled points are outside the slide, x {left:g} to {right:g}, "
        f"y {top:g} to {bottom:g} level-0 px; mapped, x goes from {low[0]:.1f} to {high[0]:.1f}, y from {low[1]:.1f} to "
        f"{high[1]:.1f}"
    )
    if inside < MIN_INSIDE_FRAC:
        raise FormatError(
            f"{text}. The map: {describe_affine(matrix)}. Check its direction (--inverse) and its unit (--divide)."
        )
    done.notes.append(text)


def _conclude(points: PointTable, source: NucleiFile, done: Assigned) -> None:
    """Add notes about all points."""
    n = max(1, done.n_points)
    if done.n_without_place:
        done.notes.append(f"{points.path}: {done.n_without_place:,} of {n:,} points have no x or y")
    if done.n_outside_slide > WARN_OUTSIDE_FRAC * n and not any("outside the" in note for note in done.notes):
        done.notes.append(f"{points.path}: {done.n_outside_slide / n:.1%} of {n:,} points are outside the slide")
    if not source.n_nuclei:
        done.notes.append(f"{source.path}: the slide has no nuclei")
    elif not done.n_inside:
        done.notes.append(f"{points.path}: none of {n:,} points is in one of {source.n_nuclei:,} nuclei: check the map")

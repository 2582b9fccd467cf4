"""``wsiseg regions``: area, tissue, nuclei and their statistics, by region and by class, one row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.coordinates import parse_frame
from wsiseg.errors import FormatError, InputError, MissingMppError
from wsiseg.questions.annotated import Region, place_regions
from wsiseg.questions.borders import write_borders
from wsiseg.questions.coverage import tissue_area
from wsiseg.questions.pairing import Pairing
from wsiseg.questions.rows import RegionRow
from wsiseg.read import TissueMask
from wsiseg.results.folder import RunFolder
from wsiseg.results.maps import tissue_of
from wsiseg.results.slide_record import slide_or_none
from wsiseg.summarize import nuclei_statistics
from wsiseg.tables.annotations import read_annotations
from wsiseg.tables.source import NucleiFile, open_nuclei
from wsiseg.tables.within import MARKER_COLUMNS, area_share, inside, iter_groups, marker_kind, marker_xy

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["RegionOptions", "RegionRows", "region_rows", "run_regions"]

VALUES = ("area_um2", "center_prob", "material_prob")
SHARE_STEP = 1e-9
"""Shares are compared with this tolerance, so that a nucleus cut in halves has half of its area in each, despite rounding."""

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RegionOptions:
    """Options of ``wsiseg regions``.

    Attributes
    ----------
    frame
        Frame of the coordinates (``wsiseg.coordinates``).
    belongs
        A nucleus belongs to a region if its marker is inside or on the border (``marker``), or if at least ``area_frac`` of its
        area is inside (``area``).
    area_frac
        Above 0, at most 1.
    distances
        Folder for the tables of distances to borders (``wsiseg.schema.BORDERS``); None: not written.
    """

    frame: str = "auto"
    belongs: Literal["marker", "area"] = "marker"
    area_frac: float = 0.5
    distances: Path | None = None

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if not 0 < self.area_frac <= 1:
            raise InputError(f"Expected an --area-frac above 0 and up to 1, got {self.area_frac}.")


@dataclass(slots=True)
class RegionRows:
    """Result of one slide: rows of ``wsiseg.schema.REGIONS``, or in ``error`` why there are none."""

    slide_id: str
    annotation: Path
    rows: list[RegionRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    n_nuclei: int = 0
    n_within: int = 0
    error: str = ""


@dataclass(slots=True)
class _Gathered:
    """Values of the nuclei that belong to one region or class."""

    values: list[list[npt.NDArray[Any]]] = field(default_factory=lambda: [[] for _ in VALUES])
    n: int = 0

    def add(self, columns: Sequence[npt.NDArray[Any]], rows: Int) -> None:
        self.n += len(rows)
        for kept, column in zip(self.values, columns, strict=True):
            kept.append(column[rows])

    def of(self, k: int) -> npt.NDArray[Any]:
        return np.concatenate(self.values[k]) if self.values[k] else np.empty(0)


def run_regions(pairing: Pairing, options: RegionOptions) -> Iterator[RegionRows]:
    """Yield the result of each slide that has an annotation file; if it cannot be used, the result has the ``error``."""
    frame = parse_frame(options.frame)
    for table, annotation in pairing.pairs:
        out = RegionRows(table.stem, annotation)
        try:
            source = open_nuclei(table)
            if not source.mpp > 0:
                raise MissingMppError(f"{table}: the slide's um/px is not known, so areas in mm2 cannot be computed.")
            tissue = tissue_of(RunFolder(table.parent.parent), table.stem)
            found = read_annotations(annotation)
            regions, out.notes = place_regions(found, source, frame, tissue)
            if not regions:
                raise FormatError(f"{annotation}: expected at least one region, got none.")
            out.notes += _run_notes(source, options)
            out.rows, out.n_nuclei, out.n_within = region_rows(source, regions, tissue, options, annotation.name)
            if source.n_nuclei and not out.n_within:
                out.notes.append(f"{annotation}: none of the slide's {source.n_nuclei:,} nuclei is in a region: check --frame")
            if options.distances is not None:
                options.distances.mkdir(parents=True, exist_ok=True)
                write_borders(source, regions, options.distances / f"{table.stem}.parquet")
        except (InputError, FileNotFoundError) as err:
            out.error = str(err)
        yield out


def region_rows(
    source: NucleiFile, regions: Sequence[Region], tissue: TissueMask | None, options: RegionOptions, annotation: str = ""
) -> tuple[list[RegionRow], int, int]:
    """Return rows of ``wsiseg.schema.REGIONS``, the number of nuclei of the slide, and of those in any region.

    A nucleus in several regions counts in each of them, but only once in the row of a class. Only the row groups that intersect
    the regions' boxes are read, each once. Memory grows by 6 bytes per nucleus and region.
    """
    import shapely

    classes = list(dict.fromkeys(r.class_name for r in regions))
    of_class = [[k for k, r in enumerate(regions) if r.class_name == c] for c in classes]
    unions = [shapely.union_all([regions[k].geometry for k in own]) for own in of_class]
    gathered, n_within = _gather(source, regions, of_class, unions, options)
    belongs = options.belongs if options.belongs == "area" else marker_kind(source)
    areas = [(r.geometry, r.outside_frac) for r in regions] + [(u, None) for u in unions]
    rows = []
    for k, ((geometry, outside), nuclei) in enumerate(zip(areas, gathered, strict=True)):
        whole = k >= len(regions)
        own = of_class[k - len(regions)] if whole else [k]
        rows.append(
            RegionRow(
                slide_id=source.path.stem,
                cohort=source.cohort,
                kind="class" if whole else "region",
                region=-1 if whole else regions[k].number,
                class_name=regions[own[0]].class_name,
                name="" if whole else regions[k].name,
                n_regions=len(own),
                outside_frac=outside,
                belongs=belongs,
                area_frac=options.area_frac if belongs == "area" else None,
                annotation=annotation,
                geometry=shapely.to_wkb(geometry),
                **_measures(geometry, tissue, nuclei, source.mpp),
            )
        )
    return rows, source.n_nuclei, n_within


def _measures(geometry: Any, tissue: TissueMask | None, nuclei: _Gathered, mpp: float) -> dict[str, Any]:
    """Return the columns of ``REGIONS`` that are measured."""
    area_mm2 = geometry.area * mpp**2 * 1e-6
    tissue_mm2 = None if tissue is None else tissue_area(geometry, tissue) * mpp**2 * 1e-6
    area = nuclei.of(0).astype(np.float64)
    found = nuclei_statistics(area, nuclei.of(1), nuclei.of(2))
    return {
        "area_mm2": area_mm2,
        "tissue_mm2": tissue_mm2,
        "tissue_frac": min(1.0, tissue_mm2 / area_mm2) if tissue_mm2 is not None and area_mm2 else None,
        "n_nuclei": nuclei.n,
        "nuclei_per_region_mm2": nuclei.n / area_mm2 if area_mm2 else None,
        "nuclei_per_tissue_mm2": nuclei.n / tissue_mm2 if tissue_mm2 else None,
        "nuclear_area_frac": float(area.sum()) * 1e-6 / area_mm2 if area_mm2 else None,
        **{name: None if value is None or np.isnan(value) else value for name, value in found.items()},
    }


def _gather(
    source: NucleiFile, regions: Sequence[Region], of_class: list[list[int]], unions: list[Any], options: RegionOptions
) -> tuple[list[_Gathered], int]:
    """Return the nuclei of each region and then of each class, and the number that belong to any class."""
    import shapely

    by_area = options.belongs == "area"
    shapes = [r.geometry for r in regions]
    boxes = shapely.bounds(np.array([*shapes, *unions], object))
    out = [_Gathered() for _ in boxes]
    n_within = 0
    boxes_read = [tuple(b) for b in boxes[: len(shapes)] if not np.isnan(b).any()]
    columns = [*MARKER_COLUMNS, *VALUES, "bbox", *(["geometry"] if by_area else [])]
    for table in iter_groups(source, columns, boxes_read):
        values = [_column(table, name) for name in VALUES]
        test = _ByArea(table, options.area_frac) if by_area else _ByMarker(marker_xy(source, table))
        found = [test.rows(shape, box) for shape, box in zip(shapes, boxes, strict=False)]
        for k, (own, union) in enumerate(zip(of_class, unions, strict=True)):
            if len(own) == 1:
                found.append(found[own[0]])
            elif by_area:  # a nucleus may be half in the union of two adjacent regions but in neither
                found.append(test.rows(union, boxes[len(shapes) + k]))
            else:
                found.append(np.unique(np.concatenate([found[j] for j in own])))
        for gathered, rows in zip(out, found, strict=True):
            gathered.add(values, rows)
        n_within += len(np.unique(np.concatenate(found[len(shapes) :]))) if unions else 0
    return out, n_within


class _ByMarker:
    """Finds the nuclei of a row group whose point is in a region."""

    def __init__(self, xy: Float) -> None:
        self.xy = xy

    def rows(self, shape: Any, box: Float) -> Int:
        """Return the rows of the nuclei that belong to a region."""
        return np.flatnonzero(inside(shape, self.xy)) if box[0] <= box[2] else np.empty(0, np.int64)


class _ByArea:
    """Finds the nuclei of a row group by their share in a region; polygons are made only of those that a border may cut."""

    def __init__(self, table: pa.Table, area_frac: float) -> None:
        import shapely

        boxes = table["bbox"].combine_chunks()
        self.ends = [boxes.field(name).to_numpy().astype(np.float64) for name in ("xmin", "ymin", "xmax", "ymax")]
        self.tree = shapely.STRtree(shapely.box(*self.ends))
        self.wkb = table["geometry"].combine_chunks()
        self.area_frac = area_frac

    def rows(self, shape: Any, box: Float) -> Int:
        """Return the rows of the nuclei that belong to a region.

        If no edge of the region intersects the bounding box of a nucleus, it is inside or outside as a whole, like any point of
        the box.
        """
        import pyarrow as pa
        import shapely

        x0, y0, x1, y1 = self.ends
        near = (x0 <= box[2]) & (x1 >= box[0]) & (y0 <= box[3]) & (y1 >= box[1])
        if not near.any():
            return np.empty(0, np.int64)
        belongs = near.copy()
        belongs[near] = inside(shape, np.stack([(x0 + x1)[near] / 2, (y0 + y1)[near] / 2], axis=1))
        _, cut = self.tree.query(_edges_in(shape, (x0.min(), y0.min(), x1.max(), y1.max())))
        cut = np.unique(cut)
        if cut.size:
            polygons = shapely.from_wkb(self.wkb.take(pa.array(cut)).to_numpy(zero_copy_only=False))
            belongs[cut] = area_share(shape, polygons) >= self.area_frac - SHARE_STEP
        return np.flatnonzero(belongs)


def _edges_in(shape: Any, window: tuple[float, float, float, float]) -> npt.NDArray[Any]:
    """Return the edges of a geometry whose bounding boxes intersect a window, as lines."""
    import shapely

    xy, owner = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(shape)), return_index=True)
    start, end = xy[:-1], xy[1:]
    low, high = np.minimum(start, end), np.maximum(start, end)
    keep = (owner[1:] == owner[:-1]) & (low <= window[2:]).all(axis=1) & (high >= window[:2]).all(axis=1)
    return np.asarray(shapely.linestrings(np.stack([start[keep], end[keep]], axis=1)))


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column of a table; NaN for nulls, or if the table lacks it."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].to_numpy())


def _run_notes(source: NucleiFile, options: RegionOptions) -> list[str]:
    """Return notes for the user about the slide: nuclei were imported, tiles failed."""
    notes = []
    if options.belongs == "marker" and source.imported:
        notes.append(f"slide {source.slide_id} was imported and has no markers, so centroids are used")
    record = slide_or_none(RunFolder(source.path.parent.parent), source.path.stem)
    if record is not None and record.row.status == "partial":
        notes.append(
            f"slide {source.slide_id}: {record.row.tiles_failed} of its tiles failed: nuclei there are missing (wsiseg errors)"
        )
    return notes

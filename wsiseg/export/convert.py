"""``wsiseg export``, ``cohort`` and ``query``: convert tables of runs, combine them into one dataset, and query them by SQL."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from wsiseg.errors import EmptyExportError, FormatError, InputError, SlideOpenError, TileReadError, first_names
from wsiseg.export import query
from wsiseg.export.dicom_ann import write_dicom_annotations
from wsiseg.export.dicom_seg import write_dicom_segmentation
from wsiseg.export.frames import write_csv, write_geopackage, write_roi_zip
from wsiseg.export.heatmap import write_heatmap
from wsiseg.export.marks import write_marks
from wsiseg.export.pyramid import Progress
from wsiseg.export.query import write_cohort
from wsiseg.export.quip import write_quip
from wsiseg.export.qupath import write_geojson
from wsiseg.export.qupath_project import write_qupath_project
from wsiseg.export.raster import write_label_image, write_ome_labels
from wsiseg.export.spatial import write_anndata, write_spatialdata
from wsiseg.export.thumbnails import thumbnails_of
from wsiseg.export.tiatoolbox import write_annotation_store
from wsiseg.export.tissuumaps import write_tissuumaps
from wsiseg.export.viewer_xml import write_asap, write_imagescope
from wsiseg.export.xenium import write_xenium
from wsiseg.read import tissue_cells
from wsiseg.results.arithmetic import mixed_precision_note
from wsiseg.results.folder import RunFolder
from wsiseg.results.maps import tissue_of
from wsiseg.results.run_record import RunRecord
from wsiseg.tables import Exported, NucleiFile, Selection, atomic_path, open_nuclei, with_features
from wsiseg.tables.source import with_cells
from wsiseg.types import Box
from wsiseg.write import write_maps
from wsiseg.write.maps import CELL_PX, TissueOf

__all__ = ["EXPORT_FORMATS", "ExportOptions", "export_tables", "make_cohort", "query_run", "slides_without_table"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of ``wsiseg export``.

    Attributes
    ----------
    region, sample
        See ``wsiseg.export.Selection``.
    frame
        Origin of QuPath GeoJSON.
    centroids
        Write points instead of polygons (QuPath GeoJSON).
    tile_px
        Side of QuIP tiles, level-0 px.
    cell_px
        Side of a cell of maps, level-0 px; default 32, and about 64 um for ``heatmap``.
    image_mpp
        um per px of the image that goes with the nuclei (``tissuumaps``, ``xenium``).
    features
        Add features as columns (measurements): derived ones, and those that ``wsiseg features`` computed.
    dicom_series
        A DICOM file of the slide, or its folder, if the slide itself is not DICOM (``dicom-ann``, ``dicom-seg``).
    dicom_3d
        Write mm in the slide's frame of reference (``dicom-ann``).
    cells
        Write cells, made by ``wsiseg cells``, with their nuclei (QuPath, SpatialData).
    path_map
        ``OLD=NEW`` pairs for slides that were moved, as in ``schedule.path_map``; their pictures are written into AnnData and
        SpatialData.
    overwrite
        Replace an existing output.
    progress
        Called while an image is written (``tissuumaps``, ``xenium``).
    """

    region: Box | None = None
    sample: int | None = None
    frame: Literal["bounds", "slide"] = "bounds"
    centroids: bool = False
    tile_px: int = 4000
    cell_px: int | None = None
    image_mpp: float = 0.5
    features: bool = False
    dicom_series: Path | None = None
    dicom_3d: bool = False
    cells: bool = False
    path_map: tuple[str, ...] = ()
    overwrite: bool = False
    progress: Progress | None = None
    executed: datetime.datetime | None = None

    @property
    def selection(self) -> Selection:
        """Return region and sample as a selection."""
        return Selection(self.region, self.sample)


Writer = Callable[[NucleiFile, Path, ExportOptions], Exported]


def _tissue(s: NucleiFile) -> TissueOf | None:
    mask = tissue_of(RunFolder(s.path.parent.parent), s.path.stem)
    return None if mask is None else partial(tissue_cells, mask)


def _maps(s: NucleiFile, p: Path, o: ExportOptions) -> Exported:
    return write_maps(s, p, o.region, cell_px=o.cell_px or CELL_PX, tissue=_tissue(s), overwrite=o.overwrite)


def _tissuumaps(s: NucleiFile, p: Path, o: ExportOptions) -> Exported:
    return write_tissuumaps(
        s, p, o.selection, image_mpp=o.image_mpp, path_map=o.path_map, overwrite=o.overwrite, progress=o.progress
    )


def _xenium(s: NucleiFile, p: Path, o: ExportOptions) -> Exported:
    return write_xenium(
        s, p, o.selection, image_mpp=o.image_mpp, path_map=o.path_map, overwrite=o.overwrite, progress=o.progress
    )


def _qupath(s: NucleiFile, p: Path, o: ExportOptions) -> Exported:
    return write_geojson(s, p, o.selection, origin=o.frame, geometry="centroid" if o.centroids else "polygon")


def _dicom(s: NucleiFile, p: Path, o: ExportOptions) -> Exported:
    return write_dicom_annotations(s, p, o.selection, series=o.dicom_series, three_d=o.dicom_3d)


def _dicom_seg(s: NucleiFile, p: Path, o: ExportOptions) -> Exported:
    return write_dicom_segmentation(s, p, series=o.dicom_series, overwrite=o.overwrite)


def _spatialdata(s: NucleiFile, p: Path, o: ExportOptions) -> Exported:
    return write_spatialdata(s, p, o.selection, overwrite=o.overwrite, pictures=thumbnails_of(s, o.path_map))


def _project(sources: Sequence[NucleiFile], out: Path, o: ExportOptions) -> Iterator[Exported]:
    return write_qupath_project(sources, out, o.selection, path_map=o.path_map, overwrite=o.overwrite)


EXPORT_FORMATS: dict[str, tuple[str, Writer]] = {
    "anndata": (".h5ad", lambda s, p, o: write_anndata(s, p, o.selection, pictures=thumbnails_of(s, o.path_map))),
    "asap": (".xml", lambda s, p, o: write_asap(s, p, o.selection)),
    "csv": (".csv", lambda s, p, o: write_csv(s, p, o.selection)),
    "dicom-ann": (".dcm", _dicom),
    "dicom-seg": (".dicom-seg", _dicom_seg),
    "geopackage": (".gpkg", lambda s, p, o: write_geopackage(s, p, o.selection)),
    "heatmap": (".heatmap.json", lambda s, p, o: write_heatmap(s, p, cell_px=o.cell_px, tissue=_tissue(s))),
    "imagescope": (".xml", lambda s, p, o: write_imagescope(s, p, o.selection)),
    "imagej": (".zip", lambda s, p, o: write_roi_zip(s, p, o.selection)),
    "labels-png": (".png", lambda s, p, o: write_label_image(s, p, o.region)),
    "labels-tiff": (".tif", lambda s, p, o: write_label_image(s, p, o.region)),
    "maps": (".maps.zarr", _maps),
    "marks": (".json.gz", lambda s, p, o: write_marks(s, p, o.selection)),
    "ome-zarr": (".labels.zarr", lambda s, p, o: write_ome_labels(s, p, o.region, overwrite=o.overwrite)),
    "quip": ("", lambda s, p, o: write_quip(s, p, o.selection, tile_px=o.tile_px, executed=o.executed, overwrite=o.overwrite)),
    "qupath": (".geojson.gz", _qupath),
    "qupath-project": ("", lambda s, p, o: next(_project([s], p, o))),
    "spatialdata": (".spatialdata.zarr", _spatialdata),
    "tissuumaps": (".tissuumaps", _tissuumaps),
    "tiatoolbox": (".db", lambda s, p, o: write_annotation_store(s, p, o.selection)),
    "xenium": (".xenium", _xenium),
}
"""Formats of ``wsiseg export``: the file ending, and the function that writes it."""

WITH_CELLS = ("qupath", "qupath-project", "spatialdata", "xenium")
NO_SAMPLE = frozenset(("dicom-seg", "heatmap", "labels-png", "labels-tiff", "ome-zarr", "maps"))
NO_REGION = frozenset(("dicom-seg", "heatmap"))
FOLDER_ENDINGS = (".zarr", ".dicom-seg", ".tissuumaps", ".xenium")
"""Endings of results that are folders."""


def export_tables(
    target: Path, to: str, out: Path, options: ExportOptions | None = None, *, slide_ids: Sequence[str] = ()
) -> Iterator[Exported]:
    """Write the table of one slide, or those of all slides of a run, in another format; yield the result of each slide.

    Parameters
    ----------
    target
        A polygon table, or a run folder.
    to
        A key of ``EXPORT_FORMATS``.
    out
        For one slide: the file (or ``.zarr`` folder) to write, or a folder (an existing one, or a name without a suffix). For
        several slides, and for ``quip`` and ``qupath-project``: a folder.
    slide_ids
        Slides of the run to export; empty: all.

    Raises
    ------
    InputError
        The format or slide is unknown, the output exists, or an option does not apply to the format.
    FormatError, SlideOpenError, TileReadError
        A single table, or its slide if the format needs it, cannot be read. With several slides, that slide's result has
        ``error`` set instead.
    EmptyExportError
        A single table has no nucleus and the format has no empty files. With several slides, the result is ``empty`` instead.
    """
    options = options or ExportOptions()
    if to not in EXPORT_FORMATS:
        raise InputError(f"Expected one of the formats {', '.join(sorted(EXPORT_FORMATS))}, got {to!r}.")
    if options.sample is not None and to in NO_SAMPLE:
        raise InputError(f"The format {to} always contains all nuclei of a region: omit --sample.")
    if options.cells and (to not in WITH_CELLS or options.centroids):
        raise InputError(f"Cells can be written as outlines to {', '.join(WITH_CELLS)}: omit --cells.")
    if options.region is not None and to in NO_REGION:
        raise InputError(f"The format {to} always shows the whole slide: omit --region.")
    tables = _tables(target, slide_ids)
    suffix, write = EXPORT_FORMATS[to]
    is_folder = (out.is_dir() and out.suffix not in FOLDER_ENDINGS) or (not out.suffix and not out.is_file())
    into_folder = len(tables) > 1 or is_folder
    sources = []
    for table in tables:
        try:
            source = with_features(open_nuclei(table)) if options.features else open_nuclei(table)
            source = with_cells(source) if options.cells else source
        except FormatError as err:
            if len(tables) == 1:
                raise
            yield Exported(table, 0, error=str(err))
            continue
        sources.append(source)
    if to == "qupath-project":
        yield from _project(sources, out, options)
        return
    for source in sources:
        table = source.path
        path = out if to == "quip" else out / f"{table.stem}{suffix}" if into_folder else out
        if path.is_file() and not options.overwrite:
            raise InputError(f"{path} already exists. Remove it, choose another --out, or add --overwrite.")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield write(source, path, options)
        except EmptyExportError as err:
            if len(tables) == 1:
                raise
            yield Exported(table, 0, empty=str(err))
        except (SlideOpenError, TileReadError) as err:
            if len(tables) == 1:
                raise
            yield Exported(table, 0, error=str(err))


def _tables(target: Path, slide_ids: Sequence[str]) -> list[Path]:
    if target.is_file():
        return [target]
    found = {p.stem: p for p in sorted((target / "nuclei").glob("*.parquet"))}
    if not found:
        raise InputError(f"{target}: expected a polygon table or a run folder with nuclei/*.parquet.")
    unknown = [s for s in slide_ids if s not in found]
    if unknown:
        raise InputError(f"{target}: this run has no table of slide {unknown[0]!r}. It has: {first_names(found)}.")
    return [found[s] for s in slide_ids] if slide_ids else list(found.values())


def slides_without_table(run: Path) -> list[str]:
    """Return the ids of slides that a run finished without a polygon table, because they failed."""
    folder = RunFolder(run)
    return sorted(p.stem for p in (run / "slides").glob("*.json") if not folder.table(p.stem).is_file())


def make_cohort(runs: Sequence[Path], out: Path) -> tuple[list[Path], dict[str, int], str]:
    """Arrange the tables of several runs by cohort and slide (see ``wsiseg.export.write_cohort``).

    Returns
    -------
    files, slides by precision, warning
        ``slides by precision`` is the number of slides for each arithmetic of the network (``unknown`` for imported or older
        runs). ``warning`` is not empty if there are several, since their results may differ slightly.
    """
    made = write_cohort(runs, out)
    slides: Counter[str] = Counter()
    records: dict[str, RunRecord | None] = {}
    for run in runs:
        record = records[str(run)] = RunFolder(run).read_run()
        precision = record.precision if record is not None else ""
        slides[precision or "unknown"] += len(list((run / "nuclei").glob("*.parquet")))
    return made, dict(slides), mixed_precision_note(records)


def query_run(run: str | Path, sql: str, out: Path | None = None, *, allow_files: bool = False) -> tuple[Any, dict[str, str]]:
    """Return the result of an SQL query as (Arrow table, unit of each column that has one); also write it to ``out`` if given.

    Raises
    ------
    InputError
        As for ``wsiseg.export.query``, or ``out`` does not end in ``.csv`` or ``.parquet``.
    """
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise InputError(f"Expected an output file that ends in .csv or .parquet, got {out}.")
    table, units = query(run, sql, allow_files=allow_files)
    if out is not None:
        import pyarrow.parquet as pq
        from pyarrow import csv

        with atomic_path(out) as temporary:
            if out.suffix == ".csv":
                csv.write_csv(table, str(temporary))
            else:
                pq.write_table(table, str(temporary), compression="zstd")
    return table, units

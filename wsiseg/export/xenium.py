"""Write a polygon table as a folder for Xenium Explorer: outlines, classes, and hematoxylin as the morphology image.

Layout of Xenium Onboard Analysis 1.x (``cells.zarr.zip`` version 5, ``experiment.xenium`` version 2.0):
https://www.10xgenomics.com/support/software/xenium-onboard-analysis, Zarr output files. Coordinates are um from the slide's
corner.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import EmptyExportError
from wsiseg.export.classes import PLAIN_CLASS, ClassCodes, shown_classes
from wsiseg.export.pyramid import Progress, Pyramid, write_pyramid
from wsiseg.results.reopen import slide_of_table
from wsiseg.tables import atomic_folder
from wsiseg.tables.source import CELL_GEOMETRY, Chunk, Exported, NucleiFile, Selection, iter_chunks

__all__ = ["MAX_VERTICES", "cell_ids", "write_xenium"]

MAX_VERTICES = 13
"""Corners of an outline, the first one again at the end: as in files of the instrument."""

CHUNK_ROWS = 16384
FIRST_TOLERANCE_PX = 1.0
SUMMARY = {
    "cell_centroid_x": "Cell centroid in X",
    "cell_centroid_y": "Cell centroid in Y",
    "cell_area": "Cell area",
    "nucleus_centroid_x": "Nucleus centroid in X",
    "nucleus_centroid_y": "Nucleus centroid in Y",
    "nucleus_area": "Nucleus area",
    "z_level": "z_level",
}
"""Columns of ``cell_summary`` and their descriptions; um and um^2."""

CELLS = {
    "major_version": 5, "minor_version": 0, "name": "CellSegmentationDataset", "spatial_units": "microns",
    "polygon_set_names": ["nucleus", "cell"], "polygon_set_display_names": ["Nucleus boundaries", "Cell boundaries"],
    "polygon_set_descriptions": ["NA", "NA"],
}  # fmt: skip
UNKNOWN = (
    "panel_tissue_type", "run_start_time", "preservation_method", "cassette_name", "slide_id", "panel_design_id", "panel_name",
    "panel_organism", "instrument_sn", "instrument_sw_version", "calibration_uuid", "experiment_uuid",
)  # fmt: skip
FILES = {
    "transcripts_zarr_filepath": "transcripts.zarr.zip",
    "cells_zarr_filepath": "cells.zarr.zip",
    "cell_features_zarr_filepath": "cell_feature_matrix.zarr.zip",
    "analysis_zarr_filepath": "analysis.zarr.zip",
    "analysis_summary_filepath": "analysis_summary.html",
}
IMAGES = ("morphology_filepath", "morphology_mip_filepath", "morphology_focus_filepath")


def write_xenium(
    source: NucleiFile,
    out: Path,
    selection: Selection | None = None,
    *,
    image_mpp: float = 0.5,
    path_map: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the folder ``out``, whose ``experiment.xenium`` Xenium Explorer opens.

    Of a table ``with_cells`` the cell boundaries are its cells, else its nuclei once more. Outlines are simplified to
    ``MAX_VERTICES`` corners, for display only. ``nuclei.csv`` lists the nucleus of each cell id of the Explorer. There are no
    transcripts and no counts.

    Parameters
    ----------
    image_mpp
        um per px of the image; the slide's own where that is coarser.
    path_map
        New paths of slides that were moved.
    progress
        Called after each tile of the image.

    Raises
    ------
    EmptyExportError
        The selection has no nucleus.
    SlideOpenError
        The slide is not there, or is not the file that was segmented: the Explorer opens nothing without an image.
    """
    with atomic_folder(out, overwrite=overwrite) as folder:
        kinds = _write_cells(source, folder, selection or Selection())
        n = len(kinds.codes)
        if n == 0:
            raise EmptyExportError(
                f"{source.path}: there is no nucleus to export, and Xenium Explorer opens nothing without cells."
            )
        if kinds.names and set(kinds.names) != {PLAIN_CLASS}:
            _write_groups(folder, kinds)
        with closing(slide_of_table(source.path, path_map)) as slide:
            image = write_pyramid(slide, folder / "morphology.ome.tif", image_mpp, hematoxylin=True, progress=progress)
        text = json.dumps(_experiment(source, image, n), indent=1, ensure_ascii=False)
        (folder / "experiment.xenium").write_text(text, encoding="utf-8")
    return Exported(out, n)


def cell_ids(first: int, n: int) -> npt.NDArray[np.str_]:
    """Return how Xenium names cells ``first`` to ``first + n - 1``: hexadecimal in the letters a to p, and ``-1``."""
    numbers = np.arange(first, first + n, dtype=np.uint32)
    digits = (numbers[:, None] >> np.arange(28, -4, -4, dtype=np.uint32)) & 15
    letters = (digits + ord("a")).astype(np.uint32).view("U8")[:, 0] if n else np.empty(0, "U8")
    return np.char.add(letters, "-1")


@dataclass(slots=True)
class _Classes:
    """Class of every nucleus, as number of its name."""

    names: list[str]
    codes: npt.NDArray[np.int32]


def _write_cells(source: NucleiFile, folder: Path, selection: Selection) -> _Classes:
    """Write ``cells.zarr.zip`` and ``nuclei.csv``, row group by row group; return the classes."""
    import pyarrow as pa
    import zarr
    from pyarrow import csv

    classes, codes = ClassCodes(), [np.empty(0, np.int32)]
    store = folder / "cells.zarr"
    root = zarr.open_group(str(store), mode="w", zarr_format=2)
    width = 2 * MAX_VERTICES
    vertices = _array(root, "polygon_vertices", (2, 0, width), (1, CHUNK_ROWS, width), "float32")
    counts = _array(root, "polygon_num_vertices", (2, 0), (1, CHUNK_ROWS), "int32")
    ids = _array(root, "cell_id", (0, 2), (CHUNK_ROWS, 1), "uint32")
    summary = _array(root, "cell_summary", (0, len(SUMMARY)), (CHUNK_ROWS, 1), "float64")
    values = _array(root, "seg_mask_value", (0,), (CHUNK_ROWS,), "uint32")
    n = 0
    with (folder / "nuclei.csv").open("wb") as stream:
        stream.write(b"cell_id,nucleus_id,class\n")
        for chunk in iter_chunks(source, selection, ["class_name", "area_px", CELL_GEOMETRY]):
            rows = slice(n, n + len(chunk))
            nucleus, cell, facts = _outlines(chunk, source.mpp)
            for array, axis in ((vertices, 1), (counts, 1), (ids, 0), (summary, 0), (values, 0)):
                array.resize(tuple(rows.stop if k == axis else size for k, size in enumerate(array.shape)))
            vertices[:, rows] = np.stack([nucleus, cell]).reshape(2, len(chunk), width)
            counts[:, rows] = np.full((2, len(chunk)), MAX_VERTICES, np.int32)
            ids[rows] = np.stack([np.arange(rows.start, rows.stop), np.ones(len(chunk))], axis=1).astype(np.uint32)
            summary[rows] = facts
            values[rows] = np.arange(rows.start, rows.stop, dtype=np.uint32)
            shown = shown_classes(chunk)
            codes.append(classes.of(shown))
            table = [pa.array(cell_ids(n, len(chunk)).tolist()), chunk.table["nucleus_id"], shown]
            csv.write_csv(pa.table(table, ["a", "b", "c"]), stream, csv.WriteOptions(include_header=False))
            n = rows.stop
    root.attrs.update({**CELLS, "number_cells": n})
    summary.attrs.update({"column_names": list(SUMMARY), "column_descriptions": list(SUMMARY.values())})
    _zip(store, folder / "cells.zarr.zip")
    return _Classes(list(classes.names), np.concatenate(codes))


def _outlines(chunk: Chunk, mpp: float) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Return outlines of nuclei and cells, float64 (n, MAX_VERTICES, 2) in um, and the rows of ``cell_summary``."""
    import shapely

    index = np.repeat(np.arange(len(chunk)), np.diff(chunk.ring_offsets))
    shapes = shapely.polygons(shapely.linearrings(chunk.xy, indices=index))
    centers = np.stack([chunk.column(c).astype(np.float64) for c in ("cx", "cy")], axis=1)
    facts = np.zeros((len(chunk), len(SUMMARY)))
    facts[:, 0:2] = facts[:, 3:5] = centers * mpp
    facts[:, 2] = facts[:, 5] = chunk.column("area_px").astype(np.float64) * mpp**2
    nucleus = cell = _corners(shapes) * mpp
    if CELL_GEOMETRY in chunk.table.column_names:
        cells = shapely.from_wkb(chunk.table[CELL_GEOMETRY].combine_chunks().to_numpy(zero_copy_only=False))
        grown = ~shapely.is_missing(cells)
        cells = np.where(grown, cells, shapes)
        at = shapely.get_coordinates(shapely.centroid(cells))
        facts[grown, 0:2] = at[grown] * mpp
        facts[grown, 2] = shapely.area(cells)[grown] * mpp**2
        cell = _corners(cells) * mpp
    return nucleus, cell, facts


def _corners(shapes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return outer rings of at most ``MAX_VERTICES`` corners (Douglas and Peucker 1973), the last corner repeated, (n, M, 2).

    The tolerance of each ring is the least of 1 px, 1.5 px, ... (times 1.5) that suffices; holes are filled.
    """
    import shapely

    rings = shapely.polygons(shapely.get_exterior_ring(shapely.get_geometry(shapes, 0)))
    simple, tolerance = rings.copy(), FIRST_TOLERANCE_PX
    many = np.flatnonzero(shapely.get_num_coordinates(simple) > MAX_VERTICES)
    while len(many):
        made = shapely.simplify(rings[many], tolerance, preserve_topology=False)
        crossed = ~shapely.is_valid(made) | (shapely.get_num_coordinates(shapely.get_exterior_ring(made)) < 4)
        made[crossed] = shapely.simplify(rings[many[crossed]], tolerance, preserve_topology=True)  # slower
        simple[many] = made
        many = many[shapely.get_num_coordinates(made) > MAX_VERTICES]
        tolerance *= 1.5
    xy = shapely.get_coordinates(simple)
    n = shapely.get_num_coordinates(simple)
    place = np.minimum(np.arange(MAX_VERTICES), (n - 1)[:, None]) + np.concatenate([[0], np.cumsum(n)[:-1]])[:, None]
    return np.asarray(xy[place])


def _write_groups(folder: Path, kinds: _Classes) -> None:
    """Write ``analysis.zarr.zip``: one grouping of cells, by class; indices of the cells of each class one after the other."""
    import zarr

    codes = kinds.codes
    store = folder / "analysis.zarr"
    root = zarr.open_group(str(store), mode="w", zarr_format=2)
    groups = root.create_group("cell_groups")
    facts = {"number_groupings": 1, "grouping_names": ["class"], "group_names": [kinds.names]}
    groups.attrs.update({"major_version": 1, "minor_version": 0, **facts})
    group = groups.create_group("0")
    starts = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(kinds.names)))[:-1]])
    for name, values in (("indices", np.argsort(codes, kind="stable")), ("indptr", starts)):
        array = _array(group, name, (len(values),), (len(values),), "uint32")
        array[:] = values.astype(np.uint32)
    _zip(store, folder / "analysis.zarr.zip")


def _array(group: Any, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str) -> Any:
    import numcodecs

    packed = numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
    return group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, compressors=packed, fill_value=0)


def _zip(store: Path, out: Path) -> None:
    """Put a Zarr folder into a zip file without further compression, with fixed times; remove the folder."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(p for p in store.rglob("*") if p.is_file()):
            entry = zipfile.ZipInfo(path.relative_to(store).as_posix(), (1980, 1, 1, 0, 0, 0))
            with path.open("rb") as stream, archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(stream, target)
    shutil.rmtree(store)


def _experiment(source: NucleiFile, image: Pyramid, n: int) -> dict[str, Any]:
    return {
        "major_version": 2, "minor_version": 0, "run_name": "wsiseg", "region_name": source.slide_id,
        **dict.fromkeys(UNKNOWN, "N/A"), **dict.fromkeys(("cassette_uuid", "roi_uuid", "well_uuid"), ""),
        "num_cells": n, "transcripts_per_cell": 0, "transcripts_per_100um": 0, "panel_num_targets_predesigned": 0,
        "panel_num_targets_custom": 0, "pixel_size": image.mpp, "z_step_size": 3.0,
        "analysis_sw_version": "xenium-1.3.0.5",  # by which readers recognize the layout
        "images": dict.fromkeys(IMAGES, "morphology.ome.tif"), "xenium_explorer_files": FILES,
    }  # fmt: skip

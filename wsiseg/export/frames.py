"""Write a polygon table as GeoPackage, as CSV with WKT, or as an ImageJ ROI set."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import numpy as np

from wsiseg.errors import EmptyExportError, InputError
from wsiseg.export.text import concat, decimal_text, join_rings
from wsiseg.libraries import optional
from wsiseg.tables import atomic_file, atomic_path, wkb_polygons
from wsiseg.tables.source import Chunk, Exported, NucleiFile, Selection, iter_chunks, shifted

__all__ = ["MAX_ROIS", "write_csv", "write_geopackage", "write_roi_zip"]

MAX_ROIS = 200_000
"""Maximum number of ROIs in a set. ImageJ's ROI manager takes minutes for ten thousand, so more are probably a mistake."""


def _plain(source: NucleiFile) -> list[str]:
    return [c for c in source.columns if c not in ("geometry", "bbox", "nucleus_id", "cx", "cy")]


def write_csv(source: NucleiFile, out: Path, selection: Selection | None = None) -> Exported:
    """Write all columns as CSV, with the polygon as WKT (``geometry_wkt``, level-0 px, two decimals); ``.gz`` compresses it."""
    import pyarrow as pa
    from pyarrow import csv

    names = ["nucleus_id", "cx", "cy", *_plain(source)]
    done = 0
    with (
        atomic_path(out) as partial,
        pa.output_stream(str(partial), compression="gzip" if out.suffix == ".gz" else None) as sink,
    ):
        sink.write((",".join([*names, "geometry_wkt"]) + "\n").encode())
        for chunk in iter_chunks(source, selection or Selection(), names):
            x, y = (decimal_text(chunk.xy[:, axis], 2, trim=True) for axis in (0, 1))
            wkt = concat("POLYGON ((", join_rings(x, y, chunk.ring_offsets, " ", ", "), "))")
            table = chunk.table.select(names).append_column("geometry_wkt", wkt)
            csv.write_csv(table, sink, csv.WriteOptions(include_header=False))
            done += len(chunk)
    return Exported(out, done)


def write_geopackage(source: NucleiFile, out: Path, selection: Selection | None = None) -> Exported:
    """Write a GeoPackage with the layer ``nuclei`` through geopandas, chunk by chunk; coordinates in level-0 px, no CRS.

    Raises
    ------
    BackendUnavailableError
        geopandas is not installed (extra ``geo``).
    EmptyExportError
        The selection has no nucleus.
    """
    geopandas = optional("geopandas", "geo")
    import shapely

    done = 0
    with atomic_file(out) as partial, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="'crs' was not provided", category=UserWarning
        )  # pixel coordinates of a slide have no CRS
        for chunk in iter_chunks(source, selection or Selection(), _plain(source)):
            shapes = shapely.from_wkb(wkb_polygons(chunk.xy, chunk.ring_offsets).to_numpy(zero_copy_only=False))
            frame = geopandas.GeoDataFrame(chunk.table.to_pandas(), geometry=shapes)
            frame.to_file(partial, driver="GPKG", layer="nuclei", engine="pyogrio", mode="a" if done else "w")
            done += len(chunk)
        if done == 0:
            raise EmptyExportError(f"{source.path}: there is no nucleus to export, and a GeoPackage layer cannot be empty.")
    return Exported(out, done)


def write_roi_zip(source: NucleiFile, out: Path, selection: Selection) -> Exported:
    """Write an ImageJ ROI set (``.zip``) of a region: one polygon ROI per nucleus, coordinates relative to the region.

    Raises
    ------
    InputError
        No region is given, or it holds more than ``MAX_ROIS`` nuclei.
    BackendUnavailableError
        roifile is not installed (extra ``imagej``).
    """
    roifile = optional("roifile", "imagej")
    if selection.region is None:
        raise InputError("An ROI set needs a region: add --region x,y,w,h (level-0 px).")
    done = 0
    with atomic_path(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for raw in iter_chunks(source, selection):
            chunk: Chunk = shifted(raw, -selection.region.x, -selection.region.y)
            if done + len(chunk) > MAX_ROIS:
                raise InputError(f"Expected at most {MAX_ROIS} nuclei in an ROI set: choose a smaller --region or --sample")
            for k, key in enumerate(chunk.column("nucleus_id").tolist()):
                ring = chunk.xy[chunk.ring_offsets[k] : chunk.ring_offsets[k + 1] - 1]
                points = ring.astype(np.int32) if (ring == np.rint(ring)).all() else ring
                roi = roifile.ImagejRoi.frompoints(points, name=str(key))
                # a fixed time stamp: the same nuclei give the same bytes
                archive.writestr(zipfile.ZipInfo(f"{key}.roi", (1980, 1, 1, 0, 0, 0)), roi.tobytes(), zipfile.ZIP_DEFLATED)
            done += len(chunk)
    return Exported(out, done)

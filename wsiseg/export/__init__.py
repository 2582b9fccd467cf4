"""Convert polygon tables to and from the formats of other tools, and query them.

Comes in: a slide's GeoParquet table (``open_nuclei``), whole, a window or a sample of it (``Selection``).
QuPath GeoJSON, QuIP / TCIA folders, caMicroscope marks, SpatialData, AnnData, OME-Zarr labels and maps, label images,
GeoPackage, CSV, ImageJ ROIs, TIAToolbox annotation stores, ASAP and ImageScope XML, QuPath projects, folders for
TissUUmaps and Xenium Explorer, heat maps of caMicroscope.

Import: from another tool's file (``READERS``), as ``Incoming`` chunks, to the same table as segmentation writes
(``write_imported_table``), with provenance, and with flags for everything that was changed or is suspect.
"""

from wsiseg.export.cellvit import read_cellvit
from wsiseg.export.dicom_ann import write_dicom_annotations
from wsiseg.export.dicom_ann_read import read_dicom_annotations
from wsiseg.export.dicom_seg import write_dicom_segmentation
from wsiseg.export.frames import write_csv, write_geopackage, write_roi_zip
from wsiseg.export.geojson import read_geojson
from wsiseg.export.incoming import Flag, Incoming, Provenance, Reader, Source, safe_name
from wsiseg.export.labelmap import LabelWindow, class_names, incoming_of_batch, label_windows, open_label_map
from wsiseg.export.marks import read_marks, write_marks
from wsiseg.export.query import nuclei_dataset, query, read_nuclei, read_slides, write_cohort
from wsiseg.export.quip import read_quip, write_quip
from wsiseg.export.qupath import write_geojson
from wsiseg.export.raster import write_label_image, write_ome_labels
from wsiseg.export.spatial import write_anndata, write_spatialdata
from wsiseg.export.table import Imported, write_imported_table
from wsiseg.export.tiatoolbox import read_annotation_store, write_annotation_store

READERS: dict[str, Reader] = {
    "cellvit": read_cellvit,
    "dicom-ann": read_dicom_annotations,
    "hovernet": read_cellvit,
    "marks": read_marks,
    "quip": read_quip,
    "qupath": read_geojson,
    "tiatoolbox": read_annotation_store,
}
"""Readers of polygon files by format; label images go through ``open_label_map`` and ``label_windows``."""

__all__ = [
    "Flag",
    "Imported",
    "Incoming",
    "LabelWindow",
    "Provenance",
    "READERS",
    "Reader",
    "Source",
    "class_names",
    "incoming_of_batch",
    "label_windows",
    "nuclei_dataset",
    "open_label_map",
    "query",
    "read_annotation_store",
    "read_cellvit",
    "read_dicom_annotations",
    "read_geojson",
    "read_marks",
    "read_nuclei",
    "read_quip",
    "read_slides",
    "safe_name",
    "write_anndata",
    "write_annotation_store",
    "write_cohort",
    "write_csv",
    "write_dicom_annotations",
    "write_dicom_segmentation",
    "write_geojson",
    "write_geopackage",
    "write_imported_table",
    "write_label_image",
    "write_marks",
    "write_ome_labels",
    "write_quip",
    "write_roi_zip",
    "write_spatialdata",
]

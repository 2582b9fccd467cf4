"""Read and write tables: columns of ``wsiseg.schema`` and arrays as Arrow schemas, WKB and files.

pyarrow is loaded only when a table is read or written, so that the pixel stages run on a machine without it.
"""

from wsiseg.atomic import (
    atomic_create_bytes,
    atomic_file,
    atomic_folder,
    atomic_path,
    atomic_write_bytes,
    sweep_partials,
)
from wsiseg.tables.arrow import arrow_schema, read_table_meta
from wsiseg.tables.features import derived, features_path, read_features, table_fingerprint
from wsiseg.tables.geo import geo_metadata, wkb_polygons, wkb_rings
from wsiseg.tables.hilbert import hilbert_key
from wsiseg.tables.nuclei import read_nuclei
from wsiseg.tables.regions import rasterize_region
from wsiseg.tables.source import Exported, NucleiFile, Selection, iter_chunks, open_nuclei, with_features

__all__ = [
    "Exported",
    "NucleiFile",
    "Selection",
    "arrow_schema",
    "atomic_create_bytes",
    "atomic_file",
    "atomic_folder",
    "atomic_path",
    "atomic_write_bytes",
    "derived",
    "features_path",
    "geo_metadata",
    "hilbert_key",
    "iter_chunks",
    "open_nuclei",
    "rasterize_region",
    "read_features",
    "read_nuclei",
    "read_table_meta",
    "sweep_partials",
    "table_fingerprint",
    "with_features",
    "wkb_polygons",
    "wkb_rings",
]

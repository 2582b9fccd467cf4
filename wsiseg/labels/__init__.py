"""Label images: read and write the formats that other tools use, and draw polygons into them.

A label image is an integer array (H, W): 0 background, every other value one nucleus, negative not annotated.
"""

from __future__ import annotations

from wsiseg.labels.images import (
    LABEL_SUFFIXES,
    LabelFile,
    compact_labels,
    id_parts,
    rasterize_rings,
    read_label_file,
    read_labels,
    require_ids,
    split_components,
    write_labels,
)
from wsiseg.labels.stores import is_label_store, open_label_store

__all__ = [
    "LABEL_SUFFIXES",
    "LabelFile",
    "compact_labels",
    "id_parts",
    "is_label_store",
    "open_label_store",
    "rasterize_rings",
    "read_label_file",
    "read_labels",
    "require_ids",
    "split_components",
    "write_labels",
]

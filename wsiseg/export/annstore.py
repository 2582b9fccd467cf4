"""Write nuclei in the on-disk format of AnnData (0.1.0), chunk by chunk, into an open HDF5 file or Zarr group.

Specification: https://anndata.readthedocs.io/en/stable/fileformat-prose.html. Two attributes of every element
state its type and version.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsiseg.export.classes import ClassCodes
from wsiseg.export.thumbnails import Thumbnail, put_pictures
from wsiseg.tables.source import NucleiFile, Selection, iter_chunks
from wsiseg.write.elements import (
    growing,
    is_hdf5,
    put_category,
    put_dict,
    put_frame,
    put_number,
    put_order,
    put_scalar,
    put_texts,
    tell,
)

__all__ = ["FEATURES", "OBS", "write_anndata_store"]

FEATURES = (
    "area_um2", "perimeter_um", "major_um", "minor_um", "orientation_rad", "center_prob", "material_prob", "eccentricity",
    "solidity", "circularity", "hematoxylin_od_mean", "hematoxylin_od_std", "eosin_od_mean", "eosin_od_std", "nearest_um",
    "local_density_per_mm2",
)  # fmt: skip
"""Features of a nucleus in the order of the columns of X; those from eccentricity on only for a table ``with_features``."""

OBS = ("tile_id", "import_flags")


def write_anndata_store(
    root: Any, source: NucleiFile, selection: Selection, *, region: str = "", pictures: dict[str, Thumbnail] | None = None
) -> int:
    """Write the matrix of nuclei by features into an empty group; return the number of nuclei.

    Parameters
    ----------
    root
        ``h5py.File`` or ``zarr.Group``.
    region
        Name of the SpatialData element that the rows annotate; ``obs`` then has the columns ``region`` and ``nucleus_id``, and
        ``uns`` names them as SpatialData expects. Empty: none.
    pictures
        ``hires`` and ``lowres`` of the slide.
    """
    names = [f for f in FEATURES if f in source.columns]
    extras = [c for c in OBS if c in source.columns]
    classes = ClassCodes() if "class_name" in source.columns else None
    tell(root, "anndata", "0.1.0")
    matrix = growing(root, "X", "float32", len(names))
    obs = put_frame(root, "obs")
    index = growing(obs, "_index", str)
    columns = {e: growing(obs, e, np.dtype(d)) for e, d in _obs_dtypes(extras, region).items()}
    codes = {name: put_category(obs, name) for name in (*(["class_name"] if classes else []), *(["region"] if region else []))}
    place = growing(put_dict(root, "obsm"), "spatial", "float64", 2)
    diameter_px = 0.0
    for chunk in iter_chunks(source, selection, [*names, *extras, "area_px", *(["class_name"] if classes else [])]):
        matrix.append(np.stack([chunk.column(n).astype(np.float32) for n in names], axis=1))
        ids = chunk.column("nucleus_id")
        index.append(ids.astype(str).astype(object))
        for name, column in columns.items():
            column.append(chunk.column(name))
        if classes is not None:
            codes["class_name"].append(classes.of(chunk.table["class_name"].combine_chunks().fill_null("")))
        if region:
            codes["region"].append(np.zeros(len(chunk), np.int32))
        place.append(np.stack([chunk.column("cx"), chunk.column("cy")], axis=1).astype(np.float64))
        diameter_px += float(np.sqrt(chunk.column("area_px").astype(np.float64) * 4 / np.pi).sum())
    if classes is not None:
        put_texts(obs["class_name"], "categories", list(classes.names))
    if region:
        put_texts(obs["region"], "categories", [region])
    put_order(obs, [*columns, *codes])
    var = put_frame(root, "var")
    put_texts(var, "_index", names)
    put_order(var, [])
    _write_uns(root, source, diameter_px / max(1, index.n), region, pictures or {})
    for empty in ("layers", "obsp", "varm", "varp"):
        put_dict(root, empty)
    return index.n


def _obs_dtypes(extras: Sequence[str], region: str) -> dict[str, str]:
    known = {"tile_id": "int32", "import_flags": "uint8", "nucleus_id": "int64"}
    return {name: known[name] for name in (*extras, *(["nucleus_id"] if region else []))}


def _write_uns(root: Any, source: NucleiFile, diameter_px: float, region: str, pictures: dict[str, Thumbnail]) -> None:
    uns = put_dict(root, "uns")
    library = put_dict(put_dict(uns, "spatial"), source.slide_id)
    scales = put_dict(library, "scalefactors")
    put_number(scales, "spot_diameter_fullres", diameter_px)
    if not pictures:
        put_number(scales, "tissue_hires_scalef", 1.0)
    put_number(put_dict(library, "metadata"), "mpp", source.mpp)
    put_pictures(put_dict(library, "images"), scales, pictures)
    if region:
        link = put_dict(uns, "spatialdata_attrs")
        for name, value in (("region", region), ("region_key", "region"), ("instance_key", "nucleus_id")):
            tell(link.create_dataset(name, data=value) if is_hdf5(link) else put_scalar(link, name, value), "string", "0.2.0")

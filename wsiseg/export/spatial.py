"""Write a polygon table in scverse formats: SpatialData (shapes in a Zarr store) or AnnData (squidpy's spatial convention)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import EmptyExportError
from wsiseg.export.annstore import write_anndata_store
from wsiseg.export.thumbnails import Thumbnail
from wsiseg.libraries import optional
from wsiseg.tables import atomic_file, atomic_folder, wkb_polygons
from wsiseg.tables.source import CELL_GEOMETRY, Exported, NucleiFile, Selection, iter_chunks

__all__ = ["write_anndata", "write_spatialdata"]

CONTAINER = {"version": "0.2", "spatialdata_software_version": "0.7.3"}
SHAPES = {"version": "0.3"}
TABLE = {
    "version": "0.2",
    "spatialdata-encoding-type": "ngff:regions_table",
    "region_key": "region",
    "instance_key": "nucleus_id",
}


def write_spatialdata(
    source: NucleiFile,
    out: Path,
    selection: Selection | None = None,
    *,
    overwrite: bool = False,
    key: str = "nuclei",
    pictures: dict[str, Thumbnail] | None = None,
) -> Exported:
    """Write a SpatialData store (``*.zarr``, container 0.2): shapes ``nuclei`` and the table ``nuclei_features``.

    Coordinates are level-0 px in the coordinate system ``global`` and micrometres in ``um``. The index of the shapes is
    ``nucleus_id``; the rows of the table refer to it by ``region`` and ``nucleus_id``. Features are only in the table, because
    SpatialData cannot resolve a column name that is in both. A table ``with_cells`` adds the shapes ``cells``, with the same
    index; ``hires`` of ``pictures`` becomes the image ``slide``. Written chunk by chunk; of libraries, only zarr is needed.

    Raises
    ------
    EmptyExportError
        The selection has no nucleus: SpatialData does not allow empty shapes.
    InputError
        ``out`` exists and ``overwrite`` is not set.
    """
    import zarr

    with atomic_folder(out, overwrite=overwrite) as folder:
        root = zarr.open_group(str(folder), mode="w", zarr_format=3, attributes={"spatialdata_attrs": CONTAINER})
        transforms = [_transform("identity", "global", None), _transform("scale", "um", [source.mpp, source.mpp])]
        attributes = {
            "encoding-type": "ngff:shapes",
            "axes": ["x", "y"],
            "coordinateTransformations": transforms,
            "spatialdata_attrs": SHAPES,
        }
        shapes = root.create_group("shapes")
        for name in (key, "cells")[: 1 + (source.cells is not None)]:
            shapes.create_group(name, attributes=attributes)
        table = root.create_group("tables").create_group(f"{key}_features")
        write_anndata_store(table, source, selection or Selection(), region=key, pictures=pictures)
        if pictures:
            _put_image(root, pictures["hires"], source.mpp)
        table.attrs.update({**TABLE, "region": key})
        with warnings.catch_warnings():
            # SpatialData expects consolidated metadata, which the specification of Zarr v3 does not contain yet
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(str(folder), zarr_format=3)  # must come before the Parquet file, on which zarr fails
        done = _write_shapes(source, folder / "shapes" / key / "shapes.parquet", selection or Selection())
        if source.cells is not None:
            _write_shapes(source, folder / "shapes" / "cells" / "shapes.parquet", selection or Selection(), CELL_GEOMETRY)
        if done == 0:
            raise EmptyExportError(
                f"{source.path}: there is no nucleus to export, and SpatialData does not allow empty shapes."
            )
    return Exported(out, done)


def _transform(kind: str, system: str, scale: list[float] | None) -> dict[str, Any]:
    unit = "unit" if scale is None else "micrometer"
    axes = [[{"name": n, "type": "space", "unit": u} for n in ("x", "y")] for u in ("unit", unit)]
    out: dict[str, Any] = {"type": kind, "input": {"name": "xy", "axes": axes[0]}, "output": {"name": system, "axes": axes[1]}}
    return out if scale is None else {**out, "scale": scale}


def _put_image(root: Any, picture: Thumbnail, mpp: float) -> None:
    """Write the image ``slide``: channels r, g, b of one level, placed in ``global`` (level-0 px) and ``um``."""
    places = []
    for system, factor in (("global", 1.0), ("um", mpp)):
        unit = "unit" if system == "global" else "micrometer"
        axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": unit} for n in "yx")]
        given = [axes[0], *({"name": n, "type": "space", "unit": "unit"} for n in "yx")]
        scale = [1.0, factor / picture.scale_y, factor / picture.scale_x]
        places.append({"type": "scale", "scale": scale, "input": {"name": "cyx", "axes": given}})
        places[-1]["output"] = {"name": system, "axes": axes}
    level = {"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]}
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space"} for n in "yx")]
    scales = [{"name": "slide", "datasets": [level], "axes": axes, "coordinateTransformations": places}]
    channels = [{"label": c} for c in "rgb"]
    ome = {"version": "0.5-dev-spatialdata", "omero": {"channels": channels}, "multiscales": scales}
    group = root.create_group("images").create_group("slide", attributes={"ome": ome, "spatialdata_attrs": {"version": "0.3"}})
    group.create_array("s0", data=np.ascontiguousarray(picture.rgb.transpose(2, 0, 1)), dimension_names=["c", "y", "x"])


def _write_shapes(source: NucleiFile, path: Path, selection: Selection, column: str = "") -> int:
    """Write the selected polygons, or a column of WKB, as GeoParquet indexed by ``nucleus_id``; return their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    geo = json.loads((pq.read_schema(str(source.path)).metadata or {})[b"geo"])
    for unwanted in ("covering", "bbox"):
        geo["columns"]["geometry"].pop(unwanted, None)
    columns = [
        {"name": name, "field_name": name, "pandas_type": pandas_type, "numpy_type": numpy_type, "metadata": None}
        for name, pandas_type, numpy_type in (("geometry", "bytes", "object"), ("nucleus_id", "int64", "int64"))
    ]
    pandas = {
        "index_columns": ["nucleus_id"],
        "column_indexes": [],
        "columns": columns,
        "pandas_version": "2.2.0",
        "creator": {},
    }
    schema = pa.schema(
        [pa.field("geometry", pa.binary()), pa.field("nucleus_id", pa.int64())],
        metadata={"geo": json.dumps(geo), "pandas": json.dumps(pandas)},
    )
    done = 0
    with pq.ParquetWriter(str(path), schema, compression="zstd") as writer:
        for chunk in iter_chunks(source, selection, [column]):
            wkb = chunk.table[column].combine_chunks() if column else wkb_polygons(chunk.xy, chunk.ring_offsets)
            table = pa.table([wkb, chunk.table["nucleus_id"].combine_chunks()], schema=schema)
            writer.write_table(table.filter(wkb.is_valid()) if wkb.null_count else table)
            done += len(chunk)
    return done


def write_anndata(
    source: NucleiFile, out: Path, selection: Selection | None = None, *, pictures: dict[str, Thumbnail] | None = None
) -> Exported:
    """Write ``.h5ad``: X is nuclei by features, ``obsm["spatial"]`` the centroids in level-0 px, as squidpy expects.

    ``uns["spatial"][slide_id]`` has ``images`` (``pictures``: ``hires``, ``lowres``) and ``scalefactors``:
    ``spot_diameter_fullres`` (mean diameter of a circle of equal area, px), ``tissue_hires_scalef``, ``tissue_lowres_scalef``
    (px of a picture per level-0 px; 1 without pictures). Written chunk by chunk, so that memory does not grow with the slide.

    Raises
    ------
    BackendUnavailableError
        h5py is not installed (extra ``spatial``).
    """
    h5py = optional("h5py", "spatial")
    with atomic_file(out) as partial, h5py.File(str(partial), "w") as root:
        done = write_anndata_store(root, source, selection or Selection(), pictures=pictures)
    return Exported(out, done)

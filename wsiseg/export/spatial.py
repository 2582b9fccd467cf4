"""A polygon table -> the scverse formats: SpatialData (shapes in a Zarr store) and AnnData (squidpy's spatial convention)."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import InputError
from wsiseg.export.folders import atomic_file, atomic_folder, optional
from wsiseg.export.source import Exported, NucleiFile, Selection, iter_chunks
from wsiseg.tables import wkb_polygons

__all__ = ["FEATURES", "write_anndata", "write_spatialdata"]

FEATURES = ("area_um2", "perimeter_um", "major_um", "minor_um", "orientation_rad", "center_prob", "material_prob")
"""Numbers that are a nucleus's features."""

CONTAINER = {"version": "0.2", "spatialdata_software_version": "0.7.3"}
SHAPES = {"version": "0.3"}


def write_spatialdata(
    source: NucleiFile, out: Path, selection: Selection | None = None, *, overwrite: bool = False, key: str = "nuclei"
) -> Exported:
    """Write a SpatialData store (``*.zarr``, container 0.2) whose shapes element ``nuclei`` holds the polygons.

    Coordinates are level-0 px in the system ``global`` and micrometres in ``um``. The index of the GeoDataFrame is
    ``nucleus_id``. Needs no library but zarr.

    Raises
    ------
    InputError
        There is no nucleus: SpatialData has no empty shapes. Or ``out`` exists.
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
        root.create_group("shapes").create_group(key, attributes=attributes)
        with warnings.catch_warnings():
            # SpatialData reads consolidated metadata of Zarr v3 though the format's text does not have it yet
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            zarr.consolidate_metadata(str(folder), zarr_format=3)  # before the Parquet file, which zarr would stumble over
        done = _write_shapes(source, folder / "shapes" / key / "shapes.parquet", selection or Selection())
        if done == 0:
            raise InputError(f"{source.path}: no nucleus to export, and SpatialData knows no empty shapes.")
    return Exported(out, done)


def _transform(kind: str, system: str, scale: list[float] | None) -> dict[str, Any]:
    unit = "unit" if scale is None else "micrometer"
    axes = [[{"name": n, "type": "space", "unit": u} for n in ("x", "y")] for u in ("unit", unit)]
    out: dict[str, Any] = {"type": kind, "input": {"name": "xy", "axes": axes[0]}, "output": {"name": system, "axes": axes[1]}}
    return out if scale is None else {**out, "scale": scale}


def _write_shapes(source: NucleiFile, path: Path, selection: Selection) -> int:
    """Copy the selected rows with ``nucleus_id`` as the frame's index; return how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = pq.read_schema(str(source.path))
    names = [n for n in stored.names if n not in ("geometry", "bbox")]
    columns = [n for n in names if n != "nucleus_id"]
    geo = json.loads((stored.metadata or {})[b"geo"])
    for unwanted in ("covering", "bbox"):
        geo["columns"]["geometry"].pop(unwanted, None)
    frame = [_pandas_column(n, str(stored.field(n).type)) for n in names]
    pandas = {"index_columns": ["nucleus_id"], "column_indexes": [], "columns": [*frame, _pandas_column("geometry", "binary")]}
    fields = [stored.field(n).remove_metadata() for n in columns]
    schema = pa.schema(
        [*fields, pa.field("geometry", pa.binary()), pa.field("nucleus_id", pa.int64())],
        metadata={"geo": json.dumps(geo), "pandas": json.dumps({**pandas, "pandas_version": "2.2.0", "creator": {}})},
    )
    done = 0
    with pq.ParquetWriter(str(path), schema, compression="zstd") as writer:
        for chunk in iter_chunks(source, selection, columns):
            arrays = {n: chunk.table[n].combine_chunks() for n in [*columns, "nucleus_id"]}
            arrays["geometry"] = wkb_polygons(chunk.xy, chunk.ring_offsets)
            writer.write_table(pa.table([arrays[n] for n in schema.names], schema=schema))
            done += len(chunk)
    return done


def _pandas_column(name: str, kind: str) -> dict[str, Any]:
    plain = {"string": ("unicode", "object"), "binary": ("bytes", "object")}.get(kind, (_numpy_name(kind),) * 2)
    return {"name": name, "field_name": name, "pandas_type": plain[0], "numpy_type": plain[1], "metadata": None}


def _numpy_name(kind: str) -> str:
    return {"float": "float32", "double": "float64"}.get(kind, kind)


def write_anndata(source: NucleiFile, out: Path, selection: Selection | None = None) -> Exported:
    """Write ``.h5ad``: X is nuclei by features, ``obsm["spatial"]`` the centroids in level-0 px, as squidpy wants them.

    ``uns["spatial"][slide_id]["scalefactors"]`` holds ``spot_diameter_fullres`` (the mean equivalent diameter, px) and
    ``tissue_hires_scalef`` (1). Held in memory as a whole: 50 bytes a nucleus.

    Raises
    ------
    BackendUnavailableError
        anndata is not installed (extra ``spatial``).
    """
    anndata = optional("anndata", "spatial")
    pandas = optional("pandas", "spatial")
    names = [f for f in FEATURES if f in source.columns]
    extras = [c for c in ("tile_id", "class_name", "import_flags") if c in source.columns]
    pieces = [c.table for c in iter_chunks(source, selection or Selection(), [*names, *extras, "area_px"])]
    n = sum(p.num_rows for p in pieces)
    column = {
        name: np.concatenate([p[name].to_numpy(zero_copy_only=False) for p in pieces]) if pieces else np.empty(0)
        for name in [*names, *extras, "nucleus_id", "cx", "cy", "area_px"]
    }
    obs = pandas.DataFrame({e: column[e] for e in extras}, index=column["nucleus_id"].astype(np.int64).astype(str))
    if "class_name" in obs:
        obs["class_name"] = pandas.Categorical(obs["class_name"].fillna("").astype(str))
    matrix = np.stack([column[c].astype(np.float32) for c in names], axis=1) if n else np.empty((0, len(names)), np.float32)
    frame = anndata.AnnData(X=matrix, obs=obs, var=pandas.DataFrame(index=pandas.Index(names, dtype=object)))
    frame.obsm["spatial"] = np.stack([column["cx"], column["cy"]], axis=1).astype(np.float64)
    diameter = float(np.sqrt(column["area_px"] * 4 / np.pi).mean()) if n else 0.0
    scales = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": diameter}
    frame.uns["spatial"] = {source.slide_id: {"scalefactors": scales, "metadata": {"mpp": source.mpp}, "images": {}}}
    with atomic_file(out) as partial:
        frame.write_h5ad(partial)
    return Exported(out, n)

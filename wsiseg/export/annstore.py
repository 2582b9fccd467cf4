"""Nuclei -> the on-disk form of AnnData (0.1.0), chunk by chunk, in an open HDF5 file or Zarr group alike.

Specification: https://anndata.readthedocs.io/en/stable/fileformat-prose.html. Every element says by two attributes what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.export.libraries import optional
from wsiseg.tables.source import Chunk, NucleiFile, Selection, iter_chunks

__all__ = ["FEATURES", "OBS", "write_anndata_store"]

FEATURES = (
    "area_um2", "perimeter_um", "major_um", "minor_um", "orientation_rad", "center_prob", "material_prob", "eccentricity",
    "solidity", "circularity", "hematoxylin_od_mean", "hematoxylin_od_std", "eosin_od_mean", "eosin_od_std", "nearest_um",
    "local_density_per_mm2",
)  # fmt: skip
"""A nucleus's features in the order of X; those from eccentricity on are there for a table ``with_features``."""

OBS = ("tile_id", "import_flags")
CHUNK_ROWS = 16384


@dataclass(slots=True)
class _Growing:
    """An array on disk that grows by rows."""

    array: Any
    n: int = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        rows = self.n + len(values)
        self.array.resize((rows, *self.array.shape[1:]))
        if len(values):
            self.array[self.n : rows] = values
        self.n = rows


@dataclass(slots=True)
class _Codes:
    """Names as numbers, in order of appearance."""

    names: dict[str, int] = field(default_factory=dict)

    def of(self, chunk: Chunk) -> npt.NDArray[np.int32]:
        column = chunk.table["class_name"].combine_chunks().fill_null("").dictionary_encode()
        found = [self.names.setdefault(name, len(self.names)) for name in column.dictionary.to_pylist()]
        codes: npt.NDArray[np.int32] = np.array(found, np.int32)[column.indices.to_numpy()]
        return codes


def write_anndata_store(root: Any, source: NucleiFile, selection: Selection, *, region: str = "") -> int:
    """Write nuclei by features into an empty group; return how many nuclei.

    Parameters
    ----------
    root
        ``h5py.File`` or ``zarr.Group``.
    region
        Name of the SpatialData element that the rows annotate: ``obs`` then has ``region`` and ``nucleus_id``, and ``uns`` says
        so. Empty: none.
    """
    names = [f for f in FEATURES if f in source.columns]
    extras = [c for c in OBS if c in source.columns]
    classes = _Codes() if "class_name" in source.columns else None
    _say(root, "anndata", "0.1.0")
    matrix = _Growing(_array(root, "X", "float32", len(names)))
    obs = _say(root.create_group("obs"), "dataframe", "0.2.0")
    index = _Growing(_array(obs, "_index", str))
    columns = {e: _Growing(_array(obs, e, np.dtype(d))) for e, d in _obs_dtypes(extras, region).items()}
    codes = {name: _category(obs, name) for name in (*(["class_name"] if classes else []), *(["region"] if region else []))}
    place = _Growing(_array(_dict(root, "obsm"), "spatial", "float64", 2))
    diameter_px = 0.0
    for chunk in iter_chunks(source, selection, [*names, *extras, "area_px", *(["class_name"] if classes else [])]):
        matrix.append(np.stack([chunk.column(n).astype(np.float32) for n in names], axis=1))
        ids = chunk.column("nucleus_id")
        index.append(ids.astype(str).astype(object))
        for name, column in columns.items():
            column.append(chunk.column(name))
        if classes is not None:
            codes["class_name"].append(classes.of(chunk))
        if region:
            codes["region"].append(np.zeros(len(chunk), np.int32))
        place.append(np.stack([chunk.column("cx"), chunk.column("cy")], axis=1).astype(np.float64))
        diameter_px += float(np.sqrt(chunk.column("area_px").astype(np.float64) * 4 / np.pi).sum())
    if classes is not None:
        _texts(obs["class_name"], "categories", list(classes.names))
    if region:
        _texts(obs["region"], "categories", [region])
    _order(obs, [*columns, *codes])
    var = _say(root.create_group("var"), "dataframe", "0.2.0")
    _texts(var, "_index", names)
    _order(var, [])
    _write_uns(root, source, diameter_px / max(1, index.n), region)
    for empty in ("layers", "obsp", "varm", "varp"):
        _dict(root, empty)
    return index.n


def _obs_dtypes(extras: Sequence[str], region: str) -> dict[str, str]:
    known = {"tile_id": "int32", "import_flags": "uint8", "nucleus_id": "int64"}
    return {name: known[name] for name in (*extras, *(["nucleus_id"] if region else []))}


def _write_uns(root: Any, source: NucleiFile, diameter_px: float, region: str) -> None:
    uns = _dict(root, "uns")
    library = _dict(_dict(uns, "spatial"), source.slide_id)
    scales = _dict(library, "scalefactors")
    _number(scales, "spot_diameter_fullres", diameter_px)
    _number(scales, "tissue_hires_scalef", 1.0)
    _number(_dict(library, "metadata"), "mpp", source.mpp)
    _dict(library, "images")
    if region:
        link = _dict(uns, "spatialdata_attrs")
        for name, value in (("region", region), ("region_key", "region"), ("instance_key", "nucleus_id")):
            _say(link.create_dataset(name, data=value) if _is_hdf5(link) else _scalar(link, name, value), "string", "0.2.0")


def _say(element: Any, kind: str, version: str) -> Any:
    element.attrs["encoding-type"] = kind
    element.attrs["encoding-version"] = version
    return element


def _dict(group: Any, name: str) -> Any:
    return _say(group.create_group(name), "dict", "0.1.0")


def _order(frame: Any, columns: list[str]) -> None:
    frame.attrs["_index"] = "_index"
    if _is_hdf5(frame):
        frame.attrs.create("column-order", columns, dtype=_text_dtype(), shape=(len(columns),))
    else:
        frame.attrs["column-order"] = columns


def _category(frame: Any, name: str) -> _Growing:
    group = _say(frame.create_group(name), "categorical", "0.2.0")
    group.attrs["ordered"] = False
    return _Growing(_array(group, "codes", "int32"))


def _texts(group: Any, name: str, values: list[str]) -> None:
    growing = _Growing(_array(group, name, str))
    growing.append(np.array(values, object))


def _number(group: Any, name: str, value: float) -> None:
    _say(group.create_dataset(name, data=value) if _is_hdf5(group) else _scalar(group, name, value), "numeric-scalar", "0.2.0")


def _scalar(group: Any, name: str, value: float | str) -> Any:
    array = group.create_array(name, shape=(), dtype=str if isinstance(value, str) else "float64")
    array[()] = value
    return array


def _array(group: Any, name: str, dtype: Any, width: int = 0) -> Any:
    tail = (width,) if width else ()
    shape, chunks = (0, *tail), (CHUNK_ROWS, *(max(1, w) for w in tail))
    kind = "string-array" if dtype is str else "array"
    if _is_hdf5(group):
        stored = _text_dtype() if dtype is str else dtype
        packing: dict[str, Any] = {} if dtype is str else {"compression": "gzip", "compression_opts": 4, "shuffle": True}
        made = group.create_dataset(name, shape, stored, maxshape=(None, *tail), chunks=chunks, **packing)
    else:
        made = group.create_array(name, shape=shape, dtype=dtype, chunks=chunks)
    return _say(made, kind, "0.2.0")


def _is_hdf5(group: Any) -> bool:
    return type(group).__module__.startswith("h5py")


def _text_dtype() -> Any:
    return optional("h5py", "spatial").string_dtype()

"""Write elements of AnnData's on-disk format to an open HDF5 file or Zarr group: growing arrays, data frames, dicts, texts.

Specification: https://anndata.readthedocs.io/en/stable/fileformat-prose.html. Two attributes of each element state its type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.libraries import optional

__all__ = ["Growing", "growing", "is_hdf5", "put_category", "put_dict", "put_frame", "put_number", "put_order", "put_scalar",
           "put_texts", "tell"]  # fmt: skip

CHUNK_ROWS = 16384


@dataclass(slots=True)
class Growing:
    """An array on disk that grows by rows."""

    array: Any
    n: int = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        """Add rows at the end."""
        rows = self.n + len(values)
        self.array.resize((rows, *self.array.shape[1:]))
        if len(values):
            self.array[self.n : rows] = values
        self.n = rows


def tell(element: Any, kind: str, version: str) -> Any:
    """Write the attributes that state an element's type; return it."""
    element.attrs["encoding-type"] = kind
    element.attrs["encoding-version"] = version
    return element


def put_dict(group: Any, name: str) -> Any:
    """Make an empty dict."""
    return tell(group.create_group(name), "dict", "0.1.0")


def put_frame(group: Any, name: str) -> Any:
    """Make a data frame without columns. The caller adds an ``_index`` and at the end calls ``put_order``."""
    return tell(group.create_group(name), "dataframe", "0.2.0")


def put_order(frame: Any, columns: list[str]) -> None:
    """Write the names of the index and of the columns of a data frame, in their order."""
    frame.attrs["_index"] = "_index"
    if is_hdf5(frame):
        frame.attrs.create("column-order", columns, dtype=_text_dtype(), shape=(len(columns),))
    else:
        frame.attrs["column-order"] = columns


def put_category(frame: Any, name: str) -> Growing:
    """Make a column of categories and return its codes; write the names by ``put_texts(frame[name], "categories", ...)``."""
    group = tell(frame.create_group(name), "categorical", "0.2.0")
    group.attrs["ordered"] = False
    return growing(group, "codes", "int32")


def put_texts(group: Any, name: str, values: list[str]) -> None:
    """Write an array of texts."""
    growing(group, name, str).append(np.array(values, object))


def put_number(group: Any, name: str, value: float) -> None:
    """Write a number without axes."""
    tell(
        group.create_dataset(name, data=value) if is_hdf5(group) else put_scalar(group, name, value), "numeric-scalar", "0.2.0"
    )


def put_scalar(group: Any, name: str, value: float | str) -> Any:
    """Write an array without axes to a Zarr group and return it."""
    array = group.create_array(name, shape=(), dtype=str if isinstance(value, str) else "float64")
    array[()] = value
    return array


def growing(group: Any, name: str, dtype: Any, width: int = 0) -> Growing:
    """Make an empty array that grows by rows, with ``width`` columns (0: one axis); dtype ``str`` gives an array of texts."""
    tail = (width,) if width else ()
    shape, chunks = (0, *tail), (CHUNK_ROWS, *(max(1, w) for w in tail))
    kind = "string-array" if dtype is str else "array"
    if is_hdf5(group):
        stored = _text_dtype() if dtype is str else dtype
        packing: dict[str, Any] = {} if dtype is str else {"compression": "gzip", "compression_opts": 4, "shuffle": True}
        made = group.create_dataset(name, shape, stored, maxshape=(None, *tail), chunks=chunks, **packing)
    else:
        made = group.create_array(name, shape=shape, dtype=dtype, chunks=chunks)
    return Growing(tell(made, kind, "0.2.0"))


def is_hdf5(group: Any) -> bool:
    """Return whether a group belongs to HDF5, not to Zarr."""
    return type(group).__module__.startswith("h5py")


def _text_dtype() -> Any:
    return optional("h5py", "spatial").string_dtype()

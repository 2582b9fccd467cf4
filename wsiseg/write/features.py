"""Write the features of a slide's nuclei to the companion of its polygon table, with the same rows and row groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from wsiseg.schema import FEATURES, SCHEMA_VERSION
from wsiseg.tables import arrow_schema, atomic_path, features_path, table_fingerprint
from wsiseg.tables.arrow import META_KEY

__all__ = ["write_features_table"]


def write_features_table(
    table: Path, groups: Iterable[Mapping[str, npt.NDArray[Any]]], facts: Mapping[str, object], zstd_level: int = 9
) -> Path:
    """Write ``RUN/features/<slide_id>.parquet`` (``wsiseg.schema.FEATURES``) of a slide's polygon table; return its path.

    Parameters
    ----------
    table
        The polygon table. Its fingerprint is stored, so that features are never joined to another table.
    groups
        The columns of each row group of ``table``, in order; nan becomes null.
    facts
        Description of how they were measured, in JSON types.

    Raises
    ------
    OSError
        The operating system's own error; an existing file is then unchanged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = {"schema": SCHEMA_VERSION, "of": table_fingerprint(table), **facts}
    floats = [c.name for c in FEATURES if c.name != "nucleus_id"]
    schema = arrow_schema(FEATURES, nullable=floats, metadata={META_KEY: facts})
    out = features_path(table)
    out.parent.mkdir(parents=True, exist_ok=True)
    layout: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": zstd_level,
        "use_dictionary": False,
        "column_encoding": {"nucleus_id": "DELTA_BINARY_PACKED", **dict.fromkeys(floats, "BYTE_STREAM_SPLIT")},
    }
    with atomic_path(out) as partial, pq.ParquetWriter(str(partial), schema, **layout) as writer:
        for columns in groups:
            arrays = [pa.array(columns[n], from_pandas=True) for n in schema.names]  # from_pandas: nan is null
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=max(1, len(arrays[0])))
    return out

"""Convert columns of ``wsiseg.schema`` to Arrow schemas, and read the metadata stored in a table file."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiseg.errors import FormatError
from wsiseg.schema import Column

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "BBOX_FIELDS",
    "BBOX_PATHS",
    "META_KEY",
    "arrow_schema",
    "column_limits",
    "has_more_rows",
    "read_table_meta",
]

META_KEY = "wsiseg"
"""Key of wsiseg's JSON in a Parquet file's metadata."""

BBOX_FIELDS = ("xmin", "ymin", "xmax", "ymax")
"""Members of a ``bbox`` column, in the order that GeoParquet 1.1 requires."""

BBOX_PATHS = tuple(f"bbox.{name}" for name in BBOX_FIELDS)
"""The same as columns of a Parquet file."""


def arrow_schema(
    columns: Sequence[Column], *, nullable: bool | Collection[str] = False, metadata: Mapping[str, Any] | None = None
) -> pa.Schema:
    """Return the Arrow schema of a table; ``unit`` and ``description`` are in each field's metadata.

    Parameters
    ----------
    columns
        A table of ``wsiseg.schema``. ``wkb`` becomes ``binary``, ``bbox`` a struct of four float32.
    nullable
        Whether values may be missing (true for slide statistics, false for nuclei), or the names of the columns where they may.
    metadata
        Schema metadata; values that are not text are written as JSON with sorted keys.

    Raises
    ------
    ValueError
        A column's Arrow type is unknown.
    """
    import pyarrow as pa

    kinds: dict[str, Any] = {
        "int32": pa.int32(),
        "int64": pa.int64(),
        "uint8": pa.uint8(),
        "float32": pa.float32(),
        "float64": pa.float64(),
        "string": pa.string(),
        "binary": pa.binary(),
        "wkb": pa.binary(),
        "bbox": pa.struct([pa.field(name, pa.float32(), nullable=False) for name in BBOX_FIELDS]),
    }
    fields = []
    for column in columns:
        if column.arrow not in kinds:
            raise ValueError(f"Column {column.name}: expected one of the types {sorted(kinds)}, got {column.arrow!r}.")
        note = {"unit": column.unit, "description": column.meaning}
        missing = nullable if isinstance(nullable, bool) else column.name in nullable
        fields.append(pa.field(column.name, kinds[column.arrow], nullable=missing, metadata=note))
    texts = {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in (metadata or {}).items()}
    return pa.schema(fields, metadata=texts or None)


def column_limits(group: Any, paths: Sequence[str]) -> list[tuple[Any, Any]] | None:
    """Return the smallest and largest value of each column in a row group; None if its statistics lack any of them.

    ``group`` is a ``pyarrow.parquet.RowGroupMetaData``; a member of a struct is named ``bbox.xmin``.
    """
    found = {}
    for k in range(group.num_columns):
        column = group.column(k)
        if column.path_in_schema in paths:
            stats = column.statistics
            if stats is None or not stats.has_min_max:
                return None
            found[column.path_in_schema] = (stats.min, stats.max)
    return [found[path] for path in paths] if len(found) == len(paths) else None


def has_more_rows(tables: Iterable[str | Path], n: int) -> bool:
    """Return whether Parquet tables have more than ``n`` rows in all; it stops opening them once they do."""
    import pyarrow.parquet as pq

    total = 0
    for table in tables:
        total += int(pq.read_metadata(str(table)).num_rows)
        if total > n:
            return True
    return False


def read_table_meta(path: str | Path) -> dict[str, Any]:
    """Return the values that wsiseg stored in a table's file metadata: slide, scale, model, config digest, versions.

    Raises
    ------
    FormatError
        The file is not Parquet, or not written by wsiseg.
    FileNotFoundError
        The file does not exist.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        raw = (pq.read_metadata(str(path)).metadata or {}).get(META_KEY.encode())
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{path}: expected a Parquet table, but it cannot be read ({err}).") from err
    if raw is None:
        raise FormatError(f"{path}: no '{META_KEY}' entry in the file metadata, so wsiseg did not write it. Import it first.")
    try:
        facts: dict[str, Any] = json.loads(raw)
    except ValueError as err:
        raise FormatError(f"{path}: the '{META_KEY}' entry of the file metadata is not JSON ({err}).") from err
    return facts

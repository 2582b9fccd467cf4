"""Rows of a Parquet table <-> frozen dataclasses whose fields are the table's columns.

Types are checked a column at a time, so that a table of 100,000 rows is read in the time that pyarrow takes for it.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wsiseg.atomic import atomic_path
from wsiseg.decode import OTHER, fits, type_words
from wsiseg.errors import FormatError
from wsiseg.schema import Column
from wsiseg.tables.arrow import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_columns", "read_rows", "write_columns", "write_rows"]

T = TypeVar("T")


def write_rows(
    path: Path, columns: Sequence[Column], rows: Sequence[object], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write records as a Parquet table, complete or not at all; its folder is made.

    Parameters
    ----------
    columns
        A table of ``wsiseg.schema``; each record has an attribute of every column's name. None is null.
    metadata
        As in ``arrow_schema``.

    Raises
    ------
    OSError
        As the operating system gives it.
    """
    write_columns(path, columns, {c.name: [getattr(row, c.name) for row in rows] for c in columns}, metadata)


def write_columns(
    path: Path, columns: Sequence[Column], values: Mapping[str, Sequence[object]], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a table given by the values of each column, in all else as ``write_rows``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(columns, nullable=True, metadata=metadata)
    table = pa.Table.from_pydict({c.name: values[c.name] for c in columns}, schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        pq.write_table(table, str(partial), compression="zstd")


def read_rows(kind: type[T], path: str | Path, what: str) -> list[T]:
    """Return the rows of a table as records.

    Columns that are not fields of the record (those of a newer version) are left out. A column for whose field the record has a
    default may be missing (tables of an earlier version lack it). A text that is null is empty; nan is None where the record
    allows None.

    Parameters
    ----------
    kind
        A frozen dataclass of ``str``, ``int``, ``float`` and ``None``.
    what
        What the table holds, for messages, such as ``slide statistics``.

    Raises
    ------
    FormatError
        The file is no such table; the message names what is missing or of another type.
    FileNotFoundError
        There is no such file.
    """
    fields = [f for f in dataclasses.fields(typing.cast("Any", kind)) if f.name != OTHER]
    table = read_columns(path, [f.name for f in fields], what)
    missing = sorted(f.name for f in fields if f.default is dataclasses.MISSING and f.name not in table.column_names)
    if missing:
        raise FormatError(f"{path}: expected a table of {what}, but it lacks the columns {missing}.")
    hints = typing.get_type_hints(kind)
    columns = [_column(table[name], hints[name], f"{path}", name) for name in table.column_names]
    return [kind(**dict(zip(table.column_names, row, strict=True))) for row in zip(*columns, strict=True)]


def read_columns(path: str | Path, names: Sequence[str], what: str) -> pa.Table:
    """Return those of the named columns that a table has. Raises as ``read_rows``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        there = set(pq.read_schema(str(path)).names)
        return pq.read_table(str(path), columns=[n for n in names if n in there], partitioning=None)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as err:
        raise FormatError(f"{path}: expected a table of {what}, but it cannot be read ({err}).") from err


def _column(column: pa.ChunkedArray, hint: Any, where: str, name: str) -> list[Any]:
    """Return the values of a column for a field of the type ``hint``."""
    import pyarrow as pa

    kinds = set(typing.get_args(hint) or [hint])
    try:
        values = column.to_pylist()
    except UnicodeDecodeError as err:
        raise FormatError(f"{where}: column {name} holds bytes that are no text ({err}).") from err
    if str in kinds:
        values = ["" if value is None else value for value in values]
    elif float in kinds and pa.types.is_floating(column.type):
        values = [None if value is None or math.isnan(value) else value for value in values]
    right = (
        (str in kinds and pa.types.is_string(column.type))
        or (int in kinds and pa.types.is_integer(column.type))
        or (float in kinds and pa.types.is_floating(column.type))
    )
    if not right or (type(None) not in kinds and None in values):
        k = next((k for k, value in enumerate(values) if not fits(value, hint)), None)
        if k is not None:
            raise FormatError(f"{where}, row {k}: expected field {name} to be {type_words(hint)}, found {values[k]!r:.60}.")
    return values

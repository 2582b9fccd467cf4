"""Writes the rows of many slides as one Parquet table with units, and as CSV for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wsiseg.errors import FormatError
from wsiseg.schema import ERRORS, LATER, SCHEMA_VERSION, SLIDES, Column
from wsiseg.tables import arrow_schema, atomic_path, atomic_write_bytes
from wsiseg.tables.arrow import META_KEY

__all__ = ["read_slides_table", "write_errors_table", "write_slides_table"]

Row = Mapping[str, Any]


def write_slides_table(rows: Sequence[Row], path: str | Path) -> None:
    """Write the statistics rows of a run to ``path`` (Parquet) and to the same name with ``.csv``, in the given order.

    Raises
    ------
    ValueError
        A row's fields are not exactly those of ``wsiseg.schema.SLIDES``; those in ``LATER`` may be left out.
    OSError
        The operating system's own error.
    """
    rows = [_completed(row) for row in rows]
    _write_parquet(rows, SLIDES, Path(path))
    names = [c.name for c in SLIDES]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([row[name] for name in names] for row in rows)
    atomic_write_bytes(Path(path).with_suffix(".csv"), text.getvalue().encode())


def write_errors_table(rows: Sequence[Row], path: str | Path) -> None:
    """Write the rows of failures to ``path`` (Parquet; no rows give a valid empty table). Raises as ``write_slides_table``.

    Rows of older runs have no ``host`` and ``worker``: they stay empty.
    """
    _write_parquet([{"host": "", "worker": "", **row} for row in rows], ERRORS, Path(path))


def read_slides_table(path: str | Path) -> list[dict[str, Any]]:
    """Return the statistics rows of a run.

    Raises
    ------
    FormatError
        The file is not a table of slide statistics.
    FileNotFoundError
        There is no such file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [c.name for c in SLIDES]
    try:
        there = set(pq.read_schema(str(path)).names)
        table = pq.read_table(str(path), columns=[n for n in names if n in there], partitioning=None)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{path}: expected a table of slide statistics, but it cannot be read ({err}).") from err
    missing = sorted(set(names) - set(LATER) - set(table.column_names))
    if missing:
        raise FormatError(f"{path}: expected a table of slide statistics, but it lacks the columns {missing}.")
    return [_completed(row) for row in table.to_pylist()]


def _completed(row: Row) -> dict[str, Any]:
    """Return a row in the schema's order, with defaults for columns that earlier versions did not have."""
    filled = {**LATER, **row}
    return {c.name: filled.pop(c.name) for c in SLIDES if c.name in filled} | filled


def _write_parquet(rows: Sequence[Row], columns: Sequence[Column], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = {c.name for c in columns}
    for row in rows:
        if set(row) != names:
            raise ValueError(
                f"{path.name}, slide {row.get('slide_id')!r}: expected the fields of the schema, "
                f"missing {sorted(names - set(row))}, not known {sorted(set(row) - names)}."
            )
    schema = arrow_schema(columns, nullable=True, metadata={META_KEY: {"schema": SCHEMA_VERSION}})
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    with atomic_path(path) as partial:
        pq.write_table(table, str(partial), compression="zstd")

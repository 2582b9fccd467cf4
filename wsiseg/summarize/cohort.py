"""Write the rows of many slides as one Parquet table with units, and as CSV; read such tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsiseg.decode import decode
from wsiseg.errors import FormatError
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.schema import ERRORS, LATER, SCHEMA_VERSION, SLIDES, Column
from wsiseg.tables import atomic_write_bytes
from wsiseg.tables.arrow import META_KEY, write_rows

__all__ = ["read_errors_table", "read_slides_table", "write_errors_table", "write_slides_table"]


def write_slides_table(rows: Sequence[SlideRow], path: str | Path) -> None:
    """Write the statistics rows of a run to ``path`` (Parquet) and to the same name with ``.csv``, in the given order.

    Raises
    ------
    OSError
        The operating system's own error.
    """
    plain = [row.columns for row in rows]
    write_rows(Path(path), SLIDES, plain, {META_KEY: {"schema": SCHEMA_VERSION}})
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([c.name for c in SLIDES])
    writer.writerows(row.values() for row in plain)
    atomic_write_bytes(Path(path).with_suffix(".csv"), text.getvalue().encode())


def write_errors_table(rows: Sequence[ErrorRow], path: str | Path) -> None:
    """Write the failures of a run to ``path`` (Parquet; a valid empty table if there are none). Raises ``OSError``."""
    write_rows(Path(path), ERRORS, [row.columns for row in rows], {META_KEY: {"schema": SCHEMA_VERSION}})


def read_errors_table(path: str | Path) -> list[ErrorRow]:
    """Return the failures of a run. Raises the errors of ``read_slides_table``."""
    rows = _read_parquet(path, ERRORS, ("host", "worker"), "failures")
    return [decode(ErrorRow, row, f"{path}, row {k}") for k, row in enumerate(rows)]


def read_slides_table(path: str | Path) -> list[SlideRow]:
    """Return the statistics rows of a run.

    Columns that earlier versions did not have are empty; those of a newer version, unknown here, are left out.

    Raises
    ------
    FormatError
        The file is not a table of slide statistics; the message names the column that is missing or of another type.
    FileNotFoundError
        The file does not exist.
    """
    rows = _read_parquet(path, SLIDES, tuple(LATER), "slide statistics")
    return [decode(SlideRow, row, f"{path}, row {k}") for k, row in enumerate(rows)]


def _read_parquet(path: str | Path, columns: Sequence[Column], later: Sequence[str], what: str) -> list[dict[str, Any]]:
    """Return the rows of a table as plain values; texts that are null are empty."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [c.name for c in columns]
    try:
        there = set(pq.read_schema(str(path)).names)
        table = pq.read_table(str(path), columns=[n for n in names if n in there], partitioning=None)
        rows: list[dict[str, Any]] = table.to_pylist()
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException) as err:  # ValueError: bytes that are not UTF-8
        raise FormatError(f"{path}: expected a table of {what}, but it cannot be read ({err}).") from err
    missing = sorted(set(names) - set(later) - set(table.column_names))
    if missing:
        raise FormatError(f"{path}: expected a table of {what}, but it lacks the columns {missing}.")
    texts = {c.name for c in columns if c.arrow == "string"}
    return [{name: "" if value is None and name in texts else value for name, value in row.items()} for row in rows]

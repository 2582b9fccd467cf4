"""Write the rows of many slides as one Parquet table with units, and as CSV; read such tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.schema import ERRORS, SCHEMA_VERSION, SLIDES
from wsiseg.tables import atomic_write_bytes
from wsiseg.tables.arrow import META_KEY
from wsiseg.tables.records import read_rows, write_rows

__all__ = ["read_errors_table", "read_slides_table", "write_errors_table", "write_slides_table"]


def write_slides_table(rows: Sequence[SlideRow], path: str | Path) -> None:
    """Write the statistics rows of a run to ``path`` (Parquet) and to the same name with ``.csv``, in the given order.

    Raises
    ------
    OSError
        The operating system's own error.
    """
    write_rows(Path(path), SLIDES, rows, {META_KEY: {"schema": SCHEMA_VERSION}})
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([c.name for c in SLIDES])
    writer.writerows([getattr(row, c.name) for c in SLIDES] for row in rows)
    atomic_write_bytes(Path(path).with_suffix(".csv"), text.getvalue().encode())


def write_errors_table(rows: Sequence[ErrorRow], path: str | Path) -> None:
    """Write the failures of a run to ``path`` (Parquet; a valid empty table if there are none). Raises ``OSError``."""
    write_rows(Path(path), ERRORS, rows, {META_KEY: {"schema": SCHEMA_VERSION}})


def read_errors_table(path: str | Path) -> list[ErrorRow]:
    """Return the failures of a run. Raises the errors of ``read_slides_table``."""
    return read_rows(ErrorRow, path, "failures")


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
    return read_rows(SlideRow, path, "slide statistics")

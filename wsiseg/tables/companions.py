"""Paths of the companion files of a polygon table, which have one row for each of its nuclei, in the same order."""

from __future__ import annotations

from pathlib import Path

from wsiseg.errors import FormatError
from wsiseg.tables.arrow import read_table_meta
from wsiseg.tables.features import table_fingerprint

__all__ = ["cells_of", "cells_path"]


def cells_path(table: str | Path) -> Path:
    """Return the path of the cells of ``RUN/nuclei/<slide_id>.parquet``: ``RUN/cells/<slide_id>.parquet``."""
    table = Path(table)
    return table.parent.parent / "cells" / table.name


def cells_of(table: str | Path) -> Path:
    """Return the file of a table's cells.

    Raises
    ------
    FormatError
        The file does not exist, or was made from another table.
    """
    path = cells_path(table)
    again = f"Make them with: wsiseg cells {path.parent.parent} --expand-um D"
    if not path.is_file():
        raise FormatError(f"{path}: no cells here. {again}")
    if read_table_meta(path).get("of") != table_fingerprint(table):
        raise FormatError(f"{path}: these cells were made from another table than {table}. {again} --overwrite")
    return path

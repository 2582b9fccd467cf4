"""Read a slide's polygon table by window and by column; only the row groups that intersect the window are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.errors import FormatError
from wsiseg.types import Box

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_nuclei"]


def read_nuclei(path: str | Path, region: Box | None = None, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the nuclei of a table whose bounding box intersects ``region``.

    Parameters
    ----------
    path
        A slide's polygon table.
    region
        Window in level-0 px, touching edges included; None: all nuclei.
    columns
        Columns to read (see ``wsiseg.schema.NUCLEI``); None: all.

    Raises
    ------
    FormatError
        The file is not Parquet, or lacks a requested column.
    FileNotFoundError
        The file does not exist.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    where = None
    if region is not None:
        where = (pc.field("bbox", "xmin") <= region.x1) & (pc.field("bbox", "xmax") >= region.x)
        where &= (pc.field("bbox", "ymin") <= region.y1) & (pc.field("bbox", "ymax") >= region.y)
    try:
        names = None if columns is None else list(columns)
        return ds.dataset(str(path), format="parquet").to_table(columns=names, filter=where)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{path}: expected a nuclei table with the requested columns: {err}") from err

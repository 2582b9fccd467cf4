"""Read tables of points (Xenium, CosMx, MERSCOPE, Visium HD or any other) in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["POINT_FORMATS", "PointTable", "iter_points", "open_points", "sample_xy", "xy_of"]

Float = npt.NDArray[np.float64]

BATCH_ROWS = 1 << 20
SAMPLE_ROWS = 1 << 15
SAMPLES = 16
_CSV_BLOCK_BYTES = 1 << 25


@dataclass(frozen=True, slots=True)
class _Format:
    x: str
    y: str
    gene: str
    keep: tuple[str, ...]
    unit: Literal["um", "px", "slide px"]
    quality: str = ""
    files: tuple[str, ...] = ()


POINT_FORMATS: dict[str, _Format] = {
    "xenium": _Format("x_location", "y_location", "feature_name", ("transcript_id",), "um", "qv",
                      ("transcripts.parquet", "transcripts.csv.gz", "transcripts.csv")),
    "cosmx": _Format("x_global_px", "y_global_px", "target", (), "px", files=("*tx_file.csv", "*tx_file.csv.gz")),
    "merscope": _Format("global_x", "global_y", "gene", (), "um",
                         files=("detected_transcripts.csv", "detected_transcripts.parquet")),
    "visium-hd": _Format("pxl_col_in_fullres", "pxl_row_in_fullres", "", ("barcode",), "slide px",
                         files=("tissue_positions.parquet", "spatial/tissue_positions.parquet")),
}  # fmt: skip
"""Columns of each platform, and the unit of its coordinates; ``slide px`` are px of the microscope image itself."""


@dataclass(frozen=True, slots=True)
class PointTable:
    """A table of points: the names of its columns x, y, gene and quality (``""``: none), and of columns to copy (``keep``).

    ``unit`` is the unit of the coordinates (``""``: unknown). ``stated_mpp`` is the um/px of the picture if the unit is px.
    """

    path: Path
    format: str
    x: str
    y: str
    gene: str = ""
    quality: str = ""
    keep: tuple[str, ...] = ()
    unit: str = ""
    n_rows: int | None = None
    stated_mpp: float | None = None

    @property
    def is_parquet(self) -> bool:
        """Whether the file is Parquet; otherwise it is text."""
        return _is_parquet(self.path)

    @property
    def columns(self) -> list[str]:
        """Return the columns to read."""
        return list(dict.fromkeys(c for c in (self.x, self.y, self.gene, self.quality, *self.keep) if c))


def open_points(
    path: Path, fmt: str = "auto", *, x: str = "", y: str = "", gene: str | None = None, keep: Sequence[str] = ()
) -> PointTable:
    """Return the description of a table of points.

    Parameters
    ----------
    path
        A Parquet or CSV file, or the output folder of an instrument.
    fmt
        A key of ``POINT_FORMATS``, ``table``, or ``auto``: recognized by the columns.
    x, y, gene
        Names of columns, if they differ from those of the format. ``gene=None``: that of the format.
    keep
        Further columns to copy to the result.

    Raises
    ------
    InputError
        ``fmt`` is unknown.
    FormatError
        The file is not a table, or lacks columns.
    """
    if path.is_dir():
        path = _file_in(path, fmt)
    names, n_rows = _header(path)
    found = fmt if fmt != "auto" else next((n for n, f in POINT_FORMATS.items() if {f.x, f.y} <= set(names)), "table")
    known = POINT_FORMATS.get(found)
    if known is None and found != "table":
        raise InputError(f"Expected one of the formats auto, table, {', '.join(POINT_FORMATS)}, got {fmt!r}.")
    base = known or _Format("x", "y", "", (), "um")
    named = {"x": x or base.x, "y": y or base.y, "gene": base.gene if gene is None else gene}
    wanted = [named["x"], named["y"], *([named["gene"]] if named["gene"] else []), *keep]
    if missing := [c for c in wanted if c not in names]:
        raise FormatError(
            f"{path}: expected the columns {', '.join(wanted)}, but {', '.join(missing)} are missing; it has "
            f"{', '.join(names[:30])}. Name them with --x, --y and --gene."
        )
    kept = tuple(dict.fromkeys(c for c in (*base.keep, *keep) if c in names))
    own = not (x or y) and known is not None
    return PointTable(
        path, found, named["x"], named["y"], named["gene"], base.quality if base.quality in names else "", kept,
        base.unit if own else "", n_rows, _stated_mpp(path) if found == "visium-hd" else None,
    )  # fmt: skip


def iter_points(source: PointTable, batch_rows: int = 0) -> Iterator[pa.Table]:
    """Yield the points in batches, in the order of the file.

    Raises
    ------
    FormatError
        The file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    batch_rows = batch_rows or BATCH_ROWS
    try:
        if source.is_parquet:
            with pq.ParquetFile(str(source.path)) as file:
                for batch in file.iter_batches(batch_rows, columns=source.columns):
                    yield pa.table(batch)
            return
        held: list[pa.Table] = []
        for batch in _csv(source):
            held.append(pa.table(batch))
            if sum(t.num_rows for t in held) >= batch_rows:
                yield pa.concat_tables(held)
                held = []
        if held:
            yield pa.concat_tables(held)
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{source.path}: cannot be read as a table of points ({err}).") from err


def xy_of(source: PointTable, table: pa.Table) -> Float:
    """Return x and y of the rows of a table, float64 (N, 2), NaN if missing. Raises ``FormatError`` if not numbers."""
    import pyarrow as pa

    try:
        columns = [table[c].cast(pa.float64()).to_numpy() for c in (source.x, source.y)]
    except pa.ArrowException as err:
        raise FormatError(f"{source.path}: expected numbers in {source.x} and {source.y} ({err}).") from err
    return np.stack(columns, axis=1)


def sample_xy(source: PointTable) -> Float:
    """Return x and y of a sample: from all parts of a Parquet file, from the beginning of a text file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not source.is_parquet:
        table = next(iter_points(source, SAMPLE_ROWS), None)
        return np.empty((0, 2)) if table is None else xy_of(source, table)
    found = [np.empty((0, 2))]
    try:
        with pq.ParquetFile(str(source.path)) as file:
            groups = sorted({round(k) for k in np.linspace(0, max(0, file.num_row_groups - 1), SAMPLES)})
            for group in groups if file.num_row_groups else []:
                batch = next(file.iter_batches(SAMPLE_ROWS, row_groups=[group], columns=[source.x, source.y]), None)
                if batch is not None:
                    found.append(xy_of(source, pa.table(batch)))
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{source.path}: cannot be read as a table of points ({err}).") from err
    return np.concatenate(found)


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(4) == b"PAR1"


def _file_in(folder: Path, fmt: str) -> Path:
    formats = POINT_FORMATS if fmt in ("auto", "table") else {fmt: POINT_FORMATS[fmt]} if fmt in POINT_FORMATS else {}
    found = [p for f in formats.values() for name in f.files for p in sorted(folder.glob(name))]
    if not found:
        names = ", ".join(n for f in formats.values() for n in f.files)
        raise FormatError(
            f"{folder}: expected one of the files {names} in this folder. Give the path of the file with the points."
        )
    return found[0]


def _header(path: Path) -> tuple[list[str], int | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise FormatError(f"{path}: no such file or folder.")
    try:
        if _is_parquet(path):
            with pq.ParquetFile(str(path)) as file:
                return list(file.schema_arrow.names), int(file.metadata.num_rows)
        with pa.input_stream(str(path), compression="detect") as stream:
            line = stream.read(1 << 16).split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{path}: expected a table of points, Parquet or CSV ({err}).") from err
    return [name.strip().strip('"') for name in line.rstrip("\r").split(_delimiter(line))], None


def _delimiter(line: str) -> str:
    return max(",\t;", key=line.count)


def _csv(source: PointTable) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import csv

    with pa.input_stream(str(source.path), compression="detect") as stream:
        line = stream.read(1 << 16).split(b"\n", 1)[0].decode("utf-8-sig", "replace")
    types = {source.x: pa.float64(), source.y: pa.float64(), **({source.gene: pa.string()} if source.gene else {})}
    convert = csv.ConvertOptions(include_columns=source.columns, column_types=types, strings_can_be_null=False)
    read = csv.ReadOptions(block_size=_CSV_BLOCK_BYTES)
    yield from csv.open_csv(
        str(source.path), read_options=read, parse_options=csv.ParseOptions(delimiter=_delimiter(line)), convert_options=convert
    )


def _stated_mpp(path: Path) -> float | None:
    """Return the um/px of the image of 10x bins, from the scale factors in the same folder; None without that file."""
    beside = path.parent / "scalefactors_json.json"
    if not beside.is_file():
        return None
    try:
        value = float(json.loads(beside.read_text(encoding="utf-8"))["microns_per_pixel"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise FormatError(f"{beside}: expected the scale factors of 10x with microns_per_pixel ({err!r}).") from err
    return value

"""Features of nuclei: those computed from stored columns, and those in the companion file, row by row."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.schema import DERIVED, FEATURES
from wsiseg.tables.arrow import read_table_meta

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "DERIVED_FROM", "DERIVED_NAMES", "DERIVED_SQL", "FEATURE_NAMES", "derived", "features_path", "read_features",
    "table_fingerprint",
]  # fmt: skip

DERIVED_FROM = ("area_um2", "perimeter_um", "major_um", "minor_um", "orientation_rad")
"""Stored columns that ``derived`` needs."""

DERIVED_NAMES = tuple(c.name for c in DERIVED)
FEATURE_NAMES = tuple(c.name for c in FEATURES if c.name != "nucleus_id")

DERIVED_SQL: dict[str, str] = {
    "axis_major_length_um": "major_um",
    "axis_minor_length_um": "minor_um",
    "orientation": "CASE WHEN orientation_rad > 0 THEN pi() / 2 - orientation_rad ELSE -pi() / 2 - orientation_rad END::FLOAT",
    "eccentricity": "CASE WHEN major_um > 0 THEN sqrt(1 - (minor_um / major_um) ** 2) ELSE 0 END::FLOAT",
    "equivalent_diameter_area_um": "sqrt(4 * area_um2 / pi())::FLOAT",
    "circularity": "(4 * pi() * area_um2 / (perimeter_um * perimeter_um))::FLOAT",
}
"""The same features as SQL, so that a query computes only those that it uses."""

Float = npt.NDArray[np.float64]


def derived(columns: dict[str, npt.NDArray[Any]], names: Sequence[str] = DERIVED_NAMES) -> dict[str, npt.NDArray[np.float32]]:
    """Return features of ``wsiseg.schema.DERIVED`` from stored columns (``DERIVED_FROM``), float32 (N,) each.

    Names and definitions are those of scikit-image's ``regionprops`` with ``spacing`` = um/px, so lengths are in um. Its
    orientation is measured from the row axis: ``orientation = pi/2 - orientation_rad`` modulo pi, in [-pi/2, pi/2).
    ``circularity`` is Cox's 4 pi A / P^2 (E. P. Cox, Journal of Paleontology 1, 1927) with the Crofton perimeter.
    """
    area, perimeter, major, minor, angle = (np.asarray(columns[n], np.float64) for n in DERIVED_FROM)
    half = math.pi / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(major > 0, minor / major, 1.0)
        values: dict[str, Float] = {
            "axis_major_length_um": major,
            "axis_minor_length_um": minor,
            "orientation": np.where(angle > 0, half - angle, -half - angle),
            "eccentricity": np.sqrt(np.maximum(1 - ratio**2, 0)),
            "equivalent_diameter_area_um": np.sqrt(4 * area / math.pi),
            "circularity": 4 * math.pi * area / perimeter**2,
        }
    return {name: values[name].astype(np.float32) for name in names}


def features_path(table: str | Path) -> Path:
    """Return the path of the companion of ``RUN/nuclei/<slide_id>.parquet``: ``RUN/features/<slide_id>.parquet``."""
    table = Path(table)
    return table.parent.parent / "features" / table.name


def table_fingerprint(table: str | Path) -> str:
    """Return a hash (16 hex digits) of a Parquet file's footer: positions, sizes and limits of all its column chunks.

    Raises
    ------
    FormatError
        The file is not Parquet.
    """
    with Path(table).open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 8))
        tail = stream.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length + 12 > size:
            raise FormatError(f"{table}: expected a Parquet file, but its end is not that of one. Is the file complete?")
        stream.seek(size - 8 - length)
        return hashlib.sha256(stream.read(length)).hexdigest()[:16]


def read_features(table: str | Path, names: Sequence[str] = FEATURE_NAMES) -> pa.Table:
    """Return the companion's columns, in the row order of the polygon table.

    Raises
    ------
    FormatError
        The file does not exist, or was made from another table: ``wsiseg features RUN`` makes it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = features_path(table)
    again = f"Make it with: wsiseg features {path.parent.parent}"
    if not path.is_file():
        raise FormatError(f"{path}: no features of pixels and neighbors here. {again}")
    of = read_table_meta(path).get("of")
    if of != table_fingerprint(table):
        raise FormatError(f"{path}: these features were made from another table than {table}. {again}")
    try:
        return pq.read_table(str(path), columns=list(names), partitioning=None)
    except (OSError, pa.ArrowException, json.JSONDecodeError) as err:
        raise FormatError(f"{path}: expected features with the columns {list(names)} ({err}). {again}") from err

"""Read columns of nuclei: stored in the table, derived from it on reading, or in its features file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.tables.arrow import read_table_meta
from wsiseg.tables.features import (
    DERIVED_FROM,
    DERIVED_NAMES,
    FEATURE_NAMES,
    derived,
    features_path,
    read_features,
    table_fingerprint,
)
from wsiseg.tables.nuclei import read_nuclei
from wsiseg.types import Box

if TYPE_CHECKING:
    import pyarrow as pa

Int = npt.NDArray[np.int64]

__all__ = ["add_derived", "companion_of", "read_columns", "stored_names"]


def stored_names(wanted: Sequence[str]) -> list[str]:
    """Return the columns to read from a polygon table to give or derive the ``wanted`` ones, each once."""
    stored = [n for n in wanted if n not in DERIVED_NAMES and n not in FEATURE_NAMES]
    return list(dict.fromkeys([*stored, *(DERIVED_FROM if set(wanted) & set(DERIVED_NAMES) else ())]))


def add_derived(table: pa.Table, wanted: Sequence[str]) -> pa.Table:
    """Return the table with the derived columns among ``wanted``."""
    import pyarrow as pa

    names = [n for n in wanted if n in DERIVED_NAMES]
    if not names:
        return table
    made = derived({n: table[n].to_numpy() for n in DERIVED_FROM}, names)
    for name, values in made.items():
        table = table.append_column(name, pa.array(values))
    return table


def companion_of(path: Path) -> Path | None:
    """Return the features file of a polygon table if it exists and was made from this table, else ``None``."""
    companion = features_path(path)
    if not companion.is_file() or read_table_meta(companion).get("of") != table_fingerprint(path):
        return None
    return companion


def read_columns(path: Path, box: Box | None, wanted: Sequence[str] | None, *, features: bool = False) -> pa.Table:
    """Return columns of one table's nuclei in a window; ``features`` adds derived ones and those of the features file, if any.

    Raises
    ------
    FormatError
        A wanted column does not exist.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if wanted is None:
        if not features:
            return read_nuclei(path, box)
        wanted = pq.read_schema(str(path)).names
    names = list(wanted)
    if features:
        beside = FEATURE_NAMES if companion_of(path) is not None else ()
        names = list(dict.fromkeys([*names, *DERIVED_NAMES, *beside]))
    extra = [n for n in names if n in FEATURE_NAMES]
    stored = stored_names([*names, *(["nucleus_id"] if extra else [])])
    table = add_derived(read_nuclei(path, box, stored), names)
    if extra:
        found = read_features(path, ["nucleus_id", *extra])
        rows = _rows(found["nucleus_id"].to_numpy(), table["nucleus_id"].to_numpy(), path)
        for name in extra:
            table = table.append_column(found.schema.field(name), found[name].take(pa.array(rows)))
    return table.select(names)


def _rows(ids: Int, asked: Int, path: Path) -> Int:
    if len(ids) == len(asked) and (ids == asked).all():
        return np.arange(len(ids))
    order = np.argsort(ids, kind="stable")
    at = np.searchsorted(ids[order], asked)
    if len(asked) and (at.max() >= len(ids) or (ids[order][at] != asked).any()):
        raise FormatError(
            f"{features_path(path)}: a nucleus of {path} is missing in this file. Measure again: wsiseg features --overwrite."
        )
    rows: Int = order[at]
    return rows

"""Assemble the measured features of a slide and write them to the companion of its polygon table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.summarize import od_features
from wsiseg.summarize.features import NEIGHBOR_UM
from wsiseg.tables import read_nuclei
from wsiseg.write import write_features_table

__all__ = ["feature_facts", "write_measured"]

Array = npt.NDArray[Any]


def feature_facts(slide_id: str, stain: str, vectors: Sequence[Sequence[float]] = ()) -> dict[str, object]:
    """Return the description of how features were measured; ``stain`` is ``none`` where pixels were not."""
    facts: dict[str, object] = {
        "slide_id": slide_id,
        "stain": stain,
        "neighbor_radius_um": NEIGHBOR_UM,
        "od": "-log10((v + 1) / 256)",
    }
    return facts | {"stain_vectors_rgb": [list(v) for v in vectors]} if vectors else facts


def write_measured(
    table: Path,
    facts: dict[str, object],
    sums: npt.NDArray[np.int64] | None,
    solidity: npt.NDArray[np.float32],
    neighbors: dict[str, Array],
) -> int:
    """Write ``RUN/features/<slide_id>.parquet``; return how many nuclei there are.

    Parameters
    ----------
    sums : int64 (N, 5)
        Of optical densities (``wsiseg.summarize.sum_od``); ``None``: not measured.
    solidity, neighbors
        Of all nuclei, in the order of the table, as ``sums``.
    """
    ids = read_nuclei(table, columns=["nucleus_id"])["nucleus_id"].to_numpy()
    columns: dict[str, Array] = {"nucleus_id": ids, **neighbors, "solidity": solidity}
    if sums is not None:
        columns |= od_features(sums)
    else:
        columns |= dict.fromkeys(od_features(np.zeros((0, 5), np.int64)), np.full(len(ids), np.nan, np.float32))
    write_features_table(table, _groups(table, columns), facts)
    return len(ids)


def _groups(table: Path, columns: dict[str, Array]) -> Iterator[dict[str, Array]]:
    """Yield the columns in the table's row groups."""
    import pyarrow.parquet as pq

    meta = pq.read_metadata(str(table))
    first = 0
    for k in range(meta.num_row_groups):
        rows = slice(first, first + meta.row_group(k).num_rows)
        yield {name: values[rows] for name, values in columns.items()}
        first = rows.stop

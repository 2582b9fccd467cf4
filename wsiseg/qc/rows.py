"""Rows of the tables in ``RUN/qc``: the columns of ``wsiseg.schema``, in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wsiseg.errors import FormatError
from wsiseg.schema import PATCH_FEATURES
from wsiseg.tables.records import read_columns, read_rows, write_columns

__all__ = [
    "EstimateRow",
    "FlagRow",
    "OrderRow",
    "PatchRow",
    "PredictedRow",
    "read_features",
    "stored_rows",
    "write_features",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FlagRow:
    """The result of the outlier rule for a slide: a row of ``wsiseg.schema.OUTLIERS``.

    What has a default is lacking in tables of earlier versions.
    """

    slide_id: str
    cohort: str
    status: str
    round: int
    tails: str
    reasons: str
    note: str
    rank: int | None = None
    z: float | None = None
    z_of: str = ""
    compared: str = ""
    n_nuclei: int | None = None
    nuclei_per_mm2: float | None = None
    area_mean_um2: float | None = None
    area_std_um2: float | None = None


@dataclass(frozen=True, slots=True)
class PatchRow:
    """A sampled patch: a row of ``wsiseg.schema.PATCHES``. ``file`` is empty where it could not be rendered."""

    patch_id: str
    slide_id: str
    cohort: str
    number: int
    x_px: int
    y_px: int
    side_px: int
    zoom: float
    n_nuclei: int | None
    file: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class PredictedRow:
    """Predicted quality of a patch: a row of ``wsiseg.schema.PREDICTED``."""

    patch_id: str
    slide_id: str
    fail_prob: float | None
    fail_prob_run: float | None


@dataclass(frozen=True, slots=True)
class EstimateRow:
    """Estimated share of bad patches of a slide: a row of ``wsiseg.schema.PREDICTED_SLIDES``."""

    slide_id: str
    cohort: str
    n_patches: int
    n_judged: int
    bad_frac_estimate: float | None
    bad_frac_estimate_low: float | None
    bad_frac_estimate_high: float | None


@dataclass(frozen=True, slots=True)
class OrderRow:
    """Place of a patch in a suspects-first review: a row of ``wsiseg.schema.REVIEW_ORDER``."""

    patch_id: str
    fail_prob: float
    key: float


def stored_rows(kind: type[T], path: Path, what: str = "") -> list[T]:
    """Return the rows of a table; an empty list if there is no such file. ``what`` is as in ``wsiseg.tables.records``.

    Raises
    ------
    FormatError
        The file is not such a table.
    """
    return _or_else(lambda: read_rows(kind, path, what or path.stem.replace("_", " ")), [])


def read_features(path: Path) -> dict[str, list[float | None]]:
    """Return the features of each patch in the order of the columns, None where a table of an earlier version lacks one.

    There are none if there is no such file. Raises as ``stored_rows``.
    """
    names = [c.name for c in PATCH_FEATURES]
    table = _or_else(lambda: read_columns(path, names, "features of patches"), None)
    if table is None:
        return {}
    unknown = [None] * table.num_rows
    ids, *columns = [table[n].to_pylist() if n in table.column_names else unknown for n in names]
    return dict(zip(ids, map(list, zip(*columns, strict=True)), strict=True))


def write_features(path: Path, features: Mapping[str, Sequence[float | None]]) -> None:
    """Write the features of patches, given in the order of the columns, by patch id."""
    ids = sorted(features)
    columns = {c.name: [features[i][k] for i in ids] for k, c in enumerate(PATCH_FEATURES[1:])}
    write_columns(path, PATCH_FEATURES, {PATCH_FEATURES[0].name: ids, **columns})


def _or_else(read: Callable[[], T], nothing: T) -> T:
    try:
        return read()
    except FileNotFoundError:
        return nothing
    except FormatError as err:
        raise FormatError(f"{err} Remove the file and run again the command that writes it.") from err

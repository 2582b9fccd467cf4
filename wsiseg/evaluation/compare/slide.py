"""Compute scores, map and worst places of one slide from its overlaps; store and read the record of its comparison."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from wsiseg.decode import read_record as read_json_record
from wsiseg.errors import FormatError
from wsiseg.evaluation.compare.cells import Cells, centers_of, grid_cells
from wsiseg.evaluation.compare.overlaps import Counted, with_hidden
from wsiseg.evaluation.compare.pairing import SlidePair
from wsiseg.metrics import Scores, scores_of
from wsiseg.schema import COMPARED_CELLS
from wsiseg.tables import arrow_schema, atomic_path, atomic_write_bytes, open_nuclei, table_fingerprint
from wsiseg.types import Box

__all__ = ["ComparedRow", "SlideComparison", "Worst", "cells_path", "finished_slide", "read_cells", "read_record",
           "refused_slide", "write_record"]  # fmt: skip

CELL_UM = 256.0
"""Side of the cells of the map."""

CROP_UM = 64.0
"""Side of the places in the picture of disagreements."""

SCORES = ("pq", "sq", "f1", "precision", "recall", "dice", "dice2", "aji", "aji_plus", "f1_sweep_mean")
"""Scores in a row of ``wsiseg.schema.COMPARED``."""

KEPT_WORST = 24
"""Number of places that are stored for each slide."""


@dataclass(frozen=True, slots=True)
class Worst:
    """A square (level-0 px) with many unmatched nuclei."""

    x_px: int
    y_px: int
    side_px: int
    n_a: int
    n_b: int
    unmatched: int


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A row of ``wsiseg.schema.COMPARED``; what does not exist is None."""

    slide_id: str
    status: str
    n_a: int | None
    n_b: int | None
    matched: int | None
    count_ratio: float | None
    area_mean_a_um2: float | None
    area_mean_b_um2: float | None
    area_diff_frac: float | None
    pq: float | None
    sq: float | None
    f1: float | None
    precision: float | None
    recall: float | None
    dice: float | None
    dice2: float | None
    aji: float | None
    aji_plus: float | None
    f1_sweep_mean: float | None
    notes: str
    error: str


@dataclass(frozen=True, slots=True)
class SlideComparison:
    """Agreement of two segmentations of a slide; ``status`` and ``error`` are as in ``wsiseg.schema.COMPARED``."""

    slide_id: str
    status: str
    scores: Scores = field(default_factory=Scores)
    area_a_um2: float = 0.0
    area_b_um2: float = 0.0
    mpp: float = math.nan
    size_px: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    error: str = ""
    worst: tuple[Worst, ...] = ()
    fingerprints: tuple[str, str] = ("", "")

    def row(self) -> ComparedRow:
        """Return the slide's row."""
        s, used = self.scores, self.status in ("done", "empty")
        mean_a, mean_b = (_ratio(a, n) for a, n in ((self.area_a_um2, s.n_pred), (self.area_b_um2, s.n_truth)))
        ratios = {
            "count_ratio": _ratio(s.n_pred, s.n_truth),
            "area_mean_a_um2": mean_a,
            "area_mean_b_um2": mean_b,
            "area_diff_frac": _ratio(mean_a, mean_b) - 1,
            **{name: getattr(s, name) for name in SCORES},
        }
        return ComparedRow(
            slide_id=self.slide_id,
            status=self.status,
            n_a=s.n_pred if used else None,
            n_b=s.n_truth if used else None,
            matched=s.matched[0] if used else None,
            notes="; ".join(self.notes),
            error=self.error,
            **{name: None if math.isnan(value) else value for name, value in ratios.items()},
        )


def _ratio(value: float, by: float) -> float:
    return value / by if by else math.nan


def refused_slide(slide_id: str, status: str, error: str) -> SlideComparison:
    """Return the result for a slide that could not be compared."""
    return SlideComparison(slide_id, status, error=error)


def finished_slide(
    pair: SlidePair, counted: Counted, windows: tuple[Box, ...], notes: list[str]
) -> tuple[SlideComparison, Cells]:
    """Return a slide's comparison and its map, from the sum over its windows.

    Raises
    ------
    FormatError
        A table cannot be read.
    """
    overlaps = with_hidden(pair.a, pair.b, counted, windows)
    scores = scores_of(overlaps)
    a, b = centers_of(pair.a), centers_of(pair.b)
    source = open_nuclei(pair.b)
    if scores.n_pred and scores.n_truth and not scores.matched[0]:
        met = "no two share a pixel" if scores.both_px == 0 else f"none match, {scores.both_px:,} px are shared"
        notes = [
            *notes,
            f"of {scores.n_pred:,} nuclei of A and {scores.n_truth:,} of B {met}: check that the frame is the same (--frame)",
        ]
    for side, table, seen in (("A", a, scores.n_pred), ("B", b, scores.n_truth)):
        if len(table) != seen:
            notes = [
                *notes,
                f"{len(table) - seen:,} of {len(table):,} nuclei of {side} contain no pixel center and are left out",
            ]
    made = SlideComparison(
        pair.slide_id,
        "empty" if scores.empty else "done",
        scores,
        a.area_um2,
        b.area_um2,
        source.mpp,
        (source.width_px, source.height_px),
        tuple(notes),
        "",
        _worst(grid_cells(overlaps, a, b, _side(CROP_UM, source.mpp))),
        fingerprints(pair),
    )
    return made, grid_cells(overlaps, a, b, _side(CELL_UM, source.mpp))


def _side(um: float, mpp: float) -> int:
    return max(1, round(um / mpp))


def _worst(cells: Cells) -> tuple[Worst, ...]:
    """Return the cells with the most unmatched nuclei, in raster order if equal."""
    order = np.argsort(-cells.unmatched, kind="stable")[:KEPT_WORST]
    side = cells.side_px
    return tuple(
        Worst(int(cells.column[k]) * side, int(cells.row[k]) * side, side, int(cells.n_a[k]), int(cells.n_b[k]),
              int(cells.unmatched[k]))
        for k in order
        if cells.unmatched[k] > 0
    )  # fmt: skip


def fingerprints(pair: SlidePair) -> tuple[str, str]:
    """Return the digests of both tables; a stored comparison is valid while they are unchanged."""
    return table_fingerprint(pair.a), table_fingerprint(pair.b)


def cells_path(out: Path, slide_id: str) -> Path:
    """Return the path of a slide's map."""
    return out / "cells" / f"{slide_id}.parquet"


def write_record(out: Path, found: SlideComparison, cells: Cells) -> None:
    """Store a slide's comparison; the record is written last, because it marks the comparison as complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = cells_path(out, found.slide_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    (out / "slides").mkdir(parents=True, exist_ok=True)
    table = pa.table(cells.columns(found.slide_id), schema=arrow_schema(COMPARED_CELLS))
    with atomic_path(path) as partial:
        pq.write_table(table, str(partial), compression="zstd")
    text = json.dumps(dataclasses.asdict(found), indent=1, sort_keys=True)
    atomic_write_bytes(out / "slides" / f"{found.slide_id}.json", text.encode())


def read_record(out: Path, pair: SlidePair) -> SlideComparison | None:
    """Return a slide's stored comparison; None if there is none, it cannot be read, or a table has changed since."""
    try:
        found = read_json_record(SlideComparison, out / "slides" / f"{pair.slide_id}.json", "slide's comparison")
    except (FileNotFoundError, FormatError):
        return None
    return found if found.fingerprints == fingerprints(pair) and cells_path(out, pair.slide_id).is_file() else None


def read_cells(out: Path, slide_id: str) -> Cells:
    """Return a slide's stored map."""
    import pyarrow.parquet as pq

    table = pq.read_table(str(cells_path(out, slide_id)), partitioning=None)
    x, y, side, n_a, n_b, matched, pq_ = (
        table[c].to_numpy() for c in ("x_px", "y_px", "side_px", "n_a", "n_b", "matched", "pq")
    )
    step = int(side[0]) if len(side) else 1
    return Cells(step, x // step, y // step, n_a, n_b, matched, pq_ * (n_a + n_b) / 2)

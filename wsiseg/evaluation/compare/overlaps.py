"""Count the pixels shared by the nuclei of two polygon tables of a slide, window by window.

Memory does not grow with the slide. Every window of both tables is rasterized as ``evaluate`` rasterizes a whole image, and its
contingency is merged by table row. As there, a nucleus that smaller ones cover completely is drawn in a further layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiseg.metrics import Contingency, contingency
from wsiseg.tables.windows import RingWindows, WindowRings
from wsiseg.types import Box

__all__ = ["Counted", "WindowWork", "count_windows", "merged", "with_hidden"]

Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WindowWork:
    """Some windows (level-0 px) to count, and the tables of A, which is scored, and B, the reference."""

    a: Path
    b: Path
    windows: tuple[Box, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """Counts of some windows: pixels by table row, and shared pixels by pair of rows; rows and pairs are distinct."""

    a_rows: Int
    a_px: Int
    b_rows: Int
    b_px: Int
    pair_a: Int
    pair_b: Int
    pair_px: Int


def count_windows(work: WindowWork) -> Counted:
    """Return the counts of some windows; a pure function, which any worker can compute.

    Raises
    ------
    FormatError
        A table cannot be read.
    """
    with RingWindows(work.a) as first, RingWindows(work.b) as second:
        return merged(_count(first, second, box) for box in work.windows)


def _count(first: RingWindows, second: RingWindows, box: Box) -> Counted:
    a, b = (table.near(box.x, box.y, box.x1, box.y1) for table in (first, second))
    table = contingency(a.drawn(box), b.drawn(box))
    return Counted(
        a.rows[table.pred_ids - 1],
        table.pred_px,
        b.rows[table.truth_ids - 1],
        table.truth_px,
        a.rows[table.pred_ids - 1][table.pair_pred],
        b.rows[table.truth_ids - 1][table.pair_truth],
        table.pair_px,
    )


def merged(parts: Iterable[Counted]) -> Counted:
    """Return the sum of the counts."""
    found = list(parts)
    if len(found) == 1:
        return found[0]
    columns = [
        np.concatenate([np.zeros(0, np.int64), *(getattr(p, f.name) for p in found)]) for f in dataclasses.fields(Counted)
    ]
    a_rows, a_px, b_rows, b_px, pair_a, pair_b, pair_px = columns
    a_rows, a_px = _summed(a_rows, a_px)
    b_rows, b_px = _summed(b_rows, b_px)
    width = int(pair_b.max(initial=-1)) + 1
    pairs, pair_px = _summed(pair_a * width + pair_b, pair_px)
    return Counted(a_rows, a_px, b_rows, b_px, pairs // max(width, 1), pairs % max(width, 1), pair_px)


def _summed(keys: Int, values: Int) -> tuple[Int, Int]:
    """Return the distinct keys, ascending, and the sum of the values of each."""
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], values[order]
    first = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    return keys[first], np.add.reduceat(values, first) if len(first) else values


def with_hidden(a: Path, b: Path, counted: Counted, windows: Sequence[Box]) -> Contingency:
    """Return the contingency of a slide (A as prediction), including nuclei that smaller ones cover completely.

    Parameters
    ----------
    counted
        Sum over all ``windows``.
    windows
        Windows that intersect a nucleus; only the few with covered nuclei are rasterized again.
    """
    with RingWindows(a) as first, RingWindows(b) as second:
        a_layers = _hidden_layers(first, counted.a_rows, windows)
        b_layers = _hidden_layers(second, counted.b_rows, windows)
        cover = None
        if a_layers or b_layers:
            cover = (int(counted.b_px.sum()), int(counted.a_px.sum()), int(counted.pair_px.sum()))
            counted = merged([counted, *_layered(first, second, a_layers, b_layers, windows)])
    order = np.lexsort((counted.pair_a, counted.pair_b))
    return Contingency(
        truth_ids=counted.b_rows,
        pred_ids=counted.a_rows,
        truth_px=counted.b_px,
        pred_px=counted.a_px,
        pair_truth=np.searchsorted(counted.b_rows, counted.pair_b[order]),
        pair_pred=np.searchsorted(counted.a_rows, counted.pair_a[order]),
        pair_px=counted.pair_px[order],
        cover_px=cover,
    )


def _hidden_layers(table: RingWindows, seen: Int, windows: Sequence[Box]) -> list[Int]:
    """Return the rows of the nuclei in each further layer; nuclei that contain no pixel center are in none."""
    left = np.setdiff1d(np.arange(len(table)), seen, assume_unique=True)
    layers: list[Int] = []
    windows = _met(windows, table, left) if left.size else []
    while left.size:
        found: list[Int] = []
        for box in windows:
            rings = _of_rows(table.near(box.x, box.y, box.x1, box.y1), left)
            labels = np.unique(rings.drawn(box))
            found.append(rings.rows[labels[labels > 0] - 1])
        shown = np.unique(np.concatenate([left[:0], *found]))
        if not shown.size:
            break
        layers.append(shown)
        left = np.setdiff1d(left, shown, assume_unique=True)
    return layers


def _met(windows: Sequence[Box], table: RingWindows, rows: Int) -> list[Box]:
    """Return the windows that intersect the bounding boxes of these rows."""
    found = [group.bounds[:, np.isin(group.rows, rows)] for group in table.groups()]
    low_x, low_y, high_x, high_y = np.concatenate(found, axis=1)
    return [box for box in windows if ((high_x > box.x) & (low_x < box.x1) & (high_y > box.y) & (low_y < box.y1)).any()]


def _of_rows(rings: WindowRings, rows: Int) -> WindowRings:
    return rings.taken(np.isin(rings.rows, rows))


def _layered(
    first: RingWindows, second: RingWindows, a_layers: list[Int], b_layers: list[Int], windows: Sequence[Box]
) -> list[Counted]:
    """Return the counts of further layers: their pixels, and those shared with each layer of the other table."""
    none = np.zeros(0, np.int64)
    found: list[Counted] = []
    rows = (np.concatenate([np.zeros(0, np.int64), *layers]) for layers in (a_layers, b_layers))
    met = {box for table, own in zip((first, second), rows, strict=True) if own.size for box in _met(windows, table, own)}
    for box in (w for w in windows if w in met):
        near = [table.near(box.x, box.y, box.x1, box.y1) for table in (first, second)]
        hidden = [[_of_rows(rings, rows) for rows in layers] for rings, layers in zip(near, (a_layers, b_layers), strict=True)]
        if not any(len(r) for side in hidden for r in side):
            continue
        drawn = [[(r.rows, r.drawn(box)) for r in (rings, *side)] for rings, side in zip(near, hidden, strict=True)]
        for (k, (a_rows, a_map)), (m, (b_rows, b_map)) in product(enumerate(drawn[0]), enumerate(drawn[1])):
            if k == m == 0:
                continue
            table = contingency(a_map, b_map)
            a_seen, b_seen = a_rows[table.pred_ids - 1], b_rows[table.truth_ids - 1]
            found.append(
                Counted(
                    a_seen if k and not m else none,  # pixels of a layer are counted once
                    table.pred_px if k and not m else none,
                    b_seen if m and not k else none,
                    table.truth_px if m and not k else none,
                    a_seen[table.pair_pred],
                    b_seen[table.pair_truth],
                    table.pair_px,
                )
            )
    return found

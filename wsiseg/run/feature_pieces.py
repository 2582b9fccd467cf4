"""The pieces of work of ``wsiseg features``: windows of pixels, outlines of row groups, neighbors.

Any worker can measure any piece, because it is a pure function of the slide and its table. Optical densities are summed as
integers, so the sum of a nucleus that several windows share does not depend on their order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import SlideOpenError, WsisegError, one_line
from wsiseg.read import read_working
from wsiseg.results.folder import RunFolder
from wsiseg.results.locate import local_path
from wsiseg.results.reopen import reopen_slide
from wsiseg.results.slide_record import slide_record
from wsiseg.summarize import neighbors, od_tables, solidity, sum_od, sum_ring_od
from wsiseg.tables import read_nuclei
from wsiseg.tables.windows import RingWindows, WindowRings
from wsiseg.types import Box

__all__ = ["FeaturePiece", "drawing_order", "measure_piece"]

Int = npt.NDArray[np.int64]

LATTICE_PX = 0.25
"""Rings this near to pixel edges enclose the same pixel centers as rings on them, which are summed faster."""


@dataclass(frozen=True, slots=True)
class FeaturePiece:
    """One piece of work on a slide; which fields are used depends on ``kind``.

    Attributes
    ----------
    windows, scale, vectors
        ``pixels``: windows in working px, working px per level-0 px, and the stain vectors.
    groups
        ``outlines``: row groups of the table.
    mpp
        ``neighbors``, which covers all nuclei: microns per level-0 px.
    path_map
        ``OLD=NEW`` pairs for slides that were moved, as in ``schedule.path_map``.
    """

    kind: Literal["pixels", "outlines", "neighbors"]
    run: str
    slide_id: str
    windows: tuple[Box, ...] = ()
    scale: float = 1.0
    vectors: tuple[tuple[float, ...], ...] = ()
    groups: tuple[int, ...] = ()
    mpp: float = 1.0
    path_map: tuple[str, ...] = ()


def measure_piece(piece: FeaturePiece) -> dict[str, npt.NDArray[Any]] | str:
    """Measure a piece and return its arrays by name, or the reason as text if that failed.

    ``pixels``: ``rows`` int64 (n,), distinct row numbers of the table, and ``sums`` int64 (n, 5). ``outlines``: ``solidity`` of
    the nuclei in the row groups, in order. ``neighbors``: one array per column, for all nuclei.
    """
    folder = RunFolder(Path(local_path(piece.run, piece.path_map)))
    table = folder.table(piece.slide_id)
    try:
        if piece.kind == "pixels":
            return _pixels(folder, table, piece)
        if piece.kind == "outlines":
            return {"solidity": _outlines(table, piece.groups)}
        found = read_nuclei(table, columns=["cx", "cy"])
        return neighbors(np.stack([found[c].to_numpy().astype(np.float64) for c in ("cx", "cy")], axis=1) * piece.mpp)
    except (WsisegError, OSError) as err:
        return one_line(err) if not isinstance(err, SlideOpenError) else str(err)


def _outlines(table: Path, groups: tuple[int, ...]) -> npt.NDArray[np.float32]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(str(table)) as file:
        return np.concatenate([solidity(file.read_row_group(k, columns=["geometry"])["geometry"]) for k in groups])


def _pixels(folder: RunFolder, table: Path, piece: FeaturePiece) -> dict[str, Int]:
    """Sum optical densities over windows."""
    record = slide_record(folder, piece.slide_id)
    try:
        slide = reopen_slide(folder, record, piece.path_map)
    except SlideOpenError as err:
        raise SlideOpenError(f"{err} Optical densities need its pixels: --no-pixels leaves them out.") from err
    known = read_nuclei(table, columns=["nucleus_id", "area_px"])
    ids, area = known["nucleus_id"].to_numpy(), known["area_px"].to_numpy()
    shares = od_tables(piece.vectors)
    sums = np.zeros((len(ids), 5), np.int64)
    met = np.zeros(len(ids), np.bool_)
    try:
        with RingWindows(table) as rings:
            for box in piece.windows:
                corners = (math.floor(box.x / piece.scale), math.floor(box.y / piece.scale))
                near = rings.near(*corners, math.ceil(box.x1 / piece.scale), math.ceil(box.y1 / piece.scale))
                if not len(near):
                    continue
                rgb, order = read_working(slide, box, piece.scale), drawing_order(near, ids, area)
                xy = _on_lattice(near, piece.scale)
                if xy is not None:
                    sum_ring_od(sums, near.rows, (xy, near.offsets), order[::-1], (rgb, box), box, shares)
                else:
                    sum_od(sums, near.rows, near.drawn(box, order, piece.scale), rgb, shares)
                met[near.rows] = True
    finally:
        slide.close()
    rows = np.flatnonzero(met)
    return {"rows": rows, "sums": sums[rows]}


def drawing_order(near: WindowRings, ids: Int, area: npt.NDArray[Any]) -> Int:
    """Return the order in which nuclei are drawn, int64 (n,): the last has a pixel, the smallest, of equals the lesser id.

    Parameters
    ----------
    ids, area
        Of all nuclei of the table.
    """
    return np.lexsort((-ids[near.rows], -area[near.rows]))


def _on_lattice(near: WindowRings, scale: float) -> npt.NDArray[np.int32] | None:
    """Return vertices in working px if all rings run along pixel edges, or so near that they enclose the same pixels."""
    wpx = near.xy * scale
    edges = np.rint(wpx)
    straight = (np.diff(edges, axis=0) == 0).any(axis=1)
    straight[near.offsets[1:-1] - 1] = True  # the step to the next ring is no edge
    return edges.astype(np.int32) if straight.all() and np.abs(wpx - edges).max() <= LATTICE_PX else None

"""Pair the slides of two runs (or tables), and check that the two tables of a slide are in the same frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiseg.coordinates import MIN_INSIDE_FRAC, MPP_TOLERANCE_FRAC
from wsiseg.errors import FormatError, InputError, first_names
from wsiseg.tables import NucleiFile, open_nuclei, read_nuclei

__all__ = ["MIN_OVERLAP_FRAC", "Pairs", "SlidePair", "bounds_of", "checked_pair", "pair_slides", "tables_of"]

MIN_OVERLAP_FRAC = 0.5
"""The user is warned if less than this share of one table's nuclei is within the extent of the other's."""


@dataclass(frozen=True, slots=True)
class SlidePair:
    """The tables of one slide: A is scored, B is the reference."""

    slide_id: str
    a: Path
    b: Path


@dataclass(frozen=True, slots=True)
class Pairs:
    """Slides that A and B have, in order of id, and the ids of slides that only one has."""

    both: tuple[SlidePair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def tables_of(path: Path) -> dict[str, Path]:
    """Return the polygon tables of a run folder, of a folder of tables, or the given table, by slide id.

    Raises
    ------
    FormatError
        There is no table, or the given file is not a table of wsiseg.
    """
    if path.is_file():
        return {open_nuclei(path).slide_id: path}
    for folder in (path / "nuclei", path):
        found = sorted(folder.glob("*.parquet"))
        if folder.name == "nuclei" and found:
            return {p.stem: p for p in found}
    own = [p for p in sorted(path.glob("*.parquet")) if p.name not in ("slides.parquet", "errors.parquet")]
    if own:
        return {p.stem: p for p in own}
    raise FormatError(
        f"{path}: expected a run folder with nuclei/*.parquet, or a table of wsiseg. Import files of other tools with "
        f"'wsiseg import {path} --from ... -o RUN'."
    )


def pair_slides(a: Path, b: Path, slide_ids: tuple[str, ...] = ()) -> Pairs:
    """Return the slides that both have, by id; two single tables are a pair even if their ids differ.

    Raises
    ------
    InputError
        No slide is in both, or one of ``slide_ids`` is not.
    FormatError
        As for ``tables_of``.
    """
    first, second = tables_of(a), tables_of(b)
    if a.is_file() and b.is_file() and not slide_ids:
        ((slide_id, one),) = first.items()
        (two,) = second.values()
        return Pairs((SlidePair(slide_id, one, two),), (), ())
    both = sorted(first.keys() & second.keys())
    for slide_id in slide_ids:
        if slide_id not in both:
            lacking = [str(side) for side, there in ((a, first), (b, second)) if slide_id not in there]
            raise InputError(f"Slide {slide_id!r} is not in {' nor in '.join(lacking)}. In both: {first_names(both)}.")
    if not both:
        raise InputError(
            f"No slide is in both: {a} has {len(first)} ({first_names(sorted(first), 3)}), {b} has {len(second)} "
            f"({first_names(sorted(second), 3)}). Slides are paired by id; 'wsiseg import --slide-id' sets that of a file."
        )
    kept = [s for s in both if not slide_ids or s in slide_ids]
    alone = ((), ()) if slide_ids else (tuple(sorted(first.keys() - second)), tuple(sorted(second.keys() - first)))
    return Pairs(tuple(SlidePair(s, first[s], second[s]) for s in kept), *alone)


def bounds_of(table: Path) -> npt.NDArray[np.float64]:
    """Return the bounding boxes of all nuclei, float64 (4, N): xmin, ymin, xmax, ymax, level-0 px, with float32 precision."""
    boxes = read_nuclei(table, columns=["bbox"])["bbox"].combine_chunks()
    return np.stack([np.asarray(boxes.field(f), np.float64) for f in ("xmin", "ymin", "xmax", "ymax")])


def checked_pair(pair: SlidePair, a_bounds: npt.NDArray[np.float64], b_bounds: npt.NDArray[np.float64]) -> list[str]:
    """Return warnings if the two tables of a slide overlap only partly.

    Raises
    ------
    FormatError
        Microns per pixel or slide sizes differ, or hardly any nucleus of one table is within the extent of the other.
    """
    one, two = open_nuclei(pair.a), open_nuclei(pair.b)
    where = f"slide {pair.slide_id}"
    if abs(one.mpp / two.mpp - 1) > MPP_TOLERANCE_FRAC:
        raise FormatError(
            f"{where}: {pair.a} has {one.mpp:g} um/px, but {pair.b} has {two.mpp:g} (ratio {one.mpp / two.mpp:.3g}), so their "
            "pixels differ. Segment or import one of them again with the slide's microns per pixel (--mpp, --slide-file)."
        )
    _same_size(one, two, where)
    if not a_bounds.size or not b_bounds.size:
        return []
    within = max(_share_within(a_bounds, b_bounds), _share_within(b_bounds, a_bounds))
    if within >= MIN_OVERLAP_FRAC:
        return []
    reach = " and ".join(
        f"{p} from x {b[0].min():g}, y {b[1].min():g} to x {b[2].max():g}, y {b[3].max():g}"
        for p, b in ((pair.a, a_bounds), (pair.b, b_bounds))
    )
    text = f"{where}: at most {within:.1%} of the nuclei of one are within the extent of the other's, level-0 px: {reach}. "
    text += "Check that both are of the same slide and frame (wsiseg import --frame)."
    if within < MIN_INSIDE_FRAC:
        raise FormatError(text)
    return [text]


def _same_size(one: NucleiFile, two: NucleiFile, where: str) -> None:
    """Raise ``FormatError`` if the slide sizes differ, unless that of an imported table is only the extent of its nuclei."""
    sizes = [(f.width_px, f.height_px) for f in (one, two)]
    if sizes[0] == sizes[1] or one.imported or two.imported:
        return
    raise FormatError(
        f"{where}: expected the same slide and level, but that of {one.path} has {sizes[0][0]} x {sizes[0][1]} px and "
        f"that of {two.path} {sizes[1][0]} x {sizes[1][1]} px."
    )


def _share_within(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    x, y = (one[0] + one[2]) / 2, (one[1] + one[3]) / 2
    inside = (x >= other[0].min()) & (x <= other[2].max()) & (y >= other[1].min()) & (y <= other[3].max())
    return float(inside.mean())

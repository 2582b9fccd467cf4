"""Place the regions of an annotation file on a slide: valid geometries in level-0 px, and notes on what does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.coordinates import MIN_INSIDE_FRAC, Frame, Ground, check_fit, mpp_note, parse_frame
from wsiseg.errors import FormatError, first_names
from wsiseg.questions.coverage import tissue_area
from wsiseg.read import TissueMask
from wsiseg.tables.annotations import Annotations, Drawn
from wsiseg.tables.source import NucleiFile
from wsiseg.tables.within import polygonal

__all__ = ["Region", "ground_of_table", "place_regions"]

MIN_ON_TISSUE = 0.5
"""The user is warned if less than this share of the regions' area is tissue."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A region on its slide.

    Attributes
    ----------
    number
        Its position in the annotation file, from 0.
    geometry
        Polygon or MultiPolygon in level-0 px, clipped to the slide.
    outside_frac
        Share of the drawn area outside the slide, 0 to 1.
    """

    number: int
    name: str
    class_name: str
    geometry: Any
    outside_frac: float


def ground_of_table(source: NucleiFile) -> Ground:
    """Return the facts about a table's slide that frames need (size, mpp, bounds), as the table states them."""
    slide = source.facts.get("slide") or {}
    downs = tuple(float(d) for d in slide.get("level_downsamples") or ())
    sides = (int(slide.get("bounds_w") or 0), int(slide.get("bounds_h") or 0))
    return Ground(
        source.width_px, source.height_px, source.mpp or None, source.bounds_x, source.bounds_y, sides[0], sides[1], downs
    )


def place_regions(
    found: Annotations, source: NucleiFile, frame: Frame, tissue: TissueMask | None
) -> tuple[list[Region], list[str]]:
    """Return the regions of a file on their slide, and notes for the user.

    Raises
    ------
    FormatError
        Less than 2 % of the regions is inside the slide.
    InputError
        The frame needs a fact about the slide that is not known.
    """
    ground = ground_of_table(source)
    notes = [*found.notes, *(f"{found.path}: {line}" for line in found.tally.lines())]
    notes += mpp_note(str(found.path), found.mpp, ground.mpp if frame.unit_plain else None)
    placed = frame.on(ground, found.origin, str(found.path))
    dx, dy = placed[1:]
    if (dx, dy) != (0.0, 0.0) and frame.origin == "auto":
        notes.append(
            f"{found.path}: coordinates are taken as relative to the scanned area, as in QuPath: ({dx:g}, {dy:g}) px are "
            "added. If they are relative to the slide: --frame slide"
        )
    shapes, n_crossing = [], 0
    for drawn in found.regions:
        shape, crossing = _shape(drawn, placed)
        shapes.append(shape)
        n_crossing += crossing
    if n_crossing:
        notes.append(f"{found.path}: outlines of {n_crossing} regions cross themselves; the enclosed area is used")
    regions, outside = _on_slide(found, shapes, ground)
    what = f"{found.path}: corners of its {len(found.regions)} regions"
    notes += _fit(found, ground, placed, what, outside)
    gone = [r for r in regions if r.geometry.is_empty]
    if gone:
        names = first_names([f"{r.number} {r.name or r.class_name}".strip() for r in gone], 5)
        notes.append(f"{found.path}: {len(gone)} of {len(regions)} regions are outside the slide: {names}")
    notes += _off_tissue(found, regions, ground, placed, tissue)
    return regions, notes


def _shape(drawn: Drawn, placed: tuple[float, float, float]) -> tuple[Any, bool]:
    """Return a region's geometry, level-0 px, and whether an outline crosses itself."""
    import shapely

    factor, dx, dy = placed
    made = [[shapely.linearrings(ring * factor + (dx, dy)) for ring in polygon if len(ring) > 2] for polygon in drawn.polygons]
    polygons = [shapely.Polygon(rings[0], rings[1:]) for rings in made]
    crossing = not all(p.is_valid for p in polygons)
    whole = polygonal(shapely.union_all([polygonal(p) for p in polygons])) if len(polygons) > 1 else polygonal(polygons[0])
    if drawn.minus:
        minus = shapely.union_all([polygonal(shapely.Polygon(ring * factor + (dx, dy))) for ring in drawn.minus])
        whole = polygonal(shapely.difference(whole, minus))
    return whole, crossing


def _on_slide(found: Annotations, shapes: Sequence[Any], ground: Ground) -> tuple[list[Region], float]:
    """Return the regions clipped to the slide, and the share of their total area that is outside."""
    import shapely

    box = shapely.box(0, 0, ground.width_px, ground.height_px) if ground.width_px and ground.height_px else None
    regions, drawn_px, kept_px = [], 0.0, 0.0
    for number, (drawn, shape) in enumerate(zip(found.regions, shapes, strict=True)):
        cut = shape if box is None or shapely.covers(box, shape) else polygonal(shapely.intersection(shape, box))
        outside = 1 - cut.area / shape.area if shape.area > 0 else 0.0
        regions.append(Region(number, drawn.name, drawn.class_name, cut, max(0.0, outside)))
        drawn_px, kept_px = drawn_px + shape.area, kept_px + cut.area
    return regions, 1 - kept_px / drawn_px if drawn_px else 0.0


def _fit(found: Annotations, ground: Ground, placed: tuple[float, float, float], what: str, outside: float) -> list[str]:
    """Return notes on corners outside the slide; a region drawn around the whole slide has its corners there but fits."""
    corners = [polygon[0] for drawn in found.regions for polygon in drawn.polygons]
    if not corners:
        return []
    try:
        notes = check_fit(np.concatenate(corners), ground, placed, what)
    except FormatError as err:
        if outside > 1 - MIN_INSIDE_FRAC:
            raise
        notes = [str(err)]
    return [f"{note} {outside:.1%} of their area is outside the slide and is left out." for note in notes] if outside else []


def _off_tissue(
    found: Annotations, regions: Sequence[Region], ground: Ground, placed: tuple[float, float, float], tissue: TissueMask | None
) -> list[str]:
    """Return a warning if the regions are not on tissue, with the frames in which they would be."""
    import shapely

    area = sum(r.geometry.area for r in regions)
    if tissue is None or not tissue.mask.any() or area <= 0:
        return []
    share = sum(tissue_area(r.geometry, tissue) for r in regions) / area
    if share >= MIN_ON_TISSUE:
        return []
    covers = float(tissue.mask.mean())
    text = f"{found.path}: only {share:.1%} of the area of {len(regions)} regions is tissue"
    text += f", which covers {covers:.1%} of the slide"
    whole = shapely.union_all([r.geometry for r in regions])
    fitting = []
    origins = ["slide", *(["bounds"] if (ground.bounds_x, ground.bounds_y) != (0, 0) else [])]
    units = ["", *(f",down={d:g}" for d in dict.fromkeys([*ground.downsamples, 2.0, 4.0, 8.0, 16.0, 32.0]) if d > 1), ",um"]
    for name in (origin + unit for unit in units for origin in origins):
        other = parse_frame(name).on(ground)
        if other == placed:
            continue
        k = other[0] / placed[0]
        moved = shapely.transform(whole, lambda xy, k=k, o=other: (xy - placed[1:]) * k + np.array(o[1:]))
        if moved.area > 0 and (there := tissue_area(moved, tissue) / moved.area) > max(2 * share, MIN_ON_TISSUE):
            fitting.append(f"{there:.1%} with --frame {name}")
    hint = f"It would be {', or '.join(fitting[:4])}." if fitting else "Check that they belong to this slide, and --frame."
    return [f"{text}. {hint}"]

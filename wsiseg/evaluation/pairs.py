"""Load two files of one image as label maps on the same grid, with warnings if they do not fit."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiseg.coordinates import MIN_INSIDE_FRAC, Frame, Ground, check_fit, mpp_note, parse_frame
from wsiseg.errors import FormatError
from wsiseg.evaluation.inputs import (
    Instances,
    Rings,
    Vertices,
    draw_rings,
    holds_labels,
    load_label_image,
    load_rings,
    reach_of,
)
from wsiseg.evaluation.memory import require_memory

__all__ = ["Pair", "Placing", "load_pair"]

MIN_OVERLAP_FRAC = 0.5
"""The user is warned if less than this share of one file's polygons is within the extent of the other file's."""


@dataclass(frozen=True, slots=True)
class Placing:
    """How polygons are placed on the label image.

    ``frame`` is the frame of other tools' polygons on the slide, ``origin`` (x, y) the image's corner on the slide, and
    ``scale`` image px per polygon px. ``vertices`` and ``components``: see ``load_instances`` and ``read_label_file``.
    ``max_gb`` is the maximum memory for an image, 10^9 bytes.
    """

    scale: float = 1.0
    origin: tuple[float, float] = (0.0, 0.0)
    vertices: Vertices = "auto"
    frame: Frame = dataclasses.field(default_factory=Frame)
    components: bool = False
    max_gb: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Prediction and truth of one image, int32 (H, W) or (L, H, W), pixels that are not scored, and notes for the user."""

    pred: npt.NDArray[np.int32]
    truth: npt.NDArray[np.int32]
    unknown: npt.NDArray[np.bool_] | None
    notes: tuple[str, ...]


def load_pair(pred: Path | None, truth: Path, placing: Placing) -> Pair:
    """Load both files. Polygons are drawn on the grid of the other file, two polygon files on their common extent.

    Raises
    ------
    FormatError
        A file cannot be read, sizes differ, or the two files hardly overlap.
    InputError
        The frame needs the size or bounds of the slide, which neither file has.
    """
    notes: list[str] = []
    paths = [truth] if pred is None else [pred, truth]
    images = {p: load_label_image(p, components=placing.components) for p in paths if holds_labels(p)}
    rings = {p: load_rings(p) for p in paths if p not in images}
    ground = next((r.ground for r in rings.values() if r.ground is not None), None)
    placed = {p: _placed(r, p, ground, placing.frame, notes) for p, r in rings.items()}
    shape = next((image.labels.shape[:2] for image in images.values()), None)
    if shape is not None:
        require_memory(shape, f"{' and '.join(map(str, paths))}: a label image has", placing.max_gb)
        for path, found in placed.items():
            notes += _on_image(found, path, (shape[0], shape[1]), placing)
    else:
        for path, found in placed.items():
            require_memory(reach_of(found, placing.origin, placing.scale), f"{path}: its polygons reach over", placing.max_gb)
    if shape is None and len(placed) == 2:
        notes += _on_each_other(placed, rings, ground)
    drawn = {
        p: images[p] if p in images else draw_rings(placed[p], shape, placing.origin, placing.scale, placing.vertices)
        for p in paths
    }
    for path, one in drawn.items():
        notes += [f"{path}: {note}" for note in one.notes]
    theirs = drawn[truth].labels
    ours = np.zeros(theirs.shape[-2:], np.int32) if pred is None else drawn[pred].labels
    if shape is None:
        sides = [max(ours.shape[k], theirs.shape[k]) for k in (-2, -1)]
        ours, theirs = _grown(ours, sides), _grown(theirs, sides)
    return Pair(ours, theirs, _either(list(drawn.values())), tuple(notes))


def _placed(rings: Rings, path: Path, ground: Ground | None, frame: Frame, notes: list[str]) -> Rings:
    """Return the polygons in level-0 px of the slide, or unchanged if their place on the slide is not known."""
    if rings.ground is not None:
        return rings  # a table of wsiseg is relative to the slide's corner
    known = ground or Ground()
    factor, dx, dy = frame.on(known, rings.stated_origin, str(path))
    if frame.unit_plain:
        notes += mpp_note(str(path), rings.mpp, known.mpp)
    if (factor, dx, dy) == (1.0, 0.0, 0.0):
        return rings
    if frame.origin == "auto" and (dx, dy) != (0.0, 0.0):
        notes.append(
            f"{path}: coordinates are taken as relative to the scanned area, as in QuPath: ({dx:g}, {dy:g}) px are added "
            "(else use --frame slide)"
        )
    return dataclasses.replace(rings, xy=rings.xy * factor + np.array([dx, dy]))


def _firsts(rings: Rings) -> npt.NDArray[np.float64]:
    """Return the first vertex of each ring, as the approximate position of the polygon."""
    return rings.xy[rings.offsets[:-1]]


def _on_image(rings: Rings, path: Path, shape: tuple[int, int], placing: Placing) -> list[str]:
    """Return warnings about polygons outside the label image; none if the image is a window of a slide (has an origin)."""
    ground = Ground(shape[1], shape[0])
    at = (_firsts(rings) - np.asarray(placing.origin)) * placing.scale
    what = f"{path}: polygons on a label image of {shape[1]} x {shape[0]} px (--scale, --corner)"
    if placing.origin == (0.0, 0.0):
        return check_fit(at, ground, (1.0, 0.0, 0.0), what)
    try:
        check_fit(at, ground, (1.0, 0.0, 0.0), what)
    except FormatError as err:
        return [str(err)]
    return []


def _on_each_other(placed: dict[Path, Rings], files: dict[Path, Rings], ground: Ground | None) -> list[str]:
    """Return warnings if two polygon files overlap little; raise ``FormatError`` if they hardly overlap at all."""
    (a, one), (b, two) = placed.items()
    notes = []
    if one.ground is not None and two.ground is not None:
        notes += mpp_note(str(a), one.ground.mpp, two.ground.mpp)
        sides = [(r.ground.width_px, r.ground.height_px) for r in (one, two) if r.ground is not None]
        if sides[0] != sides[1] and all(map(all, sides)):
            one_side, other_side = (f"{w} x {h} px" for w, h in sides)
            notes.append(f"the slide of {a} has {one_side}, that of {b} {other_side}")
    if not len(one) or not len(two):
        return notes
    within = max(_share_within(one, two), _share_within(two, one))
    if within >= MIN_OVERLAP_FRAC:
        return notes
    reach = " and ".join(f"{p} x {_reach(r, 0)}, y {_reach(r, 1)}" for p, r in placed.items())
    text = f"only {within:.1%} of one file's polygons are within the extent of the other's: {reach} level-0 px. "
    text += _hint(files, placed, ground)
    if within < MIN_INSIDE_FRAC:
        raise FormatError(text)
    return [*notes, text]


def _share_within(one: Rings, other: Rings) -> float:
    low, high = other.xy.min(axis=0), other.xy.max(axis=0)
    at = _firsts(one)
    return float(((at >= low) & (at <= high)).all(axis=1).mean())


def _reach(rings: Rings, axis: int) -> str:
    return f"{rings.xy[:, axis].min():g} to {rings.xy[:, axis].max():g}"


def _hint(files: dict[Path, Rings], placed: dict[Path, Rings], ground: Ground | None) -> str:
    """Return the frame of the other file that makes it fit the table, if there is one."""
    foreign = [p for p, r in files.items() if r.ground is None]
    if ground is None or len(foreign) != 1:
        return "Check that both are of the same slide and frame (--frame)."
    other = next(r for p, r in placed.items() if p != foreign[0])
    fitting = []
    for text in ("slide", "bounds", "slide,um", "bounds,um"):
        factor, dx, dy = parse_frame(text).on(ground)
        moved = dataclasses.replace(files[foreign[0]], xy=files[foreign[0]].xy * factor + np.array([dx, dy]))
        if max(_share_within(moved, other), _share_within(other, moved)) > MIN_OVERLAP_FRAC:
            fitting.append(f"--frame {text}")
    return (
        f"They would overlap with {' or with '.join(fitting)}."
        if fitting
        else "Check that both are of the same slide (--frame)."
    )


def _grown(labels: npt.NDArray[np.int32], sides: list[int]) -> npt.NDArray[np.int32]:
    rest = [(0, sides[k] - labels.shape[k - 2]) for k in (0, 1)]
    return np.pad(labels, [(0, 0)] * (labels.ndim - 2) + rest)


def _either(found: list[Instances]) -> npt.NDArray[np.bool_] | None:
    unknown = [one.unknown for one in found if one.unknown is not None]
    if len({u.shape for u in unknown}) > 1:
        return unknown[0]  # sizes differ, which raises when they are scored
    return np.logical_or.reduce(unknown) if unknown else None

"""Convert polygons of other tools to closed, counter-clockwise rings with measured columns and flags."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.export.repair import invalid_rings
from wsiseg.tables.outlines import MAX_COORDINATE_PX, MAX_RING_POINTS, Tally

__all__ = ["Flag", "Incoming", "Provenance", "Reader", "Source", "checked", "from_rings", "measures", "safe_name"]

Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


class Flag(enum.IntFlag):
    """Bits of the column ``import_flags``: properties of an imported polygon. No flag changes the polygon."""

    INVALID = 1
    """The ring crosses or touches itself, or has no area."""
    GIANT = 2
    """Larger than any nucleus (over 1000 um^2), such as the known background polygons of the QuIP release."""
    EDGE_TILE_SUSPECT = 4
    """From a tile that is not square, written when the QuIP pipeline still scaled such tiles wrongly."""
    EDGE_TILE_PROVEN = 8
    """As above, and the polygon extends beyond its tile, which proves that its coordinates are wrong."""
    HOLES_FILLED = 16
    """The source polygon had holes; only its outer ring was imported."""
    SPLIT = 32
    """One part of a MultiPolygon, or the largest piece of a label that has several."""


GIANT_UM2 = 1000.0
"""The default upper limit of segmentation (``separate.max_area_um2``)."""


@dataclass(frozen=True, slots=True, eq=False)
class Incoming:
    """Some nuclei of a file: rings in level-0 px of the whole slide, and what the file states about them (None: nothing).

    Attributes
    ----------
    xy, ring_offsets
        float64 (V, 2), int64 (N + 1,): closed, counter-clockwise rings.
    flags
        uint8 (N,) of ``Flag``.
    nucleus_id
        int64 (N,), if the file was written by wsiseg and has its ids.
    center_prob
        float64 (N,): the detector's score, 0 to 1, NaN if unknown.
    class_name
        N names, ``""`` if unknown.
    columns
        Columns of ``wsiseg.schema.NUCLEI`` that the reader measured more exactly than the polygon allows.
    """

    xy: Float
    ring_offsets: Int
    flags: npt.NDArray[np.uint8]
    nucleus_id: Int | None = None
    center_prob: Float | None = None
    class_name: list[str] | None = None
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of nuclei."""
        return len(self.ring_offsets) - 1

    def taken(self, rows: Int) -> Incoming:
        """Return the nuclei with the given row numbers, int64 (K,)."""
        lengths = np.diff(self.ring_offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(offsets[-1]) + np.repeat(self.ring_offsets[:-1][rows] - offsets[:-1], lengths)
        return Incoming(
            self.xy[at],
            offsets,
            self.flags[rows],
            None if self.nucleus_id is None else self.nucleus_id[rows],
            None if self.center_prob is None else self.center_prob[rows],
            None if self.class_name is None else [self.class_name[k] for k in rows.tolist()],
            {name: values[rows] for name, values in self.columns.items()},
        )


@dataclass(slots=True)
class Provenance:
    """What a reader has found in its file besides the nuclei; it is written into the table's metadata.

    ``stated_origin`` is the origin of the file's coordinates by the file or its format (see ``Frame.origin``).
    """

    format: str
    files: list[str] = field(default_factory=list)
    sha256: str = ""
    mpp: float | None = None
    width_px: int | None = None
    height_px: int | None = None
    slide_name: str = ""
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    stated_origin: Literal["slide", "bounds"] = "slide"

    @property
    def skipped(self) -> dict[str, int]:
        """Numbers of objects that were left out, by reason."""
        return self.tally.skipped

    def skip(self, reason: str, n: int = 1) -> None:
        """Count ``n`` objects that are left out, under a reason."""
        self.tally.skip(reason, n)


@dataclass(frozen=True, slots=True)
class Source:
    """A file and the options of its import: coordinates are divided by ``scale``, then ``dx, dy`` is added.

    ``slide`` is the slide's file; empty if the user gives none.
    """

    path: Path
    mpp: float | None = None
    width_px: int | None = None
    height_px: int | None = None
    scale: float = 1.0
    dx: float = 0.0
    dy: float = 0.0
    fix_edge_tiles: bool = False
    slide: str = ""


class Reader(Protocol):
    """Signature of a reader of one format."""

    def __call__(self, source: Source, provenance: Provenance) -> Iterator[Incoming]:
        """Yield the nuclei of the file in chunks, and fill in ``provenance`` while doing so."""


def safe_name(name: str, where: str) -> str:
    """Return a name that was read from a file, after checking that it can be used as a file name.

    Raises
    ------
    FormatError
        The name is empty, contains a path to another folder, or has control characters.
    """
    bad = not name or name in (".", "..") or len(name) > 200 or any(c in "/\\" or ord(c) < 32 for c in name)
    if bad:
        raise FormatError(f"{where}: expected a name that can be a file name, got {name[:80]!r}.")
    return name


def from_rings(rings: Iterable[Any], source: Source, wheres: Iterable[str], **known: Any) -> Incoming:
    """Return ``Incoming`` made of rings, each a sequence of (x, y).

    Parameters
    ----------
    wheres
        File and place of each ring, for error messages.
    known
        Other attributes of ``Incoming``.

    Raises
    ------
    FormatError
        A ring is not a list of finite pairs, has too many points, or has coordinates of 2^31 or more.
    """
    arrays = []
    names = list(wheres)
    for ring, where in zip(rings, names, strict=True):
        try:
            array = np.asarray(ring, np.float64)
        except (ValueError, TypeError) as err:
            raise FormatError(f"{where}: expected a ring of (x, y) numbers ({err}).") from err
        if array.ndim != 2 or array.shape[1] not in (2, 3) or not 3 <= len(array) <= MAX_RING_POINTS:
            raise FormatError(f"{where}: expected a ring of 3 to {MAX_RING_POINTS} points (x, y), got shape {array.shape}.")
        arrays.append(array[:, :2])
    offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64)
    xy = np.concatenate(arrays) if arrays else np.empty((0, 2))
    if len(xy) and not (xy.min() > -MAX_COORDINATE_PX and xy.max() < MAX_COORDINATE_PX):
        at = int(np.argmax(~(np.abs(xy) < MAX_COORDINATE_PX).all(axis=1)))
        where = names[int(np.searchsorted(offsets, at, side="right")) - 1]
        raise FormatError(f"{where}: expected finite coordinates below 2^31, got {xy[at].tolist()}.")
    xy = xy / source.scale + (source.dx, source.dy)
    return Incoming(*closed(xy, offsets), np.zeros(len(arrays), np.uint8), **known)


def closed(xy: Float, ring_offsets: Int) -> tuple[Float, Int]:
    """Return the rings closed (first vertex repeated) and counter-clockwise (positive shoelace sum), as GeoParquet requires."""
    n = len(ring_offsets) - 1
    if n == 0:
        return xy, ring_offsets
    lengths = np.diff(ring_offsets)
    first, last = ring_offsets[:-1], ring_offsets[1:] - 1
    is_open = (xy[first] != xy[last]).any(axis=1)
    if is_open.any():
        offsets = np.concatenate([[0], np.cumsum(lengths + is_open)]).astype(np.int64)
        out = np.empty((offsets[-1], 2))
        inside = np.ones(len(out), np.bool_)
        inside[offsets[1:][is_open] - 1] = False
        out[inside] = xy
        out[offsets[1:][is_open] - 1] = xy[first[is_open]]
        xy, ring_offsets = out, offsets
    area, _, _ = _moments(xy, ring_offsets)
    if (area < 0).any():
        at = np.arange(len(xy))
        owner = np.repeat(np.arange(n), np.diff(ring_offsets))
        mirrored = ring_offsets[:-1][owner] + ring_offsets[1:][owner] - 1 - at
        xy = xy[np.where(area[owner] < 0, mirrored, at)]
    return xy, ring_offsets


def checked(nuclei: Incoming, mpp: float, where: str, *, strict: bool = False) -> tuple[Incoming, dict[str, npt.NDArray[Any]]]:
    """Return the nuclei with the flags ``INVALID`` and ``GIANT`` set, and their measured columns.

    Parameters
    ----------
    strict
        Raise for invalid rings instead of flagging them.

    Raises
    ------
    FormatError
        ``strict`` is set and a ring is invalid.
    """
    bad = invalid_rings(nuclei.xy, nuclei.ring_offsets)
    if strict and bad.any():
        k = int(np.argmax(bad))
        at = nuclei.xy[nuclei.ring_offsets[k]].tolist()
        raise FormatError(f"{where}: the ring that starts at {at} crosses or touches itself, which --strict does not allow.")
    columns = {**measures(nuclei.xy, nuclei.ring_offsets, mpp), **nuclei.columns}
    flags = nuclei.flags | np.where(bad, Flag.INVALID, 0) | np.where(columns["area_um2"] > GIANT_UM2, Flag.GIANT, 0)
    return replace(nuclei, flags=flags.astype(np.uint8)), columns


def measures(xy: Float, ring_offsets: Int, mpp: float) -> dict[str, npt.NDArray[Any]]:
    """Return the measured columns of ``wsiseg.schema.NUCLEI`` for closed rings, computed exactly by Green's theorem.

    Axes are those of the ellipse with the same second moments as the polygon; the perimeter is the length of the ring.
    A ring without area has its mean vertex as centroid and axes of 0.
    """
    area, first, second = _moments(xy, ring_offsets)
    n = len(area)
    origin = xy[ring_offsets[:-1]] if n else np.empty((0, 2))
    flat = area <= 1e-9
    safe = np.where(flat, 1.0, area)
    mean = first / safe[:, None]
    xx, yy, xy2 = (second[:, k] / safe - mean[:, a] * mean[:, b] for k, (a, b) in enumerate(((0, 0), (1, 1), (0, 1))))
    half, spread = (xx + yy) / 2, np.sqrt(((xx - yy) / 2) ** 2 + xy2**2)
    centroid = origin + np.where(flat[:, None], 0.0, mean)
    step = np.diff(xy, axis=0, append=xy[-1:]) if n else np.empty((0, 2))
    length = np.hypot(step[:, 0], step[:, 1])
    length[ring_offsets[1:] - 1] = 0.0  # not an edge, but the step from the last vertex of a ring to the next ring
    perimeter = np.add.reduceat(length, ring_offsets[:-1]) if n else np.empty(0)
    axes = [np.where(flat, 0.0, 4 * np.sqrt(np.maximum(v, 0))) * mpp for v in (half + spread, half - spread)]
    return {
        "cx": centroid[:, 0],
        "cy": centroid[:, 1],
        "area_px": area,
        "area_um2": area * mpp**2,
        "perimeter_um": perimeter * mpp,
        "major_um": axes[0],
        "minor_um": axes[1],
        "orientation_rad": np.where(flat, 0.0, 0.5 * np.arctan2(2 * xy2, xx - yy)),
    }


def _moments(xy: Float, ring_offsets: Int) -> tuple[Float, Float, Float]:
    """Return the area (N,) and the integrals of x, y (N, 2) and of xx, yy, xy (N, 3), relative to each ring's first vertex."""
    n = len(ring_offsets) - 1
    if n == 0:
        return np.empty(0), np.empty((0, 2)), np.empty((0, 3))
    start = ring_offsets[:-1]
    x, y = (xy - np.repeat(xy[start], np.diff(ring_offsets), axis=0)).T
    x1, y1 = np.roll(x, -1), np.roll(y, -1)
    cross = x * y1 - x1 * y
    cross[ring_offsets[1:] - 1] = 0.0
    terms = (
        cross / 2,
        cross * (x + x1) / 6,
        cross * (y + y1) / 6,
        cross * (x * x + x * x1 + x1 * x1) / 12,
        cross * (y * y + y * y1 + y1 * y1) / 12,
        cross * (x * y1 + 2 * x * y + 2 * x1 * y1 + x1 * y) / 24,
    )
    sums = [np.add.reduceat(t, start) for t in terms]
    return sums[0], np.stack(sums[1:3], axis=1), np.stack(sums[3:], axis=1)

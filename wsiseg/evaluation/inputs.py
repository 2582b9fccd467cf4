"""Read instances as label maps from label images, polygon tables of wsiseg, GeoJSON of QuPath and CellViT, and QuIP CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.coordinates import Ground, Origin
from wsiseg.errors import FormatError
from wsiseg.labels import LABEL_SUFFIXES, id_parts, is_label_store, rasterize_rings, read_label_file, require_ids
from wsiseg.log import log
from wsiseg.tables import read_table_meta
from wsiseg.tables.cells import is_cells_json, iter_cells, stated_mpp
from wsiseg.tables.outlines import FLAT, Tally, iter_outlined, require_outlines, ring_of, with_area

__all__ = [
    "INSTANCE_SUFFIXES",
    "Instances",
    "Rings",
    "Vertices",
    "draw_rings",
    "holds_labels",
    "instance_stem",
    "load_instances",
    "load_label_image",
    "load_rings",
    "reach_of",
]

JSON_SUFFIXES = (
    ".geojson", ".json", ".geojson.gz", ".json.gz", ".geojsonl", ".geojsons", ".ndjson", ".jsonl", ".json.snappy",
    ".geojson.snappy",
)  # fmt: skip
_PACKED = (".gz", ".zip", ".snappy")
"""Suffixes of compressed JSON files. They are only accepted for a single file, not when a folder is searched."""

POLYGON_SUFFIXES = (".parquet", *JSON_SUFFIXES, ".csv")
INSTANCE_SUFFIXES: tuple[str, ...] = (*LABEL_SUFFIXES, ".zarr", *POLYGON_SUFFIXES)
"""File name endings that ``load_instances`` reads."""

_STEM_ENDS = (".labels", "_labels", "-features", "_cell_detection", ".nuclei", "_seg", "_cp_masks")
Vertices = Literal["auto", "edge", "center"]
_POLYGON = 3
_SIDES = ("width_px", "height_px", "bounds_x", "bounds_y", "bounds_w", "bounds_h")
_GEOS_NAMES = {0: "Point", 1: "LineString", 2: "LinearRing"}
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Polygons as ragged arrays in the file's own px: ring k is ``xy[offsets[k]:offsets[k + 1]]`` of polygon ``polygon[k]``.

    If ``outline_px``, vertices are pixel *centers* and the outline belongs to the nucleus, as in OpenCV's contours (QuIP);
    otherwise vertices are points of the plane, in which pixel (i, j) covers [i, i + 1) x [j, j + 1). ``ground`` and
    ``slide_id`` are set for tables of wsiseg, whose frame is known; ``stated_origin`` and ``mpp`` are stated by other files.
    """

    xy: Float
    offsets: Int
    polygon: Int
    outline_px: bool = False
    tally: Tally = field(default_factory=Tally)
    ground: Ground | None = None
    stated_origin: Origin = "slide"
    mpp: float | None = None
    slide_id: str = ""

    def __len__(self) -> int:
        """Return the number of polygons."""
        return int(self.polygon[-1]) + 1 if len(self.polygon) else 0


def holds_labels(path: Path) -> bool:
    """Return whether a file (or Zarr folder) is a label image and not polygons; the contents of a zip decide."""
    return path.suffix.lower() in LABEL_SUFFIXES or is_label_store(path)


def instance_stem(path: Path) -> str:
    """Return the name by which files of two folders are paired: without suffixes and without ``.labels``, ``-features`` ..."""
    name = path.name
    for suffix in sorted(INSTANCE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    for end in _STEM_ENDS:
        name = name.removesuffix(end)
    return name


@dataclass(frozen=True, slots=True, eq=False)
class Instances:
    """The contents of one file as label maps.

    Attributes
    ----------
    labels : int32 (H, W) or (L, H, W)
        0 background. A polygon whose pixels are all covered by others (such as a nucleus that is in the file twice) is in a
        further layer. Ids differ between layers.
    unknown : bool (H, W) or None
        Pixels that were not annotated.
    notes
        Messages for the user about how the file was read.
    """

    labels: npt.NDArray[np.int32]
    unknown: npt.NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()


def load_instances(
    path: str | Path,
    shape: tuple[int, int] | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    vertices: Vertices = "auto",
) -> npt.NDArray[np.int32]:
    """Read one file (or a folder of QuIP CSV parts) as a label map.

    Parameters
    ----------
    path
        ``.png .tif .npy .npz .mat .zarr .zip`` label image (``wsiseg.labels.read_label_file``); ``.parquet`` of this
        package, or any GeoParquet with WKB polygons; ``.geojson``, ``.json`` of QuPath, CellViT or HoVer-Net, packed or not
        (each part of a MultiPolygon is a nucleus); ``.csv`` with a column ``Polygon`` of QuIP.
    shape
        (H, W) of the map for polygons; None: up to their lower right end. A label image must have this size.
    origin
        (x, y) of the map's corner in the polygons' px (a window of a slide).
    scale
        Map px per polygon px.
    vertices
        Whether integer vertices are corners (``edge``) or centers of pixels; ``auto``: centers for contours of OpenCV (QuIP
        CSV, cells of CellViT and HoVer-Net), otherwise corners.

    Returns
    -------
    int32 (H, W)
        0 background, nuclei 1..N in file order (label images: their own ids). A pixel in two polygons
        belongs to the smaller one (a nucleus in the filled hole of another); of equals, to the later.

    Raises
    ------
    FormatError
        The file is missing or damaged, or its format has no outlines or labels.
    """
    path = Path(path)
    if holds_labels(path):
        found = load_label_image(path, shape)
    else:
        found = draw_rings(load_rings(path), shape, origin, scale, vertices)
    for note in found.notes:
        log.warning("%s: %s", path, note)
    return found.labels if found.labels.ndim == 2 else found.labels[0]


def load_label_image(path: Path, shape: tuple[int, int] | None = None, *, components: bool = False) -> Instances:
    """Read a label image. Raises ``FormatError`` if its shape is not ``shape``, or if its values are classes and not ids."""
    found = read_label_file(path, components=components)
    if shape is not None and found.labels.shape != tuple(shape):
        got = found.labels.shape
        raise FormatError(f"{path}: expected {shape[1]} x {shape[0]} px, got {got[1]} x {got[0]}.")
    require_ids(int(np.count_nonzero(np.unique(found.labels))), id_parts(found.labels), str(path))
    return Instances(found.labels, found.unknown, found.notes)


def draw_rings(
    rings: Rings,
    shape: tuple[int, int] | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    vertices: Vertices = "auto",
) -> Instances:
    """Draw polygons (see ``load_instances``), adding layers until every polygon that has a pixel is visible in one."""
    outline = rings.outline_px if vertices == "auto" else vertices == "center"
    xy = (rings.xy - np.asarray(origin, np.float64) + (0.5 if outline else 0.0)) * scale
    shape = shape or _end_of(xy)
    order = np.argsort(-_ring_areas(rings), kind="stable")  # smaller polygons are drawn later, on top
    layers: list[npt.NDArray[np.int32]] = []
    left = np.ones(len(order), np.bool_)
    while left.any() or not layers:
        drawn = _drawn(xy, rings, shape, order[left[order]], outline)
        seen = np.bincount(drawn.ravel(), minlength=len(order) + 1)[1:] > 0
        if layers and not seen.any():
            break  # the remaining polygons contain no pixel center, or are outside the map
        layers.append(drawn)
        left &= ~seen
    return Instances(layers[0] if len(layers) == 1 else np.stack(layers), None, tuple(rings.tally.lines()))


def reach_of(rings: Rings, origin: tuple[float, float], scale: float) -> tuple[int, int]:
    """Return (H, W) of the image that ``draw_rings`` would make without a shape, within a px, without drawing it."""
    ends = rings.xy.max(axis=0, keepdims=True) if len(rings.xy) else np.zeros((0, 2))
    return _end_of((ends - np.asarray(origin, np.float64)) * scale)


def _end_of(xy: Float) -> tuple[int, int]:
    right, bottom = np.ceil(xy.max(0) if len(xy) else np.zeros(2)).astype(int)
    return max(int(bottom), 0), max(int(right), 0)


def _drawn(xy: Float, rings: Rings, shape: tuple[int, int], order: Int, outline: bool) -> npt.NDArray[np.int32]:
    """Draw some polygons in the given order; a label is the polygon's number in the file, from 1."""
    place = np.full(len(rings), -1, np.int64)
    place[order] = np.arange(len(order))
    mine = place[rings.polygon] >= 0
    if mine.all():
        part, at = rings, xy
    else:
        lengths = np.diff(rings.offsets)
        at = xy[np.repeat(mine, lengths)]
        part = Rings(at, np.r_[0, np.cumsum(lengths[mine])].astype(np.int64), rings.polygon[mine], rings.outline_px)
    labels = rasterize_rings(at, part.offsets, shape, ids=order + 1, ring_polygons=place[part.polygon])
    return _with_outline(labels, at, part) if outline else labels


def load_rings(path: str | Path) -> Rings:
    """Read the polygons of a Parquet, JSON or QuIP CSV file (or folder of QuIP CSV parts); see ``load_instances``."""
    path = Path(path)
    name = path.name.lower()
    tally = Tally()
    if path.is_dir():
        parts = sorted(path.glob("*-features.csv"))
        if not parts:
            raise FormatError(f"{path}: expected the folder of one slide with *-features.csv files (QuIP), found none.")
        return _some(_join([ring for part in parts for ring in _quip_rings(part, tally)], tally, outline_px=True), path)
    if not path.is_file():
        raise FormatError(f"{path}: the file does not exist.")
    if name.endswith(".parquet"):
        return _some(_parquet_rings(path, tally), path)
    if name.endswith((*JSON_SUFFIXES, *_PACKED)):
        return _some(_json_rings(path, tally), path)
    if name.endswith(".csv"):
        return _some(_join(list(_quip_rings(path, tally)), tally, outline_px=True), path)
    raise FormatError(f"{path}: unknown format. Expected one of {', '.join(INSTANCE_SUFFIXES)}.")


def _some(rings: Rings, path: Path) -> Rings:
    """Return the rings. Raises ``FormatError`` if the file has points or lines instead of outlines."""
    if len(rings):
        crossed = 0 if rings.outline_px or rings.ground is not None else _crossed(rings)
        rings.tally.repair("outlines that cross themselves, filled by even-odd", crossed)
    require_outlines(len(rings), rings.tally, str(path))
    return rings


def _crossed(rings: Rings) -> int:
    """Return the number of rings that cross or touch themselves."""
    import shapely

    owner = np.repeat(np.arange(len(rings.offsets) - 1), np.diff(rings.offsets))
    shapes = shapely.polygons(shapely.linearrings(rings.xy, indices=owner))
    return int(np.count_nonzero(~shapely.is_valid(shapes)))


def _ring_areas(rings: Rings) -> Float:
    """Return the area of each polygon's outermost ring."""
    if len(rings.xy) == 0:
        return np.zeros(len(rings))
    ring = np.repeat(np.arange(len(rings.offsets) - 1), np.diff(rings.offsets))
    x, y = (rings.xy - rings.xy[rings.offsets[ring]]).T
    same = ring[1:] == ring[:-1]
    twice = np.where(
        same, x[:-1] * y[1:] - x[1:] * y[:-1], 0.0
    )  # relative to the ring's first vertex, so that the closing edge is 0
    areas = np.abs(np.bincount(ring[1:], twice, minlength=len(rings.offsets) - 1)) / 2
    largest = np.zeros(len(rings))
    np.maximum.at(largest, rings.polygon, areas)
    return largest


def _with_outline(labels: npt.NDArray[np.int32], xy: Float, rings: Rings) -> npt.NDArray[np.int32]:
    """Add the pixels on the outlines that belong to no other nucleus, sampled in steps of at most half a pixel."""
    ring = np.repeat(np.arange(len(rings.offsets) - 1), np.diff(rings.offsets))
    following = np.arange(1, len(xy) + 1)
    filled = np.diff(rings.offsets) > 0
    following[rings.offsets[1:][filled] - 1] = rings.offsets[:-1][filled]
    step = xy[following] - xy
    n = 2 * np.ceil(np.abs(step).max(1, initial=0)).astype(np.int64) + 1
    at = np.repeat(np.arange(len(xy)), n)
    t = (np.arange(len(at)) - np.repeat(np.cumsum(n) - n, n)) / np.maximum(n - 1, 1)[at]
    # rounded to whole steps: at full precision, half-way points of a diagonal would fall on pixels on either side of it
    point = xy[at] + step[at] * t[:, None]
    diagonal = np.abs(np.abs(step[:, 0]) - np.abs(step[:, 1])) < 1e-9
    keep = ~(diagonal[at] & ((np.arange(len(at)) - np.repeat(np.cumsum(n) - n, n)) % 2 == 1))
    column, row = np.floor(point[keep] + 1e-9).astype(np.int64).T
    owner = rings.polygon[ring[at[keep]]] + 1
    inside = (row >= 0) & (row < labels.shape[0]) & (column >= 0) & (column < labels.shape[1])
    row, column, owner = row[inside], column[inside], owner[inside]
    free = labels[row, column] == 0
    out = labels.copy()
    out[row[free], column[free]] = owner[free]
    return out


def _parquet_rings(path: Path, tally: Tally) -> Rings:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    try:
        file = pq.ParquetFile(path)
        if "geometry" not in file.schema_arrow.names:
            raise FormatError(f"{path}: no column 'geometry'; columns are {file.schema_arrow.names}.")
        wkb = file.read(columns=["geometry"]).column("geometry").to_numpy(zero_copy_only=False)
        geometry = shapely.from_wkb(wkb)
    except (pa.ArrowException, shapely.errors.ShapelyError, OSError, TypeError) as err:
        raise FormatError(f"{path}: not a Parquet table with WKB polygons: {err}") from err
    tally.skip("objects without a geometry", int(shapely.is_missing(geometry).sum()))
    tally.skip("empty geometries", int((shapely.is_empty(geometry) & ~shapely.is_missing(geometry)).sum()))
    parts = shapely.get_parts(shapely.get_parts(shapely.get_parts(geometry)))  # a collection of MultiPolygons
    parts = parts[~shapely.is_empty(parts)]
    kinds = shapely.get_type_id(parts)
    for kind, n in zip(*np.unique(kinds[kinds != _POLYGON], return_counts=True), strict=True):
        tally.skip(f"geometries of type {_GEOS_NAMES.get(int(kind), int(kind))}", int(n))
    parts = parts[kinds == _POLYGON]
    flat = shapely.area(parts) == 0
    tally.skip(FLAT, int(flat.sum()))
    rings, of_part = shapely.get_rings(parts[~flat], return_index=True)
    xy, of_ring = shapely.get_coordinates(rings, return_index=True)
    counts = np.bincount(of_ring, minlength=len(rings)) if len(rings) else np.zeros(0, np.int64)
    ground, slide_id = _own_ground(path)
    offsets = np.r_[0, np.cumsum(counts)].astype(np.int64)
    return Rings(xy, offsets, of_part.astype(np.int64), False, tally, ground, slide_id=slide_id)


def _own_ground(path: Path) -> tuple[Ground | None, str]:
    """Return frame and id of the slide from a table of wsiseg; None and "" for tables of other tools."""
    try:
        facts = read_table_meta(path)
        slide = facts["slide"]
        w, h, *bounds = (int(slide.get(k) or 0) for k in _SIDES)
        return Ground(w, h, float(slide["mpp"]), bounds[0], bounds[1], bounds[2], bounds[3]), str(slide.get("slide_id") or "")
    except (FormatError, KeyError, TypeError, ValueError, AttributeError):
        return None, ""


def _json_rings(path: Path, tally: Tally) -> Rings:
    facts: dict[str, Any] = {}
    if is_cells_json(path):
        found = [[ring] for _, ring, _ in iter_cells(path, tally, facts) if ring is not None]
        return _join(found, tally, outline_px=True, mpp=stated_mpp(facts))
    polygons: list[list[Float]] = []
    qupath = False
    for outlined in iter_outlined(path, tally, facts):
        polygons += outlined.polygons
        qupath |= outlined.qupath
    own = facts.get("wsiseg")
    bounds = qupath and not (isinstance(own, dict) and own.get("frame") == "slide")
    return _join(polygons, tally, outline_px=False, stated_origin="bounds" if bounds else "slide")


def _quip_rings(path: Path, tally: Tally) -> Iterator[list[Float]]:
    csv.field_size_limit(1 << 24)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            if "Polygon" not in (table.fieldnames or []):
                raise FormatError(f"{path}: no column 'Polygon'; columns are {table.fieldnames}. Expected a QuIP features CSV.")
            for line, row in enumerate(table, start=2):
                numbers = [float(v) for v in row["Polygon"].strip(" []").split(":") if v]
                if len(numbers) % 2 or not all(map(math.isfinite, numbers)):
                    raise FormatError(f"{path}, line {line}: a polygon is [x0:y0:x1:y1:...], got {row['Polygon'][:60]!r}.")
                ring = ring_of(np.asarray(numbers).reshape(-1, 2), f"{path}, line {line}", tally, closed=False)
                if ring is not None:
                    yield [ring]
    except (OSError, UnicodeDecodeError, ValueError, AttributeError, csv.Error) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: not a QuIP features CSV: {err}") from err


def _join(
    polygons: list[list[Float]], tally: Tally, *, outline_px: bool, stated_origin: Origin = "slide", mpp: float | None = None
) -> Rings:
    polygons = with_area(polygons, tally)
    rings = [ring for polygon in polygons for ring in polygon]
    owner = np.repeat(np.arange(len(polygons)), [len(polygon) for polygon in polygons]).astype(np.int64)
    offsets = np.r_[0, np.cumsum([len(ring) for ring in rings])].astype(np.int64)
    xy = np.concatenate(rings) if rings else np.zeros((0, 2))
    return Rings(xy, offsets, owner, outline_px, tally, None, stated_origin, mpp)

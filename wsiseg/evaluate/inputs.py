"""Files of instances -> label maps: label images, our Parquet, QuPath and CellViT GeoJSON, QuIP CSV."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.labels import LABEL_SUFFIXES, rasterize_rings, read_labels

__all__ = ["INSTANCE_SUFFIXES", "Rings", "instance_stem", "load_instances", "load_rings"]

POLYGON_SUFFIXES = (".parquet", ".geojson", ".json", ".geojson.gz", ".json.gz", ".csv")
INSTANCE_SUFFIXES: tuple[str, ...] = (*LABEL_SUFFIXES, *POLYGON_SUFFIXES)
"""File name endings that ``load_instances`` reads."""

_STEM_ENDS = (".labels", "_labels", "-features", "_cell_detection", ".nuclei")
Float = npt.NDArray[np.float64]
Int = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """Polygons as ragged arrays in the file's own px: ring k is ``xy[offsets[k]:offsets[k + 1]]`` of polygon ``polygon[k]``.

    ``outline_px`` says that vertices are pixel *centers* and the outline belongs to the nucleus, as in OpenCV's contours
    (QuIP); else vertices are points of the plane, pixel (i, j) covering [i, i + 1) x [j, j + 1).
    """

    xy: Float
    offsets: Int
    polygon: Int
    outline_px: bool = False

    def __len__(self) -> int:
        """Return the number of polygons."""
        return int(self.polygon[-1]) + 1 if len(self.polygon) else 0


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


def load_instances(
    path: str | Path,
    shape: tuple[int, int] | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
    scale: float = 1.0,
    vertices: Literal["auto", "edge", "center"] = "auto",
) -> npt.NDArray[np.int32]:
    """Read one file (or a folder of QuIP CSV parts) as a label map.

    Parameters
    ----------
    path
        ``.png .tif .npy .mat`` label image; ``.parquet`` of this package, or any GeoParquet with WKB polygons; ``.geojson``,
        ``.json`` and their ``.gz`` of QuPath or CellViT (each part of a MultiPolygon is a nucleus); ``.csv`` with a column
        ``Polygon`` of QuIP.
    shape
        (H, W) of the map for polygons; default: up to their lower right end. For a label image only checked.
    origin
        (x, y) of the map's corner in the polygons' px (a window of a slide).
    scale
        Map px per polygon px.
    vertices
        Whether integer vertices are corners or centers of pixels; ``auto``: centers in QuIP CSV, corners elsewhere.

    Returns
    -------
    int32 (H, W)
        0 background, nuclei 1..N in file order (label images: their own ids). A pixel in two polygons
        belongs to the smaller one (a nucleus in the filled hole of another); of equals, to the later.

    Raises
    ------
    FormatError
        The file is missing, broken or of a kind that holds no areas.
    """
    path = Path(path)
    if path.suffix.lower() in LABEL_SUFFIXES:
        labels = read_labels(path)
        if shape is not None and labels.shape != tuple(shape):
            raise FormatError(f"{path}: expected {shape[1]} x {shape[0]} px, got {labels.shape[1]} x {labels.shape[0]}.")
        return labels
    rings = load_rings(path)
    outline = rings.outline_px if vertices == "auto" else vertices == "center"
    xy = (rings.xy - np.asarray(origin, np.float64) + (0.5 if outline else 0.0)) * scale
    if shape is None:
        right, bottom = np.ceil(xy.max(0) if len(xy) else np.zeros(2)).astype(int)
        shape = (max(int(bottom), 0), max(int(right), 0))
    order = np.argsort(-_ring_areas(rings), kind="stable")  # the smaller is drawn later
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    labels = rasterize_rings(xy, rings.offsets, shape, ids=order + 1, ring_polygons=place[rings.polygon])
    return _with_outline(labels, xy, rings) if outline else labels


def load_rings(path: str | Path) -> Rings:
    """Read the polygons of a Parquet, GeoJSON or QuIP CSV file (or folder of QuIP CSV parts); see ``load_instances``."""
    path = Path(path)
    name = path.name.lower()
    if path.is_dir():
        parts = sorted(path.glob("*-features.csv"))
        if not parts:
            raise FormatError(f"{path}: a folder of one slide must hold *-features.csv (QuIP).")
        return _join([ring for part in parts for ring in _quip_rings(part)], outline_px=True)
    if not path.is_file():
        raise FormatError(f"{path}: no such file.")
    if name.endswith(".parquet"):
        return _parquet_rings(path)
    if name.endswith((".json", ".geojson", ".json.gz", ".geojson.gz")):
        return _geojson_rings(path)
    if name.endswith(".csv"):
        return _join(list(_quip_rings(path)), outline_px=True)
    raise FormatError(f"{path}: unknown kind. Expected one of {', '.join(INSTANCE_SUFFIXES)}.")


def _ring_areas(rings: Rings) -> Float:
    """Return the area of each polygon's outermost ring."""
    if len(rings.xy) == 0:
        return np.zeros(len(rings))
    ring = np.repeat(np.arange(len(rings.offsets) - 1), np.diff(rings.offsets))
    x, y = (rings.xy - rings.xy[rings.offsets[ring]]).T
    same = ring[1:] == ring[:-1]
    twice = np.where(same, x[:-1] * y[1:] - x[1:] * y[:-1], 0.0)  # relative to the ring's first vertex: closing adds nothing
    areas = np.abs(np.bincount(ring[1:], twice, minlength=len(rings.offsets) - 1)) / 2
    largest = np.zeros(len(rings))
    np.maximum.at(largest, rings.polygon, areas)
    return largest


def _with_outline(labels: npt.NDArray[np.int32], xy: Float, rings: Rings) -> npt.NDArray[np.int32]:
    """Add the pixels that the outlines run through (where no other nucleus is): walked in steps of at most half a pixel."""
    ring = np.repeat(np.arange(len(rings.offsets) - 1), np.diff(rings.offsets))
    following = np.arange(1, len(xy) + 1)
    filled = np.diff(rings.offsets) > 0
    following[rings.offsets[1:][filled] - 1] = rings.offsets[:-1][filled]
    step = xy[following] - xy
    n = 2 * np.ceil(np.abs(step).max(1, initial=0)).astype(np.int64) + 1
    at = np.repeat(np.arange(len(xy)), n)
    t = (np.arange(len(at)) - np.repeat(np.cumsum(n) - n, n)) / np.maximum(n - 1, 1)[at]
    # full precision would put a diagonal's half-way points on either side of a corner: whole steps only hit true pixels
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


def _parquet_rings(path: Path) -> Rings:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    try:
        file = pq.ParquetFile(path)
        if "geometry" not in file.schema_arrow.names:
            raise FormatError(f"{path}: no column 'geometry'; columns are {file.schema_arrow.names}.")
        wkb = file.read(columns=["geometry"]).column("geometry").to_numpy(zero_copy_only=False)
        geometry = shapely.from_wkb(wkb)
    except (pa.ArrowException, shapely.errors.ShapelyError, OSError) as err:
        raise FormatError(f"{path}: not a Parquet table with WKB polygons: {err}") from err
    kinds = set(shapely.get_type_id(geometry).tolist())
    if kinds - {3, 6}:
        raise FormatError(f"{path}: geometries must be Polygon or MultiPolygon, got GEOS type ids {sorted(kinds)}.")
    rings, of_part = shapely.get_rings(shapely.get_parts(geometry), return_index=True)
    xy, of_ring = shapely.get_coordinates(rings, return_index=True)
    counts = np.bincount(of_ring, minlength=len(rings)) if len(rings) else np.zeros(0, np.int64)
    return Rings(xy, np.r_[0, np.cumsum(counts)].astype(np.int64), of_part.astype(np.int64))


def _geojson_rings(path: Path) -> Rings:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.name.lower().endswith(".gz") else path.read_bytes()
        tree = json.loads(raw)
    except (OSError, EOFError, ValueError) as err:
        raise FormatError(f"{path}: not GeoJSON: {err}") from err
    features = tree if isinstance(tree, list) else tree.get("features", [tree]) if isinstance(tree, dict) else None
    if features is None:
        raise FormatError(f"{path}: expected a FeatureCollection, a list of features or one feature.")
    polygons: list[list[Float]] = []
    for number, feature in enumerate(features):
        polygons.extend(_feature_polygons(feature, f"{path}: feature {number}"))
    return _join(polygons, outline_px=False)


def _feature_polygons(feature: Any, where: str) -> Iterator[list[Float]]:
    if not isinstance(feature, dict):
        raise FormatError(f"{where}: expected an object, got {type(feature).__name__}.")
    geometry = feature.get("nucleusGeometry") or feature.get("geometry")
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in {"Point", "MultiPoint"}:
        raise FormatError(f"{where}: points have no area to score; give the file with polygons.")
    if kind not in {"Polygon", "MultiPolygon"}:
        raise FormatError(f"{where}: expected a Polygon or MultiPolygon, got {kind}.")
    coordinates: Any = geometry.get("coordinates") if isinstance(geometry, dict) else None
    try:
        for part in [coordinates] if kind == "Polygon" else coordinates:
            yield [_ring(ring) for ring in part]
    except (TypeError, ValueError) as err:
        raise FormatError(f"{where}: broken coordinates: {err}") from err


def _ring(points: Any) -> Float:
    ring = np.asarray(points, np.float64)
    if ring.ndim != 2 or ring.shape[1] < 2 or not np.isfinite(ring).all():
        raise ValueError(f"a ring must be finite (x, y) pairs, got shape {ring.shape}")
    return ring[:, :2]


def _quip_rings(path: Path) -> Iterator[list[Float]]:
    csv.field_size_limit(1 << 24)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if "Polygon" not in (table.fieldnames or []):
                raise FormatError(f"{path}: no column 'Polygon'; columns are {table.fieldnames}. Expected a QuIP features CSV.")
            for line, row in enumerate(table, start=2):
                numbers = [float(v) for v in row["Polygon"].strip(" []").split(":") if v]
                if len(numbers) < 2 or len(numbers) % 2 or not all(map(math.isfinite, numbers)):
                    raise FormatError(f"{path}, line {line}: a polygon is [x0:y0:x1:y1:...], got {row['Polygon'][:60]!r}.")
                yield [np.asarray(numbers).reshape(-1, 2)]
    except (OSError, UnicodeDecodeError, ValueError, AttributeError, csv.Error) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: not a QuIP features CSV: {err}") from err


def _join(polygons: list[list[Float]], outline_px: bool) -> Rings:
    rings = [ring for polygon in polygons for ring in polygon]
    owner = np.repeat(np.arange(len(polygons)), [len(polygon) for polygon in polygons]).astype(np.int64)
    offsets = np.r_[0, np.cumsum([len(ring) for ring in rings])].astype(np.int64)
    return Rings(np.concatenate(rings) if rings else np.zeros((0, 2)), offsets, owner, outline_px)

"""Write a polygon table as QuPath GeoJSON, with detections or with cells and their nuclei, in bounded memory.

The rules are those of QuPath's reader (qupath-core ``GsonTools``, ``QuPathTypeAdapters``): ``objectType`` inside
``properties``; a classification with name **and** color; ``id`` a UUID; numbers that are not finite as strings; closed rings;
coordinates in level-0 px relative to OpenSlide's bounds origin, with two decimals.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from wsiseg.export.classes import CLASS_RGB, PLAIN_CLASS
from wsiseg.export.repair import repaired
from wsiseg.export.text import concat, decimal_text, join_rings, nucleus_uuids, number_text, text_bytes
from wsiseg.tables import atomic_path
from wsiseg.tables.source import CELL_GEOMETRY, Chunk, Exported, NucleiFile, Selection, iter_chunks, shifted

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MEASUREMENTS", "write_geojson"]

MEASUREMENTS: dict[str, str] = {
    "area_um2": "Area µm^2",
    "perimeter_um": "Perimeter µm",
    "major_um": "Major axis µm",
    "minor_um": "Minor axis µm",
    "orientation_rad": "Orientation rad",
    "center_prob": "Center probability",
    "material_prob": "Material probability",
    "eccentricity": "Eccentricity",
    "solidity": "Solidity",
    "circularity": "Circularity",
    "hematoxylin_od_mean": "Hematoxylin OD mean",
    "hematoxylin_od_std": "Hematoxylin OD std dev",
    "eosin_od_mean": "Eosin OD mean",
    "eosin_od_std": "Eosin OD std dev",
    "nearest_um": "Nearest nucleus µm",
    "local_density_per_mm2": "Nuclei per mm^2 within 50 µm",
}
"""Names of the columns that become QuPath measurements. Probabilities are written as 0 to 1. Those from eccentricity on are
only written for a table ``with_features``."""

DECIMALS = 2
SAFE_STEP_PX = 2 * 10.0**-DECIMALS
"""Rounding moves a coordinate by at most half of 0.01 px, so two that differ by at least this keep their order: rings on the
pixel grid stay valid and need no check."""

NUCLEUS_RGB = (0, 200, 83)

GZIP_LEVEL = 4


def write_geojson(
    source: NucleiFile,
    out: Path,
    selection: Selection | None = None,
    *,
    origin: Literal["bounds", "slide"] = "bounds",
    geometry: Literal["polygon", "centroid"] = "polygon",
    measurements: Sequence[str] = tuple(MEASUREMENTS),
) -> Exported:
    """Write nuclei as QuPath detections; of a table ``with_cells`` as cells with a nucleus.

    Parameters
    ----------
    out
        ``.geojson`` or ``.json``, or either with ``.gz``.
    origin
        ``bounds``: coordinates relative to the scanned area, as in QuPath; ``slide``: relative to the corner of level 0.
    geometry
        ``centroid`` writes points, which take a tenth of the space, for viewing millions of nuclei.
    measurements
        Keys of ``MEASUREMENTS``; fewer make smaller files.

    Returns
    -------
    Exported
        Its ``repaired`` counts polygons whose ring touched itself after rounding and was repaired; they keep their id.
    """
    selection = selection or Selection()
    names = [m for m in measurements if m in MEASUREMENTS and m in source.columns]
    shift = (-source.bounds_x, -source.bounds_y) if origin == "bounds" else (0, 0)
    check = bool(source.imported) or source.step_px < SAFE_STEP_PX
    done = fixed = dropped = 0
    classes: dict[str, str] = {}
    with atomic_path(out) as partial, ExitStack() as stack:
        stream: Any = stack.enter_context(partial.open("wb"))
        if out.suffix.lower() == ".gz":
            # no name or time in the gzip header, so that the same nuclei give the same bytes
            stream = stack.enter_context(gzip.GzipFile("", "wb", GZIP_LEVEL, stream, mtime=0))
        stated = b""  # a member that states the frame, unless it is QuPath's
        if origin == "slide" and (source.bounds_x, source.bounds_y) != (0, 0):
            stated = b'"wsiseg":{"frame":"slide"},'
        stream.write(b'{"type":"FeatureCollection",' + stated + b'"features":[')
        for raw in iter_chunks(source, selection, [*names, "class_name", CELL_GEOMETRY]):
            chunk = shifted(raw, *shift)
            if check and geometry == "polygon":
                before = len(chunk)
                chunk, n_fixed = repaired(chunk, DECIMALS)
                fixed, dropped = fixed + n_fixed, dropped + before - len(chunk)
            if len(chunk) == 0:
                continue
            text = text_bytes(_features(chunk, source, names, shift, geometry, classes))
            stream.write(
                text if done else text[1:]
            )  # every feature text begins with a comma, which the first one must not have
            done += len(chunk)
        stream.write(b"\n]}\n")
    return Exported(out, done, fixed, dropped)


def _features(
    chunk: Chunk, source: NucleiFile, names: Sequence[str], shift: tuple[int, int], geometry: str, classes: dict[str, str]
) -> pa.StringArray:
    ids = chunk.column("nucleus_id")
    kind, coordinates = ("Polygon", _ring_text(chunk)) if geometry == "polygon" else ("Point", _point_text(chunk, shift))
    nucleus = concat(f'{{"type":"{kind}","coordinates":', coordinates, "}")
    if CELL_GEOMETRY in chunk.table.column_names:
        outlines, kinds = _cell_text(chunk, shift, nucleus), ',"properties":{"objectType":"cell","classification":'
        outlines = concat(outlines, ',"nucleusGeometry":', nucleus)
    else:
        outlines, kinds = nucleus, ',"properties":{"objectType":"detection","classification":'
    values: list[Any] = []
    for k, name in enumerate(names):
        values += [("," if k else "") + json.dumps(MEASUREMENTS[name], ensure_ascii=False) + ":", _measurement(chunk, name)]
    return concat(
        ',\n{"type":"Feature","id":"',
        nucleus_uuids(source.slide_id, ids),
        '","geometry":',
        outlines,
        kinds,
        _class_text(chunk, classes),
        ',"measurements":{',
        *values,
        '},"metadata":{"nucleus_id":"',
        number_text(chunk.table["nucleus_id"]),
        '"},"isLocked":false}}',
    )


def _ring_text(chunk: Chunk) -> pa.StringArray:
    x, y = (decimal_text(chunk.xy[:, axis], DECIMALS, trim=True) for axis in (0, 1))
    return concat("[[[", join_rings(x, y, chunk.ring_offsets, ",", "],["), "]]]")


def _cell_text(chunk: Chunk, shift: tuple[int, int], nucleus: pa.StringArray) -> pa.StringArray:
    """Return the cells as GeoJSON geometries, or that of the nucleus if there is no cell."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import shapely

    shapes = shapely.from_wkb(chunk.table[CELL_GEOMETRY].combine_chunks().to_numpy(zero_copy_only=False))
    moved = shapely.transform(shapes, lambda xy: np.round(xy + shift, DECIMALS))
    return pc.coalesce(pa.array(shapely.to_geojson(moved), pa.string()), nucleus)


def _point_text(chunk: Chunk, shift: tuple[int, int]) -> pa.StringArray:
    x, y = (
        decimal_text(chunk.column(c).astype(np.float64) + d, DECIMALS, trim=True)
        for c, d in zip(("cx", "cy"), shift, strict=True)
    )
    return concat("[", x, ",", y, "]")


def _measurement(chunk: Chunk, name: str) -> pa.StringArray:
    import pyarrow as pa

    if name in ("center_prob", "material_prob"):
        levels = pa.array([f"{k / 255:.3f}".rstrip("0").rstrip(".") for k in range(256)])
        return levels.take(chunk.table[name].combine_chunks().cast(pa.int32())).fill_null('"NaN"')
    return number_text(chunk.table[name])


def _class_text(chunk: Chunk, classes: dict[str, str]) -> Any:
    """Return the classification as JSON; classes get colors in order of first appearance."""
    import pyarrow as pa

    if "class_name" not in chunk.table.column_names:
        return _classification(PLAIN_CLASS, NUCLEUS_RGB)
    column = chunk.table["class_name"].combine_chunks().fill_null("").dictionary_encode()
    for name in column.dictionary.to_pylist():
        if name not in classes:
            classes[name] = _classification(name or PLAIN_CLASS, CLASS_RGB[len(classes) % len(CLASS_RGB)])
    return pa.array([classes[name] for name in column.dictionary.to_pylist()], pa.string()).take(column.indices)


def _classification(name: str, rgb: tuple[int, int, int]) -> str:
    return json.dumps({"name": name, "color": list(rgb)}, separators=(",", ":"), ensure_ascii=False)

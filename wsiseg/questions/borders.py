"""Compute the distance of each nucleus to the borders of regions, in the row order of the slide's table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.questions.annotated import Region
from wsiseg.schema import BORDER_OF_CLASS, BORDERS, SCHEMA_VERSION
from wsiseg.tables import arrow_schema, atomic_path, table_fingerprint
from wsiseg.tables.arrow import META_KEY
from wsiseg.tables.source import NucleiFile
from wsiseg.tables.within import MARKER_COLUMNS, inside, iter_groups, marker_kind, marker_xy

__all__ = ["border_distances", "class_columns", "write_borders"]

Float = npt.NDArray[np.float64]

UNCLASSIFIED = "unclassified"
"""Class in the names of columns for regions without a class."""


def class_columns(names: Sequence[str]) -> list[str]:
    """Return the distance column of each class: ``border_um_<class>``, or ``border_um_unclassified`` for an empty name."""
    return [BORDER_OF_CLASS.of(class_name=name or UNCLASSIFIED, words=name).name for name in names]


def write_borders(source: NucleiFile, regions: Sequence[Region], out: Path) -> int:
    """Write ``wsiseg.schema.BORDERS`` of a slide, one row per nucleus in order; return the number of nuclei.

    A distance is from a nucleus's marker (of imported nuclei: the centroid) to the nearest border of the union of a class's
    regions, um, and negative inside. A border shared by two regions of a class does not count.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    kept = [r for r in regions if not r.geometry.is_empty]
    names = list(dict.fromkeys(r.class_name for r in kept))
    unions = [shapely.union_all([r.geometry for r in kept if r.class_name == name]) for name in names]
    everything = shapely.union_all([r.geometry for r in kept])
    more = [BORDER_OF_CLASS.of(class_name=name or UNCLASSIFIED, words=name) for name in names]
    facts = {"schema": SCHEMA_VERSION, "of": table_fingerprint(source.path), "point": marker_kind(source)}
    schema = arrow_schema([*BORDERS, *more], metadata={META_KEY: facts})
    borders = [_Border(shape, source.mpp) for shape in ([everything, *unions] if len(unions) > 1 else [everything])]
    done = 0
    with atomic_path(out) as partial, pq.ParquetWriter(str(partial), schema, compression="zstd") as writer:
        for table in iter_groups(source, MARKER_COLUMNS):
            xy = marker_xy(source, table)
            region = np.full(len(xy), -1, np.int32)
            for r in reversed(kept):  # the first one in the file is set last
                region[inside(r.geometry, xy)] = r.number
            arrays = [table["nucleus_id"].combine_chunks(), pa.array(region)]
            columns = [pa.array(border.distances(xy)) for border in borders]
            arrays += columns if len(unions) > 1 else columns * (1 + len(unions))  # one class: both columns are equal
            writer.write_table(pa.table(arrays, schema=schema))
            done += len(xy)
    return done


def border_distances(geometry: Any, xy: Float, mpp: float) -> npt.NDArray[np.float32]:
    """Return the distance of points to the border of a geometry, float32 (N,), um, negative inside.

    Parameters
    ----------
    geometry
        Shapely Polygon or MultiPolygon, level-0 px.
    xy : float64 (N, 2)
        Level-0 px.
    mpp
        Microns per level-0 px.
    """
    return _Border(geometry, mpp).distances(xy)


class _Border:
    """The edges of a geometry in a spatial index."""

    def __init__(self, geometry: Any, mpp: float) -> None:
        import shapely

        rings = shapely.get_rings(shapely.get_parts(geometry))
        xy, owner = shapely.get_coordinates(rings, return_index=True)
        same = owner[1:] == owner[:-1]
        edges = np.stack([xy[:-1][same], xy[1:][same]], axis=1) if len(xy) else np.empty((0, 2, 2))
        self.geometry, self.mpp = geometry, mpp
        self.edges = edges
        self.tree = shapely.STRtree(shapely.linestrings(edges)) if len(edges) else None

    def distances(self, xy: Float) -> npt.NDArray[np.float32]:
        import shapely

        if self.tree is None:
            return np.full(len(xy), np.nan, np.float32)
        (at, _), distance = self.tree.query_nearest(shapely.points(xy), return_distance=True, all_matches=False)
        found = np.empty(len(xy))
        found[at] = distance
        signed = np.where(inside(self.geometry, xy), -found, found) * self.mpp
        return signed.astype(np.float32)

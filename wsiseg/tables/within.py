"""Find the nuclei inside a geometry, by their marker or by the fraction of their area. All coordinates are level-0 px."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.tables.arrow import BBOX_PATHS, column_limits
from wsiseg.tables.source import NucleiFile

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MARKER_COLUMNS", "area_share", "as_area", "inside", "iter_groups", "marker_kind", "marker_xy",
           "polygonal"]  # fmt: skip

Float = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Bounds = tuple[float, float, float, float]

MARKER_COLUMNS = ("nucleus_id", "cx", "cy")
"""Columns that ``marker_xy`` needs."""

_SEED_BITS = 31
_CUT_TOGETHER = 64


def marker_kind(source: NucleiFile) -> str:
    """Return ``marker``, or ``centroid`` for a table of another tool's nuclei, which have no markers."""
    return "centroid" if source.imported else "marker"


def marker_xy(source: NucleiFile, table: pa.Table) -> Float:
    """Return the point by which a nucleus is assigned to a region: the center of its marker pixel, else the centroid.

    Parameters
    ----------
    table
        Contains ``MARKER_COLUMNS``. The id of a segmented nucleus encodes the position of its marker; imported ones have none.

    Returns
    -------
    float64 (N, 2)
        Level-0 px.
    """
    if source.imported:
        return np.stack([table[c].to_numpy().astype(np.float64) for c in ("cx", "cy")], axis=1)
    ids = table["nucleus_id"].to_numpy()
    seed = np.stack([ids & ((1 << _SEED_BITS) - 1), ids >> _SEED_BITS], axis=1)
    return (seed + 0.5) / source.scale


def as_area(geometry: Any, what: str = "within") -> Any:
    """Return a geometry (shapely, or anything with ``__geo_interface__``) as a valid Polygon or MultiPolygon.

    Raises
    ------
    InputError
        It is not a geometry, is empty, or is not finite.
    """
    import shapely
    from shapely.geometry import shape

    try:
        found = geometry if isinstance(geometry, shapely.Geometry) else shape(geometry)
    except (AttributeError, TypeError, ValueError, KeyError) as err:
        raise InputError(f"{what}: expected a geometry with an area, got {type(geometry).__name__} ({err}).") from err
    valid = polygonal(found)
    if valid.is_empty or not np.isfinite(shapely.bounds(valid)).all():
        raise InputError(f"{what}: expected a geometry with an area, got {found.geom_type} without one.")
    return valid


def polygonal(geometry: Any) -> Any:
    """Return the part of a geometry that has an area, made valid: outlines that cross themselves are repaired."""
    import shapely

    valid = geometry if geometry.is_valid else shapely.make_valid(geometry, method="structure", keep_collapsed=False)
    if valid.geom_type in ("Polygon", "MultiPolygon"):
        return valid
    parts = [p for p in shapely.get_parts(valid, return_index=False) if p.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts) if parts else shapely.Polygon()


def inside(geometry: Any, xy: Float) -> Mask:
    """Return which points are in a geometry or on its border, bool (N,): ``shapely.intersects_xy`` for those in its box."""
    import shapely

    x0, y0, x1, y1 = shapely.bounds(geometry)
    found = (xy[:, 0] >= x0) & (xy[:, 0] <= x1) & (xy[:, 1] >= y0) & (xy[:, 1] <= y1)
    near = np.flatnonzero(found)
    if near.size:
        shapely.prepare(geometry)
        found[near] = shapely.intersects_xy(geometry, xy[near, 0], xy[near, 1])
    return found


def area_share(geometry: Any, shapes: npt.NDArray[Any]) -> Float:
    """Return the fraction of each polygon's area that is in a geometry, float64 (N,), 0 to 1."""
    import shapely

    shapely.prepare(geometry)
    share = np.zeros(len(shapes))
    whole = shapely.contains_properly(geometry, shapes)
    share[whole] = 1.0
    cut = np.flatnonzero(~whole & shapely.intersects(geometry, shapes))
    for some in (cut[k : k + _CUT_TOGETHER] for k in range(0, len(cut), _CUT_TOGETHER)):
        area = shapely.area(shapes[some])
        x0, y0, x1, y1 = shapely.total_bounds(shapes[some])
        near = shapely.intersection(geometry, shapely.box(x0, y0, x1, y1))  # cut once for all polygons
        common = shapely.area(shapely.intersection(shapes[some], near))
        share[some] = np.divide(common, area, out=np.zeros(len(some)), where=area > 0)
    return np.minimum(share, 1.0)


def iter_groups(source: NucleiFile, columns: Sequence[str], boxes: Sequence[Bounds] | None = None) -> Iterator[pa.Table]:
    """Yield the row groups of a table that may have nuclei whose bounding box intersects one of ``boxes`` (None: all).

    Without statistics of ``bbox`` all row groups are read. Columns that the table does not have are left out.

    Raises
    ------
    FormatError
        A row group cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = [c for c in dict.fromkeys(columns) if c in source.columns]
    ends = None if boxes is None else np.asarray(boxes, np.float64).reshape(-1, 4)
    with pq.ParquetFile(str(source.path)) as file:
        for group in range(file.num_row_groups):
            limits = None if ends is None else column_limits(file.metadata.row_group(group), BBOX_PATHS)
            if ends is not None and limits is not None:
                (x0, _), (y0, _), (_, x1), (_, y1) = limits
                if not ((ends[:, 0] <= x1) & (ends[:, 2] >= x0) & (ends[:, 1] <= y1) & (ends[:, 3] >= y0)).any():
                    continue
            try:
                yield file.read_row_group(group, columns=wanted)
            except (OSError, pa.ArrowException) as err:
                raise FormatError(f"{source.path}: row group {group} cannot be read ({err}).") from err

"""Write rows of regions as GeoParquet, as CSV, or as AnnData with one observation per region."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wsiseg.errors import InputError
from wsiseg.libraries import optional
from wsiseg.questions.rows import RegionRow
from wsiseg.schema import REGIONS, SCHEMA_VERSION
from wsiseg.tables import atomic_file, atomic_write_bytes
from wsiseg.tables.arrow import META_KEY
from wsiseg.tables.geo import geo_metadata
from wsiseg.tables.records import write_rows
from wsiseg.write.elements import growing, put_dict, put_frame, put_order, put_texts, tell

__all__ = ["OUTPUT_ENDINGS", "output_kind", "write_regions"]

OUTPUT_ENDINGS = {"parquet": ".parquet", "csv": ".csv", "anndata": ".h5ad"}


def output_kind(out: Path, to: str | None) -> str:
    """Return ``parquet``, ``csv`` or ``anndata``: ``to`` if given, else by the suffix of the file.

    Raises
    ------
    InputError
        The suffix does not match the format.
    """
    by_ending = {ending: kind for kind, ending in OUTPUT_ENDINGS.items()}.get(out.suffix.lower())
    kind = to or by_ending
    if kind is None or kind != by_ending:
        raise InputError(f"Expected an output file with the suffix of --to ({', '.join(OUTPUT_ENDINGS.values())}), got {out}.")
    return kind


def write_regions(rows: Sequence[RegionRow], out: Path, kind: str = "parquet") -> None:
    """Write rows of ``wsiseg.schema.REGIONS``.

    Parquet is GeoParquet 1.1 (level-0 px of each row's slide). CSV has geometries as WKT. AnnData has one observation per row,
    the numbers as X, and the centroids in level-0 px as ``obsm["spatial"]``.

    Raises
    ------
    BackendUnavailableError
        AnnData needs h5py (extra ``spatial``).
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if kind == "csv":
        _write_csv(rows, out)
    elif kind == "anndata":
        _write_anndata(rows, out)
    else:
        _write_parquet(rows, out)


def _write_parquet(rows: Sequence[RegionRow], out: Path) -> None:
    import shapely

    shapes = shapely.from_wkb([r.geometry for r in rows])
    bounds = shapely.total_bounds(shapes)
    geo = geo_metadata(None if np.isnan(bounds).any() else bounds.tolist())
    column = geo["columns"]["geometry"]
    column["geometry_types"] = sorted({s.geom_type for s in shapes})
    for absent in ("covering", "orientation"):
        column.pop(absent)
    write_rows(out, REGIONS, rows, {META_KEY: {"schema": SCHEMA_VERSION}, "geo": geo})


def _write_csv(rows: Sequence[RegionRow], out: Path) -> None:
    import shapely

    names = [c.name for c in REGIONS]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        wkt = shapely.to_wkt(shapely.from_wkb(row.geometry), rounding_precision=3)
        writer.writerow([wkt if name == "geometry" else getattr(row, name) for name in names])
    atomic_write_bytes(out, text.getvalue().encode())


def _write_anndata(rows: Sequence[RegionRow], out: Path) -> None:
    h5py = optional("h5py", "spatial")
    import shapely

    numbers = [c.name for c in REGIONS if c.arrow in ("float64", "int64", "int32") and c.name != "region"]
    texts = [c.name for c in REGIONS if c.arrow == "string"]
    values = np.array([[getattr(r, n) for n in numbers] for r in rows], np.float64)  # None becomes nan
    centers = shapely.get_coordinates(shapely.centroid(shapely.from_wkb([r.geometry for r in rows])), include_z=False)
    names = [f"{r.slide_id}:{r.region if r.kind == 'region' else r.class_name or 'unclassified'}" for r in rows]
    with atomic_file(out) as partial, h5py.File(str(partial), "w") as root:
        tell(root, "anndata", "0.1.0")
        growing(root, "X", "float64", len(numbers)).append(values.reshape(len(rows), len(numbers)))
        obs = put_frame(root, "obs")
        put_texts(obs, "_index", names)
        for name in texts:
            put_texts(obs, name, [str(getattr(r, name)) for r in rows])
        growing(obs, "region", "int32").append(np.array([r.region for r in rows], np.int32))
        put_order(obs, [*texts, "region"])
        var = put_frame(root, "var")
        put_texts(var, "_index", numbers)
        put_texts(var, "unit", [c.unit for c in REGIONS if c.name in numbers])
        put_order(var, ["unit"])
        place = np.full((len(rows), 2), np.nan)
        filled = np.array([not shapely.from_wkb(r.geometry).is_empty for r in rows], np.bool_)
        place[filled] = centers
        growing(put_dict(root, "obsm"), "spatial", "float64", 2).append(place)
        for empty in ("layers", "obsp", "varm", "varp", "uns"):
            put_dict(root, empty)

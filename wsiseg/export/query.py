"""Read nuclei and slide statistics of runs as Arrow tables, combine runs into a cohort, and query them by SQL (DuckDB)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiseg.errors import FormatError, InputError
from wsiseg.export.closed import PREFIX, Table, closed_database, quoted
from wsiseg.fetch import is_address, shown, stored_objects
from wsiseg.libraries import optional
from wsiseg.results.folder import RunFolder
from wsiseg.results.slide_record import read_slide
from wsiseg.tables.arrow import BBOX_FIELDS
from wsiseg.tables.columns import companion_of, read_columns
from wsiseg.tables.features import DERIVED_SQL, FEATURE_NAMES
from wsiseg.tables.source import open_nuclei
from wsiseg.tables.within import MARKER_COLUMNS, as_area, inside, marker_xy
from wsiseg.types import Box

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as ds

__all__ = ["column_units", "nuclei_dataset", "query", "read_nuclei", "read_slides", "write_cohort"]

GRADES = "qc/grades.parquet"
STORED = {"slides": "slides.parquet", "errors": "errors.parquet", "grades": GRADES}
"""Views that are tables stored in the run."""


def read_nuclei(
    path: str | Path,
    region: Box | tuple[int, int, int, int] | None = None,
    columns: Sequence[str] | None = None,
    *,
    slide_id: str = "",
    grade: str | Sequence[str] | None = None,
    features: bool = False,
    as_geopandas: bool = False,
    within: Any = None,
) -> pa.Table | Any:
    """Return nuclei from one slide's table, or from all tables of a run.

    Parameters
    ----------
    path
        A polygon table, or a run folder.
    region
        Level-0 px, as ``Box`` or (x, y, w, h): only nuclei whose bounding box intersects it. Row groups outside are not read.
    columns
        Columns to return, from ``wsiseg.schema.NUCLEI``, ``DERIVED`` (computed while reading) or ``FEATURES`` (if ``wsiseg
        features`` has computed them); None: all columns of the table.
    slide_id
        One slide of a run folder; default: all slides, with an additional column ``slide_id``.
    grade
        Only slides with this QC grade (or one of these); needs a run folder with grades.
    features
        Add the columns of ``DERIVED`` and, for slides that have them, of ``FEATURES``.
    as_geopandas
        Return a GeoDataFrame indexed by ``nucleus_id`` instead of a ``pyarrow.Table``.
    within
        One or several polygons (shapely, or anything with ``__geo_interface__``), level-0 px: only nuclei whose marker (of
        imported nuclei: the centroid) is inside or on the border, as in ``wsiseg regions``. Row groups outside are not read.

    Raises
    ------
    FormatError
        The file is not a table of nuclei, or does not have a requested column.
    InputError
        There is no such slide, there are no grades, or the region has no area.
    BackendUnavailableError
        ``as_geopandas`` is set and geopandas is not installed (extra ``geo``).
    """
    import pyarrow as pa

    path = Path(path)
    box = region if region is None or isinstance(region, Box) else Box(*region)
    if box is not None and (box.w <= 0 or box.h <= 0):
        raise InputError(f"Expected a region (x,y,w,h) with w and h above 0, got {box.w} x {box.h}.")
    area = None if within is None else as_area(within)
    wanted = None if columns is None else list(columns)
    if as_geopandas and wanted is not None:
        wanted = list(dict.fromkeys([*wanted, "nucleus_id", "geometry"]))
    if not path.is_dir():
        if grade is not None or slide_id:
            raise InputError(f"{path}: expected a run folder, because slide_id or grade is given, got a file.")
        table = _read_within(path, box, wanted, area, features=features)
    else:
        files = _tables_of(path, slide_id, grade)
        parts = [_with_slide(_read_within(f, box, wanted, area, features=features), f.stem) for f in files]
        table = (
            pa.concat_tables(parts, promote_options="default") if parts else pa.table({"slide_id": pa.array([], pa.string())})
        )
    return _geo_frame(table) if as_geopandas else table


def _read_within(path: Path, box: Box | None, wanted: list[str] | None, area: Any, *, features: bool) -> pa.Table:
    """Return columns of one table's nuclei in a window and in a geometry (None: any)."""
    if area is None:
        return read_columns(path, box, wanted, features=features)
    import pyarrow as pa

    source = open_nuclei(path)
    x0, y0, x1, y1 = area.bounds
    around = Box(math.floor(x0), math.floor(y0), math.ceil(x1) - math.floor(x0) or 1, math.ceil(y1) - math.floor(y0) or 1)
    helpers = (*MARKER_COLUMNS, "bbox")
    table = read_columns(path, around, None if wanted is None else list(dict.fromkeys([*wanted, *helpers])), features=features)
    keep = inside(area, marker_xy(source, table))
    if box is not None:
        xmin, ymin, xmax, ymax = (table["bbox"].combine_chunks().field(n).to_numpy() for n in BBOX_FIELDS)
        keep &= (xmin <= box.x1) & (xmax >= box.x) & (ymin <= box.y1) & (ymax >= box.y)
    kept = table.filter(pa.array(keep))
    return kept if wanted is None else kept.drop_columns([n for n in helpers if n not in wanted])


def read_slides(run: str | Path) -> pa.Table:
    """Return the statistics of a run: one row per slide, with the columns of ``wsiseg.schema.SLIDES``.

    Raises
    ------
    InputError
        The folder has no ``slides.parquet``, which is written at the end of a run.
    FormatError
        The table cannot be read.

    Examples
    --------
    >>> import wsiseg
    >>> wsiseg.read_slides("RUN").to_pandas()[["slide_id", "n_nuclei"]]  # doctest: +SKIP
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(run) / "slides.parquet"
    if not path.is_file():
        raise InputError(f"{path}: no such file. A run writes it at its end; `wsiseg status {run}` shows how far the run is.")
    try:
        return pq.read_table(str(path), partitioning=None)
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{path}: expected a table of slide statistics, but it cannot be read ({err}).") from err


def nuclei_dataset(run: str | Path) -> ds.Dataset:
    """Return all nuclei of a run, or of a cohort folder from ``write_cohort``, as one ``pyarrow.dataset.Dataset``.

    For a cohort folder, the dataset has the columns ``cohort`` and ``slide_id`` from the folder names. For a run it does not:
    use ``query``, whose view ``nuclei`` has them, or the column ``__filename`` of the dataset.

    Raises
    ------
    InputError
        There is no polygon table below ``run``.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    root = Path(run)
    files = sorted(str(p) for p in (root / "nuclei").glob("*.parquet"))
    if files:
        return ds.dataset(files, format="parquet")
    if not any(root.glob("cohort=*/slide_id=*/*.parquet")):
        raise InputError(f"{root}: expected a run folder (nuclei/*.parquet) or a cohort folder (cohort=*/slide_id=*/).")
    keys = pa.schema([("cohort", pa.string()), ("slide_id", pa.string())])
    return ds.dataset(str(root), format="parquet", partitioning=ds.partitioning(keys, flavor="hive"))


def write_cohort(runs: Sequence[str | Path], out: str | Path) -> list[Path]:
    """Arrange the tables of runs as ``out/cohort=<cohort>/slide_id=<slide>/nuclei.parquet``; return these files.

    Files are hard links if the file system allows them, which need no disk space, otherwise copies. The characters ``/``, ``=``
    and ``%`` in cohort names and slide ids are percent-encoded.

    Raises
    ------
    InputError
        Two runs contain the same slide, or there is no table.
    """
    import os
    import shutil
    from urllib.parse import quote

    made: dict[Path, Path] = {}
    for run in runs:
        for table in _tables_of(Path(run), "", None):
            cohort = _cohort_of(Path(run), table.stem) or "unknown"
            target = (
                Path(out) / f"cohort={quote(cohort, safe=' ')}" / f"slide_id={quote(table.stem, safe=' ')}" / "nuclei.parquet"
            )
            if target in made:
                raise InputError(
                    f"Slide {table.stem} of cohort {cohort} is in both {made[target]} and {table}: leave one run out."
                )
            made[target] = table
    if not made:
        raise InputError(f"There is no polygon table (nuclei/*.parquet) below {', '.join(map(str, runs))}.")
    for target, table in made.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(table, target)
        except OSError:
            shutil.copyfile(table, target)
    return sorted(made)


def query(run: str | Path, sql: str, *, allow_files: bool = False) -> tuple[pa.Table, dict[str, str]]:
    """Run an SQL query over a run folder, a cohort folder from ``write_cohort``, or a published run, with DuckDB.

    Views: ``nuclei`` (with ``slide_id`` and ``cohort``), ``features`` (the same with the columns of ``wsiseg.schema.DERIVED``
    and, if ``wsiseg features`` has computed them, of ``FEATURES``), ``slides``, ``errors`` and, if the run is graded,
    ``grades``. DuckDB reads only the columns and row groups that the query needs. The database is in memory.

    Returns
    -------
    table, units
        The result, and the unit of each column that has one.

    Parameters
    ----------
    run
        A folder, or the address of a run uploaded by ``wsiseg publish``; only the needed row groups are read.
    sql
        The query. It can read only the tables of the run, and cannot write anything (see ``wsiseg.export.closed``).
    allow_files
        Allow the query to access everything that the user can: other files, extensions, the network.

    Raises
    ------
    InputError
        The SQL fails, or needs ``allow_files`` (the message is DuckDB's), or ``run`` is not a run or cohort folder.
    BackendUnavailableError
        duckdb is not installed (extra ``query``).
    """
    duckdb = optional("duckdb", "query")
    files, views = _views(_tables_in(run), allow_files=allow_files)
    open_to_all = allow_files and not is_address(str(run))
    with duckdb.connect(":memory:") if open_to_all else closed_database(files) as db:
        try:
            for name, text in views.items():
                db.execute(f"CREATE VIEW {name} AS {text}")
            answer = db.sql(sql)
            if answer is None:
                raise InputError(f"Expected a query (SELECT ...), got a statement that returns no table: {sql[:80]!r}.")
            table = answer.to_arrow_table()
        except duckdb.Error as err:
            raise InputError(f"The query failed: {_why(err, views)}") from err
    units = column_units()
    return table, {name: units[name] for name in table.column_names if units.get(name)}


_CLOSED = ("disabled", "can only be read", "configuration has been locked", "extension", "Table with name")
"""Parts of DuckDB's messages about a query that lacks access."""


def _why(err: Exception, views: Mapping[str, str]) -> str:
    """Return DuckDB's message; if access was refused, also how to allow it."""
    text = str(err).strip()
    if "Traceback" in text:  # of the file system that reads the tables
        text = text.splitlines()[-1]
    if not any(part in text for part in _CLOSED):
        return text
    return (
        f"{text}\nA query can access only the tables of the run ({', '.join(views)}), no other files, extensions or network. "
        "For SQL that you trust, allow these with --allow-files (in Python: allow_files=True)."
    )


def _tables_in(run: str | Path) -> dict[str, Table]:
    """Return the tables of a run, cohort folder or published run by their relative paths, such as ``nuclei/a.parquet``."""
    if is_address(str(run)):
        found: dict[str, Table] = {k: v for k, v in stored_objects(str(run)).items() if k.endswith(".parquet")}
    else:
        root = Path(run)
        files = _tables_of(root, "", None)
        beside = [c for c in map(companion_of, files) if c is not None]
        files = [*files, *beside] if files else sorted(root.glob("cohort=*/slide_id=*/*.parquet"))
        files += [p for name in STORED.values() if (p := root / name).is_file()]
        found = {p.relative_to(root).as_posix(): p for p in files}
    if not any(name.startswith(("nuclei/", "cohort=")) for name in found):
        raise InputError(
            f"{shown(str(run))}: expected a run folder with nuclei/*.parquet, a cohort folder (cohort=*/slide_id=*/), or a "
            "published run."
        )
    return found


def _views(tables: Mapping[str, Table], *, allow_files: bool) -> tuple[dict[str, Table], dict[str, str]]:
    """Return the tables by their names in SQL, and the SQL of each view in the order of creation."""
    names: dict[str, Table] = {}

    def named(name: str) -> str:
        table = tables[name]
        sql_name = str(table) if allow_files and isinstance(table, Path) else PREFIX + name
        names[sql_name] = table
        return quoted(sql_name)

    files = [name for name in tables if name.startswith("nuclei/")]
    views = {}
    for view, name in STORED.items():
        if name in tables:
            views[view] = f"SELECT * FROM read_parquet({named(name)}, hive_partitioning = false)"
    if not files:
        listed = ", ".join(named(name) for name in tables if name.startswith("cohort="))
        options = "hive_partitioning = true, hive_types_autocast = false, union_by_name = true"
        views["nuclei"] = f"SELECT * FROM read_parquet([{listed}], {options})"
    elif "slides" in views:
        known = "SELECT slide_id, cohort FROM slides"
        views["nuclei"] = f"SELECT n.*, s.cohort FROM ({_scan(map(named, files))}) n LEFT JOIN ({known}) s USING (slide_id)"
    else:
        views["nuclei"] = _scan(map(named, files))
    made = ", ".join(f"{text} AS {name}" for name, text in DERIVED_SQL.items())
    beside = [name for name in tables if name.startswith("features/") and f"nuclei/{name.removeprefix('features/')}" in tables]
    joined = f" LEFT JOIN ({_scan(map(named, beside))}) f USING (slide_id, nucleus_id)" if beside else ""
    more = "".join(f", f.{name}" for name in FEATURE_NAMES) if beside else ""
    views["features"] = f"SELECT n.*, {made}{more} FROM nuclei n{joined}"
    return names, views


def _scan(quoted: Iterable[str]) -> str:
    """Return SQL that reads tables named ``<slide_id>.parquet`` and adds the column ``slide_id`` (which may contain dots)."""
    listed = ", ".join(quoted)
    stem = "regexp_extract(filename, '([^/]+)\\.parquet$', 1)"
    scan = f"read_parquet([{listed}], filename = true, union_by_name = true, hive_partitioning = false)"
    return f"SELECT * EXCLUDE (filename), {stem} AS slide_id FROM {scan}"


def column_units() -> dict[str, str]:
    """Return ``{column name: unit}`` for the columns of all tables that have a unit."""
    from wsiseg.schema import DERIVED, ERRORS, FEATURES, NUCLEI, SLIDES

    return {c.name: c.unit for table in (ERRORS, SLIDES, FEATURES, DERIVED, NUCLEI) for c in table}


def _tables_of(root: Path, slide_id: str, grade: str | Sequence[str] | None) -> list[Path]:
    files = sorted((root / "nuclei").glob("*.parquet"))
    if slide_id:
        files = [f for f in files if f.stem == slide_id]
        if not files:
            raise InputError(f"{root}: this run has no table of slide {slide_id!r}.")
    if grade is None:
        return files
    asked = {grade} if isinstance(grade, str) else set(grade)
    found = _grades_of(root)
    return [f for f in files if found.get(f.stem) in asked]


def _grades_of(root: Path) -> dict[str, str]:
    import pyarrow.parquet as pq

    path = root / GRADES
    if not path.is_file():
        raise InputError(f"{root}: the run has no QC grades ({GRADES}). Run `wsiseg qc grade {root}` first.")
    table = pq.read_table(str(path))
    if not {"slide_id", "grade"} <= set(table.column_names):
        raise FormatError(f"{path}: expected the columns slide_id and grade, got {table.column_names}.")
    return dict(zip(table["slide_id"].to_pylist(), table["grade"].to_pylist(), strict=True))


def _cohort_of(root: Path, slide_id: str) -> str:
    """Return the cohort of a slide; empty if it has none or the run has no record of the slide."""
    try:
        return read_slide(RunFolder(root), slide_id).row.cohort
    except FileNotFoundError:
        return ""


def _with_slide(table: pa.Table, slide_id: str) -> pa.Table:
    import pyarrow as pa

    return table.append_column("slide_id", pa.array([slide_id] * table.num_rows, pa.string())).replace_schema_metadata(None)


def _geo_frame(table: pa.Table) -> Any:
    geopandas = optional("geopandas", "geo")
    import shapely

    shapes = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    plain = table.drop_columns([c for c in ("geometry", "bbox") if c in table.column_names])
    frame = geopandas.GeoDataFrame(plain.to_pandas(), geometry=shapes)
    return frame.set_index("nucleus_id")

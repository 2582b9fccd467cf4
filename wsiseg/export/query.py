"""Questions to tables: nuclei of a slide or a run as Arrow, a cohort as one dataset, SQL on DuckDB with units."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiseg.errors import FormatError, InputError
from wsiseg.export.closed import PREFIX, closed_database
from wsiseg.libraries import optional
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
    """Return nuclei of one slide's table, or of all slides of a run.

    Parameters
    ----------
    path
        A polygon table, or a run folder.
    region
        Level-0 px, as ``Box`` or (x, y, w, h): nuclei whose bounding box meets it. Row groups outside are not read.
    columns
        Columns wanted: of ``wsiseg.schema.NUCLEI``, ``DERIVED`` (made on reading) or ``FEATURES`` (once ``wsiseg features`` has
        made them); None: all of the table.
    slide_id
        One slide of a run folder; default all, which adds a column ``slide_id``.
    grade
        Only slides whose QC grade is this (or one of these); needs a run folder with grades.
    features
        Add the columns of ``DERIVED`` and, for slides that have them, of ``FEATURES``.
    as_geopandas
        Return a GeoDataFrame indexed by ``nucleus_id`` instead of a ``pyarrow.Table``.
    within
        A polygon or several (shapely, or anything with ``__geo_interface__``), level-0 px: nuclei whose marker lies in it or on
        its border, as ``wsiseg regions`` counts them (of imported nuclei: the centroid). Row groups outside are not read.

    Raises
    ------
    FormatError
        Not a nuclei table, or without a column that is asked for.
    InputError
        No such slide, no grades, or an impossible region.
    BackendUnavailableError
        geopandas is asked for and not installed (extra ``geo``).
    """
    import pyarrow as pa

    path = Path(path)
    box = region if region is None or isinstance(region, Box) else Box(*region)
    if box is not None and (box.w <= 0 or box.h <= 0):
        raise InputError(f"Expected a region with w and h above 0, got {box.w} x {box.h}.")
    area = None if within is None else as_area(within)
    wanted = None if columns is None else list(columns)
    if as_geopandas and wanted is not None:
        wanted = list(dict.fromkeys([*wanted, "nucleus_id", "geometry"]))
    if not path.is_dir():
        if grade is not None or slide_id:
            raise InputError(f"{path}: slide_id and grade choose slides of a run folder, but this is a file.")
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
    """Return a run's statistics, one row a slide, the columns of ``wsiseg.schema.SLIDES``.

    Raises
    ------
    InputError
        The folder has no such table (yet): it is written when the run ends.
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
        raise InputError(f"{path}: no such table. A run writes it at its end ('wsiseg status {run}' says how far it is).")
    try:
        return pq.read_table(str(path), partitioning=None)
    except (OSError, pa.ArrowException) as err:
        raise FormatError(f"{path}: expected a table of slide statistics, but it cannot be read ({err}).") from err


def nuclei_dataset(run: str | Path) -> ds.Dataset:
    """Return all nuclei of a run (or of a cohort folder from ``write_cohort``) as one ``pyarrow.dataset.Dataset``.

    Of a cohort folder, ``cohort`` and ``slide_id`` are columns made of the folders' names; of a run, use ``query`` (whose view
    ``nuclei`` has them) or the dataset's ``__filename``.

    Raises
    ------
    InputError
        There is no table below ``run``.
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
    """Arrange the tables of runs as ``out/cohort=<cohort>/slide_id=<slide>/nuclei.parquet``; return the files.

    Files are hard links where the file system allows it, else copies: nothing is written twice without need. The folders' names
    are percent-encoded where a name holds ``/``, ``=`` or ``%``.

    Raises
    ------
    InputError
        Two runs hold the same slide, or there is no table.
    """
    import os
    import shutil
    from urllib.parse import quote

    made: dict[Path, Path] = {}
    for run in runs:
        for table in _tables_of(Path(run), "", None):
            cohort = _slide_row(Path(run), table.stem).get("cohort") or "unknown"
            target = (
                Path(out)
                / f"cohort={quote(str(cohort), safe=' ')}"
                / f"slide_id={quote(table.stem, safe=' ')}"
                / "nuclei.parquet"
            )
            if target in made:
                raise InputError(f"Slide {table.stem} of cohort {cohort} is in {made[target]} and in {table}.")
            made[target] = table
    if not made:
        raise InputError(f"No table below {', '.join(map(str, runs))}.")
    for target, table in made.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(table, target)
        except OSError:
            shutil.copyfile(table, target)
    return sorted(made)


def query(run: str | Path, sql: str, *, allow_files: bool = False) -> tuple[pa.Table, dict[str, str]]:
    """Run SQL over a run folder (or a cohort folder of ``write_cohort``) on DuckDB; return the answer and its columns' units.

    Views: ``nuclei`` (with ``slide_id`` and ``cohort``), ``features`` (the same with the columns of ``wsiseg.schema.DERIVED``
    and, where ``wsiseg features`` made them, of ``FEATURES``), ``slides``, ``errors`` and, where there are grades, ``grades``.
    DuckDB reads only the columns and row groups that the question needs. The database lives in memory.

    Parameters
    ----------
    sql
        A question. It can read the tables of the run and nothing else, and write nothing (``wsiseg.export.closed``).
    allow_files
        Let it read and write whatever this user may: other tables, extensions, the network.

    Raises
    ------
    InputError
        The SQL is wrong, reaches out of the run without ``allow_files``, or ``run`` is no run folder; the message is DuckDB's.
    BackendUnavailableError
        duckdb is not installed (extra ``query``).
    """
    duckdb = optional("duckdb", "query")
    root = Path(run)
    files, views = _views(root, allow_files=allow_files)
    with duckdb.connect(":memory:") if allow_files else closed_database(files) as db:
        try:
            for name, text in views.items():
                db.execute(f"CREATE VIEW {name} AS {text}")
            answer = db.sql(sql)
            if answer is None:
                raise InputError(f"Expected a question (SELECT ...), got a statement without an answer: {sql[:80]!r}.")
            table = answer.to_arrow_table()
        except duckdb.Error as err:
            raise InputError(f"The query failed: {_why(err, views)}") from err
    units = column_units()
    return table, {name: units[name] for name in table.column_names if units.get(name)}


_CLOSED = ("disabled", "can only be read", "configuration has been locked", "extension", "Table with name")
"""Parts of what DuckDB says where a question reaches out of a closed database."""


def _why(err: Exception, views: Mapping[str, str]) -> str:
    """Return DuckDB's message; where the database was closed to what was asked, also how to open it."""
    text = str(err).strip()
    if "Traceback" in text:  # of the file system that reads the tables
        text = text.splitlines()[-1]
    if not any(part in text for part in _CLOSED):
        return text
    return (
        f"{text}\nA query sees the tables of the run only ({', '.join(views)}): no other file, no extension, no network. "
        "Open these with --allow-files (in Python: allow_files=True), for SQL that you trust."
    )


def _views(root: Path, *, allow_files: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the tables by the names that the SQL reads, and the SQL of each view, those that others are made of first."""
    files = _tables_of(root, "", None)
    cohort = not files
    files = files or sorted(root.glob("cohort=*/slide_id=*/*.parquet"))
    if not files:
        raise InputError(f"{root}: expected a run folder with nuclei/*.parquet, or a cohort folder (cohort=*/slide_id=*/).")
    names: dict[str, Path] = {}

    def named(path: Path) -> str:
        name = str(path) if allow_files else PREFIX + path.relative_to(root).as_posix()
        names[name] = path
        return _quoted(name)

    views = {}
    stored = {"slides": "slides.parquet", "errors": "errors.parquet", "grades": GRADES}
    for name, path in stored.items():
        if (root / path).is_file():
            views[name] = f"SELECT * FROM read_parquet({named(root / path)}, hive_partitioning = false)"
    if cohort:
        listed = ", ".join(map(named, files))
        options = "hive_partitioning = true, hive_types_autocast = false, union_by_name = true"
        views["nuclei"] = f"SELECT * FROM read_parquet([{listed}], {options})"
    elif "slides" in views:
        known = "SELECT slide_id, cohort FROM slides"
        views["nuclei"] = f"SELECT n.*, s.cohort FROM ({_scan(map(named, files))}) n LEFT JOIN ({known}) s USING (slide_id)"
    else:
        views["nuclei"] = _scan(map(named, files))
    made = ", ".join(f"{text} AS {name}" for name, text in DERIVED_SQL.items())
    beside = [] if cohort else [c for c in map(companion_of, files) if c is not None]
    joined = f" LEFT JOIN ({_scan(map(named, beside))}) f USING (slide_id, nucleus_id)" if beside else ""
    more = "".join(f", f.{name}" for name in FEATURE_NAMES) if beside else ""
    views["features"] = f"SELECT n.*, {made}{more} FROM nuclei n{joined}"
    return names, views


def _scan(quoted: Iterable[str]) -> str:
    """Return SQL that reads tables named ``<slide_id>.parquet`` (the id is the file's name, whatever dots are in it)."""
    listed = ", ".join(quoted)
    stem = "regexp_extract(filename, '([^/]+)\\.parquet$', 1)"
    scan = f"read_parquet([{listed}], filename = true, union_by_name = true, hive_partitioning = false)"
    return f"SELECT * EXCLUDE (filename), {stem} AS slide_id FROM {scan}"


def column_units() -> dict[str, str]:
    """Return the unit of every column of every table."""
    from wsiseg.schema import DERIVED, ERRORS, FEATURES, NUCLEI, SLIDES

    return {c.name: c.unit for table in (ERRORS, SLIDES, FEATURES, DERIVED, NUCLEI) for c in table}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _tables_of(root: Path, slide_id: str, grade: str | Sequence[str] | None) -> list[Path]:
    files = sorted((root / "nuclei").glob("*.parquet"))
    if slide_id:
        files = [f for f in files if f.stem == slide_id]
        if not files:
            raise InputError(f"{root}: no slide {slide_id!r} in this run.")
    if grade is None:
        return files
    asked = {grade} if isinstance(grade, str) else set(grade)
    found = _grades_of(root)
    return [f for f in files if found.get(f.stem) in asked]


def _grades_of(root: Path) -> dict[str, str]:
    import pyarrow.parquet as pq

    path = root / GRADES
    if not path.is_file():
        raise InputError(f"{root}: no QC grades here ({GRADES}). Grade the run first (wsiseg qc grade).")
    table = pq.read_table(str(path))
    if not {"slide_id", "grade"} <= set(table.column_names):
        raise FormatError(f"{path}: expected the columns slide_id and grade, got {table.column_names}.")
    return dict(zip(table["slide_id"].to_pylist(), table["grade"].to_pylist(), strict=True))


def _slide_row(root: Path, slide_id: str) -> dict[str, Any]:
    try:
        row = json.loads((root / "slides" / f"{slide_id}.json").read_text(encoding="utf-8"))["row"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return row if isinstance(row, dict) else {}


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

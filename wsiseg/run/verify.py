"""Check that all files of a run folder are complete and agree. Every table is opened and read to its last row."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiseg.errors import FormatError, WsisegError, one_line
from wsiseg.read import TissueMask
from wsiseg.results.folder import RunFolder
from wsiseg.results.records import read_inputs
from wsiseg.results.slide_record import SlideRecord, slide_records
from wsiseg.rows import ErrorRow, SlideRow
from wsiseg.run.finish import file_sha256
from wsiseg.schema import NUCLEI, SLIDE_STATUSES
from wsiseg.summarize import read_errors_table, read_slides_table
from wsiseg.tables import read_table_meta

__all__ = ["Finding", "Verdict", "verify_run"]


@dataclass(frozen=True, slots=True)
class Finding:
    """An error (or a notice, if ``wrong`` is False): the file or slide, what is wrong, and what to do."""

    where: str
    what: str
    wrong: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a verification: numbers of checked items, and the findings."""

    slides: int
    tables: int
    nuclei: int
    n_bytes: int
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Return whether nothing is wrong."""
        return not any(f.wrong for f in self.findings)


def verify_run(root: Path) -> Verdict:
    """Check a run folder.

    The checks: every JSON can be parsed; every polygon table can be read to its end, with the recorded SHA-256, row count and
    config digest; tiles done, empty and failed add up to the slide's tiles, nuclei of the tiles to those of the table; the
    run's tables (``slides.parquet``, ``slides.csv``, ``errors.parquet``) agree with the slides' JSONs; masks can be opened;
    there are no incomplete files; every requested slide is done.

    Raises
    ------
    FormatError
        The folder contains no run.
    """
    folder = RunFolder(root)
    run = folder.read_run()
    if run is None:
        raise FormatError(f"{root} contains no wsiseg run (no run.json). Name the folder given to wsiseg segment as --out.")
    findings: list[Finding] = []
    records: dict[str, SlideRecord] = {}
    tables = nuclei = n_bytes = 0
    for slide_id, record in slide_records(folder):
        if isinstance(record, FormatError):
            findings.append(Finding(f"slides/{slide_id}.json", f"cannot be read: {one_line(record)}"))
            continue
        records[slide_id] = record
        findings += _check_record(folder, slide_id, record, run.digest)
        if folder.table(slide_id).is_file():
            tables += 1
            n_bytes += folder.table(slide_id).stat().st_size
            found, rows = _check_table(folder, slide_id, record)
            findings += found
            nuclei += rows
    findings += _check_summaries(folder, records)
    findings += _check_leftovers(folder, records)
    return Verdict(len(records), tables, nuclei, n_bytes, tuple(findings))


def _check_record(folder: RunFolder, slide_id: str, record: SlideRecord, digest: str) -> Iterator[Finding]:
    where = f"slides/{slide_id}.json"
    row = record.row
    if row.slide_id != slide_id or row.status not in SLIDE_STATUSES:
        yield Finding(where, "is not the record of this slide. Remove it and run the same command again.")
        return
    if record.imported is None and record.digest != digest and row.status != "failed":
        yield Finding(where, f"was written by a run with other settings ({record.digest}, run.json has {digest}).")
    counted = [row.tiles_done, row.tiles_empty, row.tiles_failed]
    known = [n for n in counted if n is not None]
    if record.n_tiles is not None and len(known) == len(counted) and sum(known) != record.n_tiles:
        yield Finding(where, f"tiles done, empty and failed are {counted}, the slide has {record.n_tiles} tiles.")
    failed = sum(e.tile_id >= 0 for e in record.errors)
    if failed != (row.tiles_failed or 0):
        yield Finding(where, f"{row.tiles_failed} tiles failed, {failed} are recorded as errors.")
    of_tiles = record.n_nuclei_of_tiles
    if of_tiles is not None and of_tiles != row.n_nuclei:
        yield Finding(where, f"its tiles had {of_tiles} nuclei, but its row has {row.n_nuclei}.")
    if row.table and not folder.table(slide_id).is_file():
        yield Finding(row.table, "is missing. Run the same command again: the slide is segmented again.")
    if record.tissue_png:
        try:
            TissueMask.load(folder.tissue_png(slide_id))
            if record.tissue_sha256 and file_sha256(folder.tissue_png(slide_id)) != record.tissue_sha256:
                yield Finding(f"slides/{slide_id}.tissue.png", "its bytes are not those that were written (SHA-256 differs).")
        except (OSError, ValueError, SyntaxError, WsisegError) as err:
            yield Finding(f"slides/{slide_id}.tissue.png", f"cannot be read: {one_line(err)}")


def _check_table(folder: RunFolder, slide_id: str, record: SlideRecord) -> tuple[list[Finding], int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, where = folder.table(slide_id), f"nuclei/{slide_id}.parquet"
    redo = "Remove it and run the same command again: the slide is segmented again."
    found: list[Finding] = []
    if record.table_sha256 and file_sha256(path) != record.table_sha256:
        found.append(Finding(where, f"its bytes are not those that were written (SHA-256 differs). {redo}"))
    try:
        meta = read_table_meta(path)
        with pq.ParquetFile(path) as file:
            names = set(file.schema_arrow.names)
            missing = sorted({c.name for c in NUCLEI} - names)
            if missing:
                return [*found, Finding(where, f"lacks the columns {missing}. {redo}")], 0
            rows, ids = 0, []
            for k in range(file.num_row_groups):
                group = file.read_row_group(k)
                rows += group.num_rows
                ids.append(group["nucleus_id"].to_numpy())
    except (OSError, pa.ArrowException, FormatError, ValueError) as err:
        return [*found, Finding(where, f"cannot be read to its end ({one_line(err)}). {redo}")], 0
    if rows != record.row.n_nuclei:
        found.append(Finding(where, f"holds {rows} nuclei, but the slide's row has {record.row.n_nuclei}. {redo}"))
    if rows and len(np.unique(np.concatenate(ids))) != rows:
        found.append(Finding(where, f"holds a nucleus twice. {redo}"))
    if record.imported is None and meta.get("digest") != record.digest:
        found.append(Finding(where, f"was made with other settings ({meta.get('digest')}) than its slide's JSON. {redo}"))
    return found, rows


def _check_summaries(folder: RunFolder, records: dict[str, SlideRecord]) -> Iterator[Finding]:
    redo = "Run the same command again: it is written again."
    if not (folder.root / "slides.parquet").is_file():
        if (folder.root / "slides.csv").is_file() or len(records) == len(read_inputs(folder)) > 0:
            yield Finding("slides.parquet", f"is missing. {redo}")
        return
    try:
        rows = {r.slide_id: r for r in read_slides_table(folder.root / "slides.parquet")}
    except (FormatError, OSError) as err:
        yield Finding("slides.parquet", f"cannot be read ({one_line(err)}). {redo}")
        return
    for slide_id, row in rows.items():
        if slide_id not in records:
            yield Finding("slides.parquet", f"names slide {slide_id}, whose JSON is missing or unreadable. {redo}")
        elif row != records[slide_id].row:
            yield Finding("slides.parquet", f"slide {slide_id}: its row differs from slides/{slide_id}.json. {redo}")
    for slide_id in sorted(set(records) - set(rows)):
        yield Finding("slides.parquet", f"has no row for slide {slide_id} (the last command did not name it).", wrong=False)
    yield from _check_csv(folder, rows, redo)
    yield from _check_errors(folder, [e for s in rows if s in records for e in records[s].errors], redo)


def _check_csv(folder: RunFolder, rows: dict[str, SlideRow], redo: str) -> Iterator[Finding]:
    try:
        with (folder.root / "slides.csv").open(encoding="utf-8", newline="") as stream:
            texts = {r.get("slide_id", ""): r for r in csv.DictReader(stream)}
    except (OSError, ValueError, csv.Error) as err:
        yield Finding("slides.csv", f"cannot be read ({one_line(err)}). {redo}")
        return
    expected = {s: {k: "" if v is None else str(v) for k, v in row.columns.items()} for s, row in rows.items()}
    if texts != expected:
        yield Finding("slides.csv", f"differs from slides.parquet. {redo}")


def _check_errors(folder: RunFolder, expected: list[ErrorRow], redo: str) -> Iterator[Finding]:
    try:
        got = read_errors_table(folder.root / "errors.parquet")
    except (FormatError, OSError) as err:
        yield Finding("errors.parquet", f"cannot be read ({one_line(err)}). {redo}")
        return
    both = [sorted(tuple(e.columns.values()) for e in side) for side in (got, expected)]
    if both[0] != both[1]:
        yield Finding("errors.parquet", f"its {len(got)} failures are not the {len(expected)} of the slides' JSONs. {redo}")


def _check_leftovers(folder: RunFolder, records: dict[str, SlideRecord]) -> Iterator[Finding]:
    for path in sorted(folder.root.rglob("*.partial")):
        name = str(path.relative_to(folder.root))
        yield Finding(name, "incomplete file of a killed process; the next run removes it.", wrong=False)
    for path in sorted((folder.root / "nuclei").glob("*.parquet")):
        if not folder.slide_json(path.stem).is_file():
            yield Finding(f"nuclei/{path.name}", "has no slides/*.json. Run the same command again.")
    for slide_id in sorted(set(read_inputs(folder)) - set(records)):
        if not folder.slide_json(slide_id).exists():
            yield Finding(f"slide {slide_id}", "was requested but is not done yet. Run the same command again.")

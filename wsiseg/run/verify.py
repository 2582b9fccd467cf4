"""Check that all files of a run folder are complete and agree. Every table is opened and read to its last row."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.errors import FormatError, WsisegError, one_line
from wsiseg.read import TissueMask
from wsiseg.results.folder import RunFolder
from wsiseg.results.records import read_inputs
from wsiseg.run.finish import file_sha256
from wsiseg.run.status import slide_records
from wsiseg.schema import ERRORS, LATER, NUCLEI, SLIDE_STATUSES, SLIDES
from wsiseg.summarize import read_slides_table
from wsiseg.tables import read_table_meta

__all__ = ["Finding", "Verdict", "verify_run"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong (or only a notice, if ``wrong`` is False), where it is, and what to do."""

    where: str
    what: str
    wrong: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was checked and what was found."""

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

    Every JSON is parsed; every polygon table is read whole, its SHA-256, row count and config digest compared with what was
    recorded when it was made; tiles done, empty and failed add up to the slide's tiles, nuclei of the tiles to those of the
    table; the run's tables (``slides.parquet``, ``slides.csv``, ``errors.parquet``) say what the slides' own JSONs say; masks
    open; there are no incomplete files; every slide asked for is done.

    Raises
    ------
    FormatError
        The folder holds no run.
    """
    folder = RunFolder(root)
    run = folder.read_run()
    if run is None:
        raise FormatError(f"{root} holds no wsiseg run (no run.json). Name the folder given to wsiseg segment as --out.")
    findings: list[Finding] = []
    records: dict[str, dict[str, Any]] = {}
    tables = nuclei = n_bytes = 0
    for slide_id, record in slide_records(folder):
        if record is None:
            findings.append(Finding(f"slides/{slide_id}.json", "cannot be read. Remove it and run the same command again."))
            continue
        records[slide_id] = record
        findings += _check_record(folder, slide_id, record, str(run.get("digest")))
        if folder.table(slide_id).is_file():
            tables += 1
            n_bytes += folder.table(slide_id).stat().st_size
            found, rows = _check_table(folder, slide_id, record)
            findings += found
            nuclei += rows
    findings += _check_summaries(folder, records)
    findings += _check_leftovers(folder, records)
    return Verdict(len(records), tables, nuclei, n_bytes, tuple(findings))


def _check_record(folder: RunFolder, slide_id: str, record: dict[str, Any], digest: str) -> Iterator[Finding]:
    where = f"slides/{slide_id}.json"
    row = record["row"]
    whole = set(row) | set(LATER) == {c.name for c in SLIDES}
    if not whole or row.get("slide_id") != slide_id or row.get("status") not in SLIDE_STATUSES:
        yield Finding(where, "is not the record of this slide. Remove it and run the same command again.")
        return
    if "imported" not in record and record.get("digest") != digest and row["status"] != "failed":
        yield Finding(where, f"is of a run with other settings ({record.get('digest')}, run.json has {digest}).")
    counted = [row["tiles_done"], row["tiles_empty"], row["tiles_failed"]]
    total = record.get("n_tiles")
    if total is not None and None not in counted and sum(counted) != total:
        yield Finding(where, f"tiles done, empty and failed are {counted}, the slide has {total} tiles.")
    failed = sum(int(e.get("tile_id", -1)) >= 0 for e in record.get("errors", []))
    if failed != (row["tiles_failed"] or 0):
        yield Finding(where, f"{row['tiles_failed']} tiles failed, {failed} are recorded as errors.")
    of_tiles = record.get("n_nuclei_of_tiles")
    if of_tiles is not None and of_tiles != row["n_nuclei"]:
        yield Finding(where, f"its tiles had {of_tiles} nuclei, the slide's row says {row['n_nuclei']}.")
    if row["table"] and not folder.table(slide_id).is_file():
        yield Finding(row["table"], "is missing. Run the same command again: the slide is segmented again.")
    if record.get("tissue_png"):
        try:
            TissueMask.load(folder.tissue_png(slide_id))
            stated = record.get("tissue_sha256")
            if stated and file_sha256(folder.tissue_png(slide_id)) != stated:
                yield Finding(f"slides/{slide_id}.tissue.png", "its bytes are not those that were written (SHA-256 differs).")
        except (OSError, ValueError, SyntaxError, WsisegError) as err:
            yield Finding(f"slides/{slide_id}.tissue.png", f"cannot be read: {one_line(err)}")


def _check_table(folder: RunFolder, slide_id: str, record: dict[str, Any]) -> tuple[list[Finding], int]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, where = folder.table(slide_id), f"nuclei/{slide_id}.parquet"
    redo = "Remove it and run the same command again: the slide is segmented again."
    found: list[Finding] = []
    stated = record.get("table_sha256")
    if stated and file_sha256(path) != stated:
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
    if rows != record["row"].get("n_nuclei"):
        found.append(Finding(where, f"holds {rows} nuclei, the slide's row says {record['row'].get('n_nuclei')}. {redo}"))
    if rows and len(np.unique(np.concatenate(ids))) != rows:
        found.append(Finding(where, f"holds a nucleus twice. {redo}"))
    if "imported" not in record and meta.get("digest") != record.get("digest"):
        found.append(Finding(where, f"is of other settings ({meta.get('digest')}) than its slide's JSON. {redo}"))
    return found, rows


def _check_summaries(folder: RunFolder, records: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    redo = "Run the same command again: it is written again."
    if not (folder.root / "slides.parquet").is_file():
        if (folder.root / "slides.csv").is_file() or len(records) == len(read_inputs(folder)) > 0:
            yield Finding("slides.parquet", f"is missing. {redo}")
        return
    try:
        rows = {str(r["slide_id"]): r for r in read_slides_table(folder.root / "slides.parquet")}
    except (ValueError, OSError) as err:  # FormatError, or bytes that are no text
        yield Finding("slides.parquet", f"cannot be read ({one_line(err)}). {redo}")
        return
    for slide_id, row in rows.items():
        if slide_id not in records:
            yield Finding("slides.parquet", f"names slide {slide_id}, whose JSON is missing or unreadable. {redo}")
        elif not _same_row(row, records[slide_id]["row"]):
            yield Finding("slides.parquet", f"slide {slide_id}: its row differs from slides/{slide_id}.json. {redo}")
    for slide_id in sorted(set(records) - set(rows)):
        yield Finding("slides.parquet", f"has no row for slide {slide_id} (the last command did not name it).", wrong=False)
    yield from _check_csv(folder, rows, redo)
    yield from _check_errors(folder, [e for s in rows if s in records for e in records[s].get("errors", [])], redo)


def _same_row(a: dict[str, Any], b: dict[str, Any]) -> bool:
    a, b = ({**LATER, **row} for row in (a, b))
    return set(a) == set(b) and all(a[k] == b[k] or (a[k] in (None, "") and b[k] in (None, "")) for k in a)


def _check_csv(folder: RunFolder, rows: dict[str, dict[str, Any]], redo: str) -> Iterator[Finding]:
    try:
        with (folder.root / "slides.csv").open(encoding="utf-8", newline="") as stream:
            texts = {r.get("slide_id", ""): r for r in csv.DictReader(stream)}
    except (OSError, ValueError, csv.Error) as err:
        yield Finding("slides.csv", f"cannot be read ({one_line(err)}). {redo}")
        return
    expected = {s: {k: "" if v is None else str(v) for k, v in row.items()} for s, row in rows.items()}
    if texts != expected:
        yield Finding("slides.csv", f"differs from slides.parquet. {redo}")


def _check_errors(folder: RunFolder, expected: list[dict[str, Any]], redo: str) -> Iterator[Finding]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        got = pq.read_table(folder.root / "errors.parquet", columns=[c.name for c in ERRORS], partitioning=None).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as err:
        yield Finding("errors.parquet", f"cannot be read ({one_line(err)}). {redo}")
        return
    both = [sorted(json.dumps({"host": "", "worker": "", **e}, sort_keys=True) for e in side) for side in (got, expected)]
    if both[0] != both[1]:
        yield Finding("errors.parquet", f"holds {len(got)} failures, the slides' JSONs {len(expected)}, or others. {redo}")


def _check_leftovers(folder: RunFolder, records: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    for path in sorted(folder.root.rglob("*.partial")):
        name = str(path.relative_to(folder.root))
        yield Finding(name, "incomplete file of a killed process; the next run removes it.", wrong=False)
    for path in sorted((folder.root / "nuclei").glob("*.parquet")):
        if not folder.slide_json(path.stem).is_file():
            yield Finding(f"nuclei/{path.name}", "has no slides/*.json beside it. Run the same command again.")
    for slide_id in sorted(set(read_inputs(folder)) - set(records)):
        if not folder.slide_json(slide_id).exists():
            yield Finding(f"slide {slide_id}", "was asked for and is not done yet. Run the same command again.")

"""Read a manifest: a CSV, TSV or Parquet table with one row per slide.

Columns: ``path``, and optional ``slide_id``, ``cohort``, ``mpp``, ``tissue_mask`` (a file, or ``all`` for no mask) and
``frame`` (of the mask). Names of other tools are accepted: ``wsi`` (TRIDENT) for ``path``, ``wsi_mpp`` (CellViT) for ``mpp``.
Relative paths are relative to the manifest's folder, or else to the working folder; a path that exists in both is an error. The
separator of a CSV (comma, semicolon, tab or bar) is detected from the header; encodings are UTF-8 (BOM allowed) and UTF-16.

If ``path`` is an address (``https://``, ``s3://``, ...), the object there is expected to have ``filename``, ``size`` (bytes)
and ``md5``. A table of the Imaging Data Commons has the addresses of series instead of ``path`` (see
``wsiseg.results.remote_manifests``); rows of other modalities than SM are left out.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsiseg.errors import ManifestError, plain_text
from wsiseg.fetch import is_address, local_of
from wsiseg.fetch.address import name_in
from wsiseg.read.files import plain_name, slide_id_of
from wsiseg.results.remote_manifests import series_of_row, slide_name
from wsiseg.results.slide_input import ALL_TISSUE, SlideInput

__all__ = ["MANIFEST_SUFFIXES", "Manifest", "read_manifest"]

MANIFEST_SUFFIXES = frozenset((".csv", ".tsv", ".parquet"))

_ALIASES = {"wsi": "path", "slide": "path", "file": "path", "wsi_mpp": "mpp", "cancer_type": "cohort", "mask": "tissue_mask",
            "size_bytes": "size"}  # fmt: skip
_COLUMNS = frozenset({"path", "slide_id", "cohort", "mpp", "tissue_mask", "frame", "filename", "size", "md5"})


@dataclass(slots=True)
class Manifest:
    """The slides of a manifest, in order, and notes for the user."""

    slides: list[SlideInput] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_manifest(path: Path, *, cohort: str = "", mpp: float | None = None) -> Manifest:
    """Read a manifest; ``cohort`` and ``mpp`` are used for rows without these values.

    A missing file remains in the list, so that the run records it as failed, and is noted.

    Raises
    ------
    ManifestError
        The manifest cannot be read, has no column ``path``, or has an invalid row, whose line is in the message.
    """
    out = Manifest()
    missing: list[str] = []
    without: list[str] = []
    unused: set[str] = set()
    for line, raw in _rows(path):
        where = f"Manifest {plain_text(str(path))}, {line}"
        row = _named(raw, where, unused)
        if "path" not in row and (found := _series(raw, row, cohort, mpp, where)) is not None:
            unused.clear()  # other columns of an archive's table
            if found.slide_id and all(s.path != found.path for s in out.slides):
                out.slides.append(found)
            continue
        if "path" not in row:
            has = sorted(map(str, raw))
            raise ManifestError(f"Manifest {plain_text(str(path))}: expected a column 'path' (or 'wsi'), got {has}.")
        text = _text(row["path"])
        if not text:
            if any(_text(v) for v in row.values()):
                without.append(line)
            continue
        slide, there = (text, True) if is_address(text) else _beside(path, local_of(text), where)
        if not there:
            missing.append(f"{line} ({plain_text(text)})")
        mask = _text(row.get("tissue_mask"))
        given = _text(row.get("slide_id"))
        if given and plain_name(given) != given:
            raise ManifestError(f"{where}: expected a plain name as slide_id, got {plain_text(given)[:80]!r}.")
        out.slides.append(
            SlideInput(
                given or _id_of(slide, _text(row.get("filename"))),
                slide,
                _text(row.get("cohort")) or cohort.strip(),
                _mpp_value(row.get("mpp"), f"{where} ({plain_text(text)})") or mpp,
                mask if mask in ("", ALL_TISSUE) else _beside(path, mask, where)[0],
                _text(row.get("frame")),
                *_object(row, where),
                where,
            )
        )
    if not out.slides:
        raise ManifestError(f"Manifest {plain_text(str(path))} names no slide.")
    for what, lines in (("names a file that does not exist", missing), ("has rows without a path, left out", without)):
        if lines:
            many = f"{len(lines)} times, such as " if len(lines) > 3 else ""
            out.notes.append(f"Manifest {plain_text(str(path))} {what}: {many}{', '.join(lines[:3])}")
    if unused:
        out.notes.append(f"Manifest {plain_text(str(path))}: unused columns: {', '.join(sorted(unused))}")
    return out


def _named(raw: dict[Any, Any], where: str, unused: set[str]) -> dict[str, Any]:
    """Return a row with its columns renamed to those of wsiseg; add other columns to ``unused``."""
    row: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).strip().lower()
        name = _ALIASES.get(name, name)
        if name not in _COLUMNS:
            unused.add(str(key).strip())
        elif _text(row.get(name)) and _text(value) and _text(row[name]) != _text(value):
            raise ManifestError(f"{where}: two columns give {name}: {_text(row[name])!r} and {_text(value)!r}. Keep one.")
        elif not _text(row.get(name)):
            row[name] = value
    return row


def _series(raw: dict[Any, Any], row: dict[str, Any], cohort: str, mpp: float | None, where: str) -> SlideInput | None:
    """Return the slide of a row of the Imaging Data Commons, with an empty id if it is not a slide; None: another table."""
    lower = {str(k).strip().lower(): v for k, v in raw.items()}
    address, slide_id, collection = series_of_row(lower)
    if not address:
        return None
    if _text(lower.get("modality")) not in ("", "SM"):
        return SlideInput("", address)
    given = (_text(row.get("cohort")) or collection or cohort.strip(), _mpp_value(row.get("mpp"), where) or mpp)
    return SlideInput(_text(row.get("slide_id")) or slide_id, address, *given, origin=where)


def _id_of(slide: str, filename: str) -> str:
    return slide_name(filename or name_in(slide)) if is_address(slide) else slide_id_of(slide)


def _object(row: dict[str, Any], where: str) -> tuple[str, int, str]:
    """Return filename, size and MD5 that a row states for an object at an address."""
    size, md5 = _text(row.get("size")), _text(row.get("md5")).lower()
    if size and not size.removesuffix(".0").isdecimal():
        raise ManifestError(f"{where}: expected size in bytes, got {size!r}.")
    if md5 and not re.fullmatch("[0-9a-f]{32}", md5):
        raise ManifestError(f"{where}: expected md5 of 32 hex digits, got {plain_text(md5)[:80]!r}.")
    return os.path.basename(_text(row.get("filename"))), int(float(size or 0)), md5


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN: an empty cell of a pandas column


def _beside(manifest: Path, text: str, where: str) -> tuple[str, bool]:
    """Return the absolute path for the text of a cell, and whether it exists."""
    beside = os.path.join(manifest.parent, text)
    if os.path.isabs(text) or not os.path.exists(text):
        return beside, os.path.exists(beside)
    if not os.path.exists(beside):
        return text, True
    if os.path.basename(text) not in ("", ".", "..") and not os.path.samefile(text, beside):
        raise ManifestError(
            f"{where}: {plain_text(text)!r} exists both in the manifest's folder and in the working folder. "
            "Write the full path."
        )
    return beside, True


def _rows(path: Path) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield (line or row, as text; the row) of a manifest."""
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(path, partitioning=None).to_pylist()
        except (pa.ArrowException, OSError) as err:
            raise ManifestError(f"Manifest {plain_text(str(path))} is not a readable Parquet file: {err}") from err
        yield from ((f"row {k}", row) for k, row in enumerate(rows, start=1))
        return
    text = _decoded(path)
    skipped, separator = 0, _delimiter(text, path)
    if text[:4].lower() == "sep=":  # an Excel directive
        skipped, separator, text = 1, text[4], text.partition("\n")[2]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    header: list[str] = []
    end = skipped  # last line of the previous row; quoted fields may have line breaks
    try:
        for fields in reader:
            line, end = f"line {end + 1}", skipped + reader.line_num
            if not any(f.strip() for f in fields):
                continue
            if not header:
                header = fields
                continue
            if len(fields) > len(header) and any(f.strip() for f in fields[len(header) :]):
                raise ManifestError(
                    f"Manifest {plain_text(str(path))}, {line}: expected {len(header)} fields as in the header, got "
                    f"{len(fields)}. Put double quotes around a path that contains the separator."
                )
            yield line, dict(zip(header, fields, strict=False))
    except csv.Error as err:
        raise ManifestError(f"Manifest {plain_text(str(path))}, line {skipped + reader.line_num}: {err}") from err


def _decoded(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ManifestError(f"Manifest {plain_text(str(path))}: cannot be read: {err.strerror or err}") from err
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as err:
        line = data.count(b"\n", 0, err.start) + 1
        what = f"{err.reason}, byte {data[err.start]:#04x}"
        raise ManifestError(
            f"Manifest {plain_text(str(path))}, line {line}: is not UTF-8 text ({what}). Save it as 'CSV UTF-8'."
        ) from err


def _delimiter(text: str, path: Path) -> str:
    """Return the separator of columns in the header; for a table of one column a comma, or a tab for a TSV."""
    header = text.split("\n", 1)[0]
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    return max(usual + ",;\t|", key=header.count) if any(c in header for c in ",;\t|") else usual


def _mpp_value(value: object, where: str) -> float | None:
    text = _text(value)
    if not text:
        return None
    try:
        mpp = float(text.replace(",", "."))  # decimal commas occur in tables separated by semicolons
    except ValueError as err:
        raise ManifestError(f"{where}: expected mpp in um/px, got {value!r}.") from err
    if not 0.01 < mpp < 100:
        raise ManifestError(f"{where}: expected mpp between 0.01 and 100 um/px, got {value!r}.")
    return mpp

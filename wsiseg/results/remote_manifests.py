"""Read manifests of archives: files of the Genomic Data Commons (GDC), series of the Imaging Data Commons (IDC).

GDC: a table separated by tabs with the columns ``id filename md5 size state``. IDC: the command list of s5cmd, lines such as
``cp s3://idc-open-data/<folder>/* .``, or a table with the address of each series (``series_aws_url``, ``aws_url``,
``gcs_url``, ...) or its bucket and folder (``aws_bucket`` and ``crdc_series_uuid``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsiseg.errors import ManifestError, plain_text
from wsiseg.fetch.address import name_in
from wsiseg.fetch.tokens import gdc_address
from wsiseg.read.files import plain_name
from wsiseg.results.listing import SLIDE_SUFFIXES, Skipped
from wsiseg.results.slide_input import SlideInput

__all__ = ["RemoteManifest", "gdc_rows", "idc_rows", "is_gdc", "is_idc", "series_address", "series_of_row",
           "slide_name", "sniffed"]  # fmt: skip

GDC_COLUMNS = frozenset({"id", "filename", "md5", "size"})
_SERIES_URL = ("series_aws_url", "aws_url", "series_gcs_url", "gcs_url", "s3_url", "gs_url", "series_url")
_BUCKETS = (("aws_bucket", "s3"), ("gcs_bucket", "gs"))
_FOLDERS = ("crdc_series_uuid", "series_uuid")
_IDS = ("containeridentifier", "container_identifier", "seriesinstanceuid", "series_instance_uid", *_FOLDERS)
_COPY = re.compile(r"""^\s*(?:s5cmd\s+(?:--?\S+\s+)*)?cp\s+(?:--?\S+\s+)*["']?((?:s3|gs)://[^\s"']+)["']?(?:\s+\S+)?\s*$""")
_ENDPOINT = re.compile(r"--endpoint-url[ =](\S+)")
_UUID = re.compile(r"^[0-9A-Za-z][0-9A-Za-z._-]*$")
_MD5 = re.compile(r"^[0-9a-fA-F]{32}$")
SNIFFED_BYTES = 1 << 16


@dataclass(slots=True)
class RemoteManifest:
    """The slides of an archive's manifest, the rows that are not slides, and notes for the user."""

    slides: list[SlideInput] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def sniffed(path: Path) -> str:
    """Return the beginning of a file as text, for ``is_gdc`` and ``is_idc``; empty if it is not text."""
    try:
        with path.open("rb") as stream:
            return stream.read(SNIFFED_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def is_gdc(text: str) -> bool:
    """Return whether a text starts like a GDC manifest."""
    return set(text.lstrip("\ufeff").split("\n", 1)[0].strip().lower().split("\t")) >= GDC_COLUMNS


def is_idc(text: str) -> bool:
    """Return whether a text is a list of s5cmd copy commands, judged by its first line that is not a comment."""
    first = next((line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")), "")
    return bool(_COPY.match(first))


def gdc_rows(path: Path, *, cohort: str = "", mpp: float | None = None) -> RemoteManifest:
    """Read a GDC manifest. Files that are not slides are left out.

    Raises
    ------
    ManifestError
        A row lacks an id, a name, a size or an MD5; the message names the line.
    """
    out = RemoteManifest()
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [c.strip().lower() for c in lines[0].split("\t")]
    for k, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        where = f"Manifest {plain_text(str(path))}, line {k}"
        row = dict(zip(names, (c.strip() for c in line.split("\t")), strict=False))
        filename = os.path.basename(row.get("filename", ""))
        ending = os.path.splitext(filename)[1].lower()
        if ending not in SLIDE_SUFFIXES and filename:
            out.skipped.append(Skipped(filename, f"of the GDC manifest, ending {ending or 'none'}, no slide"))
            continue
        size, md5 = row.get("size", ""), row.get("md5", "")
        good = _UUID.match(row.get("id", "")) and filename and size.isdecimal() and _MD5.match(md5)
        if not good:
            raise ManifestError(
                f"{where}: expected id, filename, md5 (32 hex digits) and size, got {plain_text(line)[:200]!r}."
            )
        address = gdc_address(row["id"])
        out.slides.append(
            SlideInput(
                slide_name(filename),
                address,
                cohort,
                mpp,
                origin=where,
                filename=filename,
                size_bytes=int(size),
                md5=md5.lower(),
            )
        )
    if not out.slides:
        raise ManifestError(f"Manifest {plain_text(str(path))} names no slide, but {len(out.skipped)} files of other kinds.")
    return out


def idc_rows(path: Path, *, cohort: str = "", mpp: float | None = None) -> RemoteManifest:
    """Read a list of s5cmd copy commands: each folder is the series of a slide, each file a slide. Raises ``ManifestError``."""
    out = RemoteManifest()
    endpoint = ""
    seen: set[str] = set()
    for k, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            named = _ENDPOINT.search(line)
            endpoint = named[1].strip("'\"") if named else endpoint
            continue
        where = f"Manifest {plain_text(str(path))}, line {k}"
        found = _COPY.match(line)
        if not found:
            raise ManifestError(
                f"{where}: expected a command of s5cmd such as 'cp s3://BUCKET/FOLDER/* .', got {plain_text(line)[:120]!r}."
            )
        address = series_address(found[1], endpoint)
        if address not in seen:
            seen.add(address)
            out.slides.append(SlideInput(slide_name(name_in(address)), address, cohort, mpp, origin=where))
    if endpoint and "amazonaws.com" not in endpoint and "googleapis.com" not in endpoint:
        out.notes.append(
            f"Manifest {plain_text(str(path))} names the endpoint {endpoint}: set AWS_ENDPOINT_URL to it on all hosts"
        )
    return out


def series_address(text: str, endpoint: str = "") -> str:
    """Return the address of the source of an s5cmd copy: the folder for ``FOLDER/*``; ``gs://`` for Google's S3 endpoint."""
    address = text.rstrip("*") if text.endswith("/*") else text
    return re.sub("^s3://", "gs://", address) if "storage.googleapis.com" in endpoint else address


def series_of_row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return address, id and cohort of a row of IDC's table; the address is empty if the row has none.

    Parameters
    ----------
    row
        Values by column name in lower case.
    """

    def text(name: str) -> str:
        value = row.get(name)
        return "" if value is None or value != value else str(value).strip()

    address = next((text(c) for c in _SERIES_URL if text(c)), "")
    if not address:
        folder = next((text(c) for c in _FOLDERS if text(c)), "")
        address = next((f"{scheme}://{text(c)}/{folder}/" for c, scheme in _BUCKETS if text(c)), "") if folder else ""
    address = series_address(address)
    if address and not address.endswith("/") and not os.path.splitext(address)[1]:
        address += "/"
    given = next((text(c) for c in _IDS if text(c)), "")
    return address, plain_name(given or name_in(address)) if address else "", text("collection_id")


def slide_name(filename: str) -> str:
    """Return the id of a slide from its file name, without the suffix of a slide (a UUID is kept)."""
    stem, ending = os.path.splitext(filename)
    return plain_name(stem if ending.lower() in SLIDE_SUFFIXES else filename)

"""Find the files that make up a slide, and its id."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from wsiseg.read.dicom import dicom_folder_series, may_be_dicom, series_of

__all__ = ["MAX_ID_BYTES", "plain_name", "slide_files", "slide_id_of", "vms_parts"]

MAX_ID_BYTES = 200
"""Longest slide id. File names append endings of up to 50 bytes to it, and a file name may have 255 bytes."""

FOLDER_ENDINGS = (".dicom", ".zarr")
_VMS = (".vms", ".vmu")


def plain_name(name: str) -> str:
    r"""Return a name that is safe in file names and tables; most names are returned unchanged.

    ``/``, ``\``, control characters, and bytes that are not UTF-8 become ``%`` and two hex digits (Latin-1 ``Pr\xe4parat``:
    ``Pr%E4parat``). A name longer than ``MAX_ID_BYTES`` is shortened and ends in ``~`` and 12 hex digits of the SHA-256 of
    the whole name.
    """
    raw = os.fsencode(name)
    text = "".join(f"%{ord(c) & 0xFF:02X}" if c in "/\\\x7f" or ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 else c for c in name)
    if len(text.encode()) <= MAX_ID_BYTES:
        return text
    kept = text.encode()[: MAX_ID_BYTES - 13].decode(errors="ignore")
    return f"{kept}~{hashlib.sha256(raw).hexdigest()[:12]}"


def slide_id_of(path: str | Path) -> str:
    """Return a slide's id: the name before the last ending (a TCGA barcode keeps its uuid), made safe (see ``plain_name``).

    Folders only lose ``.dicom`` and ``.zarr``; a name that ends in digits is a UID and loses nothing.
    """
    p = Path(path)
    ending = p.suffix.lower()
    whole = ending[1:].isdigit() or (ending not in FOLDER_ENDINGS and p.is_dir())
    return plain_name(p.name if whole else p.stem)


def slide_files(path: str | Path) -> list[Path]:
    """Return the files that make up a slide, sorted: all files of a folder; for most formats the slide file alone.

    Slides of several files: Mirax (the folder of the same name), Hamamatsu VMS and VMU (pictures named in the file), and DICOM
    (the other files of the series in the folder; for a folder with one series only the files of that series).

    Raises
    ------
    OSError
        The operating system's own error.
    """
    p = Path(path)
    ending = p.suffix.lower()
    if p.is_dir():
        series = {} if ending == ".zarr" else dicom_folder_series(p)
        if len(series) == 1:
            return sorted(Path(f.path) for f in next(iter(series.values())))
        return sorted(entry for entry in p.rglob("*") if entry.is_file())
    if ending == ".mrxs" and (beside := p.with_suffix("")).is_dir():
        return [p, *sorted(entry for entry in beside.rglob("*") if entry.is_file())]
    if ending in _VMS:
        return [p, *sorted(p.parent / name for name in vms_parts(p) if (p.parent / name).is_file())]
    return series_of(p) if may_be_dicom(p.name) else [p]


def vms_parts(path: str | Path) -> set[str]:
    """Return the names of the files that a Hamamatsu VMS or VMU file refers to; empty if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            text = stream.read(1 << 16).decode("latin-1")
    except OSError:
        return set()
    values = (line.partition("=")[2].strip() for line in text.splitlines())
    return {v for v in values if v and "/" not in v and "." in v}

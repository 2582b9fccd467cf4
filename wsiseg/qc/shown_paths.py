"""Shorten paths in texts of reports, which are read on other machines.

A path is reduced to its file name, or to its part from the run folder on. URLs lose their query (which may sign a link) and
user information (which may contain a password).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from wsiseg.qc.rows import FlagRow, PatchRow
from wsiseg.rows import ErrorRow, SlideRow

__all__ = ["shorten_paths", "shorten_row_paths"]

Row = TypeVar("Row", SlideRow, ErrorRow, FlagRow, PatchRow)

_SECRET = re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/@'\"]+@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?", re.IGNORECASE)
_QUOTED = re.compile(r"(?P<q>['\"])(?P<path>/[^'\"\n]*/[^'\"\n]*|[A-Za-z]:\\[^'\"\n]+|\\\\[^'\"\n]+)(?P=q)")
_POSIX = re.compile(r"(?<![\w:/.~-])(?:/[^\s/:;,'\"()\[\]<>=|]+){2,}/?")
_WINDOWS = re.compile(r"(?<!\w)(?:[A-Za-z]:|\\\\[^\s\\]+)\\(?:[^\s\\:;,'\"()<>|]+\\)*[^\s\\:;,'\"()<>|]*")


def shorten_paths(text: str, run: Path | None = None, known: Iterable[str] = ()) -> str:
    """Return the text with absolute paths reduced to file names, and without secrets in URLs.

    Parameters
    ----------
    run
        The run folder: paths in it are kept from the name of the run folder on.
    known
        Absolute paths that may occur in the text, possibly with spaces; each is replaced by its file name.
    """
    for path in sorted({p for p in known if p and len(p) > 1}, key=len, reverse=True):
        if "://" not in path:
            text = text.replace(path, _name(path))
    if run is not None:
        for root in dict.fromkeys((str(run.resolve()), str(run.absolute()))):
            text = re.sub(rf"{re.escape(root)}(?=[/\s'\".,;:)]|$)", lambda _: run.resolve().name, text)
    text = _SECRET.sub(r"\1\2", text)
    text = _QUOTED.sub(lambda m: f"{m['q']}{_name(m['path'])}{m['q']}", text)
    text = _POSIX.sub(lambda m: _name(m[0]), text)
    return _WINDOWS.sub(lambda m: _name(m[0]), text)


def _name(path: str) -> str:
    """Return the last part of a path, with the full stop of a sentence if one follows."""
    return PureWindowsPath(path.rstrip("/\\")).name or path


def shorten_row_paths(row: Row, run: Path, path: str) -> Row:
    """Return a table row with ``shorten_paths`` applied to its texts; a field ``path`` becomes the file name.

    ``path`` is the path of the slide's file.
    """
    shown: dict[str, Any] = {}
    for f in dataclasses.fields(row):
        text = getattr(row, f.name)
        if f.name == "path" and "://" not in text:
            shown[f.name] = _name(text) if text else text
        elif isinstance(text, str) and ("/" in text or "\\" in text):
            shown[f.name] = shorten_paths(text, run, (path,))
    return dataclasses.replace(row, **shown)

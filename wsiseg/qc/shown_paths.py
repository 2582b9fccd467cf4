"""Texts that name files of this machine -> the same texts as a reader of another machine can use them.

A report is read where the run is not. Of a path it keeps the file's name, or the part below the run folder; what an address
carries after its question mark (a signed link to a store) and before its host (a password) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

__all__ = ["readable", "readable_row"]

_SECRET = re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?:[^\s/@'\"]+@)?([^\s?'\"]*)(?:\?[^\s'\"]*)?", re.IGNORECASE)
_QUOTED = re.compile(r"(?P<q>['\"])(?P<path>/[^'\"\n]*/[^'\"\n]*|[A-Za-z]:\\[^'\"\n]+|\\\\[^'\"\n]+)(?P=q)")
_POSIX = re.compile(r"(?<![\w:/.~-])(?:/[^\s/:;,'\"()\[\]<>=|]+){2,}/?")
_WINDOWS = re.compile(r"(?<!\w)(?:[A-Za-z]:|\\\\[^\s\\]+)\\(?:[^\s\\:;,'\"()<>|]+\\)*[^\s\\:;,'\"()<>|]*")


def readable(text: str, run: Path | None = None, known: Iterable[str] = ()) -> str:
    """Return a text with its whole paths shortened.

    Parameters
    ----------
    run
        The run folder: paths below it are kept from its name on.
    known
        Whole paths that the text may name, blanks in them included; each becomes its file name.
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
    """Return the last part of a path; a full stop that ends a sentence stays."""
    return PureWindowsPath(path.rstrip("/\\")).name or path


def readable_row(row: Mapping[str, Any], run: Path, path: str | None = None) -> dict[str, Any]:
    """Return a table row with the paths in its words shortened; ``path`` is the slide's file, a column ``path`` its name."""
    own = str(row.get("path") or path or "")
    out = {k: readable(v, run, (own,)) if isinstance(v, str) and ("/" in v or "\\" in v) else v for k, v in row.items()}
    if "path" in out and "://" not in own:
        out["path"] = _name(own) if own else own
    return out

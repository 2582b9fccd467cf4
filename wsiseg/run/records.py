"""Stored records of a run's slides, ``RUN/slides/<slide_id>.json``."""

from __future__ import annotations

import json
from typing import Any

from wsiseg.errors import FormatError, InputError
from wsiseg.run.folder import RunFolder

__all__ = ["slide_record"]


def slide_record(folder: RunFolder, slide_id: str) -> dict[str, Any]:
    """Return the stored record of one slide.

    Raises
    ------
    InputError
        The run has no such slide; the message names those it has.
    """
    path = folder.slide_json(slide_id)
    if not path.is_file():
        known = sorted(p.stem for p in (folder.root / "slides").glob("*.json"))
        raise InputError(f"Run {folder.root} has no slide {slide_id!r}. It has: {', '.join(known[:20]) or 'none'}.")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise FormatError(f"Slide record {path} is unreadable: {err}") from err
    return record

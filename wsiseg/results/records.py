"""Stored records of a run's slides (``RUN/slides/<slide_id>.json``), and the list of slides that were asked for."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from wsiseg.errors import FormatError, InputError
from wsiseg.results.folder import RunFolder
from wsiseg.results.slide_input import SlideInput

__all__ = ["known_ids", "read_inputs", "slide_record"]


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


def read_inputs(folder: RunFolder) -> dict[str, SlideInput]:
    """Return every slide that this run folder was ever asked for, by id, as it was last given; broken lines are left out."""
    found: dict[str, SlideInput] = {}
    try:
        text = Path(folder.inputs).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            raw = json.loads(line)
            found[str(raw["slide_id"])] = SlideInput(**raw)
    return found


def known_ids(out: Path) -> dict[str, str]:
    """Return the ids of the slides that a run folder has, by absolute path; of two ids of one path that which has a table."""
    folder = RunFolder(out.absolute())
    inputs = read_inputs(folder)
    return {inputs[i].path: i for i in sorted(inputs, key=lambda i: folder.table(i).is_file())}

"""Read ``RUN/inputs.jsonl``, the list of all slides that were requested."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from wsiseg.decode import decode
from wsiseg.errors import FormatError
from wsiseg.results.folder import RunFolder
from wsiseg.results.slide_input import SlideInput

__all__ = ["known_ids", "read_inputs"]


def read_inputs(folder: RunFolder) -> dict[str, SlideInput]:
    """Return every slide that was ever requested for a run folder, by id, as it was last given.

    Damaged lines, and lines of a newer version with unknown fields, are left out.
    """
    found: dict[str, SlideInput] = {}
    try:
        text = Path(folder.inputs).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError, FormatError):
            slide = decode(SlideInput, json.loads(line), str(folder.inputs))
            found[slide.slide_id] = slide
    return found


def known_ids(out: Path) -> dict[str, str]:
    """Return the ids of the slides in a run folder by absolute path; of two ids for a path, the one that has a table."""
    folder = RunFolder(out.absolute())
    inputs = read_inputs(folder)
    return {inputs[i].path: i for i in sorted(inputs, key=lambda i: folder.table(i).is_file())}

"""Numbers of a run -> the table in its page, so that page and JSON cannot tell two stories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

BEGIN, END = "<!-- numbers: written by the script, not by hand -->", "<!-- end of numbers -->"


def fill(page: Path, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Replace what stands between the marks of a page by a table."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{page}: expected the marks {BEGIN} and {END}.")
    lines = [headings, ["---"] * len(headings), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    page.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")

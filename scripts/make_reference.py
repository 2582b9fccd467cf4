"""Write docs/commands.md and docs/tables.md from the program itself.

    python scripts/make_reference.py [--check]

``--check`` writes nothing and ends with 1 where a page is not what the program says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from wsiseg import schema
from wsiseg.cli.main import main as wsiseg

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTE = "<!-- written by scripts/make_reference.py: change the program, then run it -->\n"

SURROUNDINGS = (
    "`OUT/nuclei/<slide_id>.parquet` of `wsiseg neighbors`, row by row; then for each radius `n_within_<r>um` and "
    "`<column>_mean_within_<r>um`, and for the triangulation `n_delaunay`, `edge_mean_um_delaunay`, `<column>_mean_delaunay`."
)

TABLES: tuple[tuple[str, str, Sequence[schema.Column]], ...] = (
    ("Nuclei", "`RUN/nuclei/<slide_id>.parquet`: GeoParquet 1.1 in Hilbert order, one row per nucleus.", schema.NUCLEI),
    ("Features on reading", "Made of stored columns by `wsiseg.read_nuclei(..., columns=[...])`: no file.", schema.DERIVED),
    (
        "Features",
        "`RUN/features/<slide_id>.parquet` of `segment --features` or `wsiseg features`, with the rows of the nuclei.",
        schema.FEATURES,
    ),
    ("Slides", "`RUN/slides.parquet` and `slides.csv`: one row per slide.", schema.SLIDES),
    (
        "Regions",
        "The output of `wsiseg regions`: GeoParquet 1.1, one row per region and per class of each slide.",
        schema.REGIONS,
    ),
    (
        "Distances to regions",
        "`FOLDER/<slide_id>.parquet` of `wsiseg regions --distances FOLDER`, row by row; then `border_um_<class>`.",
        schema.BORDERS,
    ),
    (
        "Cells",
        "`RUN/cells/<slide_id>.parquet` of `wsiseg cells`: GeoParquet 1.1, with the rows of the nuclei.",
        schema.CELLS,
    ),
    (
        "Edges between nuclei",
        "`OUT/radius/<slide_id>.parquet` (largest radius) and `OUT/delaunay/<slide_id>.parquet` of `wsiseg neighbors`.",
        schema.EDGES,
    ),
    ("Surroundings of nuclei", SURROUNDINGS, schema.NEIGHBORS),
    ("Points", "The output of `wsiseg assign`: one row per point, in the order of the file.", schema.ASSIGNED),
    ("Errors", "`RUN/errors.parquet`: what failed.", schema.ERRORS),
    (
        "Imported nuclei",
        "Further columns of `RUN/nuclei/<slide_id>.parquet` written by `wsiseg import`.",
        schema.IMPORTED,
    ),
    ("Outliers", "`RUN/qc/outliers.parquet` and `outliers.csv` of `wsiseg qc outliers`: one row per slide.", schema.OUTLIERS),
    ("Patches", "`RUN/qc/patches.parquet` of `wsiseg qc patches`: one row per sampled patch.", schema.PATCHES),
    (
        "Features of patches",
        "`RUN/qc/features.parquet`, from which the quality of patches is predicted; then one float64 column per feature.",
        schema.PATCH_FEATURES[:1],
    ),
    ("Predicted quality", "`RUN/qc/predicted.parquet` of `wsiseg qc predict`: one row per patch.", schema.PREDICTED),
    (
        "Predicted quality of slides",
        "`RUN/qc/predicted_slides.parquet` and `.csv`: one row per slide.",
        schema.PREDICTED_SLIDES,
    ),
    (
        "Order of a review",
        "`RUN/qc/order.parquet` of `wsiseg qc review --order predicted`: one row per patch.",
        schema.REVIEW_ORDER,
    ),
    ("Grades", "`RUN/qc/grades.parquet` of `wsiseg qc grade`: one row per slide.", schema.GRADED),
    (
        "Decisions",
        "`RUN/qc/report.decisions.csv` of `wsiseg qc report`: one line per slide, then one per sampled patch.",
        schema.DECISIONS,
    ),
    ("Compared slides", "`OUT/compare.parquet` of `wsiseg compare`: one row per slide.", schema.COMPARED),
    ("Compared cells", "`OUT/cells/<slide_id>.parquet`: where two segmentations agree.", schema.COMPARED_CELLS),
)


def commands(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    """Yield (name, help text as the terminal shows it) of a command and all below it."""
    # a fixed width, and no color: the same text on every machine
    context = click.Context(command, info_name=path, terminal_width=110, max_content_width=110, color=False)
    yield path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from commands(command.commands[name], f"{path} {name}")


def commands_page() -> str:
    """Return the page of all commands."""
    parts = [NOTE, "# Commands\n"]
    for name, text in commands(wsiseg, "wsiseg"):
        parts.append(f"## {name}\n\n```text\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def run_folder() -> str:
    """Return the list of a run folder's files, as the module that owns them tells it."""
    from wsiseg.results import folder

    return (folder.__doc__ or "").split("::", 1)[1].strip("\n")


def tables_page() -> str:
    """Return the page of files and columns."""
    parts = [NOTE, "# Files of a run, and their columns\n"]
    parts.append(f"```text\n{run_folder()}\n```\n")
    parts.append(
        "Coordinates are level-0 pixels: origin at the top-left corner of pixel (0, 0), x right, y down. Every Parquet file "
        "carries unit and meaning of a column in its field metadata.\n"
    )
    for title, text, columns in TABLES:
        rows = [f"| `{c.name}` | {c.arrow} | {c.unit} | {c.meaning} |" for c in columns]
        parts.append(
            "\n".join([f"## {title}\n", text, "", "| column | type | unit | meaning |", "|---|---|---|---|", *rows, ""])
        )
    return "\n".join(parts)


def main() -> int:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, text in (("commands.md", commands_page()), ("tables.md", tables_page())):
        path = DOCS / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.stderr.write(f"{'out of date' if check else 'written'}: {', '.join(stale)}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())

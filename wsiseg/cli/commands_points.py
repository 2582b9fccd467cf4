"""``wsiseg assign``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from wsiseg.cli.options import FRAME_HELP

__all__ = ["COMMANDS"]

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="RUN|FILE")
@click.argument("points", type=PATH)
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="Table to write (.parquet): the nucleus of each point, in the order of the points.")  # fmt: skip
@click.option("--counts", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Also write counts per nucleus and gene as AnnData (.h5ad).")  # fmt: skip
@click.option(
    "--slide", "slide_ids", multiple=True, metavar="SLIDE_ID", help="The slide of the points, if the run has several."
)
@click.option("--within-um", type=float, default=0.0, show_default=True,
              help="Assign points in no nucleus to the nearest one, up to this distance to its outline.")  # fmt: skip
@click.option("--format", "fmt", type=click.Choice(["auto", "xenium", "cosmx", "merscope", "visium-hd", "table"]),
              default="auto", show_default=True, help="Platform of the points; auto: recognized by the columns.")  # fmt: skip
@click.option("--x", default="", metavar="COLUMN", help="Column of x.  [the format's]")
@click.option("--y", default="", metavar="COLUMN", help="Column of y.  [the format's]")
@click.option("--gene", metavar="COLUMN", help="Column by which points are counted.  [the format's]")
@click.option("--keep", multiple=True, metavar="COLUMN", help="Copy this column to the table; may be repeated.")
@click.option("--min-quality", type=float, help="Do not count points of lower quality (Xenium: qv; 10x uses 20).  [count all]")
@click.option(
    "--matrix", type=PATH, metavar="H5", help="visium-hd: filtered_feature_bc_matrix.h5; its counts are summed by nucleus."
)
@click.option("--frame", default="auto", metavar="FRAME",
              help=FRAME_HELP.format("the points") + " Required unless a map is given or the points are bins.")  # fmt: skip
@click.option("--affine", type=PATH, metavar="MATRIX", help="Text file, 3x3 or 2x3: points to level-0 pixels of the slide.")
@click.option("--inverse", is_flag=True, help="The matrix of --affine maps the slide to the points.")
@click.option("--landmarks", type=PATH, metavar="CSV", help="Pairs x, y, slide_x, slide_y; or Xenium Explorer's keypoints.")
@click.option("--transformation", type=PATH, metavar="ELEMENT", help="SpatialData element of the points (folder in the store).")
@click.option("--image-transformation", type=PATH, metavar="ELEMENT", help="SpatialData element of the slide's picture.")
@click.option("--divide", type=float, default=1.0, show_default=True,
              help="Divide x and y by this before the map is applied (um to px: the um/px of the map's picture).")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
def assign(target: Path, points: Path, out: Path, slide_ids: tuple[str, ...], overwrite: bool, **options: Any) -> None:
    """Assign points to nuclei: transcripts (Xenium, CosMx, MERSCOPE), bins (Visium HD), or any table with x and y.

    POINTS is a Parquet or CSV file, or the instrument's output folder. A point inside a nucleus or on its border is assigned to
    it; if several contain it, to the smallest. Bins of Visium HD are assigned by their center. Points are read in batches, so
    their number is not limited by memory.

    \b
    wsiseg assign RUN transcripts.parquet --affine he_imagealignment.csv --inverse --divide 0.2125 -o points.parquet
    wsiseg assign RUN transcripts.csv --slide SLIDE --landmarks marks.csv --within-um 5 -o points.parquet --counts c.h5ad
    wsiseg assign RUN square_002um --matrix filtered_feature_bc_matrix.h5 -o bins.parquet --counts counts.h5ad
    wsiseg assign RUN cells.csv --x x_um --y y_um --frame um -o points.parquet
    """
    from wsiseg.errors import InputError, first_names
    from wsiseg.questions import AssignOptions, assign_points_to_nuclei, open_points, tables_of

    if out.suffix != ".parquet":
        raise InputError(f"Expected an output .parquet, got {out}.")
    for path in (out, options["counts"]):
        if path is not None and path.exists() and not overwrite:
            raise InputError(f"{path} already exists. Remove it, choose another name, or add --overwrite.")
    tables = tables_of(target, slide_ids)
    if len(tables) > 1:
        names = first_names([t.stem for t in tables], 5)
        raise InputError(f"{target}: expected one slide, got {len(tables)} ({names}). Choose one with --slide.")
    named = {name: options.pop(name) for name in ("x", "y", "gene", "keep")}
    source = open_points(points, options.pop("fmt"), **named)
    done = assign_points_to_nuclei(tables[0], source, out, AssignOptions(**options), on_progress=_report_every(10_000_000))
    for note in done.notes:
        click.echo(f"  note: {note}", err=True)
    n = max(1, done.n_points)
    click.echo(
        f"{source.path} ({source.format}): {done.n_points:,} points, {done.n_inside:,} ({done.n_inside / n:.1%}) in nuclei",
        nl=False,
    )
    near = f", {done.n_near:,} ({done.n_near / n:.1%}) within {options['within_um']:g} um of one"
    click.echo(near if options["within_um"] else "")
    click.echo(f"{out}: {done.n_points:,} rows")
    if options["counts"] is not None:
        left = f"; {done.n_low_quality:,} points of lower quality left out" if done.n_low_quality else ""
        shape = f"{done.n_nuclei:,} nuclei x {done.n_genes:,} genes, {done.n_pairs:,} counts above 0"
        click.echo(f"{options['counts']}: {shape}{left}")


def _report_every(step: int) -> Callable[[int], None]:
    """Return a function that prints the number of points done after every ``step`` points."""
    last = 0

    def report(done: int) -> None:
        nonlocal last
        if done // step > last // step:
            click.echo(f"{done:,} points", err=True)
        last = done

    return report


COMMANDS = (assign,)

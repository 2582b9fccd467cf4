"""``wsiseg regions``, ``neighbors`` and ``cells``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from wsiseg.cli.options import FRAME_HELP
from wsiseg.cli.progress import piece_bar
from wsiseg.errors import first_names

if TYPE_CHECKING:
    from wsiseg.questions import SlideCells, SlideNeighbors

__all__ = ["COMMANDS"]

PATH = click.Path(path_type=Path)


@click.command()
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="RUN|FILE")
@click.argument("annotations", type=PATH)
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False, path_type=Path),
              help="File to write: .parquet, .csv or .h5ad.")  # fmt: skip
@click.option("--to", type=click.Choice(["parquet", "csv", "anndata"]), help="Format of the file.  [by its suffix]")
@click.option("--slide", "slide_ids", multiple=True, metavar="SLIDE_ID", help="Only this slide of the run; may be repeated.")
@click.option("--frame", default="auto", metavar="FRAME", help=FRAME_HELP.format("the regions' coordinates"))
@click.option("--belongs", type=click.Choice(["marker", "area"]), default="marker", show_default=True,
              help="A nucleus belongs to a region that contains its marker, or a share of its area.")  # fmt: skip
@click.option("--area-frac", type=float, default=0.5, show_default=True,
              help="With --belongs area: minimum share of a nucleus that must be in the region.")  # fmt: skip
@click.option("--distances", type=click.Path(file_okay=False, path_type=Path), metavar="FOLDER",
              help="Also write the distance of every nucleus to the borders, um, to FOLDER/SLIDE_ID.parquet.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
def regions(
    target: Path, annotations: Path, out: Path, to: str | None, slide_ids: tuple[str, ...], overwrite: bool, **options: Any
) -> None:
    """Measure drawn regions and their nuclei: area, tissue, density, mean area ..., one row per region and one per class.

    ANNOTATIONS is a file for one slide, or a folder of files named like their slides: GeoJSON of QuPath or any other tool, ASAP
    XML, ImageScope XML. Holes and parts outside the slide are left out. Overlapping regions are measured separately; in the row
    of a class, overlaps count once. Regions that do not fit the slide or its tissue are reported or refused, with numbers.

    \b
    wsiseg regions RUN annotations/ -o regions.parquet
    wsiseg regions RUN tumor.geojson --slide SLIDE -o regions.csv --belongs area --area-frac 0.5
    wsiseg regions RUN SLIDE.xml --slide SLIDE -o regions.parquet --distances borders
    """
    from wsiseg.errors import InputError
    from wsiseg.questions import RegionOptions, pair_annotations, run_regions, tables_of, write_regions
    from wsiseg.questions.output import output_kind

    kind = output_kind(out, to)
    if out.exists() and not overwrite:
        raise InputError(f"{out} already exists. Remove it, choose another --out, or add --overwrite.")
    pairing = pair_annotations(tables_of(target, slide_ids), annotations)
    for note in pairing.notes:
        click.echo(note)
    rows, failed = [], 0
    for done in run_regions(pairing, RegionOptions(**options)):
        for note in done.notes:
            click.echo(f"  note: {note}", err=True)
        if done.error:
            failed += 1
            click.echo(f"{done.slide_id}: {done.error}", err=True)
            continue
        rows += done.rows
        drawn = [r for r in done.rows if r.kind == "region"]
        names = ", ".join(f"{r.class_name or 'no class'} {r.n_regions}" for r in done.rows if r.kind == "class")
        click.echo(f"{done.slide_id}: {len(drawn)} regions ({names}), {done.n_within:,} of {done.n_nuclei:,} nuclei in them")
    _print_unpaired("slides without an annotation file", pairing.slides_without)
    _print_unpaired("annotation files without a slide", [p.name for p in pairing.files_without])
    if rows:
        write_regions(rows, out, kind)
        click.echo(f"{out}: {len(rows):,} rows; nuclei belong by {', '.join(sorted({r.belongs for r in rows}))}")
    sys.exit(0 if rows and not failed else 1)


def _print_unpaired(what: str, names: list[str]) -> None:
    if names:
        click.echo(f"{what}: {len(names):,} ({first_names(names)})", err=True)


@click.command()
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="RUN|FILE")
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to make or add to.")
@click.option("--radius-um", "radii_um", type=float, multiple=True, metavar="R",
              help="Nuclei with centroids at most R um apart are neighbors; repeatable.")  # fmt: skip
@click.option(
    "--delaunay",
    is_flag=True,
    help="Also use the Delaunay triangulation of centroids: nuclei that share an edge are neighbors.",
)
@click.option("--max-edge-um", type=float, help="With --delaunay: leave out longer edges.")
@click.option("--mean", "means", multiple=True, default=("area_um2",), show_default=True, metavar="COLUMN",
              help="Write the mean of this column over the neighbors of each nucleus; repeatable.")  # fmt: skip
@click.option("--density-step-um", type=float, metavar="S",
              help="Also write maps of nuclei per mm2 within each radius, with one value every S um.")  # fmt: skip
@click.option("--no-edges", is_flag=True, help="Write no edges: only counts, means and maps, for large radii.")
@click.option("--slide", "slide_ids", multiple=True, metavar="SLIDE_ID", help="Only this slide of the run; may be repeated.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes, one slide each.")
@click.option("--overwrite", is_flag=True, help="Compute slides again that have results.")
def neighbors(target: Path, out: Path, slide_ids: tuple[str, ...], no_edges: bool, **options: Any) -> None:
    """Find the neighbors of each nucleus, and compute their number and means over them.

    \b
    OUT/radius/SLIDE_ID.parquet    edges: two nucleus ids, distance in um, up to the largest --radius-um
    OUT/delaunay/SLIDE_ID.parquet  edges of the triangulation
    OUT/nuclei/SLIDE_ID.parquet    one row per nucleus: number of neighbors, mean of each --mean over them
    OUT/density/SLIDE_ID.Rum.tif   maps of --density-step-um, float32 TIFF

    Distances are between centroids. There is no correction at the border of the tissue, where nuclei have fewer neighbors.
    --mean accepts columns of the table, derived ones (circularity ...) and those of wsiseg features. The graphs equal those of
    squidpy.gr.spatial_neighbors. Finished slides are skipped, so the same command resumes.

    \b
    wsiseg neighbors RUN -o NEIGHBORS --radius-um 25 --radius-um 50
    wsiseg neighbors RUN -o NEIGHBORS --radius-um 250 --density-step-um 50 --no-edges
    wsiseg neighbors RUN -o NEIGHBORS --radius-um 50 --delaunay --max-edge-um 100 --mean area_um2 --mean circularity
    """
    from wsiseg.questions import NeighborOptions, find_neighbors, tables_of

    tables = tables_of(target, slide_ids)
    chosen = NeighborOptions(**options, edges=not no_edges)
    count, n_nuclei, n_edges = _Count(len(tables)), 0, 0
    for done in find_neighbors(tables, out, chosen):
        for note in done.notes:
            click.echo(f"  note: {done.slide_id}: {note}", err=True)
        if count.is_new(done, f"{done.n_nuclei:,} nuclei, finished already"):
            n_nuclei, n_edges = n_nuclei + done.n_nuclei, n_edges + sum(done.n_edges.values())
            edges = ", ".join(f"{n:,} {kind} edges" for kind, n in done.n_edges.items())
            click.echo(f"{count.place}: {done.n_nuclei:,} nuclei, {edges}")
    count.end(f"({n_nuclei:,} nuclei, {n_edges:,} edges)", f"{out}: ")


@click.command()
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="RUN|FILE")
@click.option(
    "--expand-um", required=True, type=float, metavar="D", help="Maximum distance of a cell's border from its nucleus, um."
)
@click.option("--slide", "slide_ids", multiple=True, metavar="SLIDE_ID", help="Only this slide of the run; may be repeated.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True,
              help="Number of processes, which share a slide; the files do not depend on it.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace existing cells.")
def cells(target: Path, slide_ids: tuple[str, ...], **options: Any) -> None:
    """Grow every nucleus of a run by up to D um into a cell; cells never overlap.

    They are written to RUN/cells/SLIDE_ID.parquet, in the row order of the slide's table. Every pixel within D of a nucleus
    belongs to the nearest one (at equal distance to that with the lower nucleus_id), so cells do not depend on tiles or order.
    They are an upper limit of the extent of a cell; membranes are not detected. wsiseg export --cells writes them with their
    nuclei. Finished slides are skipped, so the same command resumes. Slide files are not needed.

    \b
    wsiseg cells RUN --expand-um 5
    wsiseg export RUN --to qupath --cells -o FOLDER
    """
    from wsiseg.questions import CellOptions, grow_cells, tables_of

    tables = tables_of(target, slide_ids)
    count, n_cells = _Count(len(tables)), 0
    with piece_bar("cells") as show:
        for done in grow_cells(tables, CellOptions(**options), show):
            if not count.is_new(done, f"{done.path} already exists"):
                continue
            n = done.n_nuclei - done.n_covered
            n_cells += n
            size = f", {done.area_mean_um2:.1f} um2 on average" if n else ""
            click.echo(f"{count.place}: {n:,} cells of {done.n_nuclei:,} nuclei{size}")
            if done.n_covered:
                click.echo(
                    f"  note: {done.n_covered:,} nuclei are covered by others or outside the slide and have no cell", err=True
                )
    count.end(f"({n_cells:,} cells)")


@dataclass(slots=True)
class _Count:
    """Slides of a command that does one after the other, and the line that each begins with."""

    of: int
    taken: int = 0
    skipped: int = 0
    failed: int = 0
    place: str = ""

    def is_new(self, done: SlideNeighbors | SlideCells, there: str) -> bool:
        """Count and print the result of a slide; return whether it was done in this call."""
        self.taken += 1
        self.place = f"[{self.taken}/{self.of}] {done.slide_id}"
        if done.error:
            self.failed += 1
            click.echo(f"{self.place}: {done.error}", err=True)
        elif done.skipped:
            self.skipped += 1
            click.echo(f"{self.place}: {there}")
        return not done.error and not done.skipped

    def end(self, made: str, where: str = "") -> NoReturn:
        """Print the sum, and end with 1 if a slide failed."""
        n = self.of - self.failed - self.skipped
        click.echo(f"{where}{n:,} slides {made}, {self.skipped:,} finished already, {self.failed:,} failed")
        sys.exit(1 if self.failed else 0)


COMMANDS = (cells, regions, neighbors)

"""``wsiseg export``, ``import`` and ``query``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsiseg.cli.options import (
    COMPONENTS_HELP,
    FRAME_HELP,
    FolderOrAddress,
    RenamedOption,
    build_config,
    cluster_only_options,
)
from wsiseg.cli.progress import piece_bar
from wsiseg.config import RunConfig
from wsiseg.errors import first_names

if TYPE_CHECKING:
    from wsiseg.run.features import FeatureOptions

__all__ = ["COMMANDS", "measure_shown"]

EXPORTS = ("anndata", "asap", "csv", "dicom-ann", "dicom-seg", "geopackage", "heatmap", "imagej", "imagescope", "labels-png",
           "labels-tiff", "maps", "marks", "ome-zarr", "quip", "qupath", "qupath-project", "spatialdata", "tiatoolbox",
           "tissuumaps", "xenium")  # fmt: skip
IMPORTS = ("cellvit", "dicom-ann", "hovernet", "hovernext", "labels", "marks", "quip", "qupath", "tiatoolbox")

PATH = click.Path(path_type=Path)


@click.command("export")
@click.argument("target", type=click.Path(exists=True, path_type=Path), metavar="RUN|FILE")
@click.option("--to", required=True, type=click.Choice(EXPORTS), help="Format to write.")
@click.option("-o", "--out", required=True, type=PATH, help="File for one slide; folder for several, and for quip.")
@click.option("--slide", "slide_ids", multiple=True, metavar="SLIDE_ID", help="Only this slide of the run; repeatable.")
@click.option("--region", default="", metavar="X,Y,W,H", help="Only nuclei whose centroid is in this window, level-0 pixels.")
@click.option("--sample", type=click.IntRange(1), help="At most this many nuclei, the same ones every time.")
@click.option("--frame", cls=RenamedOption, old_names=["--origin"], type=click.Choice(["bounds", "slide"]), default="bounds",
              show_default=True,
              help="qupath: coordinates relative to the scanned area, as in QuPath, or to the slide's corner.")  # fmt: skip
@click.option("--centroids", is_flag=True, help="qupath: points instead of polygons, a tenth of the size.")
@click.option("--tile-px", cls=RenamedOption, old_names=["--tile"], type=click.IntRange(64), default=4000, show_default=True,
              help="quip: side of a tile, level-0 pixels.")  # fmt: skip
@click.option("--cell-px", cls=RenamedOption, old_names=["--cell"], type=click.IntRange(4), default=None,
              help="maps, heatmap: side of a cell, level-0 pixels.  [maps: 32; heatmap: 64 um]")  # fmt: skip
@click.option(
    "--features", is_flag=True, help="Add features: eccentricity, circularity, and those that wsiseg features measured."
)
@click.option("--dicom-series", type=click.Path(exists=True, path_type=Path), metavar="PATH",
              help="dicom-ann, -seg: a file of the slide's DICOM series, or its folder.  [the slide of the run]")  # fmt: skip
@click.option("--dicom-3d", is_flag=True, help="dicom-ann: mm in the slide's frame of reference instead of pixels.")
@click.option("--image-mpp", type=click.FloatRange(0.05, 100), default=0.5, show_default=True,
              help="tissuumaps, xenium: microns per pixel of the exported image.")  # fmt: skip
@click.option("--path-map", multiple=True, metavar="FROM=TO",
              help="For formats with a picture: slides whose paths began with FROM are under TO; repeatable.")  # fmt: skip
@click.option(
    "--cells",
    is_flag=True,
    help="qupath, qupath-project, spatialdata, xenium: cells that wsiseg cells made, with their nuclei.",
)
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
def export_command(target: Path, to: str, out: Path, slide_ids: tuple[str, ...], region: str, **options: Any) -> None:
    """Write the nuclei of a run (or of one table) in the format of another tool.

    \b
    qupath       GeoJSON detections (.geojson.gz)      spatialdata  SpatialData store (.zarr)
    quip         QuIP / TCIA tiles (CSV and JSON)      anndata      AnnData for squidpy (.h5ad)
    marks        caMicroscope documents                tiatoolbox   annotation store (.db)
    labels-png   label image of a region (uint16)      ome-zarr     label image of the slide, OME-Zarr 0.5
    labels-tiff  label image of a region (uint32)      maps         density, mean area, cover, OME-Zarr 0.5
    geopackage   GIS tools                             imagej       ROI set of a region
    asap         ASAP XML                              imagescope   Aperio ImageScope XML
    csv          table with WKT                        dicom-ann    DICOM bulk annotations (.dcm)
    xenium       folder for Xenium Explorer            tissuumaps   folder for TissUUmaps
    heatmap      heat map of caMicroscope              qupath-project  QuPath project of all slides
    dicom-seg    DICOM segmentation, a file a level

    \b
    wsiseg export RUN --to qupath --out folder
    wsiseg export RUN --to qupath-project --out PROJECT
    wsiseg export RUN/nuclei/SLIDE.parquet --to qupath --region 20000,20000,4000,4000 -o window.geojson
    """
    from wsiseg.export.convert import ExportOptions, export_tables, slides_without_table
    from wsiseg.export.overlay import parse_region

    written, empty, failed = 0, [], 0
    with piece_bar("picture") as show:
        chosen = ExportOptions(region=parse_region(region), progress=show, **options)
        for done in export_tables(target, to, out, chosen, slide_ids=slide_ids):
            if done.error:
                failed += 1
                click.echo(done.error, err=True)
                continue
            if done.empty:
                empty.append(done.path.stem)
                continue
            written += 1
            more = f", {done.n_repaired} repaired" if done.n_repaired else ""
            more += f", {done.n_dropped} without area left out" if done.n_dropped else ""
            click.echo(f"{done.path}: {done.n_nuclei:,} nuclei{more}")
    without = slides_without_table(target) if target.is_dir() and not slide_ids else []
    for why, names in (
        (f"they have no nuclei and {to} has no empty files", empty),
        (f"the run could not use the slide (wsiseg errors {target})", without),
    ):
        if names:
            click.echo(f"not written, because {why}: {len(names)} ({first_names(names)})")
    sys.exit(0 if written and not failed else 1)


@click.command("import")
@click.argument("files", nargs=-1, required=True, type=PATH, metavar="FILE...")
@click.option("--from", "fmt", required=True, type=click.Choice(IMPORTS), help="Tool or format of the files.")
@click.option(
    "-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Run folder to make or add to."
)
@click.option("--slide-file", "slide", cls=RenamedOption, old_names=["--slide"], default="", metavar="SLIDE",
              help="The slide of these nuclei: gives mpp, size, bounds and tissue.")  # fmt: skip
@click.option("--mpp", type=click.FloatRange(0.01, 100), help="Microns per level-0 pixel, if the file does not state it.")
@click.option("--width", "width_px", type=click.IntRange(1), help="Slide width, level-0 pixels.")
@click.option("--height", "height_px", type=click.IntRange(1), help="Slide height, level-0 pixels.")
@click.option("--slide-id", default="", metavar="ID", help="Id of the slide.  [the slide's or file's name]")
@click.option("--cohort", default="", metavar="NAME", help="Cohort (cancer type) of the slides.")
@click.option("--scale", type=float, help="File pixels per level-0 pixel.  [1]")
@click.option("--label-mpp", type=click.FloatRange(0.01, 100), help="Microns per pixel of a label image.")
@click.option("--frame", cls=RenamedOption, old_names=["--origin"], default="auto", metavar="FRAME",
              help=FRAME_HELP.format("coordinates"))  # fmt: skip
@click.option("--components", is_flag=True, help=COMPONENTS_HELP)
@click.option("--dx", type=float, default=0.0, help="Level-0 pixels added to x.")
@click.option("--dy", type=float, default=0.0, help="Level-0 pixels added to y.")
@click.option("--classes", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="hovernext: class_inst.json.")
@click.option("--fix-edge-tiles", is_flag=True, help="quip: rescale edge tiles of releases before 7 December 2019.")
@click.option("--strict", is_flag=True, help="Refuse polygons that cross themselves instead of only flagging them.")
def import_command(files: tuple[Path, ...], fmt: str, out: Path, **options: Any) -> None:
    """Import other tools' segmentations into a run folder, so that qc, evaluate, query and export can use them.

    \b
    quip        folder of *-features.csv (TCIA release) hovernext   label map (pinst_pp.zip) with --classes
    marks       caMicroscope documents                  tiatoolbox  annotation store (.db)
    qupath      GeoJSON of any tool, JSON lines too     cellvit     cells.json, also .snappy
    dicom-ann   DICOM bulk annotations, 2D and 3D
    hovernet    json of HoVer-Net                       labels      StarDist, Cellpose (also _seg.npy), masks

    Label images are .tif .png .npy .npz .mat .zarr; text may be compressed (.gz, .zip). Objects that are not nuclei are left
    out and counted; problems of a polygon are recorded in the column import_flags; every repair is reported.

    \b
    wsiseg import TCIA/luad_polygon/SLIDE.svs --from quip --cohort LUAD --out RUN
    wsiseg import cells.json --from cellvit --slide-file SLIDE.svs --out RUN
    """
    from wsiseg.export.imports import ImportOptions, import_files

    for done in import_files(files, fmt, out, ImportOptions(**options)):
        click.echo(f"{done.slide_id}: {done.n_nuclei:,} nuclei")
        for name, n in done.flags.items():
            click.echo(f"  flagged {name.lower()}: {n:,}")
        for name, n in done.skipped.items():
            click.echo(f"  left out, {name}: {n:,}")
        for name, n in done.repaired.items():
            click.echo(f"  repaired, {name}: {n:,}")
        for note in done.notes:
            click.echo(f"  note: {note}")
        if not done.n_nuclei and done.skipped:
            click.echo("  warning: the file has no outline of a nucleus", err=True)
    click.echo(f"run folder: {out}")


@click.command()
@click.argument("run", type=FolderOrAddress())
@click.argument("sql")
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write .csv or .parquet instead of printing."
)
@click.option("--rows", type=click.IntRange(1), default=40, show_default=True, help="Rows printed.")
@click.option("--allow-files", is_flag=True, help="Allow the SQL to access other files, extensions and the network.")
def query(run: str | Path, sql: str, out: Path | None, rows: int, allow_files: bool) -> None:
    """Run an SQL query over the tables of RUN.

    RUN is a run folder, a folder made by wsiseg cohort, or the address to which wsiseg publish sent a run. From a bucket only
    the row groups that the query needs are read.

    Views: nuclei, features, slides, errors, grades. The SQL can only read these; --out writes the result to a file. With
    --allow-files it can do everything that DuckDB can; use this only for SQL that you trust.

    \b
    wsiseg query RUN "select slide_id, count(*) n, avg(area_um2) from nuclei group by all order by n desc"
    wsiseg query s3://bucket/run "select * from nuclei where slide_id = 'A' and cx between 5000 and 6000"
    wsiseg query RUN --allow-files "select * from nuclei join 'patients.csv' using (slide_id)" -o joined.parquet
    """
    from wsiseg.export.convert import query_run

    table, units = query_run(run, sql, out, allow_files=allow_files)
    if out is not None:
        click.echo(f"{out}: {table.num_rows:,} rows")
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*(f"{name}\n{units.get(name, '')}" for name in table.column_names))
    for row in table.slice(0, rows).to_pylist():
        shown.add_row(*(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row.values()))
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print(shown)
    if table.num_rows > rows:
        console.print(f"... {table.num_rows - rows:,} more rows")


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--slide", "slide_ids", multiple=True, metavar="SLIDE_ID", help="Only this slide; repeatable.")
@click.option("--stain-vectors", "stain", cls=RenamedOption, old_names=["--stain"], type=click.Choice(["ruifrok", "macenko"]),
              default="ruifrok", show_default=True,
              help="Stain vectors: of Ruifrok and Johnston, equal for all slides, or fitted to each by Macenko.")  # fmt: skip
@click.option("--no-pixels", is_flag=True, help="Omit optical densities; the slide files are then not needed.")
@click.option("--tile", "tile_wpx", type=click.IntRange(64, 16384), default=2048, show_default=True,
              help="Side of the windows read, pixels at the model's resolution; results do not depend on it.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Measure slides again that already have features.")
@click.option("--workers", type=click.IntRange(0), default=None, help="Worker processes.  [one per core]")
@cluster_only_options
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def features(
    run: Path,
    slide_ids: tuple[str, ...],
    stain: str,
    no_pixels: bool,
    tile_wpx: int,
    overwrite: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Measure further features of every nucleus of RUN: stain, solidity, neighbors.

    They are written to RUN/features/SLIDE_ID.parquet, in the row order of the slide's table; wsiseg query (view features),
    wsiseg export --features and wsiseg.read_nuclei(..., features=True) join them. Eccentricity, circularity and other features
    derived from the table are available without this command. wsiseg segment --features measures the same during the run,
    without reading the slide again. Use --path-map for slides that were moved. Finished slides are skipped, so the same
    command resumes.

    \b
    wsiseg features RUN
    wsiseg query RUN "select slide_id, avg(hematoxylin_od_mean), avg(nearest_um) from features group by all"
    """
    from wsiseg.run.features import FeatureOptions

    config = build_config(None, options)
    what = FeatureOptions(stain, not no_pixels, tile_wpx, config.schedule.path_map, overwrite)  # type: ignore[arg-type]
    sys.exit(1 if measure_shown(run, what, slide_ids, config, quiet=quiet) else 0)


def measure_shown(run: Path, options: FeatureOptions, slide_ids: tuple[str, ...], config: RunConfig, *, quiet: bool) -> int:
    """Measure features and show progress (``quiet``: only errors); return the number of slides that failed."""
    from rich.console import Console
    from rich.progress import Progress

    from wsiseg.run.features import FeatureProgress, measure_run

    failed = 0
    with Progress(transient=True, disable=not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("features", total=None)

        def show(p: FeatureProgress) -> None:
            text = f"features  slides {p.slides_done}/{p.slides}"
            bar.update(task, description=text, completed=p.pieces_done, total=max(1, p.pieces))

        for slide_id, found in measure_run(run, options, slide_ids, config, show):
            failed += isinstance(found, str)
            if isinstance(found, str) or not quiet:
                text = f"{slide_id}: {found:,} nuclei" if isinstance(found, int) else f"{slide_id}: {found}"
                click.echo(text, err=isinstance(found, str))
    return failed


@click.command()
@click.argument(
    "runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="RUN..."
)
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to make.")
def cohort(runs: tuple[Path, ...], out: Path) -> None:
    """Arrange the tables of several runs as one dataset: OUT/cohort=.../slide_id=.../nuclei.parquet.

    Files are hard links where possible, so nothing is stored twice. DuckDB, pyarrow, Polars and Spark read the folder as one
    table with the columns cohort and slide_id.

    \b
    wsiseg cohort RUN_LUAD RUN_BRCA -o COHORT
    wsiseg query COHORT "select cohort, count(*) n, avg(area_um2) area_um2 from nuclei group by all"
    """
    from wsiseg.export.convert import make_cohort

    made, precisions, warning = make_cohort(runs, out)
    click.echo(f"{out}: {len(made):,} slides ({', '.join(f'{n:,} in {name}' for name, n in sorted(precisions.items()))})")
    if warning:
        click.echo(f"warning: {warning}", err=True)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("address", metavar="ADDRESS")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def publish(run: Path, address: str, quiet: bool) -> None:
    """Upload the finished slides of RUN to a bucket: their tables, the statistics, and QC.

    Objects appear complete or not at all. Repeating the command uploads only new or changed files (by size and MD5), so it
    resumes, and can be used during a run. wsiseg query, geopandas and pyarrow then read a window of a slide from the
    bucket without downloading its table.

    \b
    wsiseg publish RUN s3://bucket/cohort-1
    wsiseg query s3://bucket/cohort-1 "select count(*) from nuclei where slide_id = 'A' and cx < 5000 and cy < 5000"
    """
    from wsiseg.export.publish import publish_run

    def tell(name: str, n_bytes: int) -> None:
        if not quiet:
            click.echo(f"sent       {name} ({n_bytes / 1e6:.2f} MB)", err=True)

    done = publish_run(run, address, tell)
    if not quiet:
        click.echo(f"objects    {done.sent} sent ({done.sent_bytes / 1e6:.1f} MB), {done.there} existed already")
        if done.unfinished:
            n = len(done.unfinished)
            click.echo(f"left out   {n} slides that are not finished: {first_names(done.unfinished, 5)}")


COMMANDS = (export_command, import_command, query, features, cohort, publish)

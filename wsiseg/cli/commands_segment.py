"""``wsiseg segment``, ``merge`` and ``demo``."""

from __future__ import annotations

import datetime
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from wsiseg.cli.commands_convert import measure_shown
from wsiseg.cli.options import build_config, cluster_options, default_of, segment_options, slide_options

if TYPE_CHECKING:
    from wsiseg.config import RunConfig
    from wsiseg.results.manifest import Found
    from wsiseg.run.segment import RunSummary
    from wsiseg.run.shards import Shard

__all__ = ["COMMANDS"]


@click.command()
@click.argument("slides", nargs=-1, metavar="SLIDE...")
@click.option(
    "-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Run folder; resumed if it exists."
)
@segment_options
@slide_options
@cluster_options
@click.option(
    "--shard", default="", metavar="I/N", help="Process only part I of N of the slides, for job arrays, e.g. 3/8.  [all]"
)
@click.option(
    "--retries",
    type=click.IntRange(0),
    default=None,
    help=f"Number of times that a failed tile is tried again.  [{default_of('retries')}]",
)
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Process only slides of --out that failed completely or partly; SLIDE... may be left out.",
)
@click.option(
    "--tile-timeout",
    type=click.FloatRange(0),
    default=None,
    metavar="SECONDS",
    help="If a tile takes longer, its worker is killed and replaced and the tile is tried again; 0: no limit.  "
    f"[{default_of('tile_timeout')}]",
)
@click.option(
    "--metrics-file", default="", type=click.Path(dir_okay=False), help="Write counters to this file in Prometheus text format."
)
@click.option("--keep-parts", is_flag=True, default=None, help="Keep per-tile files after a slide is complete.")
@click.option(
    "--features",
    is_flag=True,
    default=None,
    help="Measure stain, solidity and neighbors of each nucleus too, as wsiseg features does, while pixels are in memory.",
)
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def segment(slides: tuple[str, ...], out: Path, shard: str, retry_failed: bool, quiet: bool, **options: Any) -> None:
    """Segment every nucleus of SLIDE... into the run folder --out.

    SLIDE is a slide file, a folder (searched with its subfolders; every DICOM series is a slide), a glob in quotes, or a
    manifest (CSV, TSV, Parquet) with a column `path` and optional `slide_id`, `cohort`, `mpp`, `tissue_mask`, `frame`. Files
    of a folder that are not segmented are listed at the end and in RUN/log.jsonl.

    SLIDE or `path` may also be an address (https://, s3://, gs://, file://; `size`, `md5` and `filename` are then checked), and
    SLIDE a download manifest of the GDC or the IDC (s5cmd list, CSV). Such slides are fetched while others are segmented,
    verified, and removed when they are finished; --stage-gb limits the disk space that they use.

    \b
    RUN/nuclei/<slide>.parquet  polygons (GeoParquet, level-0 px), one table per slide
    RUN/slides.parquet, .csv    statistics, one row per slide
    RUN/errors.parquet          failures with their reasons
    RUN/run.json                versions, settings, weights

    A run that was stopped or crashed is resumed by the same command; finished tiles are not computed again. A bad slide or
    tile does not stop the others.

    Slides without nuclei are listed at the end with the reason. Blank glass has the status `empty`; any other is `suspect`
    and makes the exit code 1. A resumed run processes these again only with another --mpp or --tissue-mask.

    \b
    One machine:        wsiseg segment slides/ --out RUN
    Dask cluster:       wsiseg segment slides/ --out /nfs/RUN --scheduler tcp://head:8786
    Other mount points: ... --path-map /mnt/slides=/data/slides
    From the GDC:       wsiseg segment gdc_manifest.txt --out RUN --stage /scratch --gdc-token-file token.txt
    From a bucket:      wsiseg segment s3://bucket/folder/ --out RUN --stage /scratch --stage-gb 200
    Job array:          wsiseg segment slides/ --out /nfs/RUN --shard $SLURM_ARRAY_TASK_ID/8
    Retry failures:     wsiseg segment --retry-failed --out RUN
    """
    from wsiseg.results.manifest import Found, find_slides
    from wsiseg.results.records import known_ids
    from wsiseg.run.retry import config_of_run, slides_to_retry
    from wsiseg.run.shards import Shard

    if not slides and not retry_failed:
        raise click.UsageError("Missing argument 'SLIDE...'.")
    given = {name: options[name] for name in ("cohort", "mpp", "tissue_mask", "frame")}
    found = find_slides(slides, **given, known=known_ids(out)) if slides else Found()
    if retry_failed:
        found.slides = slides_to_retry(out, found.slides, mpp=options["mpp"])
        options["mpp"] = None  # a property of these slides, not of the run
    config = build_config(options.pop("config_file"), options, config_of_run(out) if retry_failed else None)
    summary = run_segment(found, out, config, quiet=quiet, shard=Shard.parse(shard) if shard else None)
    measured = not config.write.features or _measure_features(out, summary, config)
    if not quiet:
        print_summary(summary)
    sys.exit(0 if summary.ok and measured else 1)


def _measure_features(out: Path, summary: RunSummary, config: RunConfig) -> bool:
    """Measure the features of slides that an earlier run finished without them; return whether all were measured."""
    from wsiseg.run.features import FeatureOptions

    options = FeatureOptions(path_map=config.schedule.path_map)
    slide_ids = tuple(r.slide_id for r in summary.rows if (out / "nuclei" / f"{r.slide_id}.parquet").is_file())
    return not slide_ids or measure_shown(out, options, slide_ids, config, quiet=True) == 0


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
def merge(run: Path) -> None:
    """Write the tables of RUN after all its shards have ended: slides.parquet, slides.csv, errors.parquet.

    The last shard does this automatically. If it could not, merge lists the slides and shards that are missing. The result
    equals that of one run without --shard.

    \b
    Example: wsiseg merge RUN
    """
    from wsiseg.run.shards import merge_shards
    from wsiseg.run.suspect import all_good, count_by_status, nothing_found

    rows, errors = merge_shards(run)
    click.echo(f"slides     {count_by_status(rows)}")
    click.echo(f"nuclei     {sum(r.n_nuclei or 0 for r in rows):,}")
    click.echo(f"errors     {len(errors)}")
    click.echo(f"run        {run}")
    for line in nothing_found(rows):
        click.echo(line)
    sys.exit(0 if all_good(rows) else 1)


@click.command()
@click.option(
    "-o", "--out", default="demo-out", type=click.Path(file_okay=False, path_type=Path), help="Run folder.", show_default=True
)
@click.option("--workers", type=click.IntRange(0), default=None, help="Worker processes.  [one per core]")
def demo(out: Path, workers: int | None) -> None:
    """Segment the real slide that is installed with wsiseg, draw an overlay, and print where the results are.

    Example:  wsiseg demo --out demo-out
    """
    config = build_config(None, {"workers": workers})
    from wsiseg.export.overlay import overlay_png
    from wsiseg.results.manifest import find_slides
    from wsiseg.run.doctor import demo_slide

    found = find_slides([str(demo_slide())], cohort="demo")
    summary = run_segment(found, out, config, quiet=False)
    picture = out / "overlay.png"
    if summary.ok:
        overlay_png(out, found.slides[0].slide_id, picture)
    row = summary.rows[0]
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\npolygons    {out / row.table}")
    console.print(f"statistics  {out / 'slides.csv'}  (and slides.parquet)")
    console.print(f"overlay     {picture}\n")
    print_summary(summary)
    sys.exit(0 if summary.ok else 1)


def run_segment(found: Found, out: Path, config: RunConfig, *, quiet: bool, shard: Shard | None = None) -> RunSummary:
    """Run the main job, with a progress display if the output is a terminal."""
    from wsiseg.results.listing import group_skipped
    from wsiseg.results.run_record import RunNote
    from wsiseg.run.segment import segment as run

    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    note = RunNote(tuple(sys.argv), created, os.environ.get("USER", ""))
    left_out = [str(group) for group in group_skipped(found.skipped)], found.notes
    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        tell = (lambda p: None) if quiet else _PlainProgress()
        return run(found.slides, out, config, shard=shard, note=note, left_out=left_out, on_progress=tell)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        task = display.add_task("tiles", total=None, facts="starting workers and loading the network")

        def show(p: Any) -> None:
            if p.message:
                console.print(p.message, markup=False)
                p.message = ""
            rate = p.mm2_done / max(1e-9, display.tasks[0].elapsed or 0)
            facts = f"slides {p.slides_done}/{p.slides}, {p.nuclei:,} nuclei, {rate:.2f} mm²/s"
            facts += f", {p.tiles_failed} failed" if p.tiles_failed else ""
            facts += f", fetched {p.fetched_bytes / 1e9:.2f} GB" if p.fetched_bytes else ""
            display.update(task, total=p.tiles or None, completed=p.tiles_done, facts=facts)

        return run(found.slides, out, config, shard=shard, note=note, left_out=left_out, on_progress=show)


class _PlainProgress:
    """Prints lines of progress if the output is not a terminal.

    A line is printed when a slide ends, otherwise every ten seconds if something has changed, and every minute if nothing has.
    """

    def __init__(self) -> None:
        self._last_s = 0.0
        self._slides_done = -1
        self._line = ""

    def __call__(self, p: Any) -> None:
        if p.message:
            click.echo(p.message, err=True)
            p.message = ""
        line = f"slides {p.slides_done}/{p.slides}, tiles {p.tiles_done}/{p.tiles}, {p.nuclei} nuclei, {p.mm2_done:.1f} mm2"
        line += f", {p.tiles_failed} tiles failed" if p.tiles_failed else ""
        line += f", fetched {p.fetched_bytes / 1e9:.2f} GB" if p.fetched_bytes else ""
        now_s = time.monotonic()
        if p.slides_done != self._slides_done or now_s - self._last_s > (60 if line == self._line else 10):
            self._last_s, self._slides_done, self._line = now_s, p.slides_done, line
            click.echo(line, err=True)


def print_summary(summary: RunSummary) -> None:
    """Print the summary of a run, and each failure with its reason."""
    from wsiseg.rows import STAGES
    from wsiseg.run.suspect import count_by_status, nothing_found

    rows = summary.rows
    nuclei = sum(r.n_nuclei or 0 for r in rows)
    tissue = sum(r.tissue_mm2 or 0.0 for r in rows)  # a failed slide has no statistics
    area = sum((r.area_mean_um2 or 0.0) * (r.n_nuclei or 0) for r in rows) / max(1, nuclei)
    stages = {stage: sum(r.seconds[stage] for r in rows) for stage in STAGES}
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"slides     {count_by_status(rows)}")
    density = nuclei / tissue if tissue else 0
    console.print(f"nuclei     {nuclei:,} in {tissue:.2f} mm² of tissue ({density:,.0f} per mm²), mean area {area:.1f} µm²")
    spent = ", ".join(f"{s} {v:.1f}" for s, v in stages.items())
    kernels = f", {summary.kernels_s:.1f} of them preparing CPU kernels" if summary.kernels_s else ""
    console.print(f"time       {summary.seconds:.1f} s in all{kernels}; worker seconds: {spent}")
    console.print(f"weights    {summary.weights}")
    console.print(f"precision  {summary.precision}")
    console.print(f"run        {summary.out}")
    for host, reason in summary.hosts_aside.items():
        console.print(f"excluded   {host}: {reason}")
    for line in [*summary.left_out, *nothing_found(rows)]:
        console.print(line)
    for error in summary.errors[:20]:
        where = f"slide {error.slide_id}" + (f", tile {error.tile_id}" if error.tile_id >= 0 else "")
        console.print(f"failed     {where}: {error.error}")
    if len(summary.errors) > 20:
        console.print(f"failed     ... and {len(summary.errors) - 20} more in {summary.out / 'errors.parquet'}")


COMMANDS = (segment, merge, demo)

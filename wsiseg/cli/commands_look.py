"""``wsiseg info``, ``plan``, ``doctor`` and ``overlay``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from wsiseg.cli.options import build_config, default_of, segment_options, slide_options

if TYPE_CHECKING:
    from wsiseg.results.manifest import Found
    from wsiseg.run.plan import Estimate, Plan, PlanRow

__all__ = ["COMMANDS"]


@click.command(short_help="Show size, levels, tissue, microns per pixel and reader of each SLIDE.")
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE...")
@click.option("--mpp", type=click.FloatRange(0.01, 100), help="Microns per level-0 pixel of slides whose file states none.")
@click.option("--estimate-mpp", is_flag=True, help="Estimate microns per pixel from the size of nuclei in eight windows.")
def info(slides: tuple[str, ...], mpp: float | None, estimate_mpp: bool) -> None:
    """Show the facts of each SLIDE: size, levels, samples, tissue, microns per pixel and their source, reader.

    Pixels are read as 8-bit H&E color: three samples, interleaved, in planes, or in pages named by OME-XML; also palettes,
    CMYK, and alpha (over white); rotated by the orientation tag. Integers with more bits are reduced to the upper 8 of the bits
    in use: those that the file declares, else the fewest of 8, 10, 12, 14 or 16 that can store the slide's brightest sample.
    Floats are 0..1 if the brightest sample is at most 1.5, else 0..255. Gray images, stacks and fluorescence are refused.
    Microns per pixel outside 0.1 to 2 must be confirmed with --mpp.

    With --estimate-mpp nuclei are segmented in up to eight windows of tissue, and that number of microns per pixel is shown at
    which their median diameter is usual. Nuclei of tissues differ in size, so the estimate tells 40x from 20x and 10x, and a
    wrong header from a right one, and is not a measurement: choose the scanner's value nearest to it, and give it with --mpp.

    \b
    Example: wsiseg info slides/*.svs
    Example: wsiseg info --estimate-mpp no_scale.tif
    """
    from wsiseg.config import ReadConfig
    from wsiseg.errors import AnisotropicMppError, ImplausibleMppError, InputError, MissingMppError
    from wsiseg.results.manifest import find_slides
    from wsiseg.run.inspect import slide_info

    console = Console(highlight=False, soft_wrap=True)
    bad = 0
    for name in slides:
        try:
            found = find_slides([name], mpp=mpp)
        except InputError as err:
            console.print(str(err), style="red", markup=False)
            bad += 1
            continue
        for slide in found.slides:
            try:
                facts = slide_info(slide.path, slide.mpp, 0.25, ReadConfig().mpp_tolerance_frac)
            except InputError as err:
                console.print(str(err), style="red", markup=False)
                if estimate_mpp and isinstance(err, MissingMppError | ImplausibleMppError | AnisotropicMppError):
                    _print_estimate(console, slide.path)
                bad += 1
                continue
            console.print(slide.path, style="bold", markup=False)
            for field, value in facts.items():
                if value not in ("", None):
                    console.print(f"  {field:18} {value}", markup=False)
            if estimate_mpp:
                _print_estimate(console, slide.path)
        _print_left_out(console, found)
    sys.exit(1 if bad else 0)


def _print_estimate(console: Console, path: str) -> None:
    from wsiseg.config import RunConfig
    from wsiseg.errors import InputError, TileReadError
    from wsiseg.run.inspect import estimate_slide_mpp

    try:
        found = estimate_slide_mpp(path, RunConfig())
    except (InputError, TileReadError) as err:  # the other slides are still shown
        console.print(f"  {'mpp_estimated':18} none: {err}", markup=False)
        return
    if found is None:
        text = "none: fewer than five nuclei found"
    else:
        text = f"{found.mpp:.3g} (from {found.n_nuclei:,} nuclei{'; the end of the range searched' if found.at_limit else ''})"
    console.print(f"  {'mpp_estimated':18} {text}", markup=False)


@click.command()
@click.argument("slides", nargs=-1, required=True, metavar="SLIDE...")
@segment_options
@slide_options
@click.option("--stage", type=click.Path(file_okay=False), help="Folder to which slides at addresses would be fetched.  [here]")
@click.option(
    "--stage-gb",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help=f"Size limit of the --stage folder, GB.  [{default_of('stage_gb')}]",
)
@click.option(
    "--gdc-token-file",
    type=click.Path(exists=True, dir_okay=False),
    help="File with the token for controlled files of the GDC.",
)
def plan(slides: tuple[str, ...], **options: Any) -> None:
    """Estimate tiles, tissue area, time and table size of a run over SLIDE... without running it.

    Eight small windows of tissue are segmented to measure the speed of this machine and the density of nuclei; nothing is
    written. Intervals are 90 % confidence intervals. Slides at addresses are not fetched; their sizes are listed, with a
    warning for those that do not fit into the staging folder.

    \b
    wsiseg plan slides/
    wsiseg plan gdc_manifest.txt --stage /scratch --stage-gb 200
    """
    config = build_config(options.pop("config_file"), options)
    from wsiseg.results.manifest import find_slides
    from wsiseg.run.plan import plan as make_plan

    given = {name: options[name] for name in ("cohort", "mpp", "tissue_mask", "frame")}
    found = find_slides(slides, **given)
    made = make_plan(found.slides, config)
    console = Console(highlight=False, soft_wrap=True)
    here = [r for r in made.rows if r.tiles or (r.error and not r.fetch_bytes)]
    table = Table("slide", "tiles", "with tissue", "tissue mm²", "minutes", "table MB")
    for r in here:
        minutes, megabytes = made.seconds([r]).times(1 / 60), made.table_bytes([r]).times(1e-6)
        size = "unusable" if r.error else _interval(megabytes, ".1f")
        table.add_row(
            r.slide_id, str(r.tiles), str(r.tiles_with_tissue), f"{r.tissue_mm2:.2f}", _interval(minutes, ".1f"), size
        )
    if here:
        console.print(table)
    for r in made.rows:
        if r.error:
            console.print(f"{r.slide_id}: {r.error}", style="red", markup=False)
        elif r.note:
            console.print(f"{r.slide_id}: {r.note}", style="yellow", markup=False)
    _print_left_out(console, found)
    _print_totals(console, made, here)
    console.print(f"computes   {made.resolved.words}", markup=False)
    sys.exit(1 if any(r.error for r in made.rows) or made.too_large() else 0)


def _print_totals(console: Console, made: Plan, here: list[PlanRow]) -> None:
    if any(r.tiles for r in here):
        console.print(
            f"{len(here)} slides, {sum(r.tissue_mm2 for r in here):.1f} mm² of tissue, "
            f"{_interval(made.seconds(here).times(1 / 3600), '.2f')} h with {made.workers} workers, tables of "
            f"{_interval(made.table_bytes(here).times(1e-9), '.3f')} GB. Measured here on {made.n_probes} windows: "
            f"{_interval(made.seconds_per_mm2, '.2f')} s per mm² of tissue and worker, "
            f"{_interval(made.nuclei_per_mm2, ',.0f')} nuclei per mm²."
        )
    remote = [r for r in made.rows if r.fetch_bytes]
    if not remote:
        return
    table = Table("slide at an address", "MB")
    for r in remote:
        table.add_row(r.slide_id, f"{r.fetch_bytes / 1e6:,.1f}")
    console.print(table)
    console.print(
        f"{len(remote)} slides to fetch, {sum(r.fetch_bytes for r in remote) / 1e9:,.3f} GB; staged at a time: at most "
        f"{made.bound_bytes / 1e9:,.3f} GB (--stage-gb), {made.free_bytes / 1e9:,.1f} GB are free."
    )
    if made.bound_bytes > made.free_bytes:
        console.print("The limit exceeds the free space: lower --stage-gb, or choose another --stage.", style="yellow")
    for r in made.too_large():
        console.print(f"{r.slide_id}: {r.fetch_bytes / 1e9:.3f} GB do not fit", style="red", markup=False)


def _interval(found: Estimate, form: str) -> str:
    """Return mean and interval as text."""
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def _print_left_out(console: Console, found: Found) -> None:
    """Print the files of folders that are not slides, by reason, and notes about the slides."""
    from wsiseg.results.listing import group_skipped

    for group in group_skipped(found.skipped):
        console.print(f"left out   {group}", markup=False)
    for note in found.notes:
        console.print(f"note       {note}", markup=False)


@click.command()
def doctor() -> None:
    """Check what is installed, what a run would compute with, and that segmentation works (a self-test)."""
    from wsiseg.run.doctor import doctor as examine

    console = Console(highlight=False, soft_wrap=True)
    checks = examine()
    style = {"ok": "green", "note": "yellow", "fail": "red"}
    for c in checks:
        console.print(f"[{style[c.status]}]{c.status:4}[/] {c.name:18} ", end="")
        console.print(c.detail, markup=False)
    sys.exit(1 if any(c.status == "fail" for c in checks) else 0)


@click.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("slide_id")
@click.option("--region", default="", metavar="X,Y,W,H", help="Level-0 pixels.  [the densest 1600 x 1000]")
@click.option("-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="PNG file to write.")
@click.option("--side-by-side", is_flag=True, help="Also show the tissue without outlines, next to it.")
@click.option("--density", is_flag=True, help="The whole slide with nuclei per mm² in color instead of outlines.")
@click.option(
    "--path-map", multiple=True, metavar="FROM=TO", help="Slides whose paths began with FROM are now under TO; repeatable."
)
def overlay(
    run: Path, slide_id: str, region: str, out: Path, side_by_side: bool, density: bool, path_map: tuple[str, ...]
) -> None:
    """Draw the nuclei of SLIDE_ID in run folder RUN over the tissue.

    \b
    wsiseg overlay RUN SLIDE_ID -o outlines.png
    wsiseg overlay RUN SLIDE_ID --region 20000,20000,4000,4000 --side-by-side -o region.png
    wsiseg overlay RUN SLIDE_ID --density -o density.png
    """
    if density:
        if region or side_by_side:
            raise click.UsageError(
                "--density always shows the whole slide side by side: leave --region and --side-by-side out."
            )
        from wsiseg.export.density import density_png

        density_png(run, slide_id, out, path_map)
        click.echo(f"{out}: nuclei per mm² of the whole slide")
        return
    from wsiseg.export.overlay import overlay_png, parse_region

    shown = overlay_png(run, slide_id, out, parse_region(region), side_by_side=side_by_side, path_map=path_map)
    click.echo(f"{out}: level-0 region {shown.x},{shown.y},{shown.w},{shown.h}")


COMMANDS = (info, plan, doctor, overlay)

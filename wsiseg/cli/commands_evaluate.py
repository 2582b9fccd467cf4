"""``wsiseg evaluate``: files against files, a network on annotated sets, observers; ``wsiseg compare``: runs of slides."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from wsiseg.cli.commands_data import print_table
from wsiseg.cli.options import COMPONENTS_HELP, FRAME_HELP, RenamedOption, build_config, cluster_only_options, default_of
from wsiseg.errors import first_names

if TYPE_CHECKING:
    from wsiseg.evaluation.compare import Comparison
    from wsiseg.evaluation.reports import Report

__all__ = ["COMMANDS"]

_EXISTING = click.Path(exists=True, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)

_PROTOCOL = click.option(
    "--protocol", type=click.Choice(["hou2020"]), help="Score as a paper does: Hou et al. 2020 (central 226 of 256 px patches)."
)
_GROUPS = click.option(
    "--groups", type=_FILE, help="CSV image,cancer_type[,wsi_group] for the rows of hou2020.  [organs of INFO.json]"
)


class _ByArguments(click.Group):
    """Selects the subcommand by the arguments, since `evaluate PRED TRUTH` and `evaluate --data ROOT` name none."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in self.commands and not self._is_pred(ctx, args)
        if args and not named and args[0] not in ctx.help_option_names:
            data = any(a == "--data" or a.startswith("--data=") for a in args)
            args = ["model" if data else "files", *args]
        return super().parse_args(ctx, args)

    def _is_pred(self, ctx: click.Context, args: list[str]) -> bool:
        """Return whether the first argument is PRED and not a subcommand: a path of that name exists, and TRUTH follows."""
        if not Path(args[0]).exists():
            return False
        parser = self.commands["files"].make_parser(click.Context(self.commands["files"], parent=ctx, info_name="files"))
        try:
            found, more, _ = parser.parse_args(list(args))
        except click.UsageError:  # such as an option of the subcommand
            return False
        return isinstance(found.get("truth"), str) and "=" not in found["truth"] and not more


@click.group(cls=_ByArguments)
def evaluate() -> None:
    """Score nuclei: files against files, a network against annotated sets, annotators against each other.

    \b
    wsiseg evaluate PRED TRUTH                      two files, or two folders paired by name
    wsiseg evaluate --data SETS                     the default weights on held-out patients of annotated sets
    wsiseg evaluate --data SETS --weights open --against research --gallery worst.png
    wsiseg evaluate --protocol hou2020 PRED TRUTH   the validation tables of Hou et al. 2020
    wsiseg compare RUN_A RUN_B -o OUT               two segmentations of whole slides, window by window
    wsiseg evaluate observers anna=A ben=B anna=C   inter- and intra-observer agreement per organ

    `wsiseg evaluate files --help`, `... model --help` and `... observers --help` list the options. A file or folder named
    files, model or observers can be PRED: `wsiseg evaluate model TRUTH` scores the folder `model` if it exists.
    """


@evaluate.command()
@click.argument("pred", type=_EXISTING)
@click.argument("truth", type=_EXISTING)
@click.option("-o", "--out", type=_NEW_FILE, help="Write scores per image (.csv, .parquet or .json; a protocol: .json).")
@click.option("--compare", type=_EXISTING, metavar="PRED2", help="Another run's predictions: paired Wilcoxon test on PQ.")
@click.option("--ignore", type=_EXISTING, help="Mask (or folder of masks) of pixels that are not scored.")
@click.option(
    "--scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Label px per polygon px."
)
@click.option("--corner", cls=RenamedOption, old_names=["--origin"], default="0,0", show_default=True, metavar="X,Y",
              help="Polygon coordinates of the label image's top-left corner.")  # fmt: skip
@click.option("--frame", default="auto", metavar="FRAME", help=FRAME_HELP.format("polygons of other tools"))
@click.option("--components", is_flag=True, help=COMPONENTS_HELP)
@click.option("--vertices", type=click.Choice(["auto", "edge", "center"]), default="auto", show_default=True,
              help="Whether polygon vertices are pixel edges or pixel centers.")  # fmt: skip
@click.option("--missing", type=click.Choice(["error", "empty", "skip"]), default="error", show_default=True,
              help="What to do with a truth that has no prediction.")  # fmt: skip
@click.option("--max-gb", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="Memory limit for scoring one image, 10^9 bytes; use wsiseg compare for whole slides.")  # fmt: skip
@click.option("--summary", is_flag=True, help="Only the summary, not a row per image.")
@_PROTOCOL
@_GROUPS
@click.option("--annotator", "annotators", type=_EXISTING, multiple=True, help="Another truth, scored against TRUTH (hou2020).")
def files(pred: Path, truth: Path, summary: bool, corner: str, protocol: str | None, **options: Any) -> None:
    """Score PRED against TRUTH: Dice, DICE_2, AJI, AJI+, PQ (SQ, DQ), F1 over IoU, counts.

    Each is a file or a folder (paired by name) of label images (png, tif, npy, npz, mat), wsiseg tables, GeoJSON, cells.json of
    CellViT or HoVer-Net, or QuIP CSV. Objects that are not nuclei are left out and counted; duplicate polygons are two
    detections. Negative pixels of a label image mean not annotated and are not scored.

    \b
    wsiseg evaluate predicted/ truth/ --out scores.csv
    wsiseg evaluate predicted/ truth/ --protocol hou2020 --groups slides.csv --annotator second_reader/
    """
    from wsiseg.evaluation.choices import HouProtocol
    from wsiseg.evaluation.paths import PathOptions
    from wsiseg.evaluation.reports import score_files

    try:
        x, y = (float(v) for v in corner.split(","))
    except ValueError as err:
        raise click.BadParameter(f"expected X,Y, got {corner!r}", param_hint="--corner") from err
    chosen = HouProtocol(options.pop("groups"), options.pop("annotators"))
    outputs = {k: options.pop(k) for k in ("out", "compare")}
    hou = chosen if protocol else None
    _print(score_files(pred, truth, PathOptions(origin=(x, y), **options), hou, images=not summary, **outputs))


@evaluate.command()
@click.option("--data", "root", type=_FOLDER, required=True, help="Folder of sets, as `wsiseg datasets convert` writes them.")
@click.option("--sets", default="", metavar="A,B", help="Which sets.  [all in the folder]")
@click.option(
    "--weights",
    default=None,
    metavar="WEIGHTS",
    help=f"default, open, research, or a .safetensors file.  [{default_of('weights')}]",
)
@click.option(
    "--split",
    type=click.Choice(["validation", "train", "all"]),
    default="validation",
    show_default=True,
    help="Held-out patients, those on which the installed weights were trained, or all. Sets without held-out patients are "
    "always used completely.",
)
@click.option("--tta", type=click.Choice(["1", "8"]), default=None,
              help=f"Test-time augmentation: mean over 8 flips and rotations.  [{default_of('tta')}: none]")  # fmt: skip
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "int8"]), default=None,
              help=f"Arithmetic of the network, as for `wsiseg segment`.  [{default_of('precision')}]")  # fmt: skip
@click.option("--config", "config_file", type=_FILE, help="TOML file with options of any stage, as for `wsiseg segment`.")
@click.option("--mpp", type=click.FloatRange(0.01, 100), help="Microns per pixel of sets that state none.  [from nuclei]")
@click.option(
    "--by", type=click.Choice(["set", "patient", "image"]), default="set", show_default=True, help="Rows of the table."
)
@click.option("--limit", type=click.IntRange(1), default=None, help="At most this many images per set, for a quick look.")
@click.option("--against", default="", metavar="WEIGHTS", help="Other weights on the same images, with a paired Wilcoxon test.")
@click.option("--gallery", type=_NEW_FILE, metavar="PICTURE", help="Draw the worst windows, marked (.png or .jpg).")
@click.option("--crops", type=click.IntRange(1), default=8, show_default=True, help="Number of windows in the gallery.")
@click.option(
    "--labels", "labels_out", type=click.Path(file_okay=False, path_type=Path), help="Write instances as label images."
)
@click.option("-o", "--out", type=_NEW_FILE, help="Write every number, the weights and the machine (.json).")
@_PROTOCOL
@_GROUPS
def model(root: Path, sets: str, config_file: Path | None, protocol: str | None, limit: int | None, **options: Any) -> None:
    """Segment annotated images with the code that segments slides, and score them in one table.

    Means are over images; the 95 % interval is a bootstrap over patients. Count r and MAE% are those of Hou et al. 2020.

    \b
    wsiseg evaluate --data SETS
    wsiseg evaluate --data SETS --sets tnbc,consep --by patient --tta 8 --out scores.json
    wsiseg evaluate --data SETS --weights my.safetensors --against default --gallery worst.png
    """
    from wsiseg.evaluation.choices import HouProtocol, SetChoice, SetOutputs
    from wsiseg.evaluation.reports import score_sets

    names = [n.strip() for n in sets.split(",") if n.strip()]
    config = build_config(config_file, {k: options.pop(k) for k in ("weights", "tta", "precision")})
    outputs = SetOutputs(**{k: options.pop(k) for k in ("gallery", "crops", "labels_out", "out")})
    hou = HouProtocol(options.pop("groups"))
    choice = SetChoice(names, limit=limit or 0, protocol=hou if protocol else None, **options)
    show = sys.stderr.isatty()

    def on_line(line: str) -> None:
        if show:
            click.echo(f"\r\033[K{line}", nl=False, err=True)

    report = score_sets(root, config, choice, outputs, on_line=on_line)
    on_line("")
    _print(report)


@evaluate.command()
@click.argument("readings", nargs=-1, required=True, metavar="[NAME=]FOLDER...")
@click.option(
    "--images",
    type=_FOLDER,
    help="The pictures; needed if all readings are outlines (ImageJ ROIs), which do not state the image size.",
)
@click.option("--organs", type=_FILE, help="CSV image,organ.  [INFO.json; names like Human_<Organ>_01]")
@click.option("-o", "--out", type=_NEW_FILE, help="Write rows, tests and scores per image (.json).")
def observers(readings: tuple[str, ...], images: Path | None, organs: Path | None, out: Path | None) -> None:
    """Compare several annotations of the same images: Dice, AJI and PQ per organ, mean ± sd, as in CryoNuSeg's paper.

    A folder has label images, polygon files, or ImageJ ROI sets (<id>.zip, or folders of .roi). Two folders with the same name
    are two readings of one person (intra-observer). The first of a pair is taken as truth.

    \b
    wsiseg evaluate observers biologist=A bioinformatician=B biologist=A_again --images pictures/
    wsiseg evaluate observers truth/ ours/ other_model/ --out agreement.json
    """
    from wsiseg.evaluation.observer_folders import observer_report

    _print(observer_report(readings, images=images, organs=organs, out=out))


@click.command()
@click.argument("a", type=_EXISTING)
@click.argument("b", type=_EXISTING)
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to make.")
@click.option("--slide", "slide_ids", multiple=True, metavar="SLIDE_ID", help="Only this slide; may be repeated.")
@click.option(
    "--crops", type=click.IntRange(0), default=12, show_default=True, help="Number of places in the picture of disagreements."
)
@click.option("--workers", type=click.IntRange(0), default=None, help="Worker processes.  [one per core]")
@cluster_only_options
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def compare(a: Path, b: Path, out: Path, slide_ids: tuple[str, ...], crops: int, quiet: bool, **options: Any) -> None:
    """Compare two segmentations of whole slides: how well A agrees with B, and where it does not.

    A and B are runs, imported sets (wsiseg import) or tables; slides are paired by id. The results are PQ, F1, Dice, AJI,
    counts and areas, by slide and pooled; a map of each slide; and the places with the most unmatched nuclei. Scores are those
    of wsiseg evaluate with B as truth, but memory does not grow with the slide. The same command resumes.

    \b
    wsiseg compare RUN_RESEARCH RUN_OPEN -o COMPARED
    wsiseg import cells.geojson --from qupath --slide-file slide.svs -o THEIRS
    wsiseg compare RUN THEIRS -o COMPARED
    COMPARED/compare.html, compare.parquet, compare.json, cells/, maps/, disagreements.jpg
    """
    from rich.progress import Progress

    from wsiseg.evaluation.compare import compare_segmentations

    config = build_config(None, options)
    with Progress(transient=True, disable=quiet or not sys.stderr.isatty(), console=Console(stderr=True)) as bar:
        task = bar.add_task("windows", total=None)
        found = compare_segmentations(
            a, b, out, config, slide_ids, crops,
            lambda p: bar.update(task, description=f"slides {p.slides_done}/{p.slides}", completed=p.windows_done,
                                 total=max(p.windows, 1)),
        )  # fmt: skip
    for slide in found.slides:
        for note in slide.notes:
            click.echo(f"{slide.slide_id}: {note}", err=True)
        if slide.error:
            click.echo(f"{slide.slide_id}: {slide.status}: {slide.error}", err=True)
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        if names:
            click.echo(f"only in {side}, not compared: {len(names):,} slides ({first_names(names, 5)})", err=True)
    if not quiet:
        _print_comparison(found)
    sys.exit(0 if found.ok else 1)


def _print_comparison(found: Comparison) -> None:
    names = ("n_a", "n_b", "count_ratio", "area_diff_frac", "pq", "f1", "dice", "aji")
    rows = [s.row() for s in (*found.slides[:40], found.pooled()) if s.status in ("done", "empty")]
    cells = [[r.slide_id, *(_number(getattr(r, n)) for n in names)] for r in rows]
    headings = ["slide", "A", "B", "A / B", "area A - B", "PQ", "F1", "Dice", "AJI"]
    print_table(headings, cells, "A against B" if len(found.slides) <= 40 else "A against B (the first 40 slides)")
    if found.reused:
        click.echo(f"{found.reused} of {len(found.slides)} slides were compared by an earlier command")
    click.echo(f"{found.out / 'compare.html'}  (and compare.parquet, compare.json; {found.seconds:.0f} s)")


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _print(report: Report) -> None:
    for table in report.tables:
        print_table(table.headings, table.rows, table.title)
    for line in report.lines:
        click.echo(line)


COMMANDS = (evaluate, compare)

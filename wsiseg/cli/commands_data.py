"""``wsiseg train`` and ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

__all__ = ["COMMANDS", "print_table"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Continue from the run folder's last checkpoint.")
@click.option("--cv", type=click.Choice(["organ", "patient"]), help="Cross-validate, leaving out organs or groups of patients.")
@click.option("--folds", type=click.IntRange(2), help="Folds of --cv.  [one per organ, 5 of patients]")
@click.option(
    "--model", default="", metavar="NAME", help="A published recipe that replaces CONFIG's network, targets and losses."
)
def train(config: Path, resume: bool, cv: str | None, folds: int | None, model: str) -> None:
    """Train the two-head network with the options of CONFIG (TOML); write curves, checkpoints and model card to its run folder.

    With --cv there is one run per fold in OUT/cv-organ or OUT/cv-patient, and a table of scores (mean and standard deviation
    over folds) is printed; the same command resumes. A CONFIG that names another as `base` states only what differs from it.

    --model two-stage: the two U-Nets of Mahbod et al. 2019, one for the nuclei and one for a distance map, after Macenko
    normalization. --model hou43: the 43 convolutions of Hou et al. 2020 and their thresholds; `wsiseg synth` makes synthetic
    images by their method. Use the weights with `wsiseg segment FOLDER --out RUN --weights FILE`.

    \b
    Several GPUs:  torchrun --nproc-per-node 4 -m wsiseg train CONFIG    (device = "cuda" in its [loop])
    Example:       wsiseg train scripts/train_open_begun.toml --cv patient --folds 5
    """
    if folds is not None and cv is None:
        raise click.UsageError("--folds needs --cv organ or --cv patient.")
    if cv is not None:
        from wsiseg.train.crossval import cross_validate

        done = cross_validate(config, "organ" if cv == "organ" else "patient", folds or 0, model=model)
        print_table(*done.table())
        click.echo(f"folder: {done.folder}")
        return
    from wsiseg.train.training import train_from_toml

    click.echo(f"run folder: {train_from_toml(config, model=model, resume=resume)}")


@click.group()
def datasets() -> None:
    """Annotated data sets: convert public formats to one layout, list them, make patches and masks.

    \b
    wsiseg datasets convert downloads/TNBC --out SETS/tnbc
    wsiseg datasets stats SETS
    """


@datasets.command()
@click.argument("root", type=_FOLDER)
def stats(root: Path) -> None:
    """List every set under ROOT: images, nuclei, tile size, resolution, organs, licence.

    Example:  wsiseg datasets stats SETS
    """
    from wsiseg.evaluation.reports import dataset_table

    print_table(*dataset_table(root))


@datasets.command()
@click.argument("source", type=_FOLDER)
@click.argument("old_out", required=False, metavar="", type=click.Path(file_okay=False, path_type=Path))
@click.option("-o", "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.  [required]")
@click.option("--format", "format_name", default="auto", show_default=True, help="Name of the published format.")
@click.option("--mpp", type=click.FloatRange(0.01, 100), help="Microns per pixel, if the set states none.")
@click.option("--licence", default="", help="Licence to record.")
@click.option("--name", default="", help="Name to record.")
def convert(source: Path, old_out: Path | None, out: Path | None, format_name: str, **facts: Any) -> None:
    """Convert the published set in SOURCE to the unified layout (RGB png, label png, INFO.json).

    \b
    Example:  wsiseg datasets convert downloads/TNBC --out nuclei/tnbc
    """
    from wsiseg.evaluation.reports import convert_dataset

    for line in convert_dataset(source, _one_out(out, old_out), format_name, **facts):
        click.echo(line)


@datasets.command()
@click.argument("root", type=_FOLDER)
@click.argument("old_out", required=False, metavar="", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Zarr store to write.  [required]")
@click.option("--sets", default="", metavar="A,B", help="Sets (folders of ROOT) to use.  [all that have an INFO.json]")
@click.option("--patch", type=click.IntRange(16, 4096), default=256, show_default=True, help="Side of a patch, px.")
def patches(root: Path, old_out: Path | None, out: Path | None, sets: str, patch: int) -> None:
    """Write the sets under ROOT as patches in one sharded Zarr v3 store, which training can read instead of the folder.

    \b
    Example:  wsiseg datasets patches nuclei --out nuclei.zarr --sets tnbc,consep
              WSISEG_DATA=nuclei.zarr wsiseg train scripts/train_open_begun.toml
    """
    from wsiseg.datasets.prepare import write_patches

    for line in write_patches(root, _one_out(out, old_out), tuple(name for name in sets.split(",") if name), patch):
        click.echo(line)


@datasets.command(short_help="Write CryoNuSeg's auxiliary masks of a set.")
@click.argument("source", metavar="SET", type=_FOLDER)
@click.option("-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to.")
@click.option(
    "--w0",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Height of the border weight (Ronneberger et al. 2015).",
)
@click.option(
    "--sigma2",
    type=click.FloatRange(0, min_open=True),
    default=25.0,
    show_default=True,
    help="Variance of the border weight, px².",
)
def masks(source: Path, out: Path, w0: float, sigma2: float) -> None:
    """Write the auxiliary masks of CryoNuSeg (Mahbod et al. 2021) for SET, in the folders of CryoNuSeg.

    SET is in the unified layout, in a published format (such as ImageJ ROI zips and a folder 'tissue images'), or a folder of
    label images. The masks are: label, binary, without border, eroded, distance maps, weighted maps.

    \b
    Example:  wsiseg datasets masks cryonuseg --out cryonuseg_masks
    """
    from wsiseg.datasets.prepare import write_auxiliary_masks

    click.echo(write_auxiliary_masks(source, out, w0, sigma2))


def _one_out(out: Path | None, old_out: Path | None) -> Path:
    """Return the path given by --out, or by the last argument, as in earlier versions."""
    if (out is None) == (old_out is None):
        raise click.UsageError("Missing option '-o' / '--out'." if out is None else f"Got --out and a second path, {old_out}.")
    return out or old_out or Path()


def print_table(headings: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table; if the output is not a terminal, as wide as the table needs."""
    table = Table(*headings, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if Console().is_terminal else 200).print(table)


COMMANDS = (train, datasets)

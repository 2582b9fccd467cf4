"""``wsiseg train``, ``evaluate`` and ``datasets``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

__all__ = ["COMMANDS"]

_EXISTING = click.Path(exists=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the run folder's last checkpoint.")
def train(config: Path, resume: bool) -> None:
    """Train the two-head network as CONFIG (TOML) says; curves, checkpoints and the model card go to its run folder."""
    from wsiseg.run.training import train_from_toml

    click.echo(f"run folder: {train_from_toml(config, resume=resume)}")


@click.command()
@click.argument("pred", type=_EXISTING)
@click.argument("truth", type=_EXISTING)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write scores per image (.csv, .parquet or .json)."
)
@click.option("--compare", type=_EXISTING, metavar="PRED2", help="Another run's predictions: paired Wilcoxon test on PQ.")
@click.option("--ignore", type=_EXISTING, help="Mask (or folder of masks): pixels that count for neither side.")
@click.option(
    "--scale", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Label px per polygon px."
)
@click.option("--origin", default="0,0", metavar="X,Y", help="Polygon coordinates of the label image's corner.  [0,0]")
@click.option("--vertices", type=click.Choice(["auto", "edge", "center"]), default="auto", help="Where polygon vertices lie.")
@click.option("--missing", type=click.Choice(["error", "empty", "skip"]), default="error", help="A truth without prediction.")
@click.option("--summary", is_flag=True, help="Only the summary, not a row per image.")
def evaluate(pred: Path, truth: Path, summary: bool, origin: str, **options: Any) -> None:
    """Score PRED against TRUTH: Dice, DICE_2, AJI, AJI+, PQ (SQ, DQ), F1 over IoU, counts.

    Each is a file or a folder (paired by name) of label images (png, tif, npy, mat), wsiseg tables, GeoJSON or QuIP CSV.
    """
    from wsiseg.run.evaluate import score_files

    try:
        x, y = (float(v) for v in origin.split(","))
    except ValueError as err:
        raise click.BadParameter(f"expected X,Y, got {origin!r}", param_hint="--origin") from err
    headings, rows, sentence = score_files(pred, truth, images=not summary, origin=(x, y), **options)
    _print_table(headings, rows)
    if sentence:
        click.echo(sentence)


@click.group()
def datasets() -> None:
    """Annotated data sets: convert public formats to one layout, and say what is in them."""


@datasets.command()
@click.argument("root", type=_FOLDER)
def stats(root: Path) -> None:
    """Facts of every set under ROOT: images, nuclei, tile size, resolution, organs, licence."""
    from wsiseg.run.evaluate import dataset_table

    _print_table(*dataset_table(root))


@datasets.command()
@click.argument("source", type=_FOLDER)
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--format", "format_name", default="auto", show_default=True, help="Name of the published format.")
@click.option("--mpp", type=click.FloatRange(0.01, 100), help="Microns per pixel where the set states none.")
@click.option("--licence", default="", help="Licence to record.")
@click.option("--name", default="", help="Name to record.")
def convert(source: Path, out: Path, format_name: str, mpp: float | None, licence: str, name: str) -> None:
    """Convert the published set in SOURCE to the unified layout in OUT (RGB png, label png, INFO.json)."""
    from wsiseg.run.evaluate import convert_dataset

    for line in convert_dataset(source, out, format_name, mpp, licence, name):
        click.echo(line)


def _print_table(headings: list[str], rows: list[list[str]]) -> None:
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if Console().is_terminal else 200).print(table)


COMMANDS = (train, evaluate, datasets)

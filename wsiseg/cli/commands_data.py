"""``wsiseg train`` and ``datasets``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

__all__ = ["COMMANDS", "print_table"]

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the run folder's last checkpoint.")
def train(config: Path, resume: bool) -> None:
    """Train the two-head network as CONFIG (TOML) says; curves, checkpoints and the model card go to its run folder."""
    from wsiseg.run.training import train_from_toml

    click.echo(f"run folder: {train_from_toml(config, resume=resume)}")


@click.group()
def datasets() -> None:
    """Annotated data sets: convert public formats to one layout, and say what is in them."""


@datasets.command()
@click.argument("root", type=_FOLDER)
def stats(root: Path) -> None:
    """Facts of every set under ROOT: images, nuclei, tile size, resolution, organs, licence."""
    from wsiseg.run.evaluate import dataset_table

    print_table(*dataset_table(root))


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


def print_table(headings: list[str], rows: list[list[str]], title: str = "") -> None:
    """Print a table as wide as it needs to be where the output is no terminal."""
    table = Table(*headings, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if Console().is_terminal else 200).print(table)


COMMANDS = (train, datasets)

"""``wsiseg train`` and ``wsiseg evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["COMMANDS"]


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Go on from the run folder's last checkpoint.")
def train(config: Path, resume: bool) -> None:
    """Train the two-head network as CONFIG (TOML) says; curves, checkpoints and the model card go to its run folder."""
    from wsiseg.run.training import train_from_toml

    click.echo(f"run folder: {train_from_toml(config, resume=resume)}")


COMMANDS = (train,)

"""Progress of commands that work through a slide piece by piece: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

__all__ = ["piece_bar"]

LINES = 10
"""Lines that a slide of many pieces gets in a log."""


@contextmanager
def piece_bar(what: str) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows (slide id, pieces done, pieces) on standard error."""
    if not sys.stderr.isatty():

        def tell(slide_id: str, done: int, total: int) -> None:
            if total >= LINES and done < total and done * LINES // total > (done - 1) * LINES // total:
                click.echo(f"{what}  {slide_id}: {done}/{total} pieces", err=True)

        yield tell
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)

        def show(slide_id: str, done: int, total: int) -> None:
            bar.update(task, description=f"{what}  {slide_id}", completed=done, total=max(1, total))

        yield show

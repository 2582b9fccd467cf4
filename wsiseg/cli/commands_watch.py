"""``wsiseg status``, ``errors`` and ``verify``: read the state of a run from its folder."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from wsiseg.decode import encode
from wsiseg.errors import first_names

if TYPE_CHECKING:
    from wsiseg.run.presence import Work
    from wsiseg.run.status import RunStatus

__all__ = ["COMMANDS"]

RUN = click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.command()
@RUN
@click.option("--slides", "by_slide", is_flag=True, help="Print a table of the slides with the seconds of each stage.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, for programs.")
@click.option(
    "--every",
    type=click.FloatRange(0.2),
    default=None,
    metavar="SECONDS",
    help="Print again at this interval. Ctrl-C stops.",
)
def status(run: Path, by_slide: bool, as_json: bool, every: float | None) -> None:
    """Show the state of the run in folder RUN: slides, tiles, rate, time left, workers.

    It only reads files, so it works on any machine with access to the folder, during the run or after it.

    \b
    wsiseg status RUN                 a few lines
    wsiseg status RUN --every 10      the same every 10 s
    wsiseg status RUN --slides        time of each stage, by slide
    """
    from wsiseg.run.status import run_status

    while True:
        now = run_status(run)
        if as_json:
            click.echo(json.dumps(_plain_status(now, by_slide)))
        else:
            _print_status(run, now)
            if by_slide:
                _print_slides(now)
        if every is None:
            return
        sys.stdout.flush()
        time.sleep(every)


def _print_status(run: Path, now: RunStatus) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    meaning = {"silent": "silent: no update for a minute or more; if it was killed, the same command resumes"}
    console.print(f"run        {run}: {meaning.get(now.state, now.state)}")
    total = sum(now.slides.values())
    parts = ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in now.slides.items() if n or name == "done")
    console.print(f"slides     {parts}, of {total}")
    console.print(f"tiles      {now.tiles_done:,} done" + (f", {now.tiles_failed:,} failed" if now.tiles_failed else ""))
    console.print(f"nuclei     {now.nuclei:,} in {now.tissue_mm2:,.1f} mm² of finished slides")
    if now.precision:
        console.print(f"precision  {now.precision}")
    if now.mm2_per_s is not None:
        left = "" if now.eta_s is None else f", about {_duration(now.eta_s)} left"
        console.print(f"rate       {now.mm2_per_s:.3g} mm²/s, {now.slides_per_h:.3g} slides per hour{left}")
    if any(now.counts.values()):
        console.print("trouble    " + ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in now.counts.items() if n))
    for client in now.clients:
        console.print(f"client     {client.client} on {client.host}: {client.state}, {client.age_s:.0f} s ago")
        for host, reason in client.hosts_aside.items():
            console.print(f"excluded   {host}: {reason}")
    for worker in now.workers[:40]:
        at = ", ".join(_place(work) for work in worker.at) or "waits"
        console.print(f"worker     {worker.host} {worker.pid}: {at} (for {worker.age_s:.0f} s)")
    if len(now.workers) > 40:
        console.print(f"worker     ... and {len(now.workers) - 40} more")
    if now.slides["failed"] or now.slides["partial"]:
        console.print(f"failed     see: wsiseg errors {run}")
    suspect = [row for row in now.rows.values() if row.status == "suspect"]
    for row in suspect[:5]:
        console.print(f"suspect    slide {row.slide_id}: {row.error}")
    if len(suspect) > 5:
        console.print(f"suspect    ... and {len(suspect) - 5} more, see: wsiseg errors {run}")


def _plain_status(now: RunStatus, by_slide: bool) -> dict[str, object]:
    """Return a status as plain values for JSON, with the names and ages of clients and workers, which files do not have."""
    rows = [row.columns for row in now.rows.values()] if by_slide else None
    clients = [{**encode(c), "client": c.client, "age_s": c.age_s} for c in now.clients]
    workers = [{**encode(w), "id": w.id, "age_s": w.age_s} for w in now.workers]
    own = dataclasses.replace(now, rows={}, clients=(), workers=())
    return {**encode(own), "clients": clients, "workers": workers, "rows": rows}


def _place(work: Work) -> str:
    return f"{work.kind} {work.slide_id}" + (f" tile {work.tile_id}" if work.tile_id >= 0 else "")


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _print_slides(now: RunStatus) -> None:
    from wsiseg.rows import STAGES

    table = Table(box=None, pad_edge=False)
    for name in ("slide", "status"):
        table.add_column(name, overflow="fold")
    for name in ("nuclei", "mm²", "tiles", *(f"{s} s" for s in STAGES), "all s"):
        table.add_column(name, justify="right")
    for row in now.rows.values():
        seconds = [row.seconds[stage] for stage in STAGES]
        numbers = [f"{row.n_nuclei or 0:,}", f"{row.tissue_mm2 or 0.0:.2f}", str(row.tiles_done or 0)]
        table.add_row(row.slide_id, row.status, *numbers, *(f"{s:.1f}" for s in (*seconds, sum(seconds))))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


@click.command()
@RUN
@click.option("--json", "as_json", is_flag=True, help="Print as JSON, for programs.")
def errors(run: Path, as_json: bool) -> None:
    """List failures and suspect slides of RUN, grouped by message, and what to do about each group.

    The exit code is 1 if something failed or is suspect, otherwise 0. After removing the cause of a failure:

    \b
    wsiseg segment --retry-failed --out RUN
    """
    from wsiseg.run.status import group_errors

    groups = group_errors(run)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(g) for g in groups]))
    elif not groups:
        click.echo("nothing failed")
    else:
        console = Console(highlight=False, soft_wrap=True, markup=False)
        for g in groups:
            tiles = f", {g.tiles} tiles" if g.tiles else ""
            console.print(f"{g.kind}: {len(g.slides)} slides{tiles}")
            console.print(f"  e.g.    {g.message}")
            console.print(f"  slides  {first_names(g.slides, 5)}")
            if g.hosts:
                console.print(f"  on      {', '.join(g.hosts)}")
            console.print(f"  to do   {g.advice}")
        if any(g.kind != "Suspect" for g in groups):
            console.print(f"\nthen: wsiseg segment --retry-failed --out {run}")
    sys.exit(1 if groups else 0)


@click.command()
@RUN
def verify(run: Path) -> None:
    """Check that every file of RUN is complete and that the files agree.

    Every polygon table is read to its last row, and its bytes, rows and settings are compared with those recorded when it was
    written. The tables of all slides are compared with the records of each slide. The exit code is 1 if something is wrong.

    \b
    wsiseg verify RUN && rsync -a RUN archive:
    """
    from wsiseg.run.verify import verify_run

    verdict = verify_run(run)
    for finding in verdict.findings:
        click.echo(f"{'wrong' if finding.wrong else 'note '}  {finding.where}: {finding.what}")
    wrong = sum(f.wrong for f in verdict.findings)
    looked = f"{verdict.slides} slides, {verdict.tables} tables, {verdict.nuclei:,} nuclei, {verdict.n_bytes / 1e6:.1f} MB"
    click.echo(f"{looked}: {f'{wrong} wrong' if wrong else 'all complete, all agree'}")
    sys.exit(0 if verdict.ok else 1)


COMMANDS = (status, errors, verify)

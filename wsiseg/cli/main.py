"""``wsiseg``: the command group, logging, and the conversion of errors to messages and exit codes."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import threading
from types import FrameType
from typing import Any, NoReturn

import click

from wsiseg import __version__
from wsiseg.cli import (
    commands_convert,
    commands_data,
    commands_evaluate,
    commands_look,
    commands_papers,
    commands_points,
    commands_qc,
    commands_questions,
    commands_segment,
    commands_synth,
    commands_watch,
)
from wsiseg.errors import OutputInUseError, OutputMismatchError, WsisegError

__all__ = ["main"]

EXIT_CODES = """\b
Exit codes:
  0    all slides segmented; slides without nuclei are blank glass
  1    some slides or tiles failed, or slides are suspect (without nuclei, but not blank); wsiseg errors RUN lists them and
       what to do
  2    the command line is wrong, or the command could not start
  130  stopped with Ctrl-C; the same command resumes
  143  stopped with SIGTERM, which schedulers send before they stop a job; the same command resumes
"""


class _TerminatedError(KeyboardInterrupt):
    """SIGTERM, which stops like Ctrl-C."""


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # ignore further signals while closing, which takes a few seconds
    _quiet_tornado()
    raise _TerminatedError


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    _quiet_tornado()
    raise KeyboardInterrupt


def _quiet_tornado() -> None:
    """Make Tornado not print the traceback of a callback of Dask's client that an interrupted wait left incomplete."""
    logging.getLogger("tornado.application").setLevel(logging.CRITICAL)


_KEPT = {
    **dict.fromkeys(("segment", "demo"), "Finished tiles are kept; the same command resumes."),
    **dict.fromkeys(("cells", "features", "neighbors", "publish"), "Finished slides are kept; the same command resumes."),
}
"""What is kept when a command is stopped, by command."""

NOTHING_BROKEN = "No file is left incomplete."
"""What is kept of the other commands: every file is written whole or not at all."""


class _Group(click.Group):
    """Converts errors of wsiseg to a message and exit code 2; any other exception is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (OutputMismatchError, OutputInUseError, WsisegError) as err:
            click.echo(f"wsiseg: {err}", err=True)
            sys.exit(2)
        except OSError as err:
            click.echo(f"wsiseg: {err.strerror or err}{f': {err.filename}' if err.filename else ''}", err=True)
            if err.errno in (errno.ENOSPC, errno.EDQUOT):
                click.echo("wsiseg: free some space; finished tiles are kept, and the same command resumes.", err=True)
            if "temporary directory" in str(err.strerror):
                click.echo("wsiseg: set TMPDIR to a writable folder.", err=True)
            sys.exit(2)
        except KeyboardInterrupt as err:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would interrupt the shutdown of Python
            click.echo(f"wsiseg: stopped. {_KEPT.get(ctx.invoked_subcommand or '', NOTHING_BROKEN)}", err=True)
            sys.exit(143 if isinstance(err, _TerminatedError) else 130)


@click.group(cls=_Group, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="wsiseg")
@click.option("-v", "--verbose", count=True, help="More messages (-vv for everything).")
def main(verbose: int) -> None:
    """Segment every nucleus in whole-slide images and grade the results.

    \b
    First look:      wsiseg doctor;  wsiseg info SLIDE;  wsiseg plan FOLDER
    Main job:        wsiseg segment FOLDER --out RUN
    While it runs:   wsiseg status RUN;  wsiseg errors RUN;  wsiseg verify RUN
    View results:    wsiseg overlay RUN SLIDE_ID -o picture.png
    Check quality:   wsiseg qc outliers RUN;  wsiseg qc review RUN;  wsiseg qc report RUN
    For other tools: wsiseg export RUN --to qupath -o FOLDER
    Analyze:         wsiseg query RUN "select ...";  wsiseg regions RUN ANNOTATIONS -o regions.parquet
                     wsiseg neighbors RUN -o NEIGHBORS --radius-um 50
    """
    if threading.current_thread() is threading.main_thread():  # only the main thread can handle signals
        for number, handler in ((signal.SIGTERM, _terminate), (signal.SIGINT, _interrupt)):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, handler)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("wsiseg").setLevel(level)


for _module in (
    commands_segment,
    commands_look,
    commands_qc,
    commands_convert,
    commands_questions,
    commands_points,
    commands_data,
    commands_evaluate,
    commands_papers,
    commands_synth,
    commands_watch,
):
    for _command in _module.COMMANDS:
        main.add_command(_command)

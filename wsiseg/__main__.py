"""``python -m wsiseg`` is ``wsiseg``."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["run"]


def run() -> None:
    """Load the command line and run it; Ctrl-C during loading prints one line instead of a traceback."""
    if sys.flags.interactive == 0 and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _stopped_at_start)
    import click

    from wsiseg.cli import main
    from wsiseg.cli.streams import lost_output, steady_streams

    steady_streams()
    try:
        main()
    except SystemExit as end:
        lost = lost_output()
        if lost:
            click.echo(f"wsiseg: standard output could not be written: {lost}.", err=True)
        words_only = not {"segment", "demo", "merge"} & set(sys.argv[1:3])  # the others have written files
        sys.exit(2 if lost and words_only and not end.code else end.code)


def _stopped_at_start(number: int, frame: FrameType | None) -> None:
    # exit instead of raising: an exception inside an import in C would be turned into another one
    os.write(2, b"wsiseg: stopped.\n")
    os._exit(128 + number)


if __name__ == "__main__":
    run()

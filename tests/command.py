"""The command line, called in this process."""

from __future__ import annotations

from click.testing import CliRunner

from wsiseg.cli.main import main


def call(*args: object, code: int = 0) -> str:
    """Return what a command prints; it must end with this exit code."""
    done = CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output

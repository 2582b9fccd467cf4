"""The command line: options are parsed here and tasks called. No other package prints."""

from wsiseg.cli.main import main

__all__ = ["main"]

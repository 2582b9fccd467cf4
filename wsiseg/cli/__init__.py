"""The command line in -> calls into ``run`` out; the only room that prints."""

from wsiseg.cli.main import main

__all__ = ["main"]

"""Put temporary files into the run folder if the machine has no other writable folder."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from wsiseg.backend.caches import place_caches

__all__ = ["temporary_files"]


@contextlib.contextmanager
def temporary_files(folder: Path) -> Iterator[None]:
    """Make this process and its children use ``folder`` for temporary files if no other is writable; remove them at the end.

    Raises
    ------
    OSError
        ``folder`` is not writable either.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        pass
    else:
        yield
        return
    own = folder / f".tmp-{platform.node()}-{os.getpid()}"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    tempfile.tempdir = os.environ["TMPDIR"] = str(own.absolute())
    place_caches()
    try:
        yield
    finally:
        tempfile.tempdir = None
        del os.environ["TMPDIR"]
        shutil.rmtree(own, ignore_errors=True)

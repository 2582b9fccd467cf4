"""A gate before the tiles of a run: some pass, the others wait until the test opens it. A signal then finds them there.

A Dask worker that was started with ``environment`` loads this file as a preload. While the file ``closed`` is in the gate's
folder, a tile takes one of the numbered passes that are left, or says that it waits (a file ``waits-*``) and waits.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

__all__ = ["Gate"]

FOLDER = "WSISEG_GATE"
PATIENCE_S = 240.0


class Gate:
    """The test's side.

    Parameters
    ----------
    folder
        Made if missing.
    passes
        How many tiles may be begun before the others wait.
    """

    def __init__(self, folder: Path, passes: int = 1) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.close(passes)

    @property
    def environment(self) -> dict[str, str]:
        """What the client (or a worker that is started by itself) must have in its environment."""
        return {FOLDER: str(self.folder), "DASK_DISTRIBUTED__WORKER__PRELOAD": __file__}

    def close(self, passes: int) -> None:
        """Let only so many further tiles pass, those that wait among them."""
        (self.folder / "closed").touch()
        for file in [*self.folder.glob("pass-*"), *self.folder.glob("waits-*")]:
            file.unlink(missing_ok=True)
        for k in range(passes):
            (self.folder / f"pass-{k}").touch()

    def open(self) -> None:
        """Let all tiles pass."""
        (self.folder / "closed").unlink()

    def waiting(self) -> int:
        """Return how many tiles have come to the gate and wait, or died there."""
        return len(list(self.folder.glob("waits-*")))

    def wait(self, process: subprocess.Popen[Any], tiles: int = 1, parts: Path | None = None) -> None:
        """Return once so many tiles wait and, where ``parts`` is given, a tile that passed has written its file there.

        Raises
        ------
        AssertionError
            The process ended before, or it takes too long.
        """
        deadline = time.monotonic() + PATIENCE_S
        while self.waiting() < tiles or (parts is not None and not list(parts.glob("*.parquet"))):
            assert process.poll() is None, "the run ended before its tiles came to the gate"
            assert time.monotonic() < deadline, f"{self.waiting()} of {tiles} tiles came to the gate within {PATIENCE_S} s"
            time.sleep(0.01)


def hold(folder: Path) -> None:
    """Wait at the gate until it is open or a pass is left (the worker's side)."""
    notes = False
    while (folder / "closed").exists():
        for ticket in sorted(folder.glob("pass-*")):
            try:
                ticket.unlink()
            except FileNotFoundError:  # another tile was faster
                continue
            return
        if not notes:
            (folder / f"waits-{os.getpid()}-{threading.get_ident()}").touch()
            notes = True
        time.sleep(0.01)


def dask_setup(worker: Any) -> None:
    """Put the gate before the tiles of this worker (called by Dask)."""
    import wsiseg.run.tile as tile

    before, folder = tile.segment_tile, Path(os.environ[FOLDER])

    def held(*args: Any) -> Any:
        hold(folder)
        return before(*args)

    tile.segment_tile = held

"""A Dask worker preload that breaks things on purpose, as set in WSISEG_FAULTS (JSON); each rule fires a given number of times.

``[{"do": "crash", "at": "tile", "tile": 4, "times": 1}]``, ``at`` in prepare, tile, finish, facts. What has fired is counted by
files in the folder WSISEG_FAULTS_DIR, so that a worker that is restarted knows of it. WSISEG_HOST is the name of the machine
that the worker takes itself to be on; rules with a ``host`` are for workers there.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wsiseg.run.tasks
import wsiseg.run.tile

HOST = os.environ.get("WSISEG_HOST", platform.node())
RULES: list[dict[str, Any]] = [r for r in json.loads(os.environ["WSISEG_FAULTS"]) if r.get("host", HOST) == HOST]
FIRED = Path(os.environ["WSISEG_FAULTS_DIR"])


def fires(number: int, rule: dict[str, Any]) -> bool:
    for k in range(rule["times"]):
        try:
            (FIRED / f"{number}-{k}").open("x").close()
        except FileExistsError:
            continue
        return True
    return False


def break_things(at: str, tile_id: int = -1) -> None:
    for number, rule in enumerate(RULES):
        if rule["at"] != at or rule.get("tile", tile_id) != tile_id or not fires(number, rule):
            continue
        if rule["do"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif rule["do"] == "crash":
            ctypes.string_at(0)  # as a C library crashes: SIGSEGV
        elif rule["do"] == "hang":
            ctypes.PyDLL(None).sleep(3600)  # in C, holding the interpreter's lock: nothing in Python can end it
        elif rule["do"] == "slow":
            time.sleep(rule["seconds"])
        elif rule["do"] == "ImportError":
            raise ImportError("libopenslide.so.1: cannot open shared object file")
        elif rule["do"] == "KeyError":
            raise KeyError("a slide of a kind that nobody foresaw")
        elif rule["do"] == "clock":
            leap_clock(rule["seconds"])
        else:
            number = getattr(errno, rule["do"])
            raise OSError(number, os.strerror(number))


def leap_clock(seconds: float) -> None:
    """Set this worker's wall clock, as seen by Python code."""
    before = time.time
    time.time = lambda: before() + seconds


def breaking(function: Callable[..., Any], at: str) -> Callable[..., Any]:
    def broken(first: Any, *rest: Any) -> Any:
        break_things(at, first.tile_id if at == "tile" else -1)
        return function(first, *rest)

    return broken


if "WSISEG_HOST" in os.environ:
    platform.node = lambda: HOST
wsiseg.run.tasks.worker_facts = breaking(wsiseg.run.tasks.worker_facts, "facts")  # type: ignore[assignment]
wsiseg.run.tile.segment_tile = breaking(wsiseg.run.tile.segment_tile, "tile")  # type: ignore[assignment]
wsiseg.run.tasks.prepare_slide = breaking(wsiseg.run.tasks.prepare_slide, "prepare")  # type: ignore[assignment]
wsiseg.run.tasks.finish_slide = breaking(wsiseg.run.tasks.finish_slide, "finish")  # type: ignore[assignment]

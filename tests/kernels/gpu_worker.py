"""A Dask worker preload: the worker's GPU is the stand-in, and breaks as set in WSISEG_GPU_FAULTS (JSON).

``{"0": {"at": "tile", "tiles": [2], "times": 1}}``: by what the worker sees as its GPU; ``at`` is ``tile`` or ``start``. Once
broken, everything on that GPU fails in this process, as in a broken CUDA context; a new process is well again, until it breaks
in turn. What has happened is counted by files in WSISEG_GPU_FAULTS_DIR.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import wsiseg.predict.gpu
import wsiseg.run.tile
from tests.kernels.fake_cupy import FakeArray, FakeRuntimeError, fake_cupy
from tests.kernels.host import HostBackend, on_host
from wsiseg.backend import cuda, register_backend
from wsiseg.predict import load_model
from wsiseg.run.context import WorkerContext

GPU = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
RULE: dict[str, Any] = json.loads(os.environ.get("WSISEG_GPU_FAULTS", "{}")).get(GPU, {})
FOLDER = Path(os.environ["WSISEG_GPU_FAULTS_DIR"])
BROKEN = FakeRuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
broken = False


def fires() -> bool:
    for k in range(RULE.get("times", 0)):
        try:
            (FOLDER / f"{GPU}-{k}").open("x").close()
        except FileExistsError:
            continue
        return True
    return False


if not hasattr(HostBackend, "whole"):  # Dask loads this module twice
    HostBackend.whole = HostBackend.launch, wsiseg.run.tile.segment_tile  # type: ignore[attr-defined]
    host = on_host(ctypes.CDLL(os.environ["WSISEG_KERNELS"]), seed=1)
    sys.modules["cupy"] = fake_cupy(host.__enter__(), 0)
launch, segment_tile = HostBackend.whole  # type: ignore[attr-defined]


def launch_if_well(self: HostBackend, *args: Any) -> None:
    global broken
    broken = broken or (RULE.get("at") == "start" and fires())
    if broken:
        raise BROKEN
    launch(self, *args)


def segment_until_broken(tile: Any, context: Any) -> Any:
    global broken
    (FOLDER / f"tile-{GPU}-{tile.tile_id}-{os.getpid()}").touch()
    broken = broken or (RULE.get("at") == "tile" and tile.tile_id in RULE.get("tiles", [tile.tile_id]) and fires())
    return segment_tile(tile, context)


HostBackend.launch = launch_if_well  # type: ignore[method-assign]
wsiseg.run.tile.segment_tile = segment_until_broken
register_backend(FakeArray, lambda array: cuda.cuda_backend(array.device.id))
wsiseg.predict.gpu.ready_device = lambda config, *_: (load_model(config, "cpu"), [None])
WorkerContext.memory_facts = lambda self: {}  # type: ignore[method-assign]

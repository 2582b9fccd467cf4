"""A real slide, small enough to be segmented many times: a crop of the CC0 test slide as a plain image with its true mpp."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
from click.testing import CliRunner, Result
from distributed import Client, LocalCluster
from PIL import Image

from wsiseg.cli import main
from wsiseg.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
SLIDE = ROOT / "tests" / "data" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="session")
def crop_rgb() -> np.ndarray:
    import openslide

    with openslide.OpenSlide(SLIDE) as slide:
        return np.asarray(slide.read_region((900, 1100), 0, (620, 540)).convert("RGB"))


@pytest.fixture(scope="session")
def crop_png(crop_rgb: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "crop.png"
    Image.fromarray(crop_rgb).save(path)
    return path


def environment() -> dict[str, str]:
    """What a process of the command line is started with."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def wsiseg(*args: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with workers in processes of their own."""
    command = [sys.executable, "-m", "wsiseg", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment(), check=False)


@contextlib.contextmanager
def connect_here(config: RunConfig) -> Iterator[Client]:
    """Yield a client of a cluster whose one worker is a thread of this process: nothing is started or imported again."""
    settings = {"distributed.worker.memory.pause": False, "distributed.worker.memory.terminate": False}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=50,
            memory_limit=0,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def run_here(*args: str | Path) -> Result:
    """Run the command line in this process; a traceback that would reach the user is raised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiseg.run.segment.connect", connect_here)
        result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert "Traceback" not in result.output
    return result

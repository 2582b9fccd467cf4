"""A real slide, small enough to be segmented many times: a crop of the CC0 test slide as a plain image with its true mpp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def wsiseg(*args: str | Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "wsiseg", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)

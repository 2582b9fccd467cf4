"""The end-to-end benchmark and the script for a GPU machine, as far as a machine without a GPU can go."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_end_to_end
from benchmarks.synthetic_slide import make_slide
from wsiseg.read import open_slide
from wsiseg.types import TileOutcome

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_slide(tmp_path_factory.mktemp("slide") / "synthetic.tiff", 600)


def test_synthetic_slide_is_a_slide(slide: Path) -> None:
    opened = open_slide(slide, reader="openslide")
    assert (opened.meta.width_px, opened.meta.mpp, opened.meta.level_downsamples) == (
        600,
        0.25,
        (1.0, 4.0, pytest.approx(16.2, abs=0.3)),
    )
    pixels = opened.read_level(0, 0, 0, 600, 600)
    dark = (pixels[..., 0] < 150).mean()
    assert 0.1 < dark < 0.6, "nuclei cover a part of it"
    opened.close()


def test_figures_name_the_bound() -> None:
    """Ten tiles in one second, four threads and one turn: reading takes 4 x 90 % of it, or the device 90 %."""
    reading = [TileOutcome("s", k, "done", 100, {"read": 0.36, "predict": 0.05, "write": 0.0}) for k in range(10)]
    got = gpu_end_to_end.figures(reading, 10.0, 1.0, 3.0, 4, 1)
    assert got["bound"] == "reading and writing"
    assert got["busy_share"] == {"reading and writing": 0.9, "the device's turn": 0.5}
    assert (got["s_per_mm2"], got["mm2_per_s"], got["nuclei_per_mm2"]) == (0.1, 10.0, 100)
    computing = [TileOutcome("s", k, "done", 100, {"read": 0.04, "predict": 0.09, "write": 0.0}) for k in range(10)]
    assert gpu_end_to_end.figures(computing, 10.0, 1.0, 3.0, 4, 1)["bound"] == "the device's turn"


def test_benchmark_runs_on_the_cpu(slide: Path, tmp_path: Path) -> None:
    args = argparse.Namespace(tile=300, weights="default", engine="auto", device="cpu", seconds=0.0)
    row = gpu_end_to_end.measured(slide, args, "openslide", 2, tmp_path)
    assert row["tiles"] == 8
    assert row["nuclei_per_mm2"] > 1000
    assert set(row["tile_ms"]) == {"read", "wait", "normalize", "predict", "separate", "vectorize", "write"}


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_script_states_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "on_gpu.sh", tmp_path, "parity"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "WSISEG_NO_WHEELS": "1"},
        timeout=120,
    )
    assert done.returncode == 1
    assert "on_gpu.sh: missing here: cupy" in done.stderr

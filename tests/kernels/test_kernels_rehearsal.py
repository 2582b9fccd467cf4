"""The GPU path on the real CuPy and a stand-in driver, where CuPy is installed: ``rehearsal_cases.py`` in a process of its own.

pip install --no-deps cupy-cuda13x cuda-pathfinder    # 70 MB, no driver needed
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("rehearsal_cases.py")


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("g++") is None, reason="needs g++ on x86-64")
def test_gpu_path_on_the_real_cupy() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)],
        capture_output=True,
        text=True,
        cwd=CASES.parents[2],
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]

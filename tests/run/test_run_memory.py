"""A worker that has done many slides is no larger than one that has done a few."""

from __future__ import annotations

import subprocess
import sys

from tests.run.conftest import ROOT, environment

SLIDES = 14
WARM_UP = 4
ONE_SLIDE_BYTES = 500 * 500 * 3
"""A crop as RGB: a worker that kept no more than the pixels of each slide would grow by this much a slide."""


def test_resident_memory_has_no_trend() -> None:
    # a process of its own: what other tests have left in this one would blur the curve
    code = f"from benchmarks.memory import resident_curve; print(*resident_curve({SLIDES}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=environment(), cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    curve = [int(v) for v in done.stdout.split()]
    assert len(curve) == SLIDES
    half = (SLIDES - WARM_UP) // 2
    early, late = sorted(curve[WARM_UP : WARM_UP + half]), sorted(curve[-half:])
    growth = late[half // 2] - early[half // 2]  # medians: one large slide is no trend
    assert growth < half * ONE_SLIDE_BYTES, curve

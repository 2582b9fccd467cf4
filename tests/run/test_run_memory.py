"""A worker that has done many slides is no larger than one that has done a few."""

from __future__ import annotations

import statistics
import subprocess
import sys
from itertools import pairwise

from tests.run.conftest import ROOT, environment

SLIDES = 12
WARM_UP = 3
SIDE_PX = 400


def test_resident_memory_has_no_trend() -> None:
    # A process of its own: what other tests have left in this one would blur the curve. One and the same picture under many
    # names: a larger slide may rightly raise the peak.
    code = f"from benchmarks.memory import resident_curve; print(*resident_curve({SLIDES}, {SIDE_PX}, same=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=environment(), cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    curve = [int(v) for v in done.stdout.split()]
    assert len(curve) == SLIDES
    # Whatever is kept of every slide shows in the typical step, which one jump of the allocator does not move.
    step = statistics.median(b - a for a, b in pairwise(curve[WARM_UP:]))
    assert step < SIDE_PX * SIDE_PX * 3 / 4, f"{step} bytes a slide, a quarter of its pixels or more: {curve}"

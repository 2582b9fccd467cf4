"""Throw malformed input at everything that reads what others wrote: ``python benchmarks/fuzz.py --cases 5000 [--seconds 600]``.

Targets are those of tests/fuzz/targets.py. Outcomes: ``accepted`` (read, or a harmless change), ``refused`` (with words),
``crashed`` (a C library ended its process: in a run that costs a worker, not the run), ``out of memory`` (6 GiB were too few),
``hung`` and ``defect`` (anything else came out: there must be none). Results: benchmarks/results/fuzz.json, after every target.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import save, saved
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.fuzz import targets  # noqa: E402 - the tests are no package
from tests.run.conftest import run_here  # noqa: E402


class _Enough(Exception):
    """The time for a target is over."""


def drive(
    strategy: st.SearchStrategy[Any], work: Callable[[Any, Path], str], cases: int, seconds: float, number: int
) -> dict[str, Any]:
    """Run a target; return how often each outcome came."""
    counts: Counter[str] = Counter()
    defects: list[str] = []
    start = time.monotonic()
    slowest_s = 0.0

    @seed(number)
    @settings(
        max_examples=cases, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(strategy)
    def one(case: Any) -> None:
        nonlocal slowest_s
        if time.monotonic() - start > seconds:
            raise _Enough
        begun = time.monotonic()
        with targets.scratch_folder() as scratch:
            try:
                outcome = work(case, scratch)
            except Exception as err:  # counted, not hidden
                outcome = "defect"
                if len(defects) < 20:
                    defects.append(f"{type(err).__name__}: {err} for {case!r}"[:600])
        if outcome == "defect" and isinstance(case, int):
            defects.append(f"seed {case}")
        slowest_s = max(slowest_s, time.monotonic() - begun)
        counts[outcome] += 1

    with contextlib.suppress(_Enough), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one()
    return {
        "cases": counts.total(),
        **{name: counts[name] for name in ("accepted", "refused", "crashed", "out of memory", "hung", "defect")},
        "slowest_s": round(slowest_s, 2),
        "seconds": round(time.monotonic() - start, 1),
        "defects": defects,
    }


def main() -> None:
    """Run the targets and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000, help="of each target")
    parser.add_argument("--seconds", type=float, default=3600.0, help="most for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--only", nargs="*", default=[], help="targets whose name holds one of these words; other rows are kept"
    )
    arguments = parser.parse_args()
    rows: dict[str, Any] = saved("fuzz").get("targets", {}) if arguments.only else {}

    def run(name: str, strategy: st.SearchStrategy[Any], work: Callable[[Any, Path], str]) -> None:
        if arguments.only and not any(word in name for word in arguments.only):
            return
        rows[name] = drive(strategy, work, arguments.cases, arguments.seconds, arguments.seed)
        print(name, rows[name], flush=True)
        save("fuzz", {"seed": arguments.seed, "targets": rows})

    run("TIFF metadata", targets.tiff_metadata, targets.metadata_case)
    run("config TOML", targets.config, targets.config_case)
    run("manifest CSV, TSV, Parquet", targets.manifest, targets.manifest_case)
    run("GeoJSON and CSV import", targets.import_seed, targets.import_case)
    with tempfile.TemporaryDirectory(prefix="wsiseg-fuzz-run-") as folder:
        root = targets.small_run(Path(folder), run_here)
        run("run folder", targets.run_seed, lambda case, scratch: targets.run_folder_case((case, root), scratch))
        with targets.review_server(root) as (port, cookie):
            run("review server requests", targets.request, lambda case, _: targets.request_case(case, port, cookie))
    run("slide bytes", st.integers(0, 2**31), targets.slide_case)


if __name__ == "__main__":
    main()

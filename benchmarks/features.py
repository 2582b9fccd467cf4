"""`wsiseg features` of a finished run: seconds, processor seconds and memory, beside what segmenting the slide took.

    python benchmarks/features.py RUN SLIDE_ID     # RUN of wsiseg segment, its slide in its place

Measured with one worker and with two, with and without pixels; every time in new processes. `of_the_run` is the processor time
as a share of the seconds that the run's tiles took, summed over workers (`seconds_*` of slides.parquet).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import save

STAGES = ("read", "normalize", "predict", "separate", "vectorize", "write")


def measured(run: Path, slide_id: str, *options: str) -> dict[str, Any]:
    """Measure the features of a slide again; return the cost and the bytes of the file."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    command = [sys.executable, "-m", "wsiseg", "features", str(run), "--slide", slide_id, "--overwrite", *options]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    size = (run / "features" / f"{slide_id}.parquet").stat().st_size
    return {"wall_s": round(time.perf_counter() - start, 1), "cpu_s": round(cpu_s, 1), "file_mb": round(size / 1e6, 2)}


def main() -> None:
    """Measure and write the result."""
    run, slide_id = Path(sys.argv[1]), sys.argv[2]
    (row,) = (r for r in pq.read_table(run / "slides.parquet").to_pylist() if r["slide_id"] == slide_id)
    run_s = sum(row[f"seconds_{stage}"] for stage in STAGES)
    result: dict[str, Any] = {"slide": slide_id, "n_nuclei": row["n_nuclei"], "seconds_of_the_run": round(run_s, 1)}
    for name, options in (
        ("one worker", ("--workers", "1")),
        ("two workers", ("--workers", "2")),
        ("one worker, no pixels", ("--workers", "1", "--no-pixels")),
    ):
        found = measured(run, slide_id, *options)
        result[name] = {**found, "of_the_run": round(found["cpu_s"] / run_s, 3)}
    print(json.dumps(result, indent=1))
    save("features", result)


if __name__ == "__main__":
    main()

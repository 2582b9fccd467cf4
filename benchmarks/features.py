"""What features of all nuclei cost: in the pass (`segment --features`) and afterwards (`wsiseg features`), in processor time.

    python -m benchmarks.features [SLIDE] [--quick]     # default: the bundled slide

All tiles of the slide are done and the slide is finished twice, in this process and one thread, without and with features; the
processor time of what features add is taken directly, since two runs of a busy machine differ by more. Then `wsiseg features`
measures the first run, in processes of its own. The files must be equal, byte for byte. `of_the_run` is each one's share of the
processor time of the run without. ``--quick`` shows that it works and records nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

from benchmarks._machine import save
from wsiseg.config import RunConfig, WriteConfig
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.run import finish as finish_module
from wsiseg.run import tile as tile_module
from wsiseg.run.context import WorkerContext
from wsiseg.run.doctor import demo_slide
from wsiseg.run.finish import finish_slide
from wsiseg.run.job import prepare_slide, tiles_of
from wsiseg.run.kernels import prepare_kernels
from wsiseg.run.tile import segment_tile

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def timed(module: Any, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add the processor time of a module's function to ``seconds[name]`` while the block runs."""
    function: Callable[..., Any] = getattr(module, name)

    def measured(*args: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - start

    with mock.patch.object(module, name, measured):
        yield


def one_pass(slide: Path, out: Path, *, features: bool) -> dict[str, Any]:
    """Segment a slide in this process; processor seconds of the whole and of what features add."""
    config = RunConfig(write=WriteConfig(features=features))
    folder = RunFolder(out)
    folder.create()
    context = WorkerContext(folder, config, "benchmark")
    added: dict[str, float] = {}
    try:
        aim, mpp = context.stain_aim, context.model.mpp  # loads the network
        start = time.process_time()
        job = prepare_slide(SlideInput(slide.stem, str(slide)), folder, config, mpp, aim)
        with timed(tile_module, "measured_in_tile", added), timed(finish_module, "finish_features", added):
            for tile in tiles_of(job, config):
                if tile.tissue_frac > 0:
                    segment_tile(tile, context)
            row = finish_slide(slide.stem, [], context)
        cpu_s = time.process_time() - start
    finally:
        context.close()
    return {"cpu_s": round(cpu_s, 2), "n_nuclei": row.n_nuclei, "added_cpu_s": {k: round(v, 2) for k, v in added.items()}}


def afterwards(run: Path, slide_id: str, *options: str) -> dict[str, Any]:
    """Run `wsiseg features`; its cost, that of starting Python and libraries included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "wsiseg", "features", str(run), "--slide", slide_id, "--overwrite", *options]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slide", nargs="?", type=Path, default=demo_slide())
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    slide_id = args.slide.stem
    prepare_kernels(features=True)
    with tempfile.TemporaryDirectory() as folder:
        plain, measured = Path(folder) / "plain", Path(folder) / "features"
        without = one_pass(args.slide, plain, features=False)
        within = one_pass(args.slide, measured, features=True)
        run_s = without["cpu_s"]
        result: dict[str, Any] = {"slide": slide_id, "n_nuclei": without["n_nuclei"], "run_cpu_s": run_s}
        added = sum(within["added_cpu_s"].values())
        result["in the pass"] = {**within, "of_the_run": round(added / run_s, 3)}
        file = Path("features") / f"{slide_id}.parquet"
        for name, options in (
            ("afterwards, one worker", ("--workers", "1")),
            ("afterwards, one worker, no pixels", ("--workers", "1", "--no-pixels")),
            ("afterwards, two workers", ("--workers", "2")),
        ):
            found = afterwards(plain, slide_id, *options)
            result[name] = {**found, "of_the_run": round(found["cpu_s"] / run_s, 3)}
        if (plain / file).read_bytes() != (measured / file).read_bytes():
            raise SystemExit("The features of the pass and those measured afterwards differ.")
        result["file_mb"] = round((plain / file).stat().st_size / 1e6, 2)
    print(json.dumps(result, indent=1))
    if not args.quick:
        save("features", result)


if __name__ == "__main__":
    main()

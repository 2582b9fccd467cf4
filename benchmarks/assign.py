"""Transcripts to a million nuclei: wsiseg assign with counts, and geopandas.sjoin on a sample of the same points beside it.

Run ``python -m benchmarks.assign [--points N] [--nuclei N] [--within-um D]`` (default: 10,000,000 points, 1,000,000 nuclei);
writes ``benchmarks/results/assign.json``. ``--points 100000000`` takes minutes and 3 GB of disk. Rates are per CPU second
(wall seconds beside them: the machine may be shared). Each job runs in a process of its own, so its peak memory is its own.
``ours`` is the whole command: files read, genes counted, files written. ``find`` is what sjoin does, on the same sample; its
clock includes the reading of the nuclei, that of sjoin does not.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import save
from benchmarks.export import SIDE, make

MPP = 0.25
GENES = 400
RIVAL_POINTS = 500_000
BATCH = 1_000_000


def write_points(path: Path, n: int, size_um: tuple[float, float] = (SIDE * MPP, SIDE * MPP)) -> None:
    """Write a table like Xenium's: um as float32, genes as a dictionary, points of one field of view together."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    names = pa.array([f"GENE{k}" for k in range(GENES)])
    writer = None
    for first in range(0, n, BATCH):
        m = min(BATCH, n - first)
        xy = (rng.random((m, 2)) * size_um).astype(np.float32)
        genes = pa.DictionaryArray.from_arrays(pa.array(rng.integers(0, GENES, m).astype(np.int32)), names)
        ids = pa.array(np.arange(first, first + m, dtype=np.uint64))
        quality = pa.array(rng.uniform(5, 40, m).astype(np.float32))
        table = pa.table(
            {"transcript_id": ids, "x_location": xy[:, 0], "y_location": xy[:, 1], "feature_name": genes, "qv": quality}
        )
        writer = writer or pq.ParquetWriter(str(path), table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def ours(table: Path, points: Path, within_um: float) -> dict[str, Any]:
    from wsiseg.questions import AssignOptions, assign_points_to_nuclei, open_points

    with tempfile.TemporaryDirectory(dir=points.parent) as name:
        options = AssignOptions(frame="um", within_um=within_um, counts=Path(name) / "counts.h5ad")
        done = assign_points_to_nuclei(table, open_points(points), Path(name) / "points.parquet", options)
    return {"points": done.n_points, "inside": done.n_inside, "near": done.n_near, "pairs": done.n_pairs}


def find(table: Path, points: Path, within_um: float) -> dict[str, Any]:
    """Time the index and the search alone, in one thread."""
    import pyarrow.parquet as pq

    from wsiseg.questions.nucleus_index import index_nuclei
    from wsiseg.tables import open_nuclei

    batch = next(pq.ParquetFile(points).iter_batches(RIVAL_POINTS, columns=["x_location", "y_location"]))
    xy = np.stack([np.asarray(batch[k], np.float64) / MPP for k in (0, 1)], axis=1)
    began, began_cpu = time.perf_counter(), time.process_time()
    row, _ = index_nuclei(open_nuclei(table)).find(xy, within_um / MPP)
    wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return {"points": len(xy), "pairs": int((row >= 0).sum()), "wall_s": wall, "cpu_s": cpu}


def rival(table: Path, points: Path, within_um: float) -> dict[str, Any]:
    """Time sjoin alone; its nuclei and points are made before."""
    import geopandas
    import pyarrow.parquet as pq

    nuclei = geopandas.read_parquet(table, columns=["nucleus_id", "geometry"])
    batch = next(pq.ParquetFile(points).iter_batches(RIVAL_POINTS, columns=["x_location", "y_location"]))
    x, y = (np.asarray(batch[k], np.float64) / MPP for k in (0, 1))
    frame = geopandas.GeoDataFrame(geometry=geopandas.points_from_xy(x, y))
    began, began_cpu = time.perf_counter(), time.process_time()
    joined = (
        geopandas.sjoin_nearest(frame, nuclei, max_distance=within_um / MPP)
        if within_um
        else geopandas.sjoin(frame, nuclei, predicate="intersects")
    )
    wall, cpu = time.perf_counter() - began, time.process_time() - began_cpu
    return {"points": len(frame), "pairs": len(joined), "wall_s": wall, "cpu_s": cpu}


def measure(name: str, table: Path, points: Path, within_um: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.assign", "--job", name, str(table), str(points), str(within_um)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row = {"job": name, "within_um": within_um, **row, "points_per_cpu_s": round(row["points"] / row["cpu_s"])}
    print(row)
    return row


def job(name: str, table: Path, points: Path, within_um: float) -> None:
    if name != "geopandas":  # the kernels are compiled before the clock runs
        from wsiseg.questions.nucleus_index import index_nuclei
        from wsiseg.tables import open_nuclei

        index_nuclei(open_nuclei(table)).find(np.zeros((4, 2)), 1.0)
    began, began_cpu = time.perf_counter(), time.process_time()
    row = {"ours": ours, "find": find, "geopandas": rival}[name](table, points, within_um)
    times = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - began_cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**times, **row, "peak_mb": round(peak)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--within-um", type=float, default=5.0)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        table, points = make(Path(name), args.nuclei), Path(name) / "transcripts.parquet"
        write_points(points, args.points)
        for within_um in (0.0, args.within_um):
            rows += [measure(which, table, points, within_um) for which in ("ours", "find", "geopandas")]
            for row in rows[-3:-1]:
                row["times_geopandas"] = round(row["points_per_cpu_s"] / rows[-1]["points_per_cpu_s"], 2)
                print(f"{row['job']}, within {within_um:g} um: {row['times_geopandas']} times geopandas")
    if not args.no_save:
        print(save("assign", {"nuclei": args.nuclei, "genes": GENES, "rows": rows}))


if __name__ == "__main__":
    if "--job" in sys.argv:
        at = sys.argv.index("--job")
        job(sys.argv[at + 1], Path(sys.argv[at + 2]), Path(sys.argv[at + 3]), float(sys.argv[at + 4]))
    else:
        main()

"""Two segmentations of whole slides compared: figures, seconds, memory; the scores beside those of `wsiseg evaluate`.

    python benchmarks/compare.py --a RUN_RESEARCH --b RUN_OPEN --slide atlas_metaplasia_HE [--across 5 --down 4]

The two runs are `wsiseg segment SLIDE --weights research|open`. The large slide is the first run's table laid 5 by 4 times
side by side, as shared/prototypes/big_slide.py lays its pixels; its counterpart has every nucleus moved by up to 2 px, 5 % of
them taken away and 3 % drawn twice as large. Peak memory is that of the largest process; `evaluate` is run in a process of its
own where it can.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent))
from _machine import save

from wsiseg.tables import open_nuclei, wkb_polygons, wkb_rings
from wsiseg.tables.hilbert import hilbert_key

KINDS = ("n_a", "n_b", "matched", "count_ratio", "area_diff_frac", "pq", "f1", "dice", "aji")


def laid_out(table: Path, out: Path, across: int, down: int, seed: int | None = None) -> int:
    """Write the table of a slide that shows another one several times; with a seed, disturbed. Return its nuclei."""
    source, found = open_nuclei(table), pq.read_table(table)
    xy, offsets = wkb_rings(found["geometry"])
    lengths, n = np.diff(offsets), found.num_rows
    rng = np.random.default_rng(seed)
    parts = []
    for row in range(down):
        for column in range(across):
            shift = np.tile([column * source.width_px, row * source.height_px], (n, 1)).astype(np.float64)
            points, keep = xy, np.ones(n, bool)
            if seed is not None:
                shift += np.rint(rng.uniform(-2, 2, (n, 2)))
                keep = rng.random(n) >= 0.05
                center = np.add.reduceat(xy, offsets[:-1]) / lengths[:, None]
                grown = np.where(rng.random(n) < 0.03, 2**0.5, 1.0)
                points = np.rint((xy - np.repeat(center, lengths, 0)) * np.repeat(grown, lengths)[:, None]) + np.rint(
                    np.repeat(center, lengths, 0)
                )
                points = np.where(np.repeat(grown > 1, lengths)[:, None], points, xy)
            parts.append(_part(found, points + np.repeat(shift, lengths, 0), offsets, shift, keep))
    whole = pa.concat_tables(parts)
    order = np.argsort(hilbert_key(*(whole[c].to_numpy().clip(0).astype(np.uint32) for c in ("cx", "cy"))), kind="stable")
    facts = json.loads(found.schema.metadata[b"wsiseg"])
    facts["slide"] |= {"width_px": source.width_px * across, "height_px": source.height_px * down, "slide_id": "big"}
    metadata = {**found.schema.metadata, b"wsiseg": json.dumps(facts).encode()}
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(whole.take(order).replace_schema_metadata(metadata), out, row_group_size=16384, compression="zstd")
    return whole.num_rows


def _part(found: pa.Table, xy: Any, offsets: Any, shift: Any, keep: Any) -> pa.Table:
    low, high = (f.reduceat(xy, offsets[:-1]).astype(np.float32) for f in (np.minimum, np.maximum))
    box = pa.StructArray.from_arrays(
        [pa.array(v) for v in (low[:, 0], low[:, 1], high[:, 0], high[:, 1])], fields=list(found.schema.field("bbox").type)
    )
    new = {"geometry": wkb_polygons(xy, offsets), "bbox": box}
    new |= {c: pa.array((found[c].to_numpy() + shift[:, k]).astype(np.float32)) for k, c in enumerate(("cx", "cy"))}
    for name, values in new.items():
        found = found.set_column(found.schema.get_field_index(name), found.schema.field(name), values)
    return found.filter(pa.array(keep))


def measured(command: list[str]) -> tuple[float, float, float]:
    """Run a command; return wall and CPU seconds, and the peak memory of its largest process, GB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    code = "import resource,subprocess,sys; r=subprocess.run(sys.argv[1:]).returncode; "
    code += "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r)"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    wall_s = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak_kb = int(done.stdout.rsplit("PEAK", 1)[1])
    return round(wall_s, 1), round(cpu_s, 1), round(peak_kb * 1024 / 1e9, 2)


def compared(a: Path, b: Path, out: Path, workers: int) -> dict[str, Any]:
    """Compare and return figures and cost."""
    command = [sys.executable, "-m", "wsiseg", "compare", str(a), str(b), "-o", str(out), "--workers", str(workers)]
    wall_s, cpu_s, peak_gb = measured(command)
    notes = json.loads((out / "compare.json").read_text())
    return {**{k: notes["pooled"][k] for k in KINDS}, "workers": workers, "wall_s": wall_s, "cpu_s": cpu_s, "peak_gb": peak_gb}


def evaluated(a: Path, b: Path, ours: dict[str, Any], work: Path) -> dict[str, Any]:
    """Run evaluate on the same two tables; return its cost and how far its scores are from ours."""
    out = work / "evaluate.json"
    command = [sys.executable, "-m", "wsiseg", "evaluate", str(a), str(b), "--max-gb", "8", "-o", str(out)]
    wall_s, cpu_s, peak_gb = measured(command)
    pooled = json.loads(out.read_text())["summary"]["pooled"]
    away = max(abs(pooled[k] - ours[k]) for k in ("pq", "f1", "dice", "aji"))
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_gb": peak_gb, "largest_difference": away}


def main() -> None:
    """Compare the two runs, the laid-out slide and its disturbed copy, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--a", type=Path, required=True)
    parser.add_argument("--b", type=Path, required=True)
    parser.add_argument("--slide", default="atlas_metaplasia_HE")
    parser.add_argument("--across", type=int, default=5)
    parser.add_argument("--down", type=int, default=4)
    args = parser.parse_args()
    result: dict[str, Any] = {"command": " ".join(sys.argv[1:])}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tables = [run / "nuclei" / f"{args.slide}.parquet" for run in (args.a, args.b)]
        ours = compared(args.a, args.b, work / "one", 1)
        result["weights research against open"] = {**ours, "evaluate": evaluated(*tables, ours, work)}
        big, other = (work / side / "nuclei" / "big.parquet" for side in ("big", "other"))
        n = laid_out(tables[0], big, args.across, args.down)
        laid_out(tables[0], other, args.across, args.down, seed=1)
        for workers in (1, 2):
            key = f"{n:,} nuclei against a disturbed copy, {workers} worker{'s' if workers > 1 else ''}"
            result[key] = compared(big.parent.parent, other.parent.parent, work / f"big{workers}", workers)
            shutil.rmtree(work / f"big{workers}")
    print(json.dumps(result, indent=1))
    save("compare", result)


if __name__ == "__main__":
    main()

"""Part files and the slide table beside geopandas and CSV, on rings traced from synthetic tiles: bytes a nucleus, CPU seconds.

Run ``python -m benchmarks.tables [--quick]``; writes ``benchmarks/results/tables.json``. Writers of the same nuclei, then reads
of a window (1/400 of the slide's area) beside reads of everything, then the encodings of geometry that were tried.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely

from benchmarks._machine import save
from benchmarks.synthetic import synthetic_tile
from wsiseg.config import SeparateConfig, WriteConfig
from wsiseg.separate import resolve_params, separate
from wsiseg.tables import read_nuclei
from wsiseg.types import Box, PolygonBatch, SlideMeta, Tile, TileStats
from wsiseg.vectorize import vectorize
from wsiseg.write import read_part, read_part_header, write_nuclei_table, write_part

SIDE = 4000
META = SlideMeta("bench", "bench.svs", 60_000, 60_000, 0.2527, "openslide")
ENCODINGS = ("PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY")
LEVELS = (1, 3, 6, 9, 12, 15)


def timed(call: Callable[[], Any], repeats: int = 1) -> tuple[Any, float, float]:
    """Return the result, and the medians of CPU and wall seconds."""
    cpu, wall, result = [], [], None
    for _ in range(repeats):
        start, clock = time.process_time(), time.perf_counter()
        result = call()
        cpu.append(time.process_time() - start)
        wall.append(time.perf_counter() - clock)
    return result, round(statistics.median(cpu), 5), round(statistics.median(wall), 5)


def traced_batches(n_kinds: int) -> list[PolygonBatch]:
    """Return the nuclei of a few different tiles, through the package's own separation and tracing."""
    params = resolve_params(SeparateConfig(), {}, 0.25)
    box = Box(0, 0, SIDE, SIDE)
    tiles = [synthetic_tile(9680, SIDE, seed=k) for k in range(n_kinds)]
    return [vectorize(separate(t.prob, params), t.prob, box, box) for t in tiles]


def moved(batch: PolygonBatch, dx: int, dy: int) -> PolygonBatch:
    """Return the batch elsewhere on the slide."""
    by = {"nucleus_id": dy * 2**31 + dx, "cx_wpx": dx, "cy_wpx": dy}
    columns = {k: v + by[k] if k in by else v for k, v in batch.columns.items()}
    return PolygonBatch(batch.xy + np.array([dx, dy], np.int32), batch.ring_offsets, columns)


def write_parts(
    folder: Path, kinds: list[PolygonBatch], n_tiles: int, origin: int
) -> tuple[list[Path], list[PolygonBatch], dict[str, Any]]:
    folder.mkdir()
    side = int(np.ceil(np.sqrt(n_tiles)))
    batches = [moved(kinds[k % len(kinds)], origin + k % side * SIDE, origin + k // side * SIDE) for k in range(n_tiles)]
    paths, cpu, size = [], [], 0
    for k, batch in enumerate(batches):
        paths.append(folder / f"{k:06d}.parquet")
        tile = Tile("bench", k, Box(0, 0, SIDE, SIDE), Box(0, 0, SIDE, SIDE), 1.0, 1.0)
        n, cpu_s, _ = timed(lambda b=batch, p=paths[-1], t=tile: write_part(p, b, t, TileStats(tissue_px=1), {}, "d"))
        size += n
        cpu.append(cpu_s)
    facts = {
        "nuclei_per_tile": round(sum(map(len, batches)) / n_tiles),
        "write_ms_cpu": round(1e3 * statistics.median(cpu), 2),
        "header_ms_cpu": round(1e3 * timed(lambda: read_part_header(paths[0]), 5)[1], 2),
        "read_ms_cpu": round(1e3 * timed(lambda: read_part(paths[0]), 5)[1], 2),
        "bytes_per_nucleus": round(size / sum(map(len, batches)), 1),
    }
    return paths, batches, facts


def frame_of(batches: list[PolygonBatch]) -> geopandas.GeoDataFrame:
    """Return the nuclei in tile order as a frame with the table's numbers, as a user of geopandas would hold them."""
    xy = np.concatenate([b.xy for b in batches]).astype(np.float64)
    lengths = np.concatenate([np.diff(b.ring_offsets) for b in batches])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    polygons = shapely.from_ragged_array(shapely.GeometryType.POLYGON, xy, (offsets, np.arange(len(offsets))))
    columns = {k: np.concatenate([b.columns[k] for b in batches]) for k in batches[0].columns}
    return geopandas.GeoDataFrame(columns, geometry=polygons)


def rivals(frame: geopandas.GeoDataFrame, folder: Path) -> dict[str, Any]:
    writers: dict[str, Callable[[Path], Any]] = {
        "geopandas.to_parquet snappy": lambda p: frame.to_parquet(p),
        "geopandas.to_parquet zstd, bbox": lambda p: frame.to_parquet(p, compression="zstd", write_covering_bbox=True),
        "CSV with WKT": lambda p: frame.assign(geometry=shapely.to_wkt(frame.geometry.values, rounding_precision=0)).to_csv(p),
    }
    out = {}
    for name, write in writers.items():
        path = folder / f"{len(out)}.rival"
        _, cpu, wall = timed(lambda w=write, p=path: w(p))
        out[name] = {"cpu_s": cpu, "wall_s": wall, "bytes_per_nucleus": round(path.stat().st_size / len(frame), 1)}
    return out


def windows(ours: Path, theirs: Path, box: Box) -> dict[str, Any]:
    """Read a window and everything, from our table and from geopandas' own (tile order, covering bbox)."""
    corners = (box.x, box.y, box.x1, box.y1)
    calls: dict[str, Callable[[], Any]] = {
        "wsiseg.read_nuclei, window": lambda: read_nuclei(ours, box),
        "geopandas, window, our table": lambda: geopandas.read_parquet(ours, bbox=corners),
        "geopandas, window, its own table": lambda: geopandas.read_parquet(theirs, bbox=corners),
        "wsiseg.read_nuclei, all": lambda: read_nuclei(ours),
        "geopandas, all, our table": lambda: geopandas.read_parquet(ours),
        "geopandas, all, its own table": lambda: geopandas.read_parquet(theirs),
    }
    out = {}
    for name, call in calls.items():
        result, cpu, wall = timed(call, 5 if "window" in name else 2)
        out[name] = {"rows": len(result), "cpu_s": cpu, "wall_s": wall}
    return out


def encodings(table: Path) -> list[dict[str, Any]]:
    """Write the geometry column again in every encoding and at every level that were weighed."""
    geometry = pq.read_table(table, columns=["geometry"])["geometry"].combine_chunks()[:65_536]
    schema = pa.schema([pa.field("geometry", pa.binary(), nullable=False)])
    plain = pa.Table.from_arrays([geometry], schema=schema)
    rows = []
    for encoding in ENCODINGS:
        for level in LEVELS:
            sink = io.BytesIO()
            options: dict[str, Any] = {"compression": "zstd", "compression_level": level, "use_dictionary": False}
            options |= {"column_encoding": {"geometry": encoding}, "write_statistics": False, "row_group_size": 16_384}
            _, cpu, _ = timed(lambda s=sink, o=options: pq.write_table(plain, s, **o))
            n = len(plain)
            rows.append({"encoding": encoding, "zstd_level": level, "bytes_per_nucleus": round(len(sink.getvalue()) / n, 1),
                         "cpu_us_per_nucleus": round(1e6 * cpu / n, 2)})  # fmt: skip
    return rows


def resampled(parts: list[Path], out: Path) -> list[dict[str, Any]]:
    """Bytes of the whole table where working px are not level-0 px."""
    rows = []
    for scale in (1.0, 2.0, 1.996, 1.38, 0.69):
        summary = write_nuclei_table(parts, out, META, scale, {}, WriteConfig())
        rows.append({"scale": scale, "bytes_per_nucleus": round(summary.n_bytes / summary.n_nuclei, 1)})
    return rows


def peak_of_writing(parts: list[Path], out: Path) -> dict[str, Any]:
    """Write the table in a process of its own and return its peak memory."""
    code = (
        "import sys, json; from pathlib import Path; from benchmarks.tables import peak\n"
        "print(json.dumps(peak(Path(sys.argv[1]), Path(sys.argv[2]))))\n"
    )
    run = [sys.executable, "-c", code, str(parts[0].parent), str(out)]
    facts: dict[str, Any] = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    return facts


def high_water_mib() -> float:
    """Return this process's peak resident memory; ``ru_maxrss`` would carry over that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak(parts: Path, out: Path) -> dict[str, Any]:
    read_part_header(min(parts.iterdir()))  # libraries are loaded before the first reading of memory
    before = high_water_mib()
    summary, cpu, wall = timed(lambda: write_nuclei_table(sorted(parts.iterdir()), out, META, 1.0, {}, WriteConfig()))
    after = high_water_mib()
    return {"n_nuclei": summary.n_nuclei, "cpu_s": cpu, "wall_s": wall, "row_groups": summary.n_row_groups,
            "bytes_per_nucleus": round(summary.n_bytes / summary.n_nuclei, 1), "before_mib": round(before),
            "peak_mib": round(after)}  # fmt: skip


def main() -> None:
    """Run everything and save the figures."""
    quick = "--quick" in sys.argv
    kinds = traced_batches(1 if quick else 3)
    vertices = sum(len(b.xy) for b in kinds) / sum(map(len, kinds))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths, batches, part_facts = write_parts(folder / "parts", kinds, 4 if quick else 25, 20_000)
        table = peak_of_writing(paths, folder / "t.parquet")
        frame = frame_of(batches)
        others = rivals(frame, folder)
        extent = (folder / "t.parquet", folder / "1.rival", Box(26_300, 25_100, 1000, 1000))
        result: dict[str, Any] = {
            "command": "python -m benchmarks.tables",
            "rings": {"vertices": round(vertices, 1), "mean_area_px": round(float(frame.area_wpx.mean()), 1)},
            "part": part_facts,
            "table": table,
            "rivals": others,
            "reads": windows(*extent),
            "geometry_encodings": encodings(folder / "t.parquet"),
            "resampled": resampled(paths[:4], folder / "r.parquet"),
        }
        del frame, batches
        if not quick:
            million, _, _ = write_parts(folder / "million", kinds, 125, 8000)
            result["million"] = peak_of_writing(million, folder / "m.parquet")
    print(save("tables", result).read_text())


if __name__ == "__main__":
    main()

"""A million nuclei to GeoJSON, AnnData, SpatialData, maps, and back from a QuIP folder; geopandas and a json.dumps loop beside.

Run ``python -m benchmarks.export [--quick]``; writes ``benchmarks/results/export.json``. Rates are nuclei per CPU second (wall
seconds beside them: the machine may be shared). Each job runs in a process of its own, so its peak memory is its own; what the
process holds before it begins is subtracted. The rivals get a smaller sample, for their memory and time grow with it.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import save
from tests.oracles.rings import nuclei
from wsiseg.config import WriteConfig
from wsiseg.types import Box, SlideMeta, Tile, TileStats

SLIDE = "TCGA-05-4249-01Z-00-DX1.9fce0297-cc19-4c04-872c-4466ee4024db"
SIDE = 64_000


def make(folder: Path, n: int) -> Path:
    """Write a table of ``n`` nuclei of 4096 shapes scattered over a slide, in tiles of 4000 px."""
    from wsiseg.types import PolygonBatch
    from wsiseg.write import write_nuclei_table, write_part

    whole = nuclei(1, n, SIDE)
    tile_of = (whole.columns["cy_wpx"] // 4000).astype(int) * 16 + (whole.columns["cx_wpx"] // 4000).astype(int)
    parts = []
    for tile_id in np.unique(tile_of).tolist():
        pick = np.flatnonzero(tile_of == tile_id)
        lengths = np.diff(whole.ring_offsets)[pick]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        index = np.arange(offsets[-1]) + np.repeat(whole.ring_offsets[:-1][pick] - offsets[:-1], lengths)
        batch = PolygonBatch(whole.xy[index], offsets, {k: v[pick] for k, v in whole.columns.items()})
        box = Box(0, 0, SIDE, SIDE)
        parts.append(folder / f"{tile_id:06d}.parquet")
        write_part(parts[-1], batch, Tile(SLIDE, tile_id, box, box, 1.0, 1.0), TileStats(), {}, "0" * 16)
    out = folder / f"{n}.parquet"
    write_nuclei_table(parts, out, SlideMeta(SLIDE, f"{SLIDE}.svs", SIDE, SIDE, 0.25, "openslide"), 1.0, {}, WriteConfig())
    for part in parts:
        part.unlink()
    return out


def ours_geojson(table: Path, out: Path) -> int:
    from wsiseg.export.qupath import write_geojson
    from wsiseg.tables.source import open_nuclei

    return write_geojson(open_nuclei(table), out).n_nuclei


def ours_read_geojson(path: Path, out: Path) -> int:
    from wsiseg.export.geojson import read_geojson
    from wsiseg.export.incoming import Provenance, Source
    from wsiseg.export.table import write_imported_table

    provenance = Provenance("qupath")
    meta = SlideMeta(SLIDE, f"{SLIDE}.svs", SIDE, SIDE, 0.25, "user")
    return write_imported_table(read_geojson(Source(path), provenance), out, meta, provenance).n_nuclei


def ours_quip(table: Path, out: Path) -> int:
    from wsiseg.export.quip import write_quip
    from wsiseg.tables.source import open_nuclei

    return write_quip(open_nuclei(table), out).n_nuclei


def ours_read_quip(folder: Path, out: Path) -> int:
    from wsiseg.export.incoming import Provenance, Source
    from wsiseg.export.quip import read_quip
    from wsiseg.export.table import write_imported_table

    provenance = Provenance("quip")
    meta = SlideMeta(SLIDE, f"{SLIDE}.svs", SIDE, SIDE, 0.25, "user")
    return write_imported_table(read_quip(Source(folder / f"{SLIDE}.svs"), provenance), out, meta, provenance).n_nuclei


def ours_anndata(table: Path, out: Path) -> int:
    from wsiseg.export.spatial import write_anndata
    from wsiseg.tables.source import open_nuclei

    return write_anndata(open_nuclei(table), out).n_nuclei


def ours_spatialdata(table: Path, out: Path) -> int:
    from wsiseg.export.spatial import write_spatialdata
    from wsiseg.tables.source import open_nuclei

    return write_spatialdata(open_nuclei(table), out).n_nuclei


def ours_maps(table: Path, out: Path) -> int:
    from wsiseg.tables.source import open_nuclei
    from wsiseg.write.maps import write_maps

    return write_maps(open_nuclei(table), out).n_nuclei


def ours_features(table: Path, out: Path) -> int:
    """What needs no pixels: hulls and neighbors, into the companion of a table at RUN/nuclei."""
    from wsiseg.run.features import FeatureOptions, measure_features

    (out / "nuclei").mkdir(parents=True)
    (out / "nuclei/S.parquet").hardlink_to(table)
    return measure_features(out, "S", FeatureOptions(pixels=False))


def geopandas_to_file(table: Path, out: Path) -> int:
    """The usual way: GDAL's GeoJSON driver (it writes no objectType, classification or measurements)."""
    import warnings

    import geopandas

    warnings.simplefilter("ignore")
    frame = geopandas.read_parquet(table).drop(columns=["bbox"], errors="ignore")
    frame.to_file(out, driver="GeoJSON", engine="pyogrio", COORDINATE_PRECISION=2)
    return len(frame)


def json_loop(table: Path, out: Path) -> int:
    """The other usual way: shapely's mapping and one json.dumps a nucleus."""
    import uuid

    import pyarrow.parquet as pq
    import shapely

    read = pq.read_table(table)
    shapes = shapely.from_wkb(read["geometry"].to_numpy(zero_copy_only=False))
    space = uuid.uuid5(uuid.NAMESPACE_URL, SLIDE)
    rows = read.drop_columns(["geometry", "bbox"]).to_pylist()
    with out.open("w") as stream:
        stream.write('{"type":"FeatureCollection","features":[')
        for k, (shape, row) in enumerate(zip(shapes, rows, strict=True)):
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(space, str(row["nucleus_id"]))),
                "geometry": shapely.geometry.mapping(shape),
                "properties": {
                    "objectType": "detection",
                    "classification": {"name": "Nucleus", "color": [0, 200, 83]},
                    "measurements": {
                        m: row[m] for m in ("area_um2", "perimeter_um", "major_um", "minor_um", "orientation_rad")
                    },
                },
            }
            stream.write((",\n" if k else "") + json.dumps(feature))
        stream.write("]}")
    return len(rows)


def csv_loop(folder: Path, out: Path) -> int:
    """The pipeline's own way to read its release: csv.DictReader and float() of each number."""
    import csv

    csv.field_size_limit(1 << 24)
    n = 0
    for path in sorted((folder / f"{SLIDE}.svs").glob("*-features.csv")):
        with path.open() as stream:
            for row in csv.DictReader(stream):
                np.array([float(v) for v in row["Polygon"][1:-1].split(":")]).reshape(-1, 2)
                n += 1
    return n


JOBS = {
    f.__name__: f
    for f in (
        ours_geojson, ours_read_geojson, ours_quip, ours_read_quip, ours_anndata, ours_spatialdata, ours_maps, ours_features,
        geopandas_to_file, json_loop, csv_loop,
    )
}  # fmt: skip


def child(name: str, source: str, out: str) -> None:
    import pyarrow.parquet  # noqa: F401 - part of what the process holds before

    before = memory_kb("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    n = JOBS[name](Path(source), Path(out))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = memory_kb("VmHWM") - before
    print(
        json.dumps({"job": name, "nuclei": n, "cpu_s": round(cpu, 2), "wall_s": round(wall, 2), "peak_mb": round(peak / 1024)})
    )


def memory_kb(field: str) -> int:
    """Return a field of this process's status: VmRSS (held now) or VmHWM (the peak since the program began)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(name: str, source: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.export", "--child", name, str(source), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row["nuclei_per_cpu_s"] = round(row["nuclei"] / max(row["cpu_s"], 0.01))
    size = (
        sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        if out.is_dir()
        else out.stat().st_size
        if out.exists()
        else 0
    )
    row["megabytes"] = round(size / 1e6, 1)
    print(f"{name:20} {row}", file=sys.stderr, flush=True)
    return row


def main() -> None:
    big, small = (50_000, 20_000) if "--quick" in sys.argv else (1_000_000, 100_000)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = {n: make(folder, n) for n in (big, small)}
        rows.append(measure("ours_geojson", tables[big], folder / "a.geojson"))
        rows.append(measure("ours_geojson", tables[big], folder / "a.geojson.gz"))
        (folder / "a.geojson.gz").unlink()
        (folder / "a.geojson").unlink()
        rows.append(measure("ours_quip", tables[big], folder / "quip"))
        rows.append(measure("ours_read_quip", folder / "quip", folder / "back2.parquet"))
        for name, ending in (
            ("ours_anndata", "h5ad"),
            ("ours_spatialdata", "zarr"),
            ("ours_maps", "maps.zarr"),
            ("ours_features", ""),
        ):
            rows.append(measure(name, tables[big], folder / f"b.{ending}"))
        rows.append(measure("ours_geojson", tables[small], folder / "s.geojson"))
        rows.append(measure("ours_read_geojson", folder / "s.geojson", folder / "back.parquet"))
        rows.append(measure("geopandas_to_file", tables[small], folder / "g.geojson"))
        rows.append(measure("json_loop", tables[small], folder / "j.geojson"))
        rows.append(measure("ours_quip", tables[small], folder / "quip_small"))
        rows.append(measure("ours_read_quip", folder / "quip_small", folder / "back3.parquet"))
        rows.append(measure("csv_loop", folder / "quip_small", folder / "none"))
    note = "peak_mb: what a job adds to its process; csv_loop only parses, ours_read_quip writes the table too"
    if "--quick" not in sys.argv:
        save("export", {"rows": rows, "note": note})


if __name__ == "__main__":
    if "--child" in sys.argv:
        child(*sys.argv[sys.argv.index("--child") + 1 :])
    else:
        main()

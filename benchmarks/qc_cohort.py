"""QC of a simulated cohort of 500 slides: seconds for outliers, patches (7,500 pictures), prediction, grades and the report.

Each slide is the same small real scan (CMU-1-Small-Region, CC0) with a table of 200,000 random nuclei over the extent of a
whole slide, so that patches read real JPEG tiles and find their nuclei in tables of real size. Statistics are drawn, and 25
slides are planted as failures. Run: python benchmarks/qc_cohort.py [--slides 500]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _machine import save

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wsiseg.qc import MarkLog
from wsiseg.qc.patch_pictures import make_patches
from wsiseg.qc.prediction import predict_run
from wsiseg.qc.report_run import write_report
from wsiseg.qc.runs import find_run_outliers, grade_run, load_run
from wsiseg.read import TissueMask, open_slide
from wsiseg.schema import ERRORS, NUCLEI, SLIDES
from wsiseg.tables import arrow_schema, hilbert_key, wkb_polygons

ROOT = Path(__file__).resolve().parents[1]
SLIDE = ROOT / "tests" / "data" / "CMU-1-Small-Region.svs"
EXTENT_PX = 40_000


def write_table(path: Path, n: int, inside: tuple[int, int], random: np.random.Generator) -> None:
    """Write ``n`` nuclei of 30 vertices: 2,000 on the small scan, the others beyond it, in the order that tables have."""
    cx, cy = random.uniform(0, EXTENT_PX, n), random.uniform(inside[1] + 50, EXTENT_PX, n)
    cx[:2000], cy[:2000] = random.uniform(0, inside[0], 2000), random.uniform(0, inside[1], 2000)
    order = np.argsort(hilbert_key(cx.astype(np.uint32), cy.astype(np.uint32)))
    cx, cy = cx[order], cy[order]
    angle = np.linspace(0, 2 * np.pi, 30)
    radius = random.uniform(5, 9, n)
    xy = np.stack([cx[:, None] + radius[:, None] * np.cos(angle), cy[:, None] + radius[:, None] * np.sin(angle)], axis=2)
    xy = np.rint(xy)
    xy[:, -1] = xy[:, 0]
    low, high = xy.min(axis=1), xy.max(axis=1)
    fields = [pa.array(v.astype(np.float32)) for v in (low[:, 0], low[:, 1], high[:, 0], high[:, 1])]
    schema = arrow_schema(NUCLEI)
    filled: dict[str, Any] = {
        "nucleus_id": np.arange(n),
        "geometry": wkb_polygons(xy.reshape(-1, 2), np.arange(n + 1, dtype=np.int64) * 30),
        "bbox": pa.StructArray.from_arrays(fields, fields=list(schema.field("bbox").type)),
        "cx": cx,
        "cy": cy,
        "area_um2": np.pi * radius**2 / 4,
        "perimeter_um": np.pi * radius,
        "major_um": radius,
        "minor_um": radius,
        "center_prob": random.integers(60, 250, n),
        "material_prob": random.integers(120, 250, n),
    }
    columns = []
    for f in schema:
        value = filled.get(f.name, np.zeros(n))
        columns.append(value if isinstance(value, pa.Array) else pa.array(value).cast(f.type))
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path, compression="zstd", row_group_size=16_384)


def make_run(root: Path, n_slides: int, n_nuclei: int) -> None:
    """Write a run folder of ``n_slides`` slides; every 20th is a planted failure."""
    random = np.random.default_rng(0)
    for name in ("nuclei", "slides"):
        (root / name).mkdir(parents=True)
    slide = open_slide(SLIDE)
    width, height, mpp = slide.meta.width_px, slide.meta.height_px, slide.meta.mpp
    slide.close()
    mask = np.ones((60, 45), np.uint8)
    tissue = TissueMask(mask, width / 45, height / 60).to_png()
    rows = []
    for i in range(n_slides):
        slide_id = f"TCGA-{i:05d}"
        table = root / "nuclei" / f"{slide_id}.parquet"
        if i == 0:
            write_table(table, n_nuclei, (width, height), random)
        else:
            os.link(root / "nuclei" / "TCGA-00000.parquet", table)
        (root / "slides" / f"{slide_id}.tissue.png").write_bytes(tissue)
        area, mm2 = random.normal(40, 3) * (2 if i % 20 == 0 else 1), random.uniform(20, 300)
        density = random.normal(4000, 500)
        row: dict[str, Any] = dict.fromkeys(c.name for c in SLIDES)
        row |= {"slide_id": slide_id, "cohort": ("BRCA", "LUAD")[i % 2], "status": "done", "path": str(SLIDE), "error": ""}
        row |= {"n_nuclei": int(density * mm2), "nuclei_per_mm2": density, "tissue_mm2": mm2, "area_mean_um2": area}
        row |= {"area_std_um2": random.normal(14, 1.5), "tiles_failed": 0, "width_px": width, "height_px": height}
        row |= {"mpp": mpp, "scale": mpp / 0.25, "seconds_read": 10.0, "seconds_predict": 90.0, "tiles_done": 1}
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema(SLIDES, nullable=True)), root / "slides.parquet")
    pq.write_table(pa.Table.from_pylist([], schema=arrow_schema(ERRORS, nullable=True)), root / "errors.parquet")
    record = {"digest": "c" * 16, "results": {"weights": "open"}, "config": {"read": {"tile_wpx": 4000}}, "wsiseg": "benchmark"}
    (root / "run.json").write_text(json.dumps(record))


def timed(deed: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    wall, cpu = time.perf_counter(), time.process_time()
    value = deed()
    return value, {"seconds": round(time.perf_counter() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}


def mark_all(run: Any) -> None:
    """Mark every patch as a reviewer would have, without the fsync of each."""
    log = MarkLog(run.marks, "ann", run.digest)
    ids = pq.read_table(run.qc / "patches.parquet", columns=["patch_id"])["patch_id"].to_pylist()
    log.append("patches", ids[0], "adequate")
    log.close()
    first = json.loads(log.path.read_text())
    with log.path.open("w") as stream:
        for k, i in enumerate(ids):
            stream.write(json.dumps({**first, "item": i, "mark": ("adequate", "not_adequate")[k % 12 == 0]}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=500)
    parser.add_argument("--nuclei", type=int, default=200_000, help="rows of each polygon table")
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wsiseg-cohort-") as scratch:
        root = Path(scratch) / "run"
        make_run(root, options.slides, options.nuclei)
        result: dict[str, Any] = {"slides": options.slides, "nuclei_per_table": options.nuclei}
        run, result["load"] = timed(lambda: load_run(root))
        flagged, result["outliers"] = timed(lambda: find_run_outliers(run))
        summary, result["patches"] = timed(lambda: make_patches(run))
        _, result["patches_again"] = timed(lambda: make_patches(run))
        _, result["predict"] = timed(lambda: predict_run(run))
        mark_all(run)
        _, result["grade"] = timed(lambda: grade_run(run))
        path, result["report"] = timed(lambda: write_report(run))
        result["flagged_slides"] = sum(o.flagged for o in flagged)
        result["planted_flagged"] = sum(o.flagged for o in flagged[::20])
        result["planted"] = len(flagged[::20])
        result["patches"] |= {
            "patches": summary.made,
            "cpu_ms_per_patch": round(1000 * result["patches"]["cpu_seconds"] / max(1, summary.made), 2),
            "bytes_per_patch": round(sum(p.stat().st_size for p in (run.qc / "patches").iterdir()) / max(1, summary.made)),
        }
        result["report"]["bytes"] = path.stat().st_size
        result["load_1min"] = os.getloadavg()[0]
    print(json.dumps(result, indent=1))
    if not options.no_save:
        save("qc_cohort", result)


if __name__ == "__main__":
    main()

"""Questions to a slide of real size, and the viewer formats: time, memory and size of each command.

Run ``python -m benchmarks.questions RUN [--points N] [--only NAME ...]``: RUN is a run folder of one slide whose file is there.
The figures are of 1.05 million nuclei on 132 mm2 of tissue, the tiles of a small slide repeated. Writes
``benchmarks/results/questions.json``; rows of commands that are not run again are kept. Every command is a process of its own:
CPU seconds, and the memory of the largest process, are what the system counted for it and its workers. What it writes is
removed after it was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._machine import save, saved
from benchmarks.assign import write_points
from wsiseg.tables import open_nuclei
from wsiseg.tables.source import NucleiFile

EXPAND_UM = 5


def commands(run: Path, folder: Path, points: int) -> dict[str, list[str]]:
    """Return the commands by name, in the order in which they are run: cells before what exports them."""
    export = ["export", str(run), "--overwrite", "-o", str(folder / "out"), "--to"]
    cells = ["cells", str(run), "--expand-um", str(EXPAND_UM), "--overwrite"]
    near = ["neighbors", str(run), "-o", str(folder / "out")]
    drawn, out = str(folder / "drawn.geojson"), str(folder / "out.parquet")
    assign = ["assign", str(run), str(folder / "points.parquet"), "--frame", "um", "--within-um", "5", "-o", out]
    return {
        "regions, by marker": ["regions", str(run), drawn, "-o", out],
        "regions, by area": ["regions", str(run), drawn, "-o", out, "--belongs", "area"],
        "regions, with distances": ["regions", str(run), drawn, "-o", out, "--distances", str(folder / "out")],
        f"assign, {points:,} points": assign,
        "neighbors, 25 and 50 um": [*near, "--radius-um", "25", "--radius-um", "50"],
        "neighbors, Delaunay": [*near, "--delaunay"],
        "neighbors, density map of 100 um": [*near, "--radius-um", "100", "--density-step-um", "20", "--no-edges"],
        "cells, 1 worker": [*cells, "--workers", "1"],
        "cells, 2 workers": [*cells, "--workers", "2"],
        "heatmap": [*export, "heatmap"],
        "qupath-project": [*export, "qupath-project"],
        "tissuumaps": [*export, "tissuumaps"],
        "xenium, with cells": [*export, "xenium", "--cells"],
    }


def draw_regions(source: NucleiFile, path: Path) -> None:
    """Write three regions: half of the slide, a frame with a hole that overlaps it, and a small one."""
    w, h = source.width_px, source.height_px

    def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
        return [[x0 * w, y0 * h], [x1 * w, y0 * h], [x1 * w, y1 * h], [x0 * w, y1 * h], [x0 * w, y0 * h]]

    rings = {
        "Tumor": [box(0, 0, 0.5, 1)],
        "Stroma": [box(0.3, 0.1, 0.9, 0.9), box(0.4, 0.2, 0.8, 0.8)],
        "Gland": [box(0.9, 0.9, 0.95, 0.95)],
    }
    features = [
        {"type": "Feature", "properties": {"class": c}, "geometry": {"type": "Polygon", "coordinates": r}}
        for c, r in rings.items()
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")


def measure(name: str, words: list[str], folder: Path) -> dict[str, Any]:
    """Run a command of wsiseg; return what it took."""
    began = time.perf_counter()
    with (folder / "told.txt").open("w") as notes:
        child = subprocess.Popen([sys.executable, "-m", "wsiseg", *words], stdout=notes, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - began
    text = (folder / "told.txt").read_text()
    if child.returncode:
        raise SystemExit(f"{name}: exit code {child.returncode}\n{text[-2000:]}")
    written = 0
    for path in (folder / "out", folder / "out.parquet"):
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        written += sum(p.stat().st_size for p in files)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    row = {
        "command": name, "wall_s": round(wall, 1), "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_mb": round(used.ru_maxrss / 1024), "written_mb": round(written / 1e6, 1), "told": text.splitlines()[-1],
    }  # fmt: skip
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--points", type=int, default=10_000_000)
    parser.add_argument("--only", nargs="*", default=[], help="names, or how they begin")
    args = parser.parse_args()
    (table,) = (args.run / "nuclei").glob("*.parquet")
    source = open_nuclei(table)
    own: dict[str, dict[str, Any]] = {}
    facts = {"nuclei": source.n_nuclei, "width_px": source.width_px, "height_px": source.height_px, "mpp": source.mpp}
    with tempfile.TemporaryDirectory(dir=args.run.parent) as name:
        folder = Path(name)
        draw_regions(source, folder / "drawn.geojson")
        for command, words in commands(args.run, folder, args.points).items():
            if args.only and not any(command.startswith(o) for o in args.only):
                continue
            if command.startswith("assign"):
                write_points(
                    folder / "points.parquet", args.points, (source.width_px * source.mpp, source.height_px * source.mpp)
                )
            row = measure(command, words, folder)
            own[command] = {**row, "told": row["told"].replace(name, "OUT")}
            rows = {r["command"]: r for r in saved("questions").get("rows", [])}
            rows |= own
            print(save("questions", {**facts, "load": os.getloadavg()[0], "rows": list(rows.values())}))


if __name__ == "__main__":
    main()

"""What a benchmark ran on: written into every result file, so that figures are never read without their machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_LIBRARIES = (
    "numpy",
    "numba",
    "scipy",
    "scikit-image",
    "torch",
    "openslide-python",
    "openslide-bin",
    "cucim-cu13",
    "tifffile",
    "imagecodecs",
    "pillow",
    "pyarrow",
    "shapely",
    "dask",
    "distributed",
    "zarr",
    "duckdb",
    "geopandas",
    "opencv-python-headless",
)


def machine() -> dict[str, Any]:
    """Return CPU model, usable cores, Python, platform and the versions of the libraries that are installed."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": model,
        "cores": cores,
        "python": platform.python_version(),
        "system": platform.system(),
        "versions": versions,
    }


def saved(name: str) -> dict[str, Any]:
    """Return the result of an earlier run, with its machine; empty if there is none."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def save(name: str, result: dict[str, Any]) -> Path:
    """Write ``result`` with the machine to ``benchmarks/results/<name>.json`` and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n", encoding="utf-8")
    return path

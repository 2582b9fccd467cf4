"""Days and dollars for 30,000 slides, on paper: every measured input names its file, all others are marked as assumed.

    python -m benchmarks.cost_model [--slides 30000] [--dry]

A slide's work is its tissue times the measured seconds a mm2, plus opening and finishing it; a cluster does that at the
measured efficiency. Reading from shared storage is taken to keep up (``read_gb_per_s`` says what that asks of it). No GPU was
measured: its rows rest on an assumed time of the network for a tile and on measured host stages, and are marked so.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from benchmarks._machine import RESULTS, save

HOURS_S = 3600.0
DAY_H = 24.0

ASSUMED: dict[str, tuple[float, str]] = {
    "nuclei_per_slide": (1.0e6, "5 billion nuclei in 5,060 slides (Hou et al. 2020, Scientific Data 7:185)"),
    "slide_gb": (1.2, "a 40x TCGA diagnostic slide, mean; look at your own with du"),
    "open_and_finish_s": (6.0, "thumbnail, tissue, stain sample, table of a million nuclei; one core"),
    "core_hour_usd": (0.05, "one thread of a current x86 cloud machine, on demand, list price of a large provider, 2026"),
    "core_hour_spot_usd": (0.018, "the same, pre-emptible"),
    "gpu_hour_usd": (4.0, "one H200 or H100 with 16 threads of host, on demand"),
    "gpu_hour_spot_usd": (1.8, "the same, pre-emptible"),
    "gpu_predict_s_per_tile": (0.10, "network on one data-center GPU for 4000 x 4000 px: NOT MEASURED, to be replaced"),
    "gpu_host_threads": (16, "threads of the host for each GPU"),
    "preemption_share": (0.03, "work lost and done again on pre-emptible machines: at most a tile each time"),
    "storage_gb_month_usd": (0.023, "object storage"),
}


class Inputs:
    """Values with where they come from."""

    def __init__(self) -> None:
        self.table: dict[str, dict[str, Any]] = {}

    def measured(self, name: str, file: str, *path: str | int) -> float:
        """Take a value from a result file, by its path in it."""
        value: Any = json.loads((RESULTS / f"{file}.json").read_text(encoding="utf-8"))
        for key in path:
            value = value[key]
        source = f"benchmarks/results/{file}.json: {'/'.join(map(str, path))}"
        self.table[name] = {"value": value, "kind": "measured", "source": source}
        return float(value)

    def assumed(self, name: str, value: float | None = None, why: str = "") -> float:
        """Take an assumption."""
        given, reason = (value, why) if value is not None else ASSUMED[name]
        self.table[name] = {"value": given, "kind": "assumed", "source": reason}
        return float(given)


def cluster_efficiency(inputs: Inputs) -> float:
    """Return the share of 64 workers' time that is work: from the simulation where it has been run with 64, else assumed."""
    path = RESULTS / "cluster_simulation.json"
    if path.exists():
        rows = json.loads(path.read_text(encoding="utf-8")).get("scaling", [])
        for k, row in enumerate(rows):
            if row["workers"] == 64:
                return inputs.measured("cluster_efficiency", "cluster_simulation", "scaling", k, "efficiency_to_ideal")
    return inputs.assumed(
        "cluster_efficiency", 0.90, "asked for, the simulation with 64 workers has not been run on a quiet machine"
    )


def model(n_slides: int) -> dict[str, Any]:
    """Return inputs and the rows of the model."""
    inputs = Inputs()
    stages = ("read", "normalize", "predict", "separate", "vectorize", "write")
    per_mm2 = {s: inputs.measured(f"{s}_s_per_mm2", "end_to_end", "worker_seconds_per_mm2", s) for s in stages}
    density = inputs.measured("nuclei", "end_to_end", "slide", "nuclei") / inputs.measured(
        "tissue_mm2", "end_to_end", "slide", "tissue_mm2"
    )
    bytes_per_nucleus = inputs.measured("table_bytes_per_nucleus", "end_to_end", "table_bytes_per_nucleus")
    tile_s = inputs.measured("predict_s_per_tile", "end_to_end", "worker_seconds_per_tile", "predict")
    a = {name: inputs.assumed(name) for name in ASSUMED}
    efficiency = cluster_efficiency(inputs)

    mm2_per_slide = a["nuclei_per_slide"] / density
    cpu_s = mm2_per_slide * sum(per_mm2.values()) + a["open_and_finish_s"]
    total_core_h = n_slides * cpu_s / HOURS_S / efficiency
    # tiles are never all tissue: the measured run says how many seconds of network a mm2 and a tile take
    tiles_per_slide = mm2_per_slide * per_mm2["predict"] / tile_s
    host_s = mm2_per_slide * (sum(per_mm2.values()) - per_mm2["predict"]) + a["open_and_finish_s"]
    gpu_s = max(tiles_per_slide * a["gpu_predict_s_per_tile"], host_s / a["gpu_host_threads"])
    total_gpu_h = n_slides * gpu_s / HOURS_S / efficiency

    rows = [_row(f"{n} cores", "cpu", n, total_core_h, "core", a) for n in (64, 512, 2048)]
    rows += [_row(f"{n} GPUs", "gpu, assumed", n, total_gpu_h, "gpu", a) for n in (1, 8, 64)]
    for row in rows:
        row["read_gb_per_s"] = round(n_slides * a["slide_gb"] / (row["days"] * DAY_H * HOURS_S), 3)
    return {
        "slides": n_slides,
        "inputs": inputs.table,
        "per_slide": {
            "tissue_mm2": round(mm2_per_slide, 1),
            "tiles_4000px": round(tiles_per_slide, 1),
            "cpu_s": round(cpu_s, 1),
            "gpu_s": round(gpu_s, 2),
            "gpu_bound_by": "network" if gpu_s > host_s / a["gpu_host_threads"] else "host threads",
        },
        "total": {
            "nuclei": n_slides * a["nuclei_per_slide"],
            "core_hours": round(total_core_h),
            "gpu_hours": round(total_gpu_h),
            "tables_tb": round(n_slides * a["nuclei_per_slide"] * bytes_per_nucleus / 1e12, 2),
            "slides_tb": round(n_slides * a["slide_gb"] / 1e3, 1),
            "tables_usd_per_month": round(
                n_slides * a["nuclei_per_slide"] * bytes_per_nucleus / 1e9 * a["storage_gb_month_usd"]
            ),
        },
        "rows": rows,
    }


def _row(name: str, kind: str, n: int, hours: float, unit: str, a: dict[str, float]) -> dict[str, Any]:
    return {
        "machine": name,
        "kind": kind,
        "days": round(hours / n / DAY_H, 2),
        "usd_on_demand": round(hours * a[f"{unit}_hour_usd"]),
        "usd_spot": round(hours * (1 + a["preemption_share"]) * a[f"{unit}_hour_spot_usd"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=30_000)
    parser.add_argument("--dry", action="store_true", help="print only")
    args = parser.parse_args()
    result = model(args.slides)
    for row in result["rows"]:
        print(row)
    print(result["per_slide"], result["total"])
    if not args.dry:
        print(save("cost_model", result))


if __name__ == "__main__":
    main()

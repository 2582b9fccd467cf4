"""On a machine with a GPU: results equal the CPU's stored ones, then each stage and each kernel beside its floor.

Run ``python -m benchmarks.gpu_stages [--out FOLDER] [--parity-only]`` after ``benchmarks.gpu_expectations`` made the answers.
Needs torch, CuPy and NumPy only. Floors come from bandwidths and rates measured on the same device in the same run: bytes that
must move, or operations that must be done, over the measured rate. Times are medians of ``REPEATS`` runs, events on the stream
for the device, a wall clock with a wait at the end for the whole. Writes ``benchmarks/results/gpu_<device>.json``.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import RESULTS, machine
from wsiseg.normalize import normalize
from wsiseg.separate import SeparateParams, separate
from wsiseg.types import Box, Stain
from wsiseg.vectorize import tile_stats, vectorize

EXPECTATIONS = Path(__file__).resolve().parents[1] / "carry" / "gpu_expectations.npz"
REPEATS = 15
Case = dict[str, np.ndarray]


def load_cases() -> dict[str, Case]:
    """Return the stored cases by name."""
    cases: dict[str, Case] = defaultdict(dict)
    with np.load(EXPECTATIONS) as stored:
        for key in stored.files:
            case, part = key.split("|")
            cases[case][part] = stored[key]
    return dict(cases)


def inputs_of(case: Case) -> tuple[SeparateParams, Box, Box]:
    """Return options, window and core."""
    values = dict(zip(SeparateParams.__slots__, case["params"].tolist(), strict=True))
    read, core = (Box(*row) for row in case["boxes"].tolist())
    return SeparateParams(**{**values, "seed_recall": bool(values["seed_recall"])}), read, core


def differences(case: Case, put: Callable[[np.ndarray], Any], get: Callable[[Any], np.ndarray]) -> list[str]:
    """Run one case on the device; return the names of results that are not equal in every bit."""
    params, read, core = inputs_of(case)
    prob = put(case["prob"])
    found = separate(prob, params)
    batch = vectorize(found, prob, read, core)
    stats = tile_stats(prob, found, read, core)
    got = {
        "labels": get(found.labels),
        "anchors": get(found.anchors),
        "xy": batch.xy,
        "ring_offsets": batch.ring_offsets,
        **{f"column:{name}": values for name, values in batch.columns.items()},
        "stats": np.array([stats.core_px, stats.tissue_px, stats.material_px, stats.sum_center_u8, stats.sum_material_u8]),
    }
    return [
        n for n, v in got.items() if v.dtype != case[n].dtype or v.shape != case[n].shape or v.tobytes() != case[n].tobytes()
    ]


def parity(cases: dict[str, Case], put: Callable[[np.ndarray], Any], get: Callable[[Any], np.ndarray]) -> dict[str, list[str]]:
    """Return what differs, by case; the stain too."""
    wrong = {name: differences(case, put, get) for name, case in cases.items() if name != "stain"}
    stain = cases["stain"]
    out = get(normalize(put(stain["rgb"]), Stain("macenko", tuple(stain["params"].tolist()))))
    wrong["stain"] = [] if np.array_equal(out, stain["out"]) else ["rgb"]
    return {name: parts for name, parts in wrong.items() if parts}


def timed(cupy: Any, function: Callable[[], Any], repeats: int = REPEATS) -> dict[str, float]:
    """Return the medians, in ms, of the stream's time and of the wall's with a wait at the end."""
    stream = cupy.cuda.get_current_stream()
    function()
    on_device, on_wall = [], []
    for _ in range(repeats):
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        stream.synchronize()
        clock = time.perf_counter()
        begin.record(stream)
        function()
        end.record(stream)
        end.synchronize()
        on_wall.append(time.perf_counter() - clock)
        on_device.append(cupy.cuda.get_elapsed_time(begin, end))
    return {"device_ms": round(statistics.median(on_device), 4), "wall_ms": round(1e3 * statistics.median(on_wall), 4)}


def rates(cupy: Any, backend: Any) -> dict[str, float]:
    """Measure what floors are made of: copies on the device and from the host, bf16 products, a launch, a look at a number."""
    n = 2**30
    a, b = cupy.zeros(n, "uint8"), cupy.empty(n, "uint8")
    copy = timed(cupy, lambda: cupy.copyto(b, a))["device_ms"]
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(n // 4), np.uint8, n // 4)
    up = timed(cupy, lambda: b[: n // 4].set(pinned), 5)["wall_ms"]
    down = timed(cupy, lambda: b[: n // 4].get(out=pinned), 5)["wall_ms"]
    one = backend.full(1, 1, "uint16")
    root = backend.empty(1, "int32")
    hundred = timed(cupy, lambda: [backend.launch("label_start", (1,), (256,), (one, 1, 1, root)) for _ in range(100)])
    look = timed(cupy, lambda: backend.to_host(root))["wall_ms"]
    out = {
        "copy_GB_per_s": round(2 * n / copy / 1e6, 1),
        "host_to_device_GB_per_s": round(n / 4 / up / 1e6, 2),
        "device_to_host_GB_per_s": round(n / 4 / down / 1e6, 2),
        "launch_ms": round(hundred["wall_ms"] / 100, 5),
        "look_ms": look,
    }
    try:
        import torch
    except ImportError:
        return out
    x = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    x @ x
    torch.cuda.synchronize()
    clock = time.perf_counter()
    for _ in range(10):
        x @ x
    torch.cuda.synchronize()
    out["bf16_TFLOP_per_s"] = round(10 * 2 * 8192**3 / (time.perf_counter() - clock) / 1e12, 1)
    return out


def by_kernel(cupy: Any, backend: Any, function: Callable[[], Any]) -> dict[str, dict[str, float]]:
    """Return launches and summed ms of each kernel in one run of ``function``, with events around every launch."""
    launch, spans = backend.launch, []

    def spy(name: str, *rest: Any) -> None:
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record()
        launch(name, *rest)
        end.record()
        spans.append((name, begin, end))

    backend.launch = spy
    try:
        function()
        cupy.cuda.get_current_stream().synchronize()
    finally:
        del backend.launch
    out: dict[str, dict[str, float]] = {}
    for name, begin, end in spans:
        entry = out.setdefault(name, {"launches": 0, "ms": 0.0})
        entry["launches"] += 1
        entry["ms"] = round(entry["ms"] + cupy.cuda.get_elapsed_time(begin, end), 4)
    return dict(sorted(out.items(), key=lambda item: -item[1]["ms"]))


def network(cupy: Any, size: int, rate: dict[str, float]) -> dict[str, Any]:
    """Time the shipped network on a tile; where its parts are missing, say so."""
    try:
        import torch

        from wsiseg.config import PredictConfig
        from wsiseg.predict import load_model, predict
    except ImportError as err:
        return {"not_run": str(err)}
    model = load_model(PredictConfig(weights="research"), "cuda")
    out_box = Box(0, 0, size, size)
    box = model.input_box(out_box)
    rgb = cupy.random.randint(0, 256, (box.h, box.w, 3), dtype=cupy.uint8)
    result: dict[str, Any] = timed(cupy, lambda: (predict(model, rgb, box, out_box), torch.cuda.synchronize()), 5)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        predict(model, rgb, box, out_box)
    result["GFLOP"] = round(counter.get_total_flops() / 1e9, 1)
    if "bf16_TFLOP_per_s" in rate:
        result["floor_ms"] = round(result["GFLOP"] / rate["bf16_TFLOP_per_s"], 4)
    return {"weights": model.name, "precision": model.precision, **result}


def stages(cupy: Any, backend: Any, case: Case, rate: dict[str, float]) -> dict[str, Any]:
    """Time the stages of one tile, maps on the device, beside the time that their least traffic takes."""
    params, read, core = inputs_of(case)
    n = read.w * read.h
    prob = cupy.asarray(case["prob"])
    rgb = cupy.random.randint(0, 256, (read.h, read.w, 3), dtype=cupy.uint8)
    host_rgb = np.zeros((read.h, read.w, 3), np.uint8)
    stain = Stain("macenko", (0.65, 0.70, 0.29, 0.07, 0.99, 0.11, 1.4, 0.7))
    found = separate(prob, params)
    batch = vectorize(found, prob, read, core)
    back = batch.xy.nbytes + 120 * len(found.anchors)

    def post() -> None:
        there = separate(prob, params)
        vectorize(there, prob, read, core)
        tile_stats(prob, there, read, core)

    work: dict[str, tuple[Callable[[], Any], float, float, float]] = {
        # stage: (function, bytes on the device, bytes up, bytes down)
        "upload rgb (pageable)": (lambda: backend.upload(host_rgb), 0, 3 * n, 0),
        "normalize (macenko)": (lambda: normalize(rgb, stain), 6 * n, 0, 0),
        "separate": (lambda: separate(prob, params), 6 * n, 0, 0),
        "vectorize": (lambda: vectorize(found, prob, read, core), 5 * n, 0, back),
        "tile_stats": (lambda: tile_stats(prob, found, read, core), 6 * n, 0, 0),
        "separate, vectorize, tile_stats": (post, 6 * n, 0, back),
    }
    table: dict[str, Any] = {}
    for name, (function, moved, up, down) in work.items():
        floor = moved / rate["copy_GB_per_s"] + up / rate["host_to_device_GB_per_s"] + down / rate["device_to_host_GB_per_s"]
        table[name] = {**timed(cupy, function), "floor_ms": round(floor / 1e6, 4)}
    result: dict[str, Any] = {"px": n, "nuclei": len(batch), "stages": table}
    result["network"] = network(cupy, read.w, rate)
    result["kernels"] = {"separate": by_kernel(cupy, backend, lambda: separate(prob, params))}
    result["kernels"]["vectorize"] = by_kernel(cupy, backend, lambda: vectorize(found, prob, read, core))
    return result


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(json.dumps(result["rates"]))
    for name, tile in result["tiles"].items():
        print(f"{name}: {tile['px'] / 1e6:.0f} Mpx, {tile['nuclei']} nuclei")
        for stage, row in {**tile["stages"], "network": tile["network"]}.items():
            print(f"  {stage:34s} " + "  ".join(f"{k} {v}" for k, v in row.items()))
        for stage, kernels in tile["kernels"].items():
            print(f"  kernels of {stage}: " + ", ".join(f"{k} {v['ms']} ({v['launches']:.0f})" for k, v in kernels.items()))


def main() -> int:
    """Compare, time, write; nonzero if anything differs."""
    import cupy

    from wsiseg.backend.cuda import cuda_backend, pool_bytes

    clock = time.perf_counter()
    backend = cuda_backend(0)
    compiled_s = round(time.perf_counter() - clock, 2)
    cases = load_cases()
    wrong = parity(cases, cupy.asarray, cupy.asnumpy)
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    result: dict[str, Any] = {
        "command": "scripts/on_gpu.sh",
        "device": name,
        "cupy": cupy.__version__,
        "machine": machine(),
        "compile_s": compiled_s,
        "parity": {"cases": len(cases), "not_equal": wrong},
    }
    print(f"{name}: {len(cases)} cases, not equal: {wrong or 'none'}")
    if "--parity-only" not in sys.argv:
        result["rates"] = rates(cupy, backend)
        result["tiles"] = {n: stages(cupy, backend, c, result["rates"]) for n, c in cases.items() if n.startswith("tissue")}
        result["pool_bytes_held"] = pool_bytes()[1]
        show(result)
    folder = Path(sys.argv[sys.argv.index("--out") + 1]) if "--out" in sys.argv else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""On a machine with a GPU: results equal the CPU's stored ones, then each stage and each kernel beside its floor.

Run ``python -m benchmarks.gpu_stages [--out FOLDER] [--parity-only] [--device cpu]`` after ``benchmarks.gpu_expectations`` made
the answers. Needs torch, CuPy and NumPy; rows whose packages are missing (decode: OpenSlide or cuCIM; write: pyarrow) say so.
Floors come from bandwidths and rates measured on the same device in the same run: bytes that must move, or operations that
must be done, over the measured rate. Times are medians, events on the stream for the device, a wall clock with a wait at the
end for the whole; what one core does (decode, encode, write) is CPU seconds. Writes ``benchmarks/results/gpu_<device>.json``.
``--device cpu`` runs the same stages with NumPy arrays on the smallest tile, to show that the table works.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import RESULTS, machine
from wsiseg.backend import pinned_empty, to_device
from wsiseg.normalize import normalize
from wsiseg.separate import SeparateParams, separate
from wsiseg.types import Box, PolygonBatch, Stain, Tile, TileStats
from wsiseg.vectorize import tile_stats, vectorize

CARRY = Path(os.environ.get("WSISEG_CARRY") or Path(__file__).resolve().parents[1] / "carry")
EXPECTATIONS = CARRY / "gpu_expectations.npz"
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
    wrong = {name: differences(case, put, get) for name, case in cases.items() if name not in ("stain", "network")}
    stain = cases["stain"]
    wrong["stain"] = []
    for method, params, expected in (("macenko", "params", "out"), ("reinhard", "reinhard", "reinhard_out")):
        out = get(normalize(put(stain["rgb"]), Stain(method, tuple(stain[params].tolist()))))  # type: ignore[arg-type]
        wrong["stain"] += [] if np.array_equal(out, stain[expected]) else [method]
    return {name: parts for name, parts in wrong.items() if parts}


def timed(cupy: Any, function: Callable[[], Any], repeats: int = REPEATS) -> dict[str, float]:
    """Return the medians, in ms, of the stream's time and of the wall's with a wait at the end; without CuPy the CPU's."""
    function()
    on_device, on_wall = [], []
    for _ in range(repeats):
        if cupy is None:
            clock = time.process_time()
            function()
            on_wall.append(time.process_time() - clock)
            continue
        stream = cupy.cuda.get_current_stream()
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        stream.synchronize()
        clock = time.perf_counter()
        begin.record(stream)
        function()
        end.record(stream)
        end.synchronize()
        on_wall.append(time.perf_counter() - clock)
        on_device.append(cupy.cuda.get_elapsed_time(begin, end))
    total_ms = round(1e3 * statistics.median(on_wall), 4)
    return {"cpu_ms": total_ms} if cupy is None else {"device_ms": round(statistics.median(on_device), 4), "wall_ms": total_ms}


def one_core(function: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Return the median CPU time of this process, in ms."""
    function()
    times = []
    for _ in range(repeats):
        clock = time.process_time()
        function()
        times.append(time.process_time() - clock)
    return {"cpu_ms": round(1e3 * statistics.median(times), 3)}


def rates(cupy: Any, backend: Any) -> dict[str, float]:
    """Measure what floors are made of: copies on the device and from the host, products, a launch, a look at a number."""
    if cupy is None:
        a = np.zeros(2**26, np.uint8)
        b = np.empty_like(a)
        copy = timed(None, lambda: np.copyto(b, a), 5)["cpu_ms"]
        bus = {"copy_GB_per_s": round(2 * a.size / copy / 1e6, 1)}
        return {**bus, "host_to_device_GB_per_s": 1e9, "device_to_host_GB_per_s": 1e9, **product_rate("cpu")}
    n = 2**30
    a, b = cupy.zeros(n, "uint8"), cupy.empty(n, "uint8")
    copy = timed(cupy, lambda: cupy.copyto(b, a))["device_ms"]
    pinned = backend.pinned((n // 4,), "uint8")
    stream = cupy.cuda.get_current_stream()
    up = timed(cupy, lambda: b[: n // 4].set(pinned, stream=stream), 5)["wall_ms"]
    down = timed(cupy, lambda: b[: n // 4].get(out=pinned), 5)["wall_ms"]
    one = backend.full(1, 1, "uint16")
    root = backend.empty(1, "int32")
    hundred = timed(cupy, lambda: [backend.launch("label_start", (1,), (256,), (one, 1, 1, root)) for _ in range(100)])
    look = timed(cupy, lambda: backend.to_host(root))["wall_ms"]
    return {
        "copy_GB_per_s": round(2 * n / copy / 1e6, 1),
        "host_to_device_GB_per_s": round(n / 4 / up / 1e6, 2),
        "device_to_host_GB_per_s": round(n / 4 / down / 1e6, 2),
        "launch_ms": round(hundred["wall_ms"] / 100, 5),
        "look_ms": look,
        **product_rate("cuda"),
    }


def product_rate(device: str) -> dict[str, float]:
    """Measure bf16 (on the CPU fp32) matrix products of random numbers."""
    try:
        import torch
    except ImportError:
        return {}
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    x = torch.randn(side, side, device=device, dtype=dtype)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        x @ x
    wait()
    now = time.perf_counter if device == "cuda" else time.process_time
    clock = now()
    for _ in range(10):
        x @ x
    wait()
    return {"TFLOP_per_s": round(10 * 2 * side**3 / (now() - clock) / 1e12, 3)}


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
    """Time the shipped network on a tile in each engine, on a stream of its own, as a worker does: none records on the default.

    Where its parts are missing, the row says so.
    """
    if cupy is None:
        return network_here(None, size, rate)
    try:
        from wsiseg.backend.dlpack import on_stream, streams
    except ImportError as err:
        return {"not_run": {"why": str(err)}}
    with on_stream(streams(0, 1)[0]):
        return network_here(cupy, size, rate)


def network_here(cupy: Any, size: int, rate: dict[str, float]) -> dict[str, Any]:
    """Time the network on the current stream."""
    try:
        import torch

        from wsiseg.config import PredictConfig
        from wsiseg.predict import load_model, predict
    except ImportError as err:
        return {"not_run": {"why": str(err)}}
    device, xp = ("cpu", np) if cupy is None else ("cuda", cupy)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    out_box = Box(0, 0, size, size)
    rows: dict[str, Any] = {}
    for engine in ("eager", "graph", "inductor") if device == "cuda" else ("eager",):
        try:
            precision = "auto" if device == "cuda" else "fp32"
            model = load_model(PredictConfig(weights="research", engine=engine, precision=precision), device)
            box = model.input_box(out_box)
            rgb = xp.random.randint(0, 256, (box.h, box.w, 3)).astype("uint8")
            row: dict[str, Any] = timed(cupy, lambda: (predict(model, rgb, box, out_box), wait()), 5)  # noqa: B023
        except (ImportError, RuntimeError) as err:  # an engine that this machine lacks the tools for, or memory
            rows[engine] = {"not_run": str(err).splitlines()[0][:200]}
            continue
        if engine == "eager":
            floor = network_floor(model, rgb, box, out_box, rate)
        rows[engine] = {"weights": model.name, "precision": model.precision, **row, **floor}
    return rows


def network_floor(model: Any, rgb: Any, box: Box, out_box: Box, rate: dict[str, float]) -> dict[str, Any]:
    """Count one pass's operations and the bytes that its convolutions read and write (not fused), and the least time."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from wsiseg.predict import predict

    moved = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal moved
        moved += sum(t.numel() * t.element_size() for t in (*inputs, output))

    kinds = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    hooks = [m.register_forward_hook(count) for m in model.graph.modules() if isinstance(m, kinds)]
    try:
        with FlopCounterMode(display=False) as counter:
            predict(model, rgb, box, out_box)
    finally:
        for hook in hooks:
            hook.remove()
    gflop = counter.get_total_flops() / 1e9
    memory_ms = moved / rate["copy_GB_per_s"] / 1e6
    return {
        "GFLOP": round(gflop, 1),
        "GB_moved": round(moved / 1e9, 2),
        "floor_ms": round(max(gflop / rate["TFLOP_per_s"], memory_ms), 4),
        "floor_is": "arithmetic" if gflop / rate["TFLOP_per_s"] > memory_ms else "memory",
    }


def host_stages(case: Case, folder: Path) -> dict[str, Any]:
    """Time what one core does for a tile: decode by each reader that is here, encode rings, write a part."""
    _, read, core = inputs_of(case)
    batch = PolygonBatch(case["xy"], case["ring_offsets"], {k[7:]: v for k, v in case.items() if k.startswith("column:")})
    rows: dict[str, Any] = {}
    try:
        from benchmarks.synthetic_slide import make_slide
        from wsiseg.read import open_slide

        slide_path = make_slide(folder / "synthetic.tiff", read.w, 8000)
        n_bytes = slide_path.stat().st_size
        for reader in ("openslide", "cucim"):
            try:
                slide = open_slide(slide_path, reader=reader, cache_bytes=0)
            except (ImportError, OSError, ValueError) as err:
                rows[f"decode ({reader})"] = {"not_run": str(err)[:200]}
                continue
            row = one_core(lambda: slide.read_level(0, 0, 0, read.w, read.h))  # noqa: B023
            rows[f"decode ({reader})"] = {**row, "bits_per_px": round(8 * n_bytes / read.w / read.h, 2)}
            slide.close()
    except ImportError as err:
        rows["decode"] = {"not_run": str(err)}
    tile, stats = Tile("synthetic", 0, core, read, 1.0, 1.0), TileStats()
    try:
        from wsiseg.write import write_part

        rows["encode and write"] = one_core(lambda: write_part(folder / "part.parquet", batch, tile, stats, {}, "benchmark"))
    except ImportError as err:
        rows["encode and write"] = {"not_run": str(err)}
    return rows


def stages(cupy: Any, backend: Any, case: Case, rate: dict[str, float]) -> dict[str, Any]:
    """Time the stages of one tile, maps on the device, beside the time that their least traffic takes."""
    params, read, core = inputs_of(case)
    n = read.w * read.h
    xp = np if cupy is None else cupy
    prob = xp.asarray(case["prob"])
    rgb = xp.random.randint(0, 256, (read.h, read.w, 3)).astype("uint8")
    device = "cpu" if cupy is None else "cuda"
    pageable, pinned = np.zeros((read.h, read.w, 3), np.uint8), pinned_empty((read.h, read.w, 3), "uint8", device)
    reinhard = Stain("reinhard", (-0.45, -0.06, 0.018, 0.25, 0.06, 0.011))
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
        "upload rgb (pageable)": (lambda: to_device(pageable, device), 0, 3 * n, 0),
        "upload rgb (pinned)": (lambda: to_device(pinned, device), 0, 3 * n, 0),
        "normalize (macenko)": (lambda: normalize(rgb, stain), 6 * n, 0, 0),
        "normalize (reinhard)": (lambda: normalize(rgb, reinhard), 6 * n, 0, 0),
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
    with tempfile.TemporaryDirectory() as folder:
        result["one_core"] = host_stages(case, Path(folder))
    if cupy is None:
        return result
    result["kernels"] = {"separate": by_kernel(cupy, backend, lambda: separate(prob, params))}
    result["kernels"]["vectorize"] = by_kernel(cupy, backend, lambda: vectorize(found, prob, read, core))
    return result


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(json.dumps(result["rates"]))
    for name, tile in result["tiles"].items():
        print(f"{name}: {tile['px'] / 1e6:.0f} Mpx, {tile['nuclei']} nuclei")
        engines = {f"network ({engine})": row for engine, row in tile["network"].items()}
        for stage, row in {**tile["stages"], **engines, **tile["one_core"]}.items():
            print(f"  {stage:34s} " + "  ".join(f"{k} {v}" for k, v in row.items()))
        for stage, kernels in tile.get("kernels", {}).items():
            print(f"  kernels of {stage}: " + ", ".join(f"{k} {v['ms']} ({v['launches']:.0f})" for k, v in kernels.items()))


def main() -> int:
    """Compare, time, write; nonzero if anything differs."""
    cases = load_cases()
    if "cpu" in sys.argv:
        smallest = min((c for n, c in cases.items() if n.startswith("tissue")), key=lambda c: c["prob"].size)
        rate = rates(None, None)
        result = {"command": "scripts/on_gpu.sh", "measured": False, "device": "cpu", "machine": machine()}
        result |= {"rates": rate, "tiles": {"tissue": stages(None, None, smallest, rate)}}
        show(result)
        if "--out" in sys.argv:
            written(result)
        return 0
    import cupy

    from wsiseg.backend.cuda import cuda_backend

    clock = time.perf_counter()
    backend = cuda_backend(0)
    compiled_s = round(time.perf_counter() - clock, 2)
    wrong = parity(cases, cupy.asarray, cupy.asnumpy)
    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    result = {
        "command": "scripts/on_gpu.sh",
        "measured": True,
        "device": name,
        "cupy": cupy.__version__,
        "machine": machine(),
        "compile_s": compiled_s,
        "parity": {"cases": len(cases), "not_equal": wrong},
    }
    print(f"{name}: {len(cases)} cases, not equal: {wrong or 'none'}", flush=True)
    if "--parity-only" not in sys.argv:
        result["rates"] = rates(cupy, backend)
        result["tiles"] = {}
        for case_name in (n for n in cases if n.startswith("tissue")):
            result["tiles"][case_name] = stages(cupy, backend, cases[case_name], result["rates"])
            written(result)  # whatever ends the loan, that much is there
        result["pool_bytes_held"] = int(cupy.get_default_memory_pool().total_bytes())
        show(result)
    written(result)
    return 1 if wrong else 0


def written(result: dict[str, Any]) -> None:
    """Write the JSON."""
    folder = Path(sys.argv[sys.argv.index("--out") + 1]) if "--out" in sys.argv else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu_{re.sub('[^a-z0-9]+', '_', result['device'].lower()).strip('_')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    sys.exit(main())

"""Would another engine than torch do on the CPU? Size, start, CPU seconds a window, and whether a pixel depends on its window.

    pip install --target FOLDER onnx onnxruntime openvino
    OMP_NUM_THREADS=1 python -m benchmarks.engines --site FOLDER

One thread, the trained network, a window of 1040 useful px. *Equal* compares the 255-level maps of a window with those of a
smaller one inside it (both origins on the network's grid, the halo left away), which is what makes tables independent of tiles.
Result: ``benchmarks/results/engines.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._machine import RESULTS, machine
from wsiseg.config import PredictConfig
from wsiseg.predict import load_model

SIDE, INNER, OFFSET = 1040, 640, (160, 320)
Maps = Callable[[np.ndarray, int], np.ndarray]


def cpu_seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Return the CPU seconds of the fastest of four runs, after one to warm up."""
    work()
    times = []
    for _ in range(4):
        start = clock()
        work()
        times.append(clock() - start)
    return round(min(times), 3)


def of_children() -> float:
    """Return the CPU seconds of all processes that this one has started and seen the end of."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def judged(maps: Maps, pixels: np.ndarray, halo: int) -> dict[str, Any]:
    """Return speed and equality of something that makes uint8 (2, h, w) of uint8 (H, W, 3)."""
    whole = maps(pixels, halo)
    y, x = OFFSET
    part = maps(np.ascontiguousarray(pixels[y : y + INNER + 2 * halo, x : x + INNER + 2 * halo]), halo)
    differ = int((part != whole[:, y : y + INNER, x : x + INNER]).sum())
    s = cpu_seconds(lambda: maps(pixels, halo))
    return {"window_cpu_s": s, "useful_mpx_per_cpu_s": round(SIDE**2 / s / 1e6, 2), "values_that_differ": differ, "maps": whole}


def start_cpu_s(module: str, site: str) -> float:
    """Return the CPU seconds that importing a module takes in a fresh process, the process included."""
    code = f"import sys; sys.path.append({site!r}); import {module}"
    return cpu_seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL), of_children)


def size_mb(folder: Path) -> float:
    """Return the size of a package's files, MB."""
    return round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 1e6, 1)


def of_torch(precision: str, pixels: np.ndarray) -> dict[str, Any]:
    """Judge the network as wsiseg runs it."""
    model = load_model(PredictConfig(weights="research", precision=precision, engine="auto"))  # type: ignore[arg-type]

    def maps(rgb: np.ndarray, halo: int) -> np.ndarray:
        with torch.inference_mode():
            return model.graph(torch.from_numpy(rgb), halo).numpy()

    return {"engine": f"torch {model.engine}", "precision": model.precision, **judged(maps, pixels, model.halo_wpx)}


def exported(model: Any, folder: Path, side: int) -> Path:
    """Write the network's float part as ONNX: float (1, 3, H, W) in levels/127.5 - 1 as the graph makes it, logits out."""
    path = folder / f"net-{side}.onnx"

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model.graph.logits

        def forward(self, rgb: torch.Tensor) -> torch.Tensor:
            return self.inner(rgb, model.halo_wpx).float()

    rgb = torch.zeros((side, side, 3), dtype=torch.uint8)
    torch.onnx.export(Logits(), (rgb,), str(path), dynamo=False, opset_version=17, input_names=["rgb"], output_names=["logits"])
    return path


def of_onnx(open_net: Callable[[Path], Callable[[np.ndarray], np.ndarray]], nets: dict[int, Path], pixels: np.ndarray,
            model: Any) -> dict[str, Any]:  # fmt: skip
    """Judge another engine on the exported network; its logits become levels as ours do."""
    loaded = {side: open_net(path) for side, path in nets.items()}

    def maps(rgb: np.ndarray, halo: int) -> np.ndarray:
        with torch.inference_mode():
            return model.graph._level(torch.from_numpy(loaded[rgb.shape[0]](rgb)))[0].numpy()

    return {"precision": "fp32", **judged(maps, pixels, model.halo_wpx)}


def main() -> None:
    """Judge all engines that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", required=True, help="folder with onnx, onnxruntime and openvino")
    site = parser.parse_args().site
    sys.path.append(site)
    import onnxruntime
    import openvino

    torch.set_num_threads(1)
    probe = load_model(PredictConfig(weights="research", precision="fp32", engine="eager"))
    halo = probe.halo_wpx
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE + 2 * halo, SIDE + 2 * halo, 3), np.uint8)
    rows = [of_torch(precision, pixels) for precision in ("int8", "fp32")]

    def ort(path: Path) -> Callable[[np.ndarray], np.ndarray]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda rgb: session.run(None, {"rgb": rgb})[0]

    def vino(path: Path) -> Callable[[np.ndarray], np.ndarray]:
        options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        net = openvino.Core().compile_model(str(path), "CPU", options)
        return lambda rgb: np.array(net(rgb)[0])

    with tempfile.TemporaryDirectory() as folder:
        nets = {side: exported(probe, Path(folder), side) for side in (SIDE + 2 * halo, INNER + 2 * halo)}
        rows += [{"engine": "onnxruntime", **of_onnx(ort, nets, pixels, probe)}]
        rows += [{"engine": "openvino", **of_onnx(vino, nets, pixels, probe)}]
    ours = rows[1]["maps"].astype(np.int16)
    for row in rows:
        row["largest_level_difference_to_torch_fp32"] = int(np.abs(row.pop("maps").astype(np.int16) - ours).max())
    modules = {"torch": Path(torch.__file__).parent, **{m: Path(site) / m for m in ("onnxruntime", "openvino")}}
    packages = {m: {"installed_mb": size_mb(p), "import_cpu_s": start_cpu_s(m, site)} for m, p in modules.items()}
    result = {"machine": machine(), "packages": packages, "windows": rows}
    (RESULTS / "engines.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"packages": packages, "windows": rows}, indent=1))


if __name__ == "__main__":
    main()

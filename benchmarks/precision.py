"""What a precision costs: int8, bf16 and fp32 side by side on annotated validation images, and on processors of other kinds.

    python -m benchmarks.precision --data SETS

Scores, counts and mean areas on the validation images of every set, thresholds of the weights' card; and for caps on what
oneDNN may use (AVX2; AVX-512 without VNNI, bf16 and AMX), the digest of the maps and the network's useful Mpx per CPU second.
Equal digests are equal maps. Written to ``benchmarks/results/precision.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import save

PRECISIONS = ("fp32", "bf16", "int8")
SETS = ("tnbc", "consep", "monuseg", "dsb2018_he")
CAPS = {
    "none": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    "AVX512_CORE": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
}


def score(data: Path, weights: str) -> dict[str, dict[str, Any]]:
    """Return PQ, nuclei found and mean area by precision and set."""
    import torch

    from wsiseg.config import PredictConfig, RunConfig
    from wsiseg.datasets import load_sample
    from wsiseg.evaluation.scoring import choose_samples
    from wsiseg.metrics import contingency, scores_of
    from wsiseg.pipeline import segment_image
    from wsiseg.predict import load_model, tune_malloc

    torch.set_num_threads(1)
    tune_malloc()
    found: dict[str, dict[str, Any]] = {}
    for precision in PRECISIONS:
        config = RunConfig(predict=PredictConfig(weights=weights, precision=precision, engine="eager"))  # type: ignore[arg-type]
        model = load_model(config.predict)
        for name in SETS:
            pq, areas = [], []
            for sample in choose_samples(data, (name,), "validation"):
                rgb, truth = load_sample(sample)
                mpp = sample.mpp or model.mpp
                labels = segment_image(rgb, mpp, model, config, sample.image_id)
                pq.append(scores_of(contingency(labels, truth)).pq)
                sizes = np.bincount(labels.ravel())[1:]
                areas.append(sizes[sizes > 0] * mpp**2)
            every = np.concatenate(areas)
            row = {"images": len(pq), "pq": float(np.nanmean(pq)), "nuclei": len(every), "area_mean_um2": float(every.mean())}
            found.setdefault(name, {})[precision] = {k: round(v, 4) for k, v in row.items()}
            print(weights, precision, name, found[name][precision], flush=True)
    return found


def differences(scores: dict[str, dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return the largest difference to fp32 over sets and weights, by precision."""
    out = {}
    for precision in PRECISIONS[1:]:
        pairs = [(by[precision], by["fp32"]) for sets in scores.values() for by in sets.values()]
        relative = {f"{name}_frac": max(abs(a[name] / b[name] - 1) for a, b in pairs) for name in ("nuclei", "area_mean_um2")}
        nuclei = sum(a["nuclei"] for a, _ in pairs) / sum(b["nuclei"] for _, b in pairs) - 1
        largest = {**relative, "pq": max(abs(a["pq"] - b["pq"]) for a, b in pairs), "nuclei_in_all_frac": nuclei}
        mean = float(np.mean([a["pq"] - b["pq"] for a, b in pairs]))
        out[precision] = {k: round(v, 4) for k, v in {**largest, "pq_mean_difference": mean}.items()}
    return out


def here(side: int = 624) -> dict[str, Any]:
    """Return digest and useful Mpx per CPU second by precision, on the processor as this process may use it."""
    import torch

    from wsiseg.config import PredictConfig
    from wsiseg.predict import arithmetic_of, load_model, predict, tune_malloc
    from wsiseg.predict.arithmetic import probe_picture
    from wsiseg.types import Box

    torch.set_num_threads(1)
    tune_malloc()
    found = {}
    for precision in PRECISIONS:
        model = load_model(PredictConfig(precision=precision, engine="eager"))  # type: ignore[arg-type]
        out = Box(0, 0, side, side)
        box = model.input_box(out)
        picture, times = probe_picture(box.w), []
        for _ in range(3):
            start = time.process_time()
            predict(model, picture, box, out)
            times.append(time.process_time() - start)
        found[precision] = {
            "digest": arithmetic_of(model).digest,
            "useful_mpx_per_cpu_s": round(side**2 / 1e6 / min(times), 2),
        }
    return found


def main() -> None:
    """Score, ask each kind of processor, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Folder of annotated sets.")
    parser.add_argument("--here", action="store_true", help="Only print what this processor computes, as JSON.")
    args = parser.parse_args()
    if args.here:
        print(json.dumps(here()))
        return
    if args.data is None:
        parser.error("--data SETS is missing")
    processors = {}
    for name, caps in CAPS.items():
        command = [sys.executable, "-m", "benchmarks.precision", "--here"]
        done = subprocess.run(command, env={**os.environ, **caps}, capture_output=True, text=True, check=True)
        processors[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, processors[name], flush=True)
    scores = {weights: score(args.data, weights) for weights in ("research", "open")}
    command_line = "python -m benchmarks.precision --data SETS"
    result = {"command": command_line, "caps": processors, "scores": scores, "largest_difference_to_fp32": differences(scores)}
    print(save("precision", result))
    print(json.dumps(result["largest_difference_to_fp32"], indent=1))


if __name__ == "__main__":
    main()

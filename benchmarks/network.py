"""Network throughput on one core: Mpx per CPU second, with the halo counted as what it is (work that yields no pixel).

    OMP_NUM_THREADS=1 python benchmarks/network.py [--compile] [--nets lean,hou43] [--sides 512,1040,2080]

The rival in the same run is the published 43-convolution network as plain torch: eager, fp32, NCHW, whole window computed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from _machine import save

from wsiseg.config import PredictConfig
from wsiseg.predict import (
    NETS,
    activation_ranges,
    build_net,
    fold_batch_norm,
    is_quantizable,
    macs_per_px,
    model_from_net,
    tune_malloc,
)

SHOWN = ("net", "precision", "engine", "useful_side_px", "crop_on_the_way_up", "mpx_per_s", "useful_mpx_per_s", "times_rival")
CARD = {"name": "bench", "sha256": "", "mpp": 0.25, "stain_method": "none", "licence": "", "separate_defaults": {}}


def best_seconds(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest of a few runs, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def rival(side: int, repeats: int) -> float:
    """Mpx/s of hou43 as anybody would run it: float image in, probabilities out, the whole window."""
    net = build_net("hou43").eval()
    rgb = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return torch.sigmoid(net(rgb.float() / 127.5 - 1))

    return side * side / best_seconds(work, repeats) / 1e6


def ours(name: str, precision: str, side: int, repeats: int, crop: bool, compiled: bool) -> dict[str, object]:
    """One row: a window with ``side`` useful px, its halo around it."""
    torch.manual_seed(0)
    net = fold_batch_norm(build_net(name))
    if precision == "int8":
        net.ranges = activation_ranges(net, [np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)])
    engine = "inductor" if compiled else "eager"
    model = model_from_net(net, dict(CARD), PredictConfig(precision=precision, engine=engine))  # type: ignore[arg-type]
    whole = side + 2 * model.halo_wpx
    rgb = torch.randint(0, 256, (whole, whole, 3), dtype=torch.uint8)

    def work() -> torch.Tensor:
        with torch.inference_mode():
            return model.graph(rgb, model.halo_wpx if crop else 0)

    start = time.perf_counter()
    work()
    first = time.perf_counter() - start
    seconds = best_seconds(work, repeats)
    return {
        "net": name,
        "precision": precision,
        "engine": engine,
        "useful_side_px": side,
        "halo_px": model.halo_wpx,
        "crop_on_the_way_up": crop,
        "mpx_per_s": round(whole * whole / seconds / 1e6, 2),
        "useful_mpx_per_s": round(side * side / seconds / 1e6, 2),
        "macs_per_px": macs_per_px(NETS[name]),
        "first_call_s": round(first, 1),
    }


def main() -> None:
    """Run, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--nets", default="lean,lean_shallow,lean_w16,lean_w32,hou43")
    parser.add_argument("--sides", default="1040")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="network")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tune_malloc()
    base = rival(1024, args.repeats)
    print(f"rival: hou43 eager fp32 NCHW, 1024 px window, no halo: {base:.2f} Mpx/s")
    rows = []
    for name in args.nets.split(","):
        for precision in ("fp32", "bf16", "int8") if is_quantizable(NETS[name]) else ("fp32", "bf16"):
            for side in map(int, args.sides.split(",")):
                for crop in (True, False):
                    for compiled in (False, True) if args.compile and precision != "int8" else (False,):
                        row = ours(name, precision, side, args.repeats, crop, compiled)
                        row["times_rival"] = round(float(row["useful_mpx_per_s"]) / base, 1)  # type: ignore[arg-type]
                        rows.append(row)
                        print({k: row[k] for k in SHOWN}, flush=True)
    facts = {"threads": 1, "unit": "useful Mpx per CPU second of one thread", "rival_mpx_per_s": round(base, 3)}
    save(args.out, {**facts, "rows": rows})


if __name__ == "__main__":
    main()

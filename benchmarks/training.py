"""How fast a CPU core trains: pixels per second of CPU time, and what share of it is spent on augmentation.

    python -m benchmarks.training DATA [--sets tnbc dsb2018_he] [--nets lean lean_w16 lean_w32] [--steps 6]

One thread, so that CPU seconds count the work of one core whatever else the machine does. For each network, precision and way
of augmenting (patches one by one on the host, or a batch at once), the median of ``--steps`` optimizer steps after one that is
not counted. ``mpx_per_cpu_s``: patch pixels of a step over its CPU seconds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import save
from wsiseg.datasets import list_samples
from wsiseg.predict import build_net
from wsiseg.predict.nets import NETS, macs_per_px
from wsiseg.train.augment import AugmentConfig
from wsiseg.train.batches import Batch, PatchSource, TargetOptions
from wsiseg.train.loop import LoopConfig, TrainingRun, fit

AUGMENT = AugmentConfig(stain_gain=0.6, stain_offset=0.3, hue_mix=0.15, gamma=0.4, restain_p=0.5)


def step_seconds(
    net_name: str, precision: str, next_batch: Callable[[int], Batch], batch: int, steps: int
) -> tuple[float, float]:
    """Return the median CPU seconds of a training step, and of the making of its batch."""
    making: list[float] = []
    began: list[float] = []

    def timed(step: int) -> Batch:
        start = time.process_time()
        began.append(start)
        made = next_batch(step)
        making.append(time.process_time() - start)
        return made

    torch.manual_seed(0)
    config = LoopConfig(steps=steps + 2, batch=batch, precision=precision, report_every=steps + 2)
    with tempfile.TemporaryDirectory() as folder:
        fit(build_net(net_name), timed, config, TrainingRun(Path(folder)))
    whole = [after - before for before, after in itertools.pairwise(began[1:])]
    return statistics.median(whole), statistics.median(making[1:])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return a row for each combination."""
    samples = [s for s in list_samples(args.data, tuple(args.sets)) if not s.validation]
    shares = dict.fromkeys(args.sets, 1 / len(args.sets))
    targets = TargetOptions("ellipse")
    sources = {
        "patch": PatchSource(samples, shares, targets, AUGMENT, args.patch),
        "batch": PatchSource(samples, shares, targets, AUGMENT, args.patch, batched_on=torch.device("cpu")),
        "none": PatchSource(samples, shares, targets, None, args.patch),
    }
    rows = []
    for net in args.nets:
        for precision in ("bf16", "fp32"):
            for way, source in sources.items():
                step_s, batch_s = step_seconds(
                    net, precision, lambda k, s=source: s.batch(args.batch, 0, k), args.batch, args.steps
                )
                rows.append(
                    {
                        "net": net,
                        "macs_per_px": round(macs_per_px(NETS[net])),
                        "precision": precision,
                        "augment": way,
                        "step_cpu_s": round(step_s, 3),
                        "batch_cpu_s": round(batch_s, 3),
                        "augmentation_share": round(batch_s / step_s, 3),
                        "mpx_per_cpu_s": round(args.batch * args.patch**2 / 1e6 / step_s, 3),
                    }
                )
                print(rows[-1], flush=True)
    return {
        "sets": args.sets,
        "images": len(samples),
        "patch_px": args.patch,
        "batch": args.batch,
        "steps": args.steps,
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of annotated sets")
    parser.add_argument("--sets", nargs="+", default=["tnbc", "dsb2018_he"])
    parser.add_argument("--nets", nargs="+", default=["lean", "lean_w16", "lean_w32"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=256)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(save("training", measure(args) | {"load_at_start": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()

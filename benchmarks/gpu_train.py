"""Train a network on a lent GPU machine with the time that is left, from images that were carried there.

    python -m benchmarks.gpu_train pack SETS [--config CONFIG.toml] [--most-mb 50]    # elsewhere -> carry/train.zip
    python -m benchmarks.gpu_train run OUT [--config CONFIG.toml] [--minutes 5] [--device cuda]    # there
    python -m benchmarks.gpu_train export OUT [--config CONFIG.toml]                  # elsewhere: OUT/train -> weights and card

The config is one of ``wsiseg train``; its weights to begin with and its teachers must be there too, so name installed ones.
``--dry`` replaces its network by a tiny one without a teacher. The pack holds images that training may see (never those held
out), in the unified layout: pixels as JPEG of quality 95 without subsampling, under names that end in .png (Pillow goes by
content), labels as they are. A run plans its steps by timing some, so that the learning rate comes to its end when the time
does. ``OUT/train`` has a checkpoint and the averaged weights at most ``CHECKPOINT_S`` old, and ``OUT/gpu_train_<device>.json``
as many lines of the curve: whatever ends the run, that much is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks._machine import machine
from wsiseg.datasets import list_samples, load_sample
from wsiseg.predict import build_net
from wsiseg.train.config import TrainConfig, plain_config
from wsiseg.train.loop import TrainingRun, fit
from wsiseg.train.training import begun_net, export_weights, patch_source, training_samples

CARRY = Path(__file__).resolve().parents[1] / "carry" / "train.zip"
CHECKPOINT_S = 60.0
PROBE_STEPS = 20
QUALITIES = (95, 90, 85, 75)
CONFIG = Path(__file__).resolve().parents[1] / "scripts" / "train_on_gpu.toml"


def pack(root: Path, sets: tuple[str, ...], max_bytes: int, out: Path) -> dict[str, Any]:
    """Write what fits: at the best quality at which all images do."""
    samples = [s for s in list_samples(root, sets) if not s.validation]
    out.parent.mkdir(parents=True, exist_ok=True)
    for quality in QUALITIES:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
            for name in sorted({s.dataset for s in samples}):
                file.write(root / name / "INFO.json", f"{name}/INFO.json")
            for sample in samples:
                rgb, labels = load_sample(sample)
                pixels, numbers = io.BytesIO(), io.BytesIO()
                Image.fromarray(rgb).save(pixels, "JPEG", quality=quality, subsampling=0)
                Image.fromarray(labels.astype(np.uint16)).save(numbers, "PNG")
                file.writestr(f"{sample.dataset}/{sample.image_id}.png", pixels.getvalue())
                file.writestr(f"{sample.dataset}/{sample.image_id}.labels.png", numbers.getvalue())
        if out.stat().st_size <= max_bytes:
            return {"images": dict(Counter(s.dataset for s in samples)), "quality": quality, "bytes": out.stat().st_size}
    size = f"{out.stat().st_size / 1e6:.0f} MB at quality {QUALITIES[-1]}"
    raise SystemExit(f"{out}: {size}, expected at most {max_bytes / 1e6:.0f}. Name a --config of fewer sets.")


def packed_config(args: argparse.Namespace, sets: list[str]) -> TrainConfig:
    """Return the options of the run, for the sets that were carried, which must be among those of the config.

    Patches are augmented a batch at once, the way on a GPU, on the CPU too.
    """
    config = TrainConfig.from_toml(args.config)
    if args.dry:
        shares = dict.fromkeys(sets, 1.0)
        config = dataclasses.replace(config, net="tiny", init="", teacher="", patch_px=64, sets=shares)
    if unknown := sorted(set(sets) - set(config.sets)):
        raise SystemExit(f"{args.pack} holds {unknown}, of which {args.config} has no share. Pack it with the same --config.")
    batch = 2 if args.dry else args.batch or config.loop.batch
    loop = dataclasses.replace(config.loop, device=args.device, batch=batch)
    return dataclasses.replace(config, sets={name: config.sets[name] for name in sets}, augment_on="batch", loop=loop)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train until the time is up; return the last state of the JSON."""
    began = time.perf_counter()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    path = args.out / f"gpu_train_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(args.pack) as file:
            file.extractall(folder)
        sets = sorted(p.parent.name for p in Path(folder).glob("*/INFO.json"))
        samples = list_samples(Path(folder), tuple(sets))
        config = packed_config(args, sets)
        source, _ = patch_source(config, samples, args.config.parent)
        prepared_s = time.perf_counter() - began
        n_probe = 2 if args.dry else PROBE_STEPS
        short = dataclasses.replace(config.loop, steps=n_probe, warmup_steps=1, report_every=10**9)

        def batch(step: int) -> Any:
            return source.batch(config.loop.batch, config.loop.seed, step)

        with tempfile.TemporaryDirectory() as probe:
            fit(build_net(config.net), batch, dataclasses.replace(short, steps=2), TrainingRun(Path(probe) / "a"))
            clock = time.perf_counter()
            fit(build_net(config.net), batch, short, TrainingRun(Path(probe) / "b"))
            step_s = (time.perf_counter() - clock) / n_probe
        left_s = 60 * args.minutes - (time.perf_counter() - began)
        steps = max(n_probe, int(0.9 * left_s / step_s))
        every = max(1, min(100, int(CHECKPOINT_S / 2 / step_s)))
        warmup_steps = min(config.loop.warmup_steps, steps // 10 + 1)
        loop = dataclasses.replace(config.loop, steps=steps, warmup_steps=warmup_steps, report_every=every)
        result: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "measured": device.type == "cuda",
            "device": name,
            "machine": machine(),
            "config": args.config.name,
            "training": plain_config(dataclasses.replace(config, loop=loop)),
            "images": dict(Counter(s.dataset for s in samples)),
            "images_and_teacher_s": round(prepared_s, 1),
            "steps_planned": steps,
            "step_ms": round(1e3 * step_s, 3),
            "lines": [],
        }

        def on_line(line: dict[str, Any]) -> None:
            result["lines"].append({k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()})
            write(path, result)
            print(json.dumps(result["lines"][-1]), flush=True)

        write(path, result)
        fit(begun_net(config, args.config.parent), batch, loop, TrainingRun(args.out / "train"), on_line=on_line)
    result["seconds"] = round(time.perf_counter() - began, 1)
    write(path, result)
    print(path)
    return result


def export(out: Path, config_path: Path) -> None:
    """Make weights of what a run left, by its training config and where the sets are (``data_root``, or ``WSISEG_DATA``)."""
    config = TrainConfig.from_toml(config_path)
    config = dataclasses.replace(config, loop=dataclasses.replace(config.loop, **loop_run(out)))
    net = build_net(config.net)
    net.load_state_dict(torch.load(out / "train" / "ema.pt", map_location="cpu", weights_only=True)["ema"])
    print(json.dumps(export_weights(net, config, training_samples(config), out / "weights"), indent=1, default=str))


def loop_run(out: Path) -> dict[str, int]:
    """Return the steps, warmup and batch of the run that left its JSON in a folder: the card states what was run."""
    (path,) = out.glob("gpu_train_*.json")
    ran = json.loads(path.read_text(encoding="utf-8"))
    loop = ran["training"]["loop"]
    return {"steps": ran["lines"][-1]["step"], "warmup_steps": loop["warmup_steps"], "batch": loop["batch"]}


def write(path: Path, result: dict[str, Any]) -> None:
    """Write the JSON whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Pack, run or export."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    packing = commands.add_parser("pack")
    packing.add_argument("root", type=Path)
    packing.add_argument("--most-mb", type=float, default=50)
    packing.add_argument("--pack", type=Path, default=CARRY)
    running = commands.add_parser("run")
    running.add_argument("out", type=Path)
    running.add_argument("--pack", type=Path, default=CARRY)
    running.add_argument("--minutes", type=float, default=5)
    running.add_argument("--batch", type=int, default=0, help="patches a step; 0: as the config states")
    running.add_argument("--device", default="cuda")
    running.add_argument("--dry", action="store_true")
    exporting = commands.add_parser("export")
    exporting.add_argument("out", type=Path)
    for command in (packing, running, exporting):
        command.add_argument("--config", type=Path, default=CONFIG)
    args = parser.parse_args()
    if args.what == "pack":
        sets = tuple(TrainConfig.from_toml(args.config).sets)
        print(json.dumps(pack(args.root, sets, int(1e6 * args.most_mb), args.pack)))
    elif args.what == "run":
        run(args)
    else:
        export(args.out, args.config)


if __name__ == "__main__":
    main()

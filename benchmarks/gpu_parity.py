"""On a machine with a GPU: whether it gives the CPU's answers. The first step of ``scripts/on_gpu.sh``.

    python -m benchmarks.gpu_parity [--out FOLDER] [--device cuda|cpu] [--most-px N]

Three questions, with the answers that ``benchmarks.gpu_expectations`` made: are the kernels' results equal in every bit; do the
network's maps in fp32, by each engine, lie within ``MOST_LEVELS`` of the CPU's, and are they the same each time; do tiles
that are on the device at once come out as one after another. Writes ``gpu_parity_<device>.json`` after each question.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._machine import RESULTS, machine
from benchmarks.gpu_stages import Case, load_cases, parity
from wsiseg.backend import to_device, to_host
from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.predict import load_model, predict
from wsiseg.separate import resolve_params, separate
from wsiseg.types import Box
from wsiseg.vectorize import vectorize

MAX_LEVELS = 2
AT_ONCE, TURNS = 3, 4


def turns(device: str, n: int) -> list[Callable[[], AbstractContextManager[None]]]:
    """Return blocks in which a thread may compute, each on a stream of its own where there are streams."""
    if device == "cpu":
        return [nullcontext] * n
    from wsiseg.backend.dlpack import on_stream, streams

    return [lambda stream=stream: on_stream(stream) for stream in streams(0, n)]  # type: ignore[misc]


def network(case: Case, device: str) -> dict[str, Any]:
    """Return for each engine how far its fp32 maps are from the CPU's, in levels of 255, and whether two runs are equal."""
    rows: dict[str, Any] = {}
    for engine in ("eager", "graph", "inductor") if device != "cpu" else ("eager",):
        try:
            model = load_model(PredictConfig(weights="open", precision="fp32", engine=engine), device)  # type: ignore[arg-type]
            box = Box(0, 0, case["maps"].shape[2], case["maps"].shape[1])
            with turns(device, 1)[0]():
                there = to_device(case["rgb"], device)
                maps = [to_host(predict(model, there, model.input_box(box), box)) for _ in range(2)]
        except (ImportError, RuntimeError) as err:
            rows[engine] = {"not_run": str(err).splitlines()[0][:200]}
            continue
        apart = np.abs(maps[0].astype(np.int16) - case["maps"])
        rows[engine] = {
            "most_levels": int(apart.max()),
            "differing_frac": round(float((apart > 0).mean()), 6),
            "repeatable": bool(np.array_equal(*maps)),
        }
    return rows


def concurrent(case: Case, device: str) -> dict[str, Any]:
    """Return whether tiles that are computed by threads at once equal those computed one after another."""
    model = load_model(PredictConfig(weights="open", precision="fp32"), device)
    size = case["maps"].shape[1]
    params = resolve_params(SeparateConfig(), model.separate_defaults, 0.25)
    boxes = [Box(k * size // 8, 0, size * 5 // 8, size) for k in range(TURNS)]
    whole = model.input_box(Box(0, 0, size, size))

    def tile(k: int, turn: Callable[[], AbstractContextManager[None]]) -> bytes:
        box = boxes[k]
        with turn():
            prob = predict(model, to_device(case["rgb"], device), whole, box)
            batch = vectorize(separate(prob, params), prob, box, box)
        return batch.xy.tobytes() + b"".join(batch.columns[name].tobytes() for name in sorted(batch.columns))

    blocks = turns(device, AT_ONCE)
    alone = [tile(k, blocks[0]) for k in range(TURNS)]
    with ThreadPoolExecutor(AT_ONCE) as pool, taken(blocks) as take:
        together = list(pool.map(lambda k: take(lambda turn: tile(k % TURNS, turn)), range(3 * TURNS)))
    return {"tiles": len(together), "at_once": AT_ONCE, "equal": together == 3 * alone}


@contextmanager
def taken(blocks: list[Any]) -> Iterator[Callable[[Callable[[Any], Any]], Any]]:
    """Let each call have a block that no other call has."""
    import queue

    free: queue.LifoQueue[Any] = queue.LifoQueue()
    for block in blocks:
        free.put(block)

    def take(function: Callable[[Any], Any]) -> Any:
        block = free.get()
        try:
            return function(block)
        finally:
            free.put(block)

    yield take


def main() -> int:
    """Ask, write after each answer; nonzero if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--most-px", type=int, default=2**31, help="Leave out cases with more pixels.")
    args = parser.parse_args()
    cases = {n: c for n, c in load_cases().items() if "prob" not in c or c["prob"].size <= 2 * args.most_px}
    result: dict[str, Any] = {"command": " ".join(sys.argv), "measured": args.device != "cpu", "machine": machine()}
    if args.device == "cpu":
        result["device"] = "cpu"
        put = get = np.asarray
    else:
        import cupy

        put, get = cupy.asarray, cupy.asnumpy
        result["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu_parity_{re.sub('[^a-z0-9]+', '_', result['device'].lower()).strip('_')}.json"
    net = cases.pop("network")
    questions: dict[str, Callable[[], Any]] = {
        "kernels": lambda: {"cases": len(cases), "not_equal": parity(cases, put, get)},
        "network_fp32": lambda: network(net, args.device),
        "concurrent": lambda: concurrent(net, args.device),
    }
    for name, question in questions.items():
        try:
            result[name] = question()
        except Exception as err:  # what one question does not survive, the next may
            result[name] = {"failed": f"{type(err).__name__}: {err}"[:500]}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    engines = [row for row in result["network_fp32"].values() if isinstance(row, dict) and "most_levels" in row]
    good = result["kernels"].get("not_equal") == {} and result["concurrent"].get("equal") is True
    return 0 if good and engines and all(r["most_levels"] <= MAX_LEVELS and r["repeatable"] for r in engines) else 1


if __name__ == "__main__":
    sys.exit(main())

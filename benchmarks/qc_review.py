"""Latency of the review page at 75,000 patches of 5,000 slides: what a reviewer waits between a key and the next picture.

The server runs in its own process on a synthetic run folder; a client marks patches one after the other as the page does (mark,
fsync on the server, next state, both pictures of the next patch). Half of the patches are marked beforehand, so that "resume"
is measured too. Beside the wall time, which other work on the machine lengthens, the processor time that the server spent on
each step is taken from the kernel (Linux). Run: python benchmarks/qc_review.py [--patches 75000] [--steps 500]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _machine import save

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from wsiseg.qc import MarkLog, contour_png, patch_id, rgb_png, write_pack  # noqa: E402
from wsiseg.qc.rows import PatchRow  # noqa: E402
from wsiseg.schema import PATCHES, SLIDES  # noqa: E402
from wsiseg.tables import arrow_schema  # noqa: E402
from wsiseg.tables.records import write_rows  # noqa: E402

PER_SLIDE = 15
DIGEST = "b" * 16


def make_run(root: Path, n_patches: int) -> list[str]:
    """Write a run of ``n_patches`` patches with real picture packs; return the patch ids in review order."""
    random = np.random.default_rng(0)
    tissue = rgb_png(
        random.integers(0, 2, (256, 256, 3), dtype=np.uint8) * np.uint8(255)
    )  # one bit of noise: 27 kB, 3 GB in all
    angle = np.linspace(0, 2 * np.pi, 31)
    rings = [np.column_stack([x + 10 * np.cos(angle), y + 10 * np.sin(angle)]) for x, y in random.uniform(0, 256, (40, 2))]
    layer = contour_png(np.concatenate(rings), np.arange(41) * 31, (0, 0), 3.0, 768)
    slides = [f"TCGA-{i:05d}" for i in range(-(-n_patches // PER_SLIDE))]
    (root / "nuclei").mkdir(parents=True)
    (root / "nuclei" / f"{slides[0]}.parquet").touch()
    (root / "run.json").write_text(json.dumps({"results": {}, "digest": DIGEST}))
    rows = [{"slide_id": s, "cohort": "BRCA", "status": "done", "n_nuclei": 1000} for s in slides]
    full = [{c.name: r.get(c.name) for c in SLIDES} for r in rows]
    pq.write_table(pa.Table.from_pylist(full, schema=arrow_schema(SLIDES, nullable=True)), root / "slides.parquet")
    index = []
    for slide in slides:
        names = [patch_id(DIGEST, slide, k) for k in range(PER_SLIDE)]
        file = f"patches/{slide}.zip"
        write_pack(root / "qc" / file, [p for n in names for p in ((f"{n}.png", tissue), (f"{n}.contours.png", layer))])
        index += [PatchRow(n, slide, "BRCA", k, 0, 0, 256, 1.0, 40, file) for k, n in enumerate(names)]
    index.sort(key=lambda e: e.patch_id)
    write_rows(root / "qc" / "patches.parquet", PATCHES, index)
    return [e.patch_id for e in index]


def mark_before(root: Path, ids: list[str]) -> None:
    """Write marks of half of the patches, as an earlier session would have left them."""
    folder = root / "qc" / "marks"
    log = MarkLog(folder, "ann", DIGEST)
    log.append("patches", ids[0], "adequate")
    log.close()
    line = json.loads((folder / "ann.jsonl").read_text())
    with (folder / "ann.jsonl").open("w") as stream:
        stream.writelines(json.dumps({**line, "item": i}) + "\n" for i in ids)


def percentiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}_ms": round(1000 * float(np.percentile(seconds, p)), 2) for p in (50, 95, 99, 100)}


def measure(url: str, steps: int, server_pid: int) -> dict[str, Any]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=60)

    def ask(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[Any, bytes]:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
        answer = connection.getresponse()
        return answer, answer.read()

    answer, _ = ask("GET", f"/?{parts.query}")
    cookie = {"Cookie": answer.headers["set-cookie"].split(";")[0]}
    state = json.loads(ask("GET", "/api/state?queue=patches", None, cookie)[1])
    total, done = state["total"], state["done"]
    mark_s, picture_s, undo_s, cpu_s = [], [], [], []
    for i in range(steps):
        item = state["next"][0]
        cpu = cpu_seconds(server_pid)
        start = time.perf_counter()
        body = {"queue": "patches", "item": item, "mark": ("adequate", "not_adequate")[i % 7 == 0], "seconds": 2.0}
        state = json.loads(ask("POST", "/api/mark", body, cookie)[1])
        mark_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        for kind in ("", ".contours"):
            assert ask("GET", f"/patch/{state['next'][0]}{kind}.png", None, cookie)[0].status == 200
        picture_s.append(time.perf_counter() - start)
        cpu_s.append(cpu_seconds(server_pid) - cpu)
        if i % 10 == 9:
            start = time.perf_counter()
            state = json.loads(ask("POST", "/api/mark", {"queue": "patches", "item": "", "mark": "undo"}, cookie)[1])
            undo_s.append(time.perf_counter() - start)
    assert state["done"] == done + steps - len(undo_s)
    both = [a + b for a, b in zip(mark_s, picture_s, strict=True)]
    return {
        "patches": total,
        "marked_before": done,
        "steps": steps,
        "mark": percentiles(mark_s),
        "two_pictures": percentiles(picture_s),
        "mark_and_pictures": percentiles(both),
        "undo": percentiles(undo_s),
        "server_cpu_a_step": percentiles(cpu_s),
    }


def cpu_seconds(pid: int) -> float:
    """Return what the threads of a process have run, from the scheduler's own nanoseconds."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patches", type=int, default=75_000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--no-save", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wsiseg-review-") as scratch:
        root = Path(scratch) / "run"
        start = time.perf_counter()
        ids = make_run(root, options.patches)
        mark_before(root, ids[: len(ids) // 2])
        made_s = time.perf_counter() - start
        start = time.perf_counter()
        code = "from wsiseg.cli.commands_qc import qc; qc()"
        command = [sys.executable, "-u", "-c", code, "review", str(root), "--reviewer", "ann"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert server.stdout is not None
        url = server.stdout.readline().split(": ", 1)[1].strip()
        for _ in range(200):
            try:
                http.client.HTTPConnection("127.0.0.1", urlsplit(url).port, timeout=5).connect()
                break
            except ConnectionError:
                time.sleep(0.05)
        ready_s = time.perf_counter() - start
        result = {
            **measure(url, options.steps, server.pid),
            "server_ready_s": round(ready_s, 2),
            "load_1min": os.getloadavg()[0],
        }
        with Path(f"/proc/{server.pid}/status").open() as status:
            result["server_rss_mb"] = round(int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024, 1)
        server.terminate()
        server.wait(20)
        server.stdout.close()
    print(json.dumps(result, indent=1), f"(run made in {made_s:.0f} s)")
    if not options.no_save:
        save("qc_review", result)


if __name__ == "__main__":
    main()

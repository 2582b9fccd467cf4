"""Break a run in every way we know of and count what was lost: ``python benchmarks/faults.py [--tries 3] [--only kill ...]``.

Every case segments a crop of the real test slide while something goes wrong, lets the run (or the same command again) go to its
end, and compares the final table with an undisturbed run's: nuclei that are missing or new, and whether the bytes are equal.
``recovery_s`` is the time from the fault until the run's next sign of progress (a part file, a slide's record) after it.
Results go to benchmarks/results/faults.json after every case. As root it also fills a real (tmpfs) disk. Links are cut by
a TCP proxy between the processes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pyarrow.parquet as pq
from _machine import RESULTS, save, saved
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.run.conftest import environment  # noqa: E402 - the tests are no package
from tests.run.hosts import Hosts, wait_for_parts  # noqa: E402

SLIDE = ROOT / "tests/data/CMU-1-Small-Region.svs"
OPTIONS = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--engine", "eager", "--workers", "1")
PRELOAD = ROOT / "tests/run/faulty_worker.py"
LIMIT_S = 3600
RESULT = RESULTS / "faults.json"
NOTE = "recovery_s is from the fault to the next finished tile or table; it includes whatever else the machine did at the time"
HANG_S = 40.0
"""--tile-timeout of the case that hangs: more than a tile takes on a busy machine."""


class Stage:
    """One try of one case: a folder, the slide in it, and what the run writes."""

    def __init__(self, folder: Path, crop: Path) -> None:
        self.folder = folder
        self.slide = folder / "crop.png"
        shutil.copy2(crop, self.slide)
        self.out = folder / "out"
        self.fault_at = 0.0

    def command(self, *more: str | Path) -> list[str]:
        return [sys.executable, "-m", "wsiseg", "segment", str(self.slide), *OPTIONS, "--out", str(self.out), *map(str, more)]

    def env(self, rules: list[dict[str, Any]]) -> dict[str, str]:
        if not rules:
            return environment()
        fired = self.folder / "fired"
        fired.mkdir(exist_ok=True)
        faults = {"WSISEG_FAULTS": json.dumps(rules), "WSISEG_FAULTS_DIR": str(fired)}
        return {**environment(), **faults, "DASK_DISTRIBUTED__WORKER__PRELOAD": str(PRELOAD)}

    def run(self, *more: str | Path, rules: list[dict[str, Any]] = []) -> int:  # noqa: B006 - never changed
        done = subprocess.run(
            self.command(*more), env=self.env(rules), capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if "Traceback" in done.stderr:
            raise RuntimeError(done.stderr)
        return done.returncode

    def start(self, *more: str | Path, rules: list[dict[str, Any]] = []) -> subprocess.Popen[bytes]:  # noqa: B006
        return subprocess.Popen(
            self.command(*more),
            env=self.env(rules),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def recovery_s(self) -> float | None:
        """Return seconds from the fault (by the clock of files) to the first thing finished after it."""
        fired = [p.stat().st_mtime for p in (self.folder / "fired").glob("*")] if (self.folder / "fired").is_dir() else []
        at = self.fault_at or (min(fired) if fired else 0.0)
        signs = [*self.out.glob("parts/*/*.parquet"), *self.out.glob("nuclei/*.parquet")]
        after = sorted(p.stat().st_mtime for p in signs if p.stat().st_mtime > at)
        return round(after[0] - at, 2) if at and after else None


SLOW = {"do": "slow", "at": "tile", "seconds": 0.7, "times": 99}
KEEP = "--keep-parts"


def rule(do: str, at: str = "tile", tile: int | None = 4, times: int = 1) -> dict[str, Any]:
    return {"do": do, "at": at, "times": times, **({"tile": tile} if tile is not None and at == "tile" else {})}


def by_rule(*rules: dict[str, Any], more: tuple[str, ...] = ()) -> Callable[[Stage], None]:
    def case(stage: Stage) -> None:
        assert stage.run(KEEP, *more, rules=list(rules)) == 0
        assert list((stage.folder / "fired").iterdir()), "the fault never happened"

    return case


def poison(stage: Stage) -> None:
    """A tile crashes its worker each time: given up, recorded, the rest done; later done alone."""
    assert stage.run(KEEP, "--retries", "1", rules=[rule("crash", times=99)]) == 1
    (error,) = pq.read_table(stage.out / "errors.parquet").to_pylist()
    assert error["tile_id"] == 4
    assert stage.run("--retry-failed") == 0


def client_killed(stage: Stage) -> None:
    """Client, scheduler and workers of one machine die at once, twice; the same command each time."""
    for _ in range(2):
        process = stage.start(KEEP)
        wait_for_parts(stage.out, len(list(stage.out.glob("parts/*/*.parquet"))))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        stage.fault_at = time.time()
    assert stage.run(KEEP) == 0


def two_runs(stage: Stage) -> None:
    """Two clients on one folder: the second refuses, the first is not disturbed."""
    first = stage.start(KEEP)
    wait_for_parts(stage.out, 0)
    if first.poll() is None:
        assert stage.run() == 2
    assert first.wait(LIMIT_S) == 0


def slide_replaced(stage: Stage) -> None:
    """The slide's file becomes another of the same size and time: no table of two slides; the same command does it again."""
    stat = stage.slide.stat()
    data = bytearray(stage.slide.read_bytes())
    process = stage.start(KEEP, rules=[SLOW])
    wait_for_parts(stage.out, 1)
    stage.fault_at = time.time()
    data[len(data) // 17 * 5 + 7] ^= 1
    stage.slide.write_bytes(data)
    os.utime(stage.slide, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert process.wait(LIMIT_S) == 1
    (row,) = pq.read_table(stage.out / "slides.parquet").to_pylist()
    assert "changed during the run" in row["error"], row
    data[len(data) // 17 * 5 + 7] ^= 1
    stage.slide.write_bytes(data)
    os.utime(stage.slide, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert stage.run(KEEP) == 0


def disk_full(stage: Stage) -> None:
    """A real file system runs full while tiles are written; with more space the same command resumes."""
    disk = stage.folder / "disk"
    disk.mkdir()
    with mounted(disk, "48k"):
        stage.out = disk / "out"
        assert stage.run(KEEP) == 2
        stage.fault_at = time.time()
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert stage.run(KEEP) == 0
        shutil.copytree(stage.out, stage.folder / "kept")
    stage.out = stage.folder / "kept"


@contextlib.contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def over_hosts(disturb: Callable[[Hosts, Stage], None]) -> Callable[[Stage], None]:
    """Run with scheduler and worker as on other hosts while something happens to them."""

    def case(stage: Stage) -> None:
        with Hosts(stage.folder / "hosts", rules=[SLOW]) as hosts:

            def later() -> None:
                wait_for_parts(stage.out, 1)
                stage.fault_at = time.time()
                disturb(hosts, stage)

            disturber = threading.Thread(target=later)
            disturber.start()
            assert stage.run(KEEP, "--scheduler", hosts.address) == 0
            disturber.join()

    return case


def scheduler_lost(hosts: Hosts, stage: Stage) -> None:
    """The scheduler's machine fails; two seconds later it is there again, knowing nothing."""
    hosts.kill_scheduler()
    time.sleep(2)
    hosts.restart_scheduler()


def cut_worker(hosts: Hosts, stage: Stage) -> None:
    """Connections between worker and scheduler are reset and refused for five seconds."""
    hosts.link.cut()
    time.sleep(5)
    hosts.link.heal()


def cut_client(hosts: Hosts, stage: Stage) -> None:
    """Connections between client and scheduler are reset and refused for five seconds."""
    hosts.client_link.cut()
    time.sleep(5)
    hosts.client_link.heal()


def freeze_worker(hosts: Hosts, stage: Stage) -> None:
    """Packets between worker and scheduler are dropped for 25 s, without an error."""
    hosts.link.freeze()
    time.sleep(25)
    hosts.link.heal()


ROOT_ONLY = {"disk full (tmpfs)"}

CASES: dict[str, Callable[[Stage], None]] = {
    "worker killed (-9) in a tile": by_rule(rule("kill")),
    "worker crashes (SIGSEGV) opening a slide": by_rule(rule("crash", "prepare")),
    "worker killed (-9) writing a slide's table": by_rule(rule("kill", "finish")),
    "hang in C with the interpreter locked": by_rule(rule("hang"), more=("--tile-timeout", f"{HANG_S:g}")),
    "slow reads (3 s)": by_rule({**rule("slow"), "seconds": 3.0, "times": 3, "tile": 4}),
    "worker's clock 10 s back, then a day ahead": by_rule(
        {**rule("clock", tile=2), "seconds": -10}, {**rule("clock", tile=6), "seconds": 86_400}
    ),
    "EIO once: tile, opening, table": by_rule(rule("EIO"), rule("EIO", "prepare"), rule("EIO", "finish")),
    "poisoned tile": poison,
    "client killed (-9) twice": client_killed,
    "scheduler killed and restarted": over_hosts(scheduler_lost),
    "network cut: worker": over_hosts(cut_worker),
    "network cut: client": over_hosts(cut_client),
    "packets dropped: worker": over_hosts(freeze_worker),
    "disk full (tmpfs)": disk_full,
    "slide replaced, same size and time": slide_replaced,
    "two runs on one folder": two_runs,
}


def readme_table() -> str:
    """Return the README's table of what the results file holds."""
    cases = json.loads(RESULT.read_text(encoding="utf-8"))["cases"]
    n = max(row["nuclei"] for row in cases.values())
    lines = [f"| fault | tries | nuclei lost or new, of {n} | table's bytes | recovery, s |", "|---|---|---|---|---|"]
    for name, row in cases.items():
        seconds = [s for s in row["recovery_s"] if s is not None]
        recovery = f"{min(seconds):.1f} to {max(seconds):.1f}" if seconds else "-"
        same = "equal" if row["same_bytes"] and not row["not_recovered"] else "differ"
        lines.append(f"| {name} | {row['tries']} | {row['lost_nuclei'] + row['new_nuclei']} | {same} | {recovery} |")
    return "\n".join(lines)


def nuclei(out: Path) -> set[int]:
    return set(pq.read_table(out / "nuclei/crop.parquet", columns=["nucleus_id"])["nucleus_id"].to_pylist())


def main() -> None:
    """Run the cases and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument(
        "--only", nargs="*", default=[], help="cases whose name holds one of these words; the others' rows are kept"
    )
    parser.add_argument("--table", action="store_true", help="print the README's table of earlier results, run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        print(readme_table())
        return
    with tempfile.TemporaryDirectory(prefix="wsiseg-faults-") as scratch:
        with openslide.OpenSlide(SLIDE) as slide:
            rgb = np.asarray(slide.read_region((900, 1100), 0, (620, 540)).convert("RGB"))
        crop = Path(scratch) / "crop.png"
        Image.fromarray(rgb).save(crop)
        (Path(scratch) / "clean").mkdir()
        clean = Stage(Path(scratch) / "clean", crop)
        assert clean.run() == 0
        expected, table = nuclei(clean.out), (clean.out / "nuclei/crop.parquet").read_bytes()
        for name, case in CASES.items():
            skipped = name in ROOT_ONLY and os.geteuid() != 0
            if skipped or (arguments.only and not any(word in name for word in arguments.only)):
                continue
            tries: list[dict[str, Any]] = []
            broken: list[str] = []
            for k in range(arguments.tries):
                folder = Path(scratch) / f"{list(CASES).index(name)}-{k}"
                folder.mkdir()
                stage = Stage(folder, crop)
                start = time.monotonic()
                try:
                    case(stage)
                    found = nuclei(stage.out)
                except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as err:
                    broken.append(f"{type(err).__name__}: {err}"[-600:])
                    continue
                tries.append({
                    "lost": len(expected - found),
                    "new": len(found - expected),
                    "same_bytes": (stage.out / "nuclei/crop.parquet").read_bytes() == table,
                    "recovery_s": stage.recovery_s(),
                    "wall_s": round(time.monotonic() - start, 1),
                })  # fmt: skip
            row = {
                "tries": len(tries) + len(broken),
                "not_recovered": broken,
                "nuclei": len(expected),
                "lost_nuclei": sum(t["lost"] for t in tries),
                "new_nuclei": sum(t["new"] for t in tries),
                "same_bytes": all(t["same_bytes"] for t in tries),
                "recovery_s": [t["recovery_s"] for t in tries],
                "wall_s": [t["wall_s"] for t in tries],
            }
            print(name, row, flush=True)
            kept = saved("faults").get("cases", {})
            save("faults", {"note": NOTE, "cases": {n: r for n, r in {**kept, name: row}.items() if n in CASES}})


if __name__ == "__main__":
    main()

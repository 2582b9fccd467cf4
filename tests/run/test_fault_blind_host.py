"""A host that cannot do what others can: its work goes to them, it is excluded by name, and only what is bad fails."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.run.conftest import environment, run_here
from tests.run.gate import Gate
from tests.run.hosts import Hosts as Machines
from tests.run.hosts import reached
from wsiseg.results.manifest import SlideInput
from wsiseg.run.feed import Feeder, PrepareDone, Task
from wsiseg.run.hosts import EXCLUDE_S, MAX_EXCLUDE_S, MAX_FAILURES_IN_A_ROW, MAX_HOSTS, Hosts, WorkItem
from wsiseg.run.presence import Death
from wsiseg.run.status import run_status
from wsiseg.run.verify import verify_run
from wsiseg.types import Box, Tile, TileOutcome

CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--engine", "eager")
A, A2, B, C = "tcp://10.0.0.1:1", "tcp://10.0.0.1:2", "tcp://10.0.0.2:1", "tcp://10.0.0.3:1"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hosts(clock: Clock) -> Hosts:
    found = Hosts(clock)
    for worker, name in ((A, "a"), (A2, "a"), (B, "b"), (C, "c")):
        found.add(worker, name)
    return found


def slide(k: int) -> WorkItem:
    return ("prepare", f"s{k}", -1)


def test_with_one_host_nothing_is_held_back(clock: Clock) -> None:
    alone = Hosts(clock)
    for k in range(4):
        alone.add(f"tcp://127.0.0.1:{k}", "laptop", str(k))
    there = [f"tcp://127.0.0.1:{k}" for k in range(4)]
    for k in range(20):
        alone.failed(there[k % 4], slide(k), "no such file", MAX_FAILURES_IN_A_ROW)
        assert not alone.may_be_done(slide(k), there), "a bad slide fails after its tries, without further ones"
        assert alone.choose([slide(k + 1)], there) is None
        assert alone.choose([slide(k)], [there[k % 4]]) is None, "the only worker tries again"
    assert alone.working(there) == there
    assert alone.where(there[2]) == ("laptop", "2")
    assert not alone.news


def test_one_broken_worker_of_a_host_is_excluded_alone(clock: Clock) -> None:
    """As one GPU of several that every kernel fails on."""
    node = Hosts(clock)
    there = [f"tcp://127.0.0.1:{k}" for k in range(3)]
    for k, worker in enumerate(there):
        node.add(worker, "node", str(k))
    for k in range(MAX_FAILURES_IN_A_ROW):
        tile = ("tile", "s", k)
        node.failed(there[1], tile, "RuntimeError: CUDA error")
        assert node.choose([tile], there) == {there[0], there[2]}
        node.succeeded(there[0], tile)
    (reported,) = node.news
    assert "worker 1 on node is excluded for 60 s" in reported
    assert "which worker tcp://127.0.0.1:0 could do: RuntimeError: CUDA error" in reported
    assert node.working(there) == [there[0], there[2]]
    assert node.choose([("tile", "s", 9)], there) == {there[0], there[2]}


def test_what_failed_goes_to_another_host_and_not_to_another_worker_of_the_same(hosts: Hosts) -> None:
    there = [A, A2, B, C]
    hosts.failed(A, slide(1), "no such file", MAX_FAILURES_IN_A_ROW)
    assert hosts.may_be_done(slide(1), there)
    assert hosts.choose([slide(1)], there) == {B, C}
    assert hosts.choose([slide(2)], there) is None, "one failure says nothing of the host yet"
    hosts.succeeded(C, slide(9))
    assert hosts.choose([slide(1)], there) == {C}, "one that has opened a slide before"
    assert not hosts.may_be_done(slide(1), [A, A2]), "nobody else is there"


def test_a_host_that_fails_where_another_succeeds_is_excluded_and_found_again(hosts: Hosts, clock: Clock) -> None:
    there = [A, A2, B, C]
    hosts.failed(A, slide(1), "no such file", MAX_FAILURES_IN_A_ROW)
    assert not hosts.news
    hosts.succeeded(B, slide(1))
    (reported,) = hosts.news
    assert "host a (10.0.0.1) is excluded for 60 s" in reported
    assert "opening slide s1, which b (10.0.0.2) could do: no such file" in reported
    assert hosts.choose([slide(2)], there) == {B, C}
    assert hosts.working(there) == [B, C]
    assert hosts.working([A]) == [A], "the only one left is better than none"
    assert list(hosts.exclusions) == ["a (10.0.0.1)"]
    rests = []
    for _ in range(10):
        started = clock.now
        while hosts.choose([slide(2)], there) is not None:
            clock.now += 1
        rests.append(clock.now - started)
        hosts.failed(A2, slide(3), "no such file")  # after a rest one failure is enough
        hosts.succeeded(B, slide(3))
    assert rests == [min(MAX_EXCLUDE_S, EXCLUDE_S * 2**k) for k in range(10)]
    while hosts.choose([slide(2)], there) is not None:
        clock.now += 1
    hosts.succeeded(A, slide(4))
    hosts.failed(A, ("tile", "s4", 1), "stumbles once")
    hosts.succeeded(B, ("tile", "s4", 1))
    assert hosts.choose([slide(5)], there) is None, "one stumble after a success is forgiven"


def test_a_bad_slide_excludes_no_host_and_is_not_tried_everywhere(clock: Clock) -> None:
    hosts = Hosts(clock)
    there = [f"tcp://10.0.1.{k}:1" for k in range(40)]
    for worker in there:
        hosts.add(worker, worker)
    tries = 0
    while True:
        chosen = hosts.choose([slide(1)], there)
        hosts.failed(min(chosen or there), slide(1), "not a slide", MAX_FAILURES_IN_A_ROW)
        tries += 1
        if not hosts.may_be_done(slide(1), there):
            break
    assert tries == MAX_HOSTS, "nobody has opened anything yet: any of them may be blind"
    for worker in there:
        hosts.succeeded(worker, slide(99))
    hosts.failed(there[0], slide(2), "not a slide", MAX_FAILURES_IN_A_ROW)
    assert hosts.may_be_done(slide(2), there)
    hosts.failed(there[1], slide(2), "not a slide", MAX_FAILURES_IN_A_ROW)
    assert not hosts.may_be_done(slide(2), there), "two that open others cannot open it"
    assert not hosts.news


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 2), st.booleans(), st.integers(0, 10_000))
def test_no_good_slide_is_lost_whoever_is_broken(n_good: int, n_broken: int, retries: int, dies: bool, seed: int) -> None:
    """Broken hosts answer at once and fail at everything, or die of it; everything good is done all the same."""
    rng = random.Random(seed)
    hosts = Hosts(lambda: 0.0)
    names = [f"good{k}" for k in range(n_good)] + [f"broken{k}" for k in range(n_broken)]
    rng.shuffle(names)
    there = [f"tcp://10.0.0.{k}:1" for k in range(len(names))]
    broken = {w for w, name in zip(there, names, strict=True) if name.startswith("broken")}
    for worker, name in zip(there, names, strict=True):
        hosts.add(worker, name)
    slides = [SlideInput(f"s{k}", "") for k in range(6)]
    feeder = Feeder(slides, limit=2 * len(there), retries=retries)
    bad_slide, bad_tile = "s1", ("s2", 3)
    queued: list[Task] = []
    failed_slides: set[str] = set()
    failed_tiles: set[tuple[str, int]] = set()
    at_broken = 0

    def elsewhere(task: Task) -> frozenset[int]:
        return frozenset(t.tile_id for t, _ in task.payload if hosts.may_be_done(("tile", task.slide_id, t.tile_id), there))

    while not feeder.done():
        while (task := feeder.next_task()) is not None:
            queued.append(task)
        task = queued.pop(rng.randrange(len(queued)))
        things = [(task.kind, task.slide_id, -1)]
        if task.kind == "tiles":
            things = [("tile", task.slide_id, t.tile_id) for t, _ in task.payload]
        may = hosts.choose(things, there) or frozenset(there)
        worker = min(may & broken, default=None) or rng.choice(sorted(may))  # who answers at once takes what it may have
        at_broken += worker in broken
        if task.kind == "tiles":
            if worker in broken and dies:
                tile, _ = task.payload[0]
                death = Death("tile", task.slide_id, tile.tile_id, "WorkerDied", True, worker)
                hosts.record_deaths([death])
                given_up = feeder.tiles_lost(task, {tile.tile_id: death}, "lost", elsewhere(task))
                failed_tiles |= {(o.slide_id, o.tile_id) for o in given_up}
                continue
            outcomes = hosts.record_outcomes(worker, [
                TileOutcome(t.slide_id, t.tile_id, "failed", error="bad", attempts=n)
                if worker in broken or (t.slide_id, t.tile_id) == bad_tile
                else TileOutcome(t.slide_id, t.tile_id, "done", 0, {"predict": 1.0}, "", n)
                for t, n in task.payload
            ])  # fmt: skip
            assert all(o.host and o.worker == worker for o in outcomes if o.status == "failed")
            final = feeder.tiles_done(task, outcomes, elsewhere(task))
            failed_tiles |= {
                (o.slide_id, o.tile_id) for o, f in zip(outcomes, final, strict=True) if f and o.status == "failed"
            }
        elif worker in broken or (task.kind == "prepare" and task.slide_id == bad_slide):
            hosts.failed(worker, things[0], "bad", MAX_FAILURES_IN_A_ROW)
            if hosts.may_be_done(things[0], there):
                feeder.again(task)
                continue
            failed_slides.add(task.slide_id)
            (feeder.prepare_failed if task.kind == "prepare" else feeder.finished)()
        else:
            hosts.succeeded(worker, things[0])
            if task.kind == "prepare":
                boxes = (Box(0, 0, 1, 1), Box(0, 0, 1, 1))
                feeder.prepared(
                    PrepareDone(task.slide_id, todo=tuple(Tile(task.slide_id, t, *boxes, 1.0, 1.0) for t in range(9)))
                )
            else:
                feeder.finished()
    assert failed_slides == {bad_slide}
    assert failed_tiles == {bad_tile}
    assert {h.partition(" ")[0] for h in hosts.exclusions} <= {n for n in names if n.startswith("broken")}
    assert at_broken <= 2 * len(there) * (n_broken + 1), "what fails quickly does not draw the work"


@pytest.fixture(scope="module")
def slides(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for name in ("one", "two"):
        shutil.copyfile(crop_png, folder / f"{name}.png")
    (folder / "bad.png").write_bytes(b"no slide anywhere")
    return folder


@pytest.fixture(scope="module")
def clean(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("clean") / "out"
    assert run_here("segment", slides, *CROP, "--out", out).exit_code == 1, "one of them is no slide"
    return out


def everywhere(do: str, *at: str) -> list[dict[str, Any]]:
    return [{"do": do, "at": place, "times": 999, "host": "blind"} for place in at]


BROKEN = {
    "sees no slides": everywhere("ENOENT", "prepare", "tile", "finish"),
    "its disk is full": everywhere("ENOSPC", "prepare", "tile", "finish"),
    "lacks a library": everywhere("ImportError", "facts", "prepare", "tile", "finish"),
}


def log_of(out: Path) -> Iterator[str]:
    return (json.loads(line).get("text", "") for line in (out / "log.jsonl").read_text().splitlines())


@pytest.mark.parametrize("broken", BROKEN)
def test_two_hosts_one_of_them_broken(broken: str, slides: Path, clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Machines(tmp_path / "hosts", rules=BROKEN[broken], names=("blind", "seeing")) as machines:
        command = [sys.executable, "-m", "wsiseg", "segment", str(slides), *CROP, "--out", str(out)]
        command += ["--scheduler", reached(machines)]
        wait = "import sys; from distributed import Client; Client(sys.argv[1], timeout=60).wait_for_workers(2, timeout=120)"
        subprocess.run([sys.executable, "-c", wait, machines.address], env=environment(), check=True, timeout=200)
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 1, done.stderr
    for name in ("one", "two"):
        assert (out / f"nuclei/{name}.parquet").read_bytes() == (clean / f"nuclei/{name}.parquet").read_bytes()
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert error["slide_id"] == "bad"
    assert error["attempts"] in (1, 2), "on the other host too, unless that was excluded by then"
    assert error["host"] in ("blind", "seeing")
    assert error["worker"].startswith("tcp://127.0.0.1:")
    assert any("host blind is excluded" in text for text in log_of(out))
    assert "host blind is excluded" in done.stderr
    assert "excluded   blind:" in done.stdout
    (client,) = run_status(out).clients
    assert list(client.hosts_aside) == ["blind"]
    assert verify_run(out).ok
    assert f"on      {error['host']} (1)" in run_here("errors", out).output
    assert "excluded   blind" in run_here("status", out).output


@pytest.mark.parametrize(("library", "reported"), [("openslide", "is excluded"), ("wsiseg", "is refused")])
def test_a_worker_that_lacks_a_library_beside_a_good_one_of_the_same_host(
    library: str, reported: str, crop_png: Path, tmp_path: Path
) -> None:
    out, gate = tmp_path / "out", Gate(tmp_path / "gate", passes=0)
    preload = tmp_path / "without_it.py"
    preload.write_text(f"import sys\nsys.modules[{library!r}] = None  # as where it is not installed\n")
    with Machines(tmp_path / "hosts", n_workers=0) as machines:
        address = reached(machines)
        good = machines._start("worker", address, "--nthreads", "1", env=gate.environment)
        lame = machines._start("worker", address, "--nthreads", "1", env={"DASK_DISTRIBUTED__WORKER__PRELOAD": str(preload)})
        machines.workers += [good, lame]
        wait = "import sys; from distributed import Client; Client(sys.argv[1], timeout=60).wait_for_workers(2, timeout=120)"
        subprocess.run([sys.executable, "-c", wait, address], env=environment(), check=True, timeout=200)
        command = [sys.executable, "-m", "wsiseg", "segment", str(crop_png), *CROP, "--out", str(out), "--scheduler", address]
        with (tmp_path / "stderr").open("w+") as stderr:
            run = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=stderr, text=True)
            while (
                library not in (tmp_path / "stderr").read_text()
            ):  # the good one waits at a tile until the lame one has failed
                assert run.poll() is None
                time.sleep(0.05)
            gate.open()
            run.wait(400)
        notes = (tmp_path / "stderr").read_text()
    assert run.returncode == 0, notes
    assert "Traceback" not in notes
    assert reported in notes

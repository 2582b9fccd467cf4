#!/usr/bin/env python3
"""Four hosts on one machine, and everything that goes wrong with hosts, in one run: its tables must be those of a local run.

    sudo python scripts/cluster/four_hosts.py SLIDE --work FOLDER [--copies 3] [any option of wsiseg segment after --]

Each host is a network namespace (with a host name and mounts of its own) on a bridge that lives in a namespace too: the
machine's own network is not touched, and nothing outside is reached. Root, iproute2's ``ip`` and 4 GB of memory are needed.

=======  ==================================================================================================================
head     scheduler and client
good     a worker; its link is cut for some seconds while it works
blind    a worker whose mounts lack the slides: it fails at once at everything, and must not draw the work
dead     a worker; the host is switched off (link down, then SIGKILL) while it works
late     a worker that joins on the way, and one of another version of wsiseg, which must get nothing
=======  ==================================================================================================================

One line of JSON says what was found; exit code 0: everything is as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTS = ("good", "blind", "dead", "late")
NETWORK = "10.77.0"
PORT = 8786
CUT_S = 4
QUICK = {
    # a host that was switched off is noticed within half a minute, not five
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "15s",
    "OMP_NUM_THREADS": "1",
}
OTHER_VERSION = "import wsiseg\nwsiseg.__version__ = '0.0.9'\n"


def obstacle() -> str:
    """Say what this machine lacks; empty: nothing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "unshare", "mount"):
        if shutil.which(program) is None:
            return f"there is no program {program!r}"
    name = f"wsiseg-try-{os.getpid()}"
    for command in (["ip", "netns", "add", name], ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "true"]):
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            return f"{' '.join(command)}: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return ""


class Cluster:
    """The namespaces, and what runs in them; a context."""

    def __init__(self, work: Path, slides: Path) -> None:
        self.work = work
        self.slides = slides
        self.prefix = f"wsiseg-{os.getpid()}"
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.env = {**os.environ, **QUICK}

    def __enter__(self) -> Cluster:
        """Make the network: a bridge in the head's namespace, a pair of interfaces to each host."""
        self._add("head")
        for words in ("link set lo up", "link add hub type bridge", f"addr add {NETWORK}.1/24 dev hub", "link set hub up"):
            self._ip("head", words)
        for k, host in enumerate(HOSTS):
            self._add(host)
            _run("ip", "-n", self._space("head"), "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0",
                 "netns", self._space(host))  # fmt: skip
            self._ip("head", f"link set to-{host} master hub")
            self._ip("head", f"link set to-{host} up")
            for words in ("link set lo up", f"addr add {NETWORK}.{k + 2}/24 dev eth0", "link set eth0 up"):
                self._ip(host, words)
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, then take the namespaces away; the interfaces go with them."""
        for name in list(self.running):
            self.kill(name)
        for host in ("head", *HOSTS):
            subprocess.run(["ip", "netns", "del", self._space(host)], capture_output=True, check=False)

    def start(self, host: str, name: str, command: list[str], output: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a program on a host."""
        setup = ["mount --make-rprivate /", f"hostname {host}"]
        if host == "blind":
            setup.append(f"mount -t tmpfs none {shlex.quote(str(self.slides))}")
        script = " && ".join([*setup, f"exec {shlex.join(command)}"])
        inside = ["ip", "netns", "exec", self._space(host), "unshare", "--mount", "--uts", "sh", "-c", script]
        with (output or self.work / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(inside, env=self.env, cwd=self.work, stdout=log, stderr=log, start_new_session=True)
        self.running[name] = process
        return process

    def start_scheduler(self) -> None:
        """Start the scheduler on the head and wait until it listens."""
        self.start("head", "scheduler", [*_dask("scheduler"), "--host", f"{NETWORK}.1", "--port", str(PORT)])
        wait_until(lambda: b"Scheduler at" in (self.work / "scheduler.log").read_bytes(), 120, "no scheduler")

    def start_worker(self, host: str, name: str = "", *more: str) -> None:
        """Start a worker on a host."""
        to = [f"tcp://{NETWORK}.1:{PORT}", "--host", f"{NETWORK}.{HOSTS.index(host) + 2}"]
        self.start(host, name or host, [*_dask("worker"), *to, "--nthreads", "1", "--death-timeout", "60", *more])

    def wait_for(self, name: str) -> None:
        """Wait until a worker has joined."""
        wait_until(lambda: b"Registered to" in (self.work / f"{name}.log").read_bytes(), 240, f"worker {name} did not join")

    def link(self, host: str, state: str) -> None:
        """Cut a host's link (``down``), or join it again (``up``)."""
        self._ip("head", f"link set to-{host} {state}")

    def kill(self, name: str) -> None:
        """End a program and all that it started, at once."""
        process = self.running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _space(self, host: str) -> str:
        return f"{self.prefix}-{host}"

    def _add(self, host: str) -> None:
        _run("ip", "netns", "add", self._space(host))

    def _ip(self, host: str, words: str) -> None:
        _run("ip", "-n", self._space(host), *words.split())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


def _dask(kind: str) -> list[str]:
    return [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard"]


def wait_until(there: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
    """Wait for something."""
    deadline = time.monotonic() + timeout_s
    while not there():
        if time.monotonic() > deadline:
            raise SystemExit(otherwise)
        time.sleep(0.05)


def parts(out: Path) -> int:
    """Return how many tiles are done, those of finished slides too."""
    finished = sum(int(json.loads(p.read_text())["row"]["tiles_done"] or 0) for p in (out / "slides").glob("*.json"))
    return finished + sum(1 for p in (out / "parts").glob("*/*.parquet") if not (out / f"slides/{p.parent.name}.json").exists())


def disturbed_run(cluster: Cluster, out: Path, options: list[str]) -> dict[str, Any]:
    """Run a segmentation while things happen to the hosts; return exit code, seconds and what was really done to it."""
    other = cluster.work / "other_version.py"
    other.write_text(OTHER_VERSION)
    cluster.start_scheduler()
    for host in ("good", "blind", "dead"):
        cluster.start_worker(host)
    for host in ("good", "blind", "dead"):
        cluster.wait_for(host)
    start = time.monotonic()
    command = [sys.executable, "-m", "wsiseg", "segment", str(cluster.slides), *options, "--out", str(out)]
    command += ["--scheduler", f"tcp://{NETWORK}.1:{PORT}"]
    client = cluster.start("head", "client", command)
    events = []

    def at(n_parts: int) -> bool:
        wait_until(lambda: client.poll() is not None or parts(out) >= n_parts, 300, f"not {n_parts} tiles within 300 s")
        return client.poll() is None

    if at(1):
        cluster.start_worker("late", "late")
        cluster.start_worker("late", "other-version", "--preload", str(other))
        cluster.link("dead", "down")  # no goodbye reaches the scheduler
        cluster.kill("dead")
        events.append("dead")
    if at(3):
        cluster.link("good", "down")
        time.sleep(CUT_S)
        cluster.link("good", "up")
        events.append("cut")
    with contextlib.suppress(subprocess.TimeoutExpired):
        client.wait(timeout=600)
    code = client.poll()
    seconds = round(time.monotonic() - start, 1)
    if code is not None:
        cluster.running.pop("client")
    reported = (cluster.work / "client.log").read_text()
    if b"Registered to" in (cluster.work / "late.log").read_bytes():
        events.append("late")
    if "the run has" in reported and "this worker 0.0.9" in reported:
        events.append("other version")
    if "host blind" in reported and "is excluded" in reported:
        events.append("blind")
    return {"exit_code": code, "seconds": seconds, "happened": sorted(events), "output": reported}


def compare(clean: Path, out: Path) -> dict[str, Any]:
    """Return which tables are equal byte for byte, and what failed."""
    tables = sorted(p.name for p in (clean / "nuclei").glob("*.parquet"))
    there = out / "nuclei"
    equal = [t for t in tables if (there / t).is_file() and (there / t).read_bytes() == (clean / "nuclei" / t).read_bytes()]
    errors = []
    for path in sorted((out / "slides").glob("*.json")):
        errors += json.loads(path.read_text())["errors"]
    return {"tables": len(tables), "tables_equal": len(equal), "errors": errors}


def main() -> int:
    """Run all of it."""
    here = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    own, options = sys.argv[1:here], sys.argv[here + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, help="a small slide or image")
    parser.add_argument("--work", type=Path, required=True, help="folder for slides, runs and logs; must not exist")
    parser.add_argument("--copies", type=int, default=3, help="slides in the run: copies of it")
    args = parser.parse_args(own)
    lacking = obstacle()
    if lacking:
        print(f"cannot be tried here: {lacking}", file=sys.stderr)
        return 77
    work = args.work.absolute()
    slides = work / "slides"
    slides.mkdir(parents=True)
    for k in range(args.copies):
        shutil.copyfile(args.slide, slides / f"slide-{k}{args.slide.suffix}")
    command = [sys.executable, "-m", "wsiseg", "segment", str(slides), *options, "--workers", "2", "--quiet"]
    start = time.monotonic()
    subprocess.run([*command, "--out", str(work / "local")], check=True, timeout=600)
    local_s = round(time.monotonic() - start, 1)
    with Cluster(work, slides) as cluster:
        found = disturbed_run(cluster, work / "cluster", options)
    output = found.pop("output")
    found |= {"seconds_local": local_s, **compare(work / "local", work / "cluster")}
    well = found["exit_code"] == 0 and found["tables"] == found["tables_equal"] == args.copies and not found["errors"]
    well = well and found["happened"] == ["blind", "cut", "dead", "late", "other version"]
    print(json.dumps({"ok": well, **found}))
    if not well:
        print(output, file=sys.stderr)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())

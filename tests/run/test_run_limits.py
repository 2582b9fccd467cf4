"""Cores and memory by control groups of both versions, nested or in containers, and by batch systems."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.conftest import environment
from wsiseg.cluster.limits import WORKER_BYTES, Limits, default_workers, local_limits, oom_kills

GIB = 2**30
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 25 0:27 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 25 0:28 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """Write a ``/proc`` and control groups below ``root``."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(mounts)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def limits(root: Path, env: dict[str, str] | None = None) -> Limits:
    return local_limits(root, env or {}, 64, 256 * GIB)


@pytest.mark.parametrize(
    ("cgroup", "mounts", "files", "cores", "memory_gib"),
    [
        ("0::/\n", V2, {}, 64, 256),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000\n", "a/b/memory.max": "max\n"}, 64, 256),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "400000 100000\n", "a/b/memory.max": f"{8 * GIB}\n"}, 4, 8),
        # the tightest counts, wherever it is; and what stands beside the own group does not
        ("0::/a/b\n", V2, {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "800000 100000\n", "c/cpu.max": "1 9\n"}, 3, 256),
        ("0::/a/b\n", V2, {"a/b/memory.max": f"{8 * GIB}", "a/memory.high": f"{4 * GIB}", "memory.max": f"{6 * GIB}"}, 64, 4),
        # parts of cores: half a one is one, two and a half keep three workers busy
        ("0::/p\n", V2, {"p/cpu.max": "50000 100000\n"}, 1, 256),
        ("0::/p\n", V2, {"p/cpu.max": "250000 100000\n"}, 3, 256),
        ("0::/p\n", V2, {"p/cpu.max": "20000 10000\n"}, 2, 256),
        # a container with its own namespace: its group is the top, or is told from outside
        ("0::/\n", V2, {"cpu.max": "200000 100000\n", "memory.max": f"{2 * GIB}\n"}, 2, 2),
        ("0::/../../kubepods/pod1\n", V2, {"cpu.max": "200000 100000\n", "memory.max": f"{2 * GIB}\n"}, 2, 2),
        # version 1
        (
            "4:cpu,cpuacct:/job\n3:memory:/job\n",
            V1.format(top="/"),
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "600000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
             "memory/job/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.limit_in_bytes": f"{16 * GIB}\n"},
            6, 16,
        ),
        ("4:cpu,cpuacct:/job\n", V1.format(top="/"), {"cpu,cpuacct/job/cpu.cfs_quota_us": "-1\n",
                                                       "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"}, 64, 256),
        # version 1 in a container: the mount shows the container's group at its top, the path is the host's
        (
            "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n",
            V1.format(top="/docker/abc"),
            {"cpu,cpuacct/cpu.cfs_quota_us": "150000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
             "memory/memory.limit_in_bytes": f"{3 * GIB}\n"},
            2, 3,
        ),
        # both at once, as systemd had it for years: version 2 without controllers
        (
            "4:cpu,cpuacct:/job\n0::/user.slice\n",
            V1.format(top="/") + "33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "50000\n"},
            2, 256,
        ),
        # what cannot be understood limits nothing
        ("nonsense\n", "nonsense\n", {}, 64, 256),
        ("0::/a\n", V2, {"a/cpu.max": "\n", "a/memory.max": "many\n"}, 64, 256),
    ],
)  # fmt: skip
def test_control_groups(cgroup: str, mounts: str, files: dict[str, str], cores: int, memory_gib: int, tmp_path: Path) -> None:
    found = limits(tree(tmp_path, cgroup, mounts, files))
    assert (found.cores, found.memory_bytes) == (cores, memory_gib * GIB)
    assert bool(found.cores_by) == (cores < 64), "what limits is said"
    assert bool(found.memory_by) == (memory_gib < 256)


@pytest.mark.parametrize(
    ("env", "cores", "memory_gib"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "8", "SLURM_CPUS_ON_NODE": "32", "SLURM_MEM_PER_NODE": "65536"}, 8, 64),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "16", "SLURM_MEM_PER_CPU": "2048"}, 16, 32),
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_ON_NODE": "128", "SLURM_MEM_PER_NODE": "0"}, 64, 256),
        ({"SLURM_CPUS_PER_TASK": "8"}, 64, 256),  # left over from a job that this is not
        ({"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "lots"}, 64, 256),
        ({"PBS_JOBID": "1", "NCPUS": "12"}, 12, 256),
        ({"LSB_JOBID": "1", "LSB_DJOB_NUMPROC": "6"}, 6, 256),
        ({"JOB_ID": "1", "NSLOTS": "4"}, 4, 256),
    ],
)
def test_batch_systems(env: dict[str, str], cores: int, memory_gib: int, tmp_path: Path) -> None:
    found = limits(tmp_path, env)
    assert (found.cores, found.memory_bytes) == (cores, memory_gib * GIB)


def test_the_tighter_of_job_and_group_counts(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/a\n", V2, {"a/cpu.max": "400000 100000\n"})
    assert limits(root, {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "16"}).cores == 4
    assert limits(root, {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "2"}).cores == 2


def test_workers_fit_into_the_memory() -> None:
    assert default_workers(0, Limits(8, "", 256 * GIB, "")) == (8, "")
    assert default_workers(5, Limits(8, "", 1, "")) == (5, ""), "who says a number gets it"
    n, why = default_workers(0, Limits(8, "", 3 * WORKER_BYTES + 1, "memory.max of /sys/fs/cgroup/a"))
    assert n == 3
    assert "3 of 8 workers" in why
    assert "memory.max of /sys/fs/cgroup/a" in why
    assert default_workers(0, Limits(8, "", 1, ""))[0] == 1


def test_processes_that_were_ended_for_want_of_memory(tmp_path: Path) -> None:
    two = tree(tmp_path / "2", "0::/a\n", V2, {"a/memory.events": "oom 5\noom_kill 3\n", "memory.events": "oom_kill 9\n"})
    assert oom_kills(two) == (3, "control group /sys/fs/cgroup/a")
    one = tree(tmp_path / "1", "3:memory:/j\n", V1.format(top="/"), {"memory/j/memory.oom_control": "under_oom 0\noom_kill 2"})
    assert oom_kills(one)[0] == 2
    bare = tree(tmp_path / "0", "", "", {})
    (bare / "proc/vmstat").write_text("nr_free_pages 1\noom_kill 7\n")
    assert oom_kills(bare) == (7, "kernel")


@contextlib.contextmanager
def cgroup(controller: str, settings: dict[str, str]) -> Iterator[Path]:
    """Yield a control group of this machine with some settings, of whichever version it has; skipped where there is none."""
    one, two = Path("/sys/fs/cgroup") / controller, Path("/sys/fs/cgroup/cgroup.controllers")
    if one.is_dir():
        parent, values = one, {k: v for k, v in settings.items() if not k.endswith(".max")}
    elif two.is_file() and controller in two.read_text():
        parent, values = two.parent, {k: v for k, v in settings.items() if k.endswith(".max")}
    else:
        pytest.skip(f"no control group of {controller} is mounted here")
    group = parent / f"wsiseg-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as err:
        pytest.skip(f"control groups cannot be made here: {err}")
    try:
        for name, value in values.items():
            try:
                (group / name).write_text(value)
            except OSError as err:
                pytest.skip(f"{name} cannot be set here: {err}")
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def test_a_real_quota() -> None:
    settings = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000", "cpu.max": "100000 100000"}
    with cgroup("cpu", settings) as group:
        code = "from wsiseg.cluster.limits import local_limits; print(local_limits(environment={}, affinity=64))"
        shell = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -c '{code}'"
        done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=environment(), check=True, timeout=120)
    assert "cores=1," in done.stdout
    assert group.name in done.stdout

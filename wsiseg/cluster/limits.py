"""Find the cores and memory of this machine that a run may use: by affinity, control groups and the batch system.

In a container or a job the system reports all cores and all memory of the host. The limits are in control groups: in version 2
``cpu.max`` and ``memory.max``, in version 1 ``cpu.cfs_quota_us`` and ``memory.limit_in_bytes``, of its own group and of each
group above it; the lowest limit applies. Kubernetes uses such groups. Batch systems without control groups state a job's share
in environment variables.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Limits", "default_workers", "local_limits", "oom_kills", "usable_cores"]

WORKER_BYTES = int(1.6 * 2**30)
"""Memory of a CPU worker with tiles of the default size; the measured maximum is 1.20 GiB in int8 and 1.59 GiB in fp32."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``cores`` and ``memory_bytes`` that may be used, and what limits each of them (empty: the machine itself)."""

    cores: int
    cores_by: str
    memory_bytes: int
    memory_by: str


def local_limits(
    root: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
    affinity: int | None = None,
    total_bytes: int | None = None,
) -> Limits:
    """Return the cores and memory that this process may use.

    Parameters
    ----------
    root
        Root of the file system with ``proc`` and the control groups; differs from ``/`` only in tests.
    environment
        Environment variables of this process.
    affinity, total_bytes
        Cores and memory before any limit; ``None``: as the system reports them.
    """
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if total_bytes is None:
        total_bytes = int(psutil.virtual_memory().total)
    cores = [(float(affinity), "")]
    memory = [(float(total_bytes), "")]
    for version, controller, group in _groups(root):
        if controller == "cpu" and (quota := _quota(group, version)) is not None:
            cores.append((max(1, math.ceil(quota - 1e-9)), f"CPU quota of {quota:g} in {_shown(group, root)}"))
        if controller == "memory":
            names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
            memory += [(n, f"{name} of {_shown(group, root)}") for name in names if (n := _number(group / name)) is not None]
    for name, number in _job_cores(environment):
        cores.append((number, name))
    for name, number in _job_memory(environment, min(cores)[0]):
        memory.append((number, name))
    cores_limit, memory_limit = min(cores, key=lambda c: c[0]), min(memory, key=lambda m: m[0])
    return Limits(int(cores_limit[0]), cores_limit[1], int(memory_limit[0]), memory_limit[1])


def usable_cores() -> int:
    """Return the number of cores that this process may use, by affinity, quota and job."""
    return local_limits().cores


def default_workers(wanted: int = 0, limits: Limits | None = None) -> tuple[int, str]:
    """Return the number of CPU workers, and the reason if it is less than one per core (empty if ``wanted`` is set)."""
    if wanted:
        return wanted, ""
    limits = limits or local_limits()
    fit = max(1, limits.memory_bytes // WORKER_BYTES)
    if fit >= limits.cores:
        return limits.cores, ""
    by = f" ({limits.memory_by})" if limits.memory_by else ""
    return fit, (
        f"{fit} of {limits.cores} workers: {limits.memory_bytes / 2**30:.1f} GiB of memory{by} "
        f"at {WORKER_BYTES / 2**30:.1f} GiB each; --workers sets another number"
    )


def oom_kills(root: Path = Path("/")) -> tuple[int, str]:
    """Return the number of processes killed for lack of memory so far, and who counted: the control group or the kernel."""
    for version, controller, group in _groups(root):
        if controller != "memory":
            continue
        counted = _fields(group / ("memory.events" if version == 2 else "memory.oom_control"))
        if "oom_kill" in counted:
            return counted["oom_kill"], f"control group {_shown(group, root)}"
    return _fields(root / "proc/vmstat").get("oom_kill", 0), "kernel"


def _groups(root: Path) -> Iterator[tuple[int, str, Path]]:
    """Yield (version, controller, folder) of this process's control groups, each followed by the groups above it."""
    own: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        for name in controllers.split(",") if number != "0" else [""]:
            own[name] = path
    for line in _lines(root / "proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(), right.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        mount = root / _unescaped(fields[4]).lstrip("/")
        wanted = [""] if kinds[0] == "cgroup2" else [c for c in ("cpu", "memory") if c in kinds[2].split(",")]
        for controller in wanted:
            if controller in own:
                for group in _chain(mount, _unescaped(fields[3]), own[controller]):
                    if controller:
                        yield 1, controller, group
                    else:
                        yield 2, "cpu", group
                        yield 2, "memory", group


def _chain(mount: Path, mounted: str, path: str) -> Iterator[Path]:
    """Yield the folder of a group and those above it up to the mount point, at which the group ``mounted`` is."""
    parts = [p for p in path.split("/") if p]
    top = [p for p in mounted.split("/") if p]
    # in a container the mount shows the container's own group, and the path may be relative to the host's root
    parts = parts[len(top) :] if parts[: len(top)] == top else []
    if ".." in parts:
        parts = []
    for n in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:n])


def _quota(group: Path, version: int) -> float | None:
    """Return a group's CPU quota as a number of cores; ``None`` if there is no limit."""
    if version == 2:
        words = (_lines(group / "cpu.max") or [""])[0].split()
        quota, period = (words[0], words[1] if len(words) > 1 else "100000") if words else ("", "")
    else:
        quota, period = ((_lines(group / f"cpu.cfs_{n}_us") or [""])[0].strip() for n in ("quota", "period"))
    if not (quota.isdecimal() and period.isdecimal()) or int(quota) <= 0 or int(period) <= 0:  # "max", or -1
        return None
    return int(quota) / int(period)


def _number(file: Path) -> int | None:
    text = (_lines(file) or [""])[0].strip()
    return int(text) if text.isdecimal() and int(text) > 0 else None


def _fields(file: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(file))
    return {p[0]: int(p[1]) for p in pairs if len(p) == 2 and p[1].isdecimal()}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(text: str) -> str:
    """Return a path of mountinfo with its octal escapes (of spaces, for example) decoded."""
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def _shown(group: Path, root: Path) -> str:
    return "/" + group.relative_to(root).as_posix()


_CORES_OF_JOBS = (
    ("SLURM_JOB_ID", ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")),
    ("PBS_JOBID", ("NCPUS", "PBS_NCPUS", "PBS_NUM_PPN")),
    ("LSB_JOBID", ("LSB_DJOB_NUMPROC",)),
    ("JOB_ID", ("NSLOTS",)),
)
"""By batch system: the variable that marks its jobs, and the variables with their cores; the first that is set is used."""


def _job_cores(environment: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    for job, names in _CORES_OF_JOBS:
        if environment.get(job):
            given = [(n, int(environment[n])) for n in names if environment.get(n, "").isdecimal() and int(environment[n]) > 0]
            yield from given[:1]


def _job_memory(environment: Mapping[str, str], cores: float) -> Iterator[tuple[str, int]]:
    if environment.get("SLURM_JOB_ID"):
        for name, times in (("SLURM_MEM_PER_NODE", 1), ("SLURM_MEM_PER_CPU", int(cores))):
            text = environment.get(name, "")
            if text.isdecimal() and int(text) > 0:  # MiB; 0: all memory of the node
                yield name, int(text) * times * 2**20

"""Workers as SLURM jobs that come and go: a Dask scheduler here, one job a worker, wsiseg as the client.

    python scripts/cluster/jobqueue.py --jobs 32 -- SLIDES --out RUN [any option of wsiseg segment]
    python scripts/cluster/jobqueue.py --print          # the job script that would be sent, and nothing else

Needs ``pip install dask-jobqueue``. Run it where jobs may be sent from and where the network reaches the nodes, in tmux or as a
small job of its own. Jobs that are pre-empted are sent again; what they were at is given to others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

import dask
from dask_jobqueue import SLURMCluster

# Dask else remembers the last 1000 messages of every connection, tiles and all: gigabytes with many workers
dask.config.set({"distributed.admin.low-level-log-length": 20, "distributed.admin.log-length": 100})
# and looks at every worker's threads, event loop and counters many times a second
CALM = [
    "export DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED=false",
    "export DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL=500ms",
    "export DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL=5s",
]


def cluster(args: argparse.Namespace) -> SLURMCluster:
    """Return a cluster without workers yet."""
    extra = [f"--gres=gpu:{args.gpus}"] if args.gpus else []
    options: dict[str, Any] = {
        "queue": args.queue or None,
        "account": args.account or None,
        "cores": args.threads,
        "processes": 1,
        "memory": args.memory,
        "walltime": args.walltime,
        "interface": args.interface or None,
        "job_extra_directives": [*extra, "--requeue", "--signal=TERM@120"],
        # a job near its time limit takes no new tiles, and the scheduler does not wait for one that does not come back
        "worker_extra_args": ["--lifetime", args.lifetime, "--lifetime-stagger", "2m"],
        "job_script_prologue": ["export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 NUMBA_NUM_THREADS=1", *CALM],
        "scheduler_options": {"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    }
    return SLURMCluster(**options)


def main() -> int:
    """Start everything, run wsiseg, and stop everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="workers, each a job")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of a job; 0: a CPU worker")
    parser.add_argument("--threads", type=int, default=2, help="tiles in work at once in a worker")
    parser.add_argument("--memory", default="32GB")
    parser.add_argument("--walltime", default="04:00:00")
    parser.add_argument("--lifetime", default="3h50m", help="a worker leaves by itself then: less than --walltime")
    parser.add_argument("--queue", default="")
    parser.add_argument("--account", default="")
    parser.add_argument("--interface", default="", help="network interface that reaches the nodes, such as ib0")
    parser.add_argument("--print", dest="show", action="store_true", help="print the job script and stop")
    parser.add_argument("segment", nargs="*", help="arguments of wsiseg segment, after --")
    args = parser.parse_args()
    with cluster(args) as workers:
        if args.show:
            print(workers.job_script())
            return 0
        workers.scale(jobs=args.jobs)
        command = [sys.executable, "-m", "wsiseg", "segment", *args.segment, "--scheduler", workers.scheduler_address]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())

"""A Dask scheduler and workers as on other hosts: own processes, started again when they end, over links that can be cut."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.run.conftest import environment
from tests.run.cuttable import Cuttable

QUICK = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s", "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "12s",
         "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "15s"}  # fmt: skip
"""A lost host is noticed sooner than by default (30 s and 5 min), so that what is measured is ours."""


class Hosts:
    """One scheduler, workers that reach it through ``link``; a context.

    ``rules`` are those of ``faulty_worker``; ``names`` are the machines that its workers take themselves to be on, one each;
    ``env`` is what all processes have in their environment besides.
    """

    def __init__(
        self,
        folder: Path,
        n_workers: int = 1,
        rules: list[dict[str, Any]] | None = None,
        names: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self.link = Cuttable(("127.0.0.1", self.port))
        self.client_link = Cuttable(("127.0.0.1", self.port))
        self._env = {**environment(), **QUICK, **(env or {})}
        if rules:
            fired = folder / "fired"
            fired.mkdir()
            preload = str(Path(__file__).with_name("faulty_worker.py"))
            self._env |= {
                "WSISEG_FAULTS": json.dumps(rules),
                "WSISEG_FAULTS_DIR": str(fired),
                "DASK_DISTRIBUTED__WORKER__PRELOAD": preload,
            }
        self._ending = False
        self.scheduler = self._start("scheduler", "--port", str(self.port))
        self.workers: list[subprocess.Popen[bytes]] = []
        hosts = [{"WSISEG_HOST": name} for name in names] or [{}] * n_workers
        self._keepers = [threading.Thread(target=self._keep, args=(env,), daemon=True) for env in hosts]

    @property
    def address(self) -> str:
        """Where the client finds the scheduler, over its own link."""
        return f"tcp://127.0.0.1:{self.client_link.port}"

    def kill_scheduler(self) -> None:
        """As the machine under it fails."""
        self.scheduler.send_signal(signal.SIGKILL)
        self.scheduler.wait()

    def restart_scheduler(self) -> None:
        """Start it again at its old place."""
        self.scheduler = self._start("scheduler", "--port", str(self.port))

    def _start(self, kind: str, *args: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--host", "127.0.0.1", "--no-dashboard", *args]
        with (self.folder / f"{kind}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env={**self._env, **(env or {})}, stdout=log, stderr=log, start_new_session=True
            )

    def _keep(self, env: dict[str, str]) -> None:
        """Start a worker again whenever it ends, as SLURM and Kubernetes do."""
        while not self._ending:
            to = f"tcp://127.0.0.1:{self.link.port}"
            worker = self._start("worker", to, "--nthreads", "1", "--death-timeout", "20", env=env)
            self.workers.append(worker)
            worker.wait()
            time.sleep(0.2)

    def __enter__(self) -> Hosts:
        """Start the workers."""
        for keeper in self._keepers:
            keeper.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """End everything."""
        self._ending = True
        for process in [*self.workers, self.scheduler]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.link.__exit__(None, None, None)
        self.client_link.__exit__(None, None, None)


def reached(hosts: Hosts) -> str:
    """Return the scheduler's address for a client, once it listens."""
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", hosts.port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return hosts.address
    raise TimeoutError("no scheduler")


def wait_for_parts(out: Path, more_than: int, timeout_s: float = 240) -> int:
    """Wait until a run has so many part files; return how many."""
    deadline = time.monotonic() + timeout_s
    while (n := len(list(out.glob("parts/*/*.parquet")))) <= more_than and time.monotonic() < deadline:
        if list(out.glob("slides/*.json")):
            break
        time.sleep(0.02)
    return n

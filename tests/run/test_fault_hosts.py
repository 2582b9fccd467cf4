"""The network between hosts is cut, or the scheduler killed and restarted: the run continues and gives the same table."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from distributed import Client

from tests.run.conftest import environment, run_here
from tests.run.gate import Gate
from tests.run.hosts import Hosts, reached, wait_for_parts
from wsiseg.run import worker_pool

CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--engine", "eager")


def test_cut_network_then_lost_scheduler(crop_png: Path, tmp_path: Path) -> None:
    assert run_here("segment", crop_png, *CROP, "--out", tmp_path / "clean").exit_code == 0
    out = tmp_path / "out"
    gate = Gate(tmp_path / "gate")
    with Hosts(tmp_path / "hosts", env=gate.environment) as hosts:

        def disturb() -> None:
            n = wait_for_parts(out, 0)
            hosts.link.cut()
            time.sleep(2)
            hosts.link.heal()
            gate.close(1)  # the tile that waited and one more pass: some work is left for the next fault
            wait_for_parts(out, n)
            hosts.kill_scheduler()
            time.sleep(2)
            hosts.restart_scheduler()
            gate.open()

        disturber = threading.Thread(target=disturb)
        disturber.start()
        command = [
            sys.executable,
            "-m",
            "wsiseg",
            "segment",
            str(crop_png),
            *CROP,
            "--scheduler",
            reached(hosts),
            "--out",
            str(out),
        ]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500, check=False)
        disturber.join()
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (out / "nuclei/crop.parquet").read_bytes() == (tmp_path / "clean/nuclei/crop.parquet").read_bytes()
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert events[-1]["reconnects"] == 1
    assert any("the scheduler is lost" in e.get("text", "") for e in events)
    assert sum(e["event"] == "connected" for e in events) == 2


def test_a_scheduler_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection may break without an error: then waiting for an answer would never end."""
    with Hosts(tmp_path / "hosts") as hosts, Client(reached(hosts), set_as_default=False, timeout="60s") as client:
        client.wait_for_workers(1, timeout=120)
        monkeypatch.setattr(worker_pool, "ANSWER_S", 2.0)
        pool = worker_pool.WorkerPool(client, SimpleNamespace(name="nobody's run"))  # type: ignore[arg-type]
        assert pool.update() == 0, "a worker that was not accepted does no tiles"
        hosts.client_link.freeze()
        pool._looked = -worker_pool.LOOK_S
        with pytest.raises(TimeoutError):
            pool.update()
        hosts.client_link.heal()
        pool._looked = -worker_pool.LOOK_S
        assert pool.update() == 0

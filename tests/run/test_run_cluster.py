"""A run on a cluster of others: TLS, other mount points, workers that do not fit, workers that are taken away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.run.conftest import ROOT, environment, run_here, wsiseg
from tests.run.gate import Gate
from wsiseg.config import RunConfig, ScheduleConfig
from wsiseg.errors import ConfigError
from wsiseg.results.locate import local_path

CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made with openssl")


@pytest.fixture(scope="module")
def clean(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table that an undisturbed run on this machine makes."""
    out = tmp_path_factory.mktemp("clean") / "out"
    assert run_here("segment", crop_png, *CROP, "--out", out).exit_code == 0
    return (out / "nuclei/crop.parquet").read_bytes()


@dataclass
class Cluster:
    """A scheduler with TLS and its workers, each a process of its own as on other machines."""

    folder: Path
    scheduler: subprocess.Popen[bytes]
    workers: dict[str, subprocess.Popen[bytes]]
    gate: Gate

    @property
    def tls(self) -> tuple[str, ...]:
        c = self.folder / "tls"
        return ("--tls-ca", str(c / "ca.pem"), "--tls-cert", str(c / "cert.pem"), "--tls-key", str(c / "key.pem"))

    @property
    def address(self) -> str:
        return str(json.loads((self.folder / "scheduler.json").read_text())["address"])

    def start_worker(self, name: str, *more: str) -> None:
        place = self.folder / "elsewhere"  # another working folder: relative paths lead nowhere
        place.mkdir(exist_ok=True)
        command = [*_dask("worker", self.folder), "--nthreads", "1", "--name", name, *more]
        with (self.folder / f"{name}.log").open("wb") as log:
            env = {**environment(), **self.gate.environment}
            self.workers[name] = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log)

    def wait_for(self, name: str, text: str = "Registered to", timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in (reported := (self.folder / f"{name}.log").read_text()):
            assert time.monotonic() < deadline, reported
            time.sleep(0.05)

    def stop(self, name: str) -> None:
        worker = self.workers.pop(name)
        worker.terminate()
        worker.wait(60)


def _dask(kind: str, folder: Path) -> list[str]:
    c = folder / "tls"
    tls = ["--tls-ca-file", f"{c}/ca.pem", "--tls-cert", f"{c}/cert.pem", "--tls-key", f"{c}/key.pem"]
    file = ["--scheduler-file", str(folder / "scheduler.json")]
    protocol = ["--protocol", "tls"]
    host = ["--host", "127.0.0.1", "--no-dashboard"]
    # -m of a module whose import cannot be cut short by what this folder holds
    return [sys.executable, "-m", f"distributed.cli.dask_{kind}", *file, *tls, *protocol, *host]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    subprocess.run([ROOT / "scripts/cluster/make_certificates.sh", folder / "tls"], check=True, capture_output=True)
    with (folder / "scheduler.log").open("wb") as log:
        scheduler = subprocess.Popen([*_dask("scheduler", folder), "--port", "0"], env=environment(), stdout=log, stderr=log)
    found = Cluster(folder, scheduler, {}, Gate(folder / "gate"))
    found.gate.open()
    try:
        deadline = time.monotonic() + 60
        while not (folder / "scheduler.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        # a release of another number: what the worker's own wsiseg says, before anything of a run reaches it
        fake = folder / "fake.py"
        fake.write_text("import wsiseg\nwsiseg.__version__ = '0.0.9'\n")
        found.start_worker("good")
        found.start_worker("old", "--preload", str(fake))
        found.wait_for("good")
        found.wait_for("old")
        yield found
    finally:
        for process in [*found.workers.values(), scheduler]:
            process.terminate()
        for process in [*found.workers.values(), scheduler]:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
            process.wait()


def test_other_mount_points_tls_and_a_worker_that_is_refused(
    cluster: Cluster, crop_png: Path, clean: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "slides").mkdir(parents=True)
    (there / "slides").mkdir(parents=True)
    (here / "slides/crop.png").write_bytes(b"what is here is no slide: only the workers' mount has it")
    shutil.copyfile(crop_png, there / "slides/crop.png")
    (there / "out").symlink_to(here / "out")
    monkeypatch.chdir(here)
    file = ("--scheduler-file", cluster.folder / "scheduler.json")
    done = wsiseg("segment", "slides/crop.png", *CROP, "--out", "out", *file, *cluster.tls, "--path-map", f"{here}={there}")
    assert done.returncode == 0, done.stderr
    assert (here / "out/nuclei/crop.parquet").read_bytes() == clean
    assert "is refused" in done.stderr
    assert "the run has 0.1.0, this worker 0.0.9" in done.stderr
    (row,) = pq.read_table(here / "out/slides.parquet").to_pylist()
    assert row["path"] == str(here / "slides/crop.png"), "slides are called what the user calls them"


def test_a_worker_without_the_run_folder_is_refused(cluster: Cluster, crop_png: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    lost = f"{tmp_path}/out={tmp_path}/empty"
    done = wsiseg("segment", crop_png, *CROP, "--out", tmp_path / "out", "--scheduler", cluster.address, *cluster.tls,
                  "--path-map", lost)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Every worker of the scheduler was refused" in done.stderr
    assert f"finds no run in {tmp_path}/empty (see --path-map)" in done.stderr


def test_without_certificates_no_client_connects(cluster: Cluster, crop_png: Path, tmp_path: Path) -> None:
    assert cluster.address.startswith("tls://")
    command = ("segment", crop_png, *CROP, "--out", tmp_path / "out", "--scheduler", cluster.address)
    none = run_cli(*command)
    assert none.returncode == 2
    assert "--tls-ca, --tls-cert, --tls-key are missing" in none.stderr
    other = tmp_path / "other"
    subprocess.run([ROOT / "scripts/cluster/make_certificates.sh", other], check=True, capture_output=True)
    strange = ("--tls-ca", other / "ca.pem", "--tls-cert", other / "cert.pem", "--tls-key", other / "key.pem")
    wrong = run_cli(*command, *strange)
    assert wrong.returncode == 2
    assert "--tls-ca" in wrong.stderr


def test_a_worker_that_is_taken_away_loses_nothing(cluster: Cluster, crop_png: Path, clean: bytes, tmp_path: Path) -> None:
    gate = cluster.gate
    gate.close(1)
    cluster.start_worker("taken")
    cluster.wait_for("taken")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "wsiseg", "segment", str(crop_png), *CROP, "--out", str(out)]
    command += ["--scheduler", cluster.address, *cluster.tls]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        gate.wait(run, 2, out / "parts/crop")  # both are at a tile
        cluster.stop("taken")  # SIGTERM, as SLURM and Kubernetes send it
        cluster.start_worker("late")  # and one that joins a run on its way
        cluster.wait_for("late")
        gate.open()
        _, stderr = run.communicate(timeout=240)
    assert run.returncode == 0, stderr
    assert (out / "nuclei/crop.parquet").read_bytes() == clean
    assert pq.read_table(out / "errors.parquet").num_rows == 0
    cluster.stop("late")


def test_only_workers_that_do_not_fit(cluster: Cluster, crop_png: Path, tmp_path: Path) -> None:
    cluster.stop("good")
    done = wsiseg("segment", crop_png, *CROP, "--out", tmp_path / "out", "--scheduler", cluster.address, *cluster.tls)
    assert done.returncode == 2, done.stderr
    assert "the run has wsiseg version 0.1.0, the workers have" in done.stderr
    assert "0.0.9" in done.stderr
    assert "Traceback" not in done.stderr


def run_cli(*args: str | Path) -> subprocess.CompletedProcess[str]:
    """As ``wsiseg``, but giving a scheduler only a moment to answer."""
    code = "import wsiseg.cluster.remote as r; r.CONNECT_S = 2; from wsiseg.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)


def test_path_map_takes_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.svs").touch()
    maps = (f"/data={tmp_path}/a", f"/data/={tmp_path}/b", f"/database={tmp_path}/b")
    assert local_path("/data/x.svs", maps) == f"{tmp_path}/b/x.svs", "the first that leads to a file"
    assert local_path("/data/y.svs", maps) == f"{tmp_path}/a/y.svs", "nowhere: where it should have been first"
    assert local_path("/dat/x.svs", maps) == "/dat/x.svs"
    assert local_path("/database/x.svs", maps) == f"{tmp_path}/b/x.svs", "prefixes end at a slash"
    assert local_path(str(tmp_path / "b/x.svs"), (f"{tmp_path}/b=/nowhere",)) == f"{tmp_path}/b/x.svs"


@pytest.mark.parametrize("bad", ["x", "a=b", "/a=", "=/b", "/a=b"])
def test_a_path_map_is_two_absolute_paths(bad: str) -> None:
    with pytest.raises(ConfigError, match="FROM=TO"):
        ScheduleConfig(path_map=(bad,))


def test_config_file_may_hold_lists_of_texts() -> None:
    config = RunConfig.from_dict({"schedule": {"path_map": ["/a=/b", "/c=/d"]}})
    assert config.schedule.path_map == ("/a=/b", "/c=/d")
    with pytest.raises(ConfigError, match="a list of texts"):
        RunConfig.from_dict({"schedule": {"path_map": "/a=/b"}})
    with pytest.raises(ConfigError, match="together"):
        ScheduleConfig(tls_ca="ca.pem")


def test_sigterm_at_client_and_workers_is_one_clear_line_and_resumes(crop_png: Path, clean: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "wsiseg", "segment", str(crop_png), *CROP, "--workers", "2", "--out", str(out)]
    gate = Gate(tmp_path / "gate")
    env = {**environment(), **gate.environment}
    run = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    gate.wait(run, 2, out / "parts/crop")
    os.killpg(run.pid, signal.SIGTERM)  # as scancel does it: client and workers
    gate.open()
    _, stderr = run.communicate(timeout=120)
    assert run.returncode == 143, stderr
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr
    assert not (out / "nuclei/crop.parquet").exists()
    again = run_here(*command[3:])
    assert again.exit_code == 0, again.output
    assert (out / "nuclei/crop.parquet").read_bytes() == clean


HELD = """
import importlib.abc, os, sys, time

class Held(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["HELD_MODULE"]:
            print("held", flush=True)
            time.sleep(60)  # the signal ends it
        return None

sys.meta_path.insert(0, Held())
"""


@pytest.mark.parametrize("module", ["click", "click.core", "rich.progress", "wsiseg.errors", "wsiseg.cli.commands_qc"])
def test_ctrl_c_while_python_loads_us_is_no_traceback(module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HELD)
    env = environment() | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "HELD_MODULE": module}
    command = [sys.executable, "-m", "wsiseg", "--version"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n", "in the middle of an import"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "wsiseg: stopped.\n"

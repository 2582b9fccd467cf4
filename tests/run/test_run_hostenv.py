"""Groups, workers that end before they begin, memory that runs out, and schedulers with and without TLS and dashboard."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.run.conftest import ROOT, environment, wsiseg
from tests.run.test_run_limits import cgroup
from wsiseg.cluster.remote import connect_remote, dashboard_link
from wsiseg.config import ScheduleConfig
from wsiseg.errors import ConfigError, InputError

CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--workers", "1")
READ_ALL = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def as_user(uid: int, gid: int, *command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user of a group, with the umask of those who share folders."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another user can be taken by root with setpriv only")
    who = ["setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups", *READ_ALL]
    line = 'umask 002; exec "$@"'
    env = {**environment(), "HOME": str(cwd)}
    full = [*who, "sh", "-c", line, "sh", *map(str, command)]
    done = subprocess.run(full, cwd=cwd, capture_output=True, text=True, timeout=300, env=env, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"setpriv may not do this here: {done.stderr.strip()}")
    return done


def test_a_colleague_of_the_group_resumes_a_run(crop_png: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    os.chown(shared, 0, 23456)
    shared.chmod(0o2775)
    command = [sys.executable, "-m", "wsiseg", "segment", crop_png, *CROP, "--out", "run"]
    first = as_user(12345, 23456, *command, cwd=shared)
    assert first.returncode == 0, first.stderr
    table = (shared / "run/nuclei/crop.parquet").read_bytes()
    files = [p for p in (shared / "run").rglob("*") if not p.is_symlink()]
    closed = [str(p.relative_to(shared)) for p in files if not p.stat().st_mode & 0o020]
    assert not closed, "whatever a run makes, the group may replace and go on with"
    (shared / "run/nuclei/crop.parquet").unlink()
    second = as_user(12346, 23456, *command, cwd=shared)
    assert second.returncode == 0, second.stderr
    assert (shared / "run/nuclei/crop.parquet").read_bytes() == table
    assert (shared / "run/nuclei/crop.parquet").stat().st_uid == 12346
    (shared / "run/.in-use").chmod(0o644)  # as earlier versions left it
    third = as_user(12346, 23456, *command, cwd=shared)
    assert third.returncode == 0, third.stderr
    outsider = as_user(12347, 34567, *command, cwd=shared)
    assert outsider.returncode == 2
    assert len(outsider.stderr.strip().splitlines()) == 1, outsider.stderr


DIES = """
import os, signal
from pathlib import Path
import wsiseg.run.tasks
from wsiseg.run.context import WorkerContext as before

def deadly(folder, config, digest, device):
    if digest == "":  # the first look at what a worker would compute with
        for k in range({times}):
            try:
                (Path({place!r}) / str(k)).open("x").close()
            except FileExistsError:
                continue
            os.kill(os.getpid(), signal.SIGKILL)
    return before(folder, config, digest, device)

wsiseg.run.tasks.WorkerContext = deadly
"""


@pytest.mark.parametrize("times", [1, 99])
def test_a_worker_that_ends_while_the_network_loads(
    times: int, crop_png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fired").mkdir()
    (tmp_path / "deadly.py").write_text(DIES.format(times=times, place=str(tmp_path / "fired")))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(tmp_path / "deadly.py"))
    done = wsiseg("segment", crop_png, *CROP, "--out", tmp_path / "out")
    assert "Traceback" not in done.stderr
    assert "was killed by signal 9 (SIGKILL)" in done.stderr, done.stderr
    if times == 1:
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("wsiseg: 3 workers ended one after the other while they loaded the network")
    assert "fewer --workers" in last


def test_memory_that_runs_out_is_named(crop_png: Path, tmp_path: Path) -> None:
    limit = str(400 * 2**20)
    settings = {
        "memory.limit_in_bytes": limit,
        "memory.memsw.limit_in_bytes": limit,
        "memory.max": limit,
        "memory.swap.max": "0",
    }
    with cgroup("memory", settings) as group:
        words = [sys.executable, "-m", "wsiseg", "segment", str(crop_png), *CROP, "--out", str(tmp_path / "out")]
        shell = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", shell, "sh", *words], capture_output=True, text=True, env=environment(), check=False, timeout=300
        )
    # it ends while the network loads, or at its tiles, as the libraries of this machine need more or less
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert f"was killed by signal 9 (SIGKILL); the control group {group} ended " in done.stderr
    assert "for lack of memory: use fewer --workers" in done.stderr


def test_certificates_that_are_missing_are_named_at_once(tmp_path: Path) -> None:
    pem = tmp_path / "some.pem"
    pem.write_text("")
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tls://127.0.0.1:1"}))
    wrong: list[tuple[dict[str, str], str]] = [
        ({"scheduler": "tls://127.0.0.1:1"}, "--tls-ca, --tls-cert, --tls-key are missing"),
        ({"scheduler_file": str(file)}, "--tls-ca, --tls-cert, --tls-key are missing"),
        ({"scheduler": "tcp://127.0.0.1:1", **dict.fromkeys(("tls_ca", "tls_cert", "tls_key"), str(pem))}, "without TLS"),
        (
            {"scheduler": "tls://127.0.0.1:1", "tls_ca": str(pem), "tls_cert": str(pem), "tls_key": "/no/key"},
            "--tls-key /no/key",
        ),
    ]
    for given, message in wrong:
        with pytest.raises(InputError, match=message), connect_remote(ScheduleConfig(**given)):
            pass
    with pytest.raises(ConfigError, match=r"tls_cert.*missing"):
        ScheduleConfig(scheduler="tls://127.0.0.1:1", tls_ca=str(pem), tls_key=str(pem))
    Image.new("RGB", (300, 300), "white").save(tmp_path / "s.png")
    done = wsiseg("segment", tmp_path / "s.png", "--mpp", "0.25", "--out", tmp_path / "out", "--scheduler", "tls://127.0.0.1:1")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@contextmanager
def page(status: int, text: bytes) -> Iterator[str]:
    """Serve one page, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/status"
        server.shutdown()


def test_a_dashboard_is_named_only_where_one_answers() -> None:
    def client(link: str) -> SimpleNamespace:
        return SimpleNamespace(scheduler_info=lambda: {"services": {"dashboard": 1}}, dashboard_link=link)

    for status, text, there in (
        (200, b"<title>Dask: Status</title>", True),
        (404, b"", False),
        (200, b"<p>Dask needs bokeh", False),
    ):
        with page(status, text) as link:
            assert dashboard_link(client(link)) == (link if there else "")  # type: ignore[arg-type]
    assert dashboard_link(client(link)) == "", "nobody answers any more"  # type: ignore[arg-type]


def test_recipes_with_tls_show_nothing_over_plain_http() -> None:
    """Dask's scheduler answers over HTTP even without a dashboard: addresses, tasks, logs. Only its own machine may ask."""
    for name in ("kubernetes_dask.yaml", "slurm_dask.sbatch", "make_certificates.sh"):
        text = (ROOT / "scripts/cluster" / name).read_text()
        parts = [part.lstrip(" ,") for part in text.split("dask")]
        command = next(part for part in parts if part.startswith(("scheduler --p", "scheduler, --p")))
        words = command.replace(",", " ").split()[:30]
        assert "--no-dashboard" in words, name
        assert words[words.index("--dashboard-address") + 1].strip('"') == "127.0.0.1:0", name

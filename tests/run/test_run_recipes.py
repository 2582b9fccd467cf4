"""The cluster recipes are really parsed and run, with stand-ins for what only a cluster has."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.run.conftest import ROOT
from wsiseg.cli import main
from wsiseg.run.shards import Shard

RECIPES = ROOT / "scripts" / "cluster"


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A folder of programs that only print their arguments; wsiseg ends on request or by SIGTERM."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    reported = tmp_path / "said"

    def program(name: str, body: str) -> None:
        path = bin_ / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {reported}\n{body}\n')
        path.chmod(0o755)

    program("srun", 'exec "$@"')
    program("scontrol", "")
    program(
        "wsiseg",
        'trap "exit 143" TERM\nfor k in $(seq 200); do [[ -e "$FINISH" ]] && exit "$(cat "$FINISH")"; sleep 0.05; done',
    )
    address = 'for word in "$@"; do [[ "$last" == --scheduler-file ]] && echo "{}" > "$word"; last=$word; done'
    program(
        "dask", f'trap "exit 0" TERM\nlast=\n[[ "$1" == scheduler ]] && {address}\nfor k in $(seq 400); do sleep 0.05; done'
    )
    return tmp_path


def started(script: str, place: Path, **env: str) -> subprocess.Popen[str]:
    environment = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "SLIDES": "/nfs/my slides",
        "RUN": str(place / "run"),
        "FINISH": str(place / "finish"),
        **env,
    }
    return subprocess.Popen(["bash", str(RECIPES / script)], env=environment, stderr=subprocess.PIPE, text=True, cwd=place)


def reported(place: Path, start: str, timeout_s: float = 60) -> list[str]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        path = place / "said"
        lines = [line for line in (path.read_text() if path.exists() else "").splitlines() if line.startswith(start)]
        if lines:
            return lines
        time.sleep(0.05)
    raise AssertionError(f"{start} was not called")


ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_JOB_ID": "77"}


@pytest.mark.parametrize("script", sorted(p.name for p in RECIPES.iterdir() if p.suffix in (".sh", ".sbatch")))
def test_shell_recipes_parse(script: str) -> None:
    subprocess.run(["bash", "-n", str(RECIPES / script)], check=True)


@pytest.mark.parametrize("code", [0, 1])
def test_array_job_does_its_share(stand_ins: Path, code: int) -> None:
    (stand_ins / "finish").write_text(str(code))
    job = started("slurm_array.sbatch", stand_ins, **ARRAY)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == code, stderr
    (line,) = reported(stand_ins, "wsiseg")
    assert line == f"wsiseg segment /nfs/my slides --out {stand_ins}/run --shard 3/8"
    assert "scontrol" not in (stand_ins / "said").read_text()


def test_array_job_that_is_preempted_goes_back_into_the_queue(stand_ins: Path) -> None:
    job = started("slurm_array.sbatch", stand_ins, **ARRAY, STAGE="/local/scratch")
    assert reported(stand_ins, "wsiseg")[0].endswith("--shard 3/8 --stage /local/scratch")
    job.send_signal(signal.SIGTERM)  # to the batch shell, as --signal=B:TERM does
    _, stderr = job.communicate(timeout=60)
    assert job.returncode == 143, stderr
    assert reported(stand_ins, "scontrol") == ["scontrol requeue 77_3"]


def test_an_array_job_outside_an_array_is_refused(stand_ins: Path) -> None:
    job = started("slurm_array.sbatch", stand_ins)
    _, stderr = job.communicate(timeout=60)
    assert job.returncode != 0
    assert "--array=1-N" in stderr


def test_dask_job_starts_scheduler_workers_and_client_and_ends_them(stand_ins: Path) -> None:
    (stand_ins / "finish").write_text("0")
    job = started("slurm_dask.sbatch", stand_ins, SLURM_JOB_ID="9", CERTIFICATES="/tls")
    _, stderr = job.communicate(timeout=120)
    assert job.returncode == 0, stderr
    address = f"{stand_ins}/run/.scheduler-9.json"
    assert f"--scheduler-file {address}" in reported(stand_ins, "dask scheduler")[0]
    assert f"--scheduler-file {address}" in reported(stand_ins, "dask worker")[0]
    (client,) = reported(stand_ins, "wsiseg")
    assert client == (
        f"wsiseg segment /nfs/my slides --out {stand_ins}/run --scheduler-file {address} "
        "--tls-ca /tls/ca.pem --tls-cert /tls/cert.pem --tls-key /tls/key.pem"
    )
    assert not Path(address).exists()


def options_exist(arguments: list[str]) -> None:
    """Have the real command line read the arguments (a slide that is not there ends it)."""
    result = CliRunner().invoke(main, [a if a != "/slides" else "no-slide-here" for a in arguments])
    assert "No such option" not in result.output
    assert "no such file" in result.output, result.output


def test_what_the_recipes_call_exists(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    tls = [x for o in ("ca", "cert", "key") for x in (f"--tls-{o}", str(tmp_path / f"{o}.pem"))]
    options_exist(["segment", "/slides", "--out", "o", "--shard", "3/8", "--stage", "s", "--stage-gb", "80"])
    options_exist(["segment", "/slides", "--out", "o", "--scheduler", "tls://wsiseg-scheduler:8786", *tls])
    for kind, needed in (("scheduler", "--no-dashboard --scheduler-file --protocol"), ("worker", "--nworkers --death-timeout")):
        command = importlib.import_module(f"distributed.cli.dask_{kind}").main
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        assert {*needed.split(), "--tls-ca-file", "--tls-cert", "--tls-key"} <= known


def documents(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((RECIPES / name).read_text()))


def containers(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["spec"]["template"]["spec"]["containers"] if "template" in document["spec"] else []


@pytest.mark.parametrize("name", ["kubernetes_shards.yaml", "kubernetes_dask.yaml"])
def test_kubernetes_recipes_hold_together(name: str) -> None:
    for document in documents(name):
        assert document["apiVersion"] in ("v1", "apps/v1", "batch/v1")
        assert document["metadata"]["name"]
        for container in containers(document):
            pod = document["spec"]["template"]["spec"]
            volumes = {v["name"] for v in pod["volumes"]}
            assert {m["name"] for m in container["volumeMounts"]} <= volumes
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert ":" in container["image"], "a version, not what happens to be newest"
        if document["kind"] == "Deployment":
            labels = document["spec"]["template"]["metadata"]["labels"].items()
            assert document["spec"]["selector"]["matchLabels"].items() <= labels
        if document["kind"] == "Job":
            assert document["spec"]["template"]["spec"]["restartPolicy"] in ("Never", "OnFailure")
            assert document["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 30


def test_kubernetes_shards_are_as_many_as_indices(tmp_path: Path) -> None:
    (job,) = documents("kubernetes_shards.yaml")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = containers(job)
    (text,) = container["args"]
    shares = []
    for index in range(spec["completions"]):  # as the pod's shell reads it
        line = subprocess.run(
            ["sh", "-c", text.replace("exec wsiseg", "printf '%s\\n'")],
            env={"JOB_COMPLETION_INDEX": str(index)}, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        shares.append(Shard.parse(line[line.index("--shard") + 1]))
    assert shares == [Shard(k, spec["completions"]) for k in range(1, spec["completions"] + 1)]
    exits = [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert exits == [[1, 2]], "143, a pod that was stopped, is tried again"


def test_kubernetes_dask_workers_and_client_find_the_scheduler() -> None:
    found = {(d["kind"], d["metadata"]["name"]): d for d in documents("kubernetes_dask.yaml")}
    service = found["Service", "wsiseg-scheduler"]
    scheduler = found["Deployment", "wsiseg-scheduler"]
    assert service["spec"]["selector"].items() <= scheduler["spec"]["template"]["metadata"]["labels"].items()
    port = service["spec"]["ports"][0]["targetPort"]
    assert containers(scheduler)[0]["ports"][0]["containerPort"] == port
    address = f"tls://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (worker,) = containers(found["Deployment", "wsiseg-worker"])
    (client,) = containers(found["Job", "wsiseg-client"])
    assert worker["args"][:3] == ["dask", "worker", address]
    assert client["args"][client["args"].index("--scheduler") + 1] == address
    assert worker["image"] == client["image"]


def test_dask_jobqueue_makes_its_job_script() -> None:
    pytest.importorskip("dask_jobqueue")
    command = [sys.executable, str(RECIPES / "jobqueue.py"), "--print", "--gpus", "2", "--queue", "short"]
    script = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in ("#SBATCH --gres=gpu:2", "#SBATCH -p short", "#SBATCH --requeue"):
        assert line in script
    assert "distributed.cli.dask_worker tcp://" in script
    assert "--lifetime 3h50m" in script

"""The image recipes hold together: what they copy, install and call exists, and they decide nothing that the program does."""

from __future__ import annotations

import fnmatch
import importlib
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.run.conftest import ROOT
from wsiseg.cli import main

DOCKERFILE = ROOT / "Dockerfile"
IMAGE = ROOT / "scripts" / "image"
CLUSTER = ROOT / "scripts" / "cluster"
DECIDED_BY_THE_PROGRAM = re.compile(r"(NUMBA|XDG|TORCH|TORCHINDUCTOR|TRITON|CUPY|MPL|CUDA)\w*(CACHE|CONFIG|HOME)\w*|HOME")


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and their arguments, comments left out and long lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def extras() -> dict[str, list[str]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_dockerfile_copies_what_is_there_and_what_dockerignore_lets_through() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = [args.split() for name, args in instructions() if name == "COPY" and not args.startswith("--from")]
    assert copies
    for *sources, _ in copies:
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, a) or source.startswith(f"{a}/") for a in allowed), f"{source} is ignored"


def test_images_run_as_anybody_and_set_no_cache() -> None:
    stages = [k for k, (name, _) in enumerate(instructions()) if name == "FROM"]
    last = instructions()[stages[-1] :]
    (user,) = [args for name, args in last if name == "USER"]
    assert re.fullmatch(r"[1-9]\d*:0", user), "a number that is not root: a cluster may check it, and gives another one"
    assert not [name for name, _ in last if name == "ENTRYPOINT"], "the Kubernetes recipes give the whole command"
    for name, args in last:
        if name == "ENV":
            assert not [w for w in shlex.split(args) if DECIDED_BY_THE_PROGRAM.fullmatch(w.partition("=")[0])]
    definition = (IMAGE / "wsiseg.def").read_text()
    assert not re.findall(rf"export.*\b({DECIDED_BY_THE_PROGRAM.pattern})=", definition)


def test_both_recipes_have_the_same_defaults_and_extras_that_exist() -> None:
    args = dict(a.split("=", 1) for name, a in instructions() if name == "ARG")
    definition = (IMAGE / "wsiseg.def").read_text()
    script = (IMAGE / "install.sh").read_text()
    for name in ("TORCH_INDEX", "EXTRAS"):
        assert f"{name}={args[name]}" in definition
        assert f"{name}:={args[name]}" in script
    named = {e for text in (DOCKERFILE.read_text(), definition) for e in re.findall(r"EXTRAS=([\w,]+)", text)}
    assert {e for names in named for e in names.split(",")} <= set(extras())
    assert {"cuda12", "cuda13"} <= set(extras())
    for line in re.findall(r"^ {4}(\S+) /dist\S*$", definition, re.MULTILINE):
        assert line == "dist" or (ROOT / line).exists(), line


def test_everything_that_is_installed_has_a_pinned_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for e in ("cuda12", "cuda13", "query", "review", "fast-read") for r in extras()[e])]
    for text in wanted:
        requirement = Requirement(text)
        version = pins().get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{text}, pinned {version}"
    assert extras()["gpu"] == ["wsiseg[cuda13]"], "the name that GPU users have"


@pytest.mark.parametrize("script", ["install.sh", "try_image.sh"])
def test_scripts_parse(script: str) -> None:
    shell = (IMAGE / script).read_text().splitlines()[0].rpartition("/")[2].removeprefix("env ")
    subprocess.run([shell, "-n", str(IMAGE / script)], check=True)


def wsiseg_takes(words: list[str]) -> None:
    """Have the real command line read some words (a slide that is not there ends it)."""
    result = CliRunner().invoke(main, ["no-slide-here" if w.startswith(("/slides", "/nfs")) else w for w in words])
    assert "No such option" not in result.output
    assert "no such file" in result.output, result.output


def dask_takes(words: list[str]) -> None:
    command = importlib.import_module(f"distributed.cli.dask_{words[0]}").main
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    assert {w for w in words[1:] if w.startswith("-")} <= known


def test_what_the_comments_of_the_images_call_exists() -> None:
    text = DOCKERFILE.read_text() + (IMAGE / "wsiseg.def").read_text()
    calls = re.findall(r"^#.*?(?:wsiseg|\.sif) (segment [^#\n]*)", text, re.MULTILINE)
    assert len(calls) == 2
    for call in calls:
        wsiseg_takes(shlex.split(call.partition("  ")[0]))


def pods(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    documents = yaml.safe_load_all((CLUSTER / name).read_text())
    return [d["spec"]["template"]["spec"] for d in documents if "template" in d["spec"]]


@pytest.mark.parametrize("name", ["kubernetes_shards.yaml", "kubernetes_dask.yaml"])
def test_pods_run_as_an_arbitrary_user_on_a_root_that_is_read_only(name: str) -> None:
    for pod in pods(name):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert not [e["name"] for e in container.get("env", []) if DECIDED_BY_THE_PROGRAM.fullmatch(e["name"])]
            volume = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
            (tmp,) = [v for v in pod["volumes"] if v["name"] == volume["/tmp"]]
            assert "emptyDir" in tmp, "a root that cannot be written to needs a place for temporary files"
            assert container["workingDir"] == "/tmp"


def test_what_the_pods_call_exists(tmp_path: Path) -> None:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).touch()
    called = []
    for name in ("kubernetes_shards.yaml", "kubernetes_dask.yaml"):
        for container in (c for pod in pods(name) for c in pod["containers"]):
            words = [w.replace("/tls/", f"{tmp_path}/") for w in container["args"]]
            if container.get("command") == ["/bin/sh", "-c"]:
                words = shlex.split(words[0].replace("$((JOB_COMPLETION_INDEX + 1))", "1").removeprefix("exec "))
            called.append(words[:2])
            (dask_takes if words[0] == "dask" else wsiseg_takes)(words[1:])
    assert called == [["wsiseg", "segment"], ["dask", "scheduler"], ["dask", "worker"], ["wsiseg", "segment"]]

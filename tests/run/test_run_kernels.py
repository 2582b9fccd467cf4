"""CPU kernels are compiled before the first tile, once for all processes that share a cache, and wherever a cache may lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.run.conftest import ROOT, SLIDE, environment, run_here
from wsiseg.backend import caches

AS_NOBODY = ("setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups")
READ_ALL = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""The interpreter of a root's home can be read, as that of an image can: nothing more may be written."""


def as_nobody(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user whom passwd does not know, without HOME, in an environment of ``env`` alone."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("another user can be taken by root with setpriv only")
    full = [*AS_NOBODY, *READ_ALL, "env", "-i", "PATH=/usr/bin:/bin", f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1"]
    full += [f"{name}={value}" for name, value in env.items()]
    done = subprocess.run([*full, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    if "Operation not permitted" in done.stderr or "unrecognized option" in done.stderr:
        pytest.skip(f"setpriv may not do this here: {done.stderr.strip()}")
    return done


COMPILES_NOTHING = """
import sys
from pathlib import Path
from wsiseg.backend import _cpu_jit
from wsiseg.run.kernels import prepare_kernels

def known():
    return {(k.__module__, k.__name__, str(s)) for k in _cpu_jit._KERNELS for s in k.signatures}

prepare_kernels(features=True)
before = known()
assert len(before) >= 20, before
from tests.run.conftest import run_here
out = Path(sys.argv[1])
for number, args in enumerate((
    (sys.argv[2], "--mpp", "0.499"),  # resampled
    (sys.argv[2], "--mpp", "0.25", "--stain", "reinhard", "--tile", "400"),
    (sys.argv[2], "--mpp", "0.25", "--stain", "macenko", "--config", sys.argv[1] + "/no-halo.toml"),
    (sys.argv[3], "--tile", "2000"),
)):
    done = run_here("segment", *args, "--precision", "fp32", "--features", "--out", out / str(number))
    assert done.exit_code == 0, done.output
    assert known() == before, known() - before
print("nothing more")
"""


def test_after_it_a_run_compiles_nothing(crop_png: Path, tmp_path: Path) -> None:
    (tmp_path / "no-halo.toml").write_text("[read]\nhalo_wpx = 0\n[separate]\nmerge_depth_frac = 0.1\ncompactness = 0.0\n")
    command = [sys.executable, "-c", COMPILES_NOTHING, str(tmp_path), str(crop_png), str(SLIDE)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False)
    assert "nothing more" in done.stdout, done.stderr[-3000:]


def test_a_user_without_home_and_with_read_only_packages(tmp_path: Path) -> None:
    """Two workers on an empty cache: one compiles, the other loads; no folder ``~`` is made; the table is everybody's."""
    place, temporary = tmp_path / "place", tmp_path / "tmp"
    for folder in (place, temporary):
        folder.mkdir()
        folder.chmod(0o777)
    args = ("segment", SLIDE, "--tile", "2000", "--precision", "fp32")
    done = as_nobody(sys.executable, "-m", "wsiseg", *args, "--out", "out", "--workers", "2", cwd=place, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert [p.name for p in place.iterdir()] == ["out"], "nothing but the run, no folder named ~"
    lines = [json.loads(line) for line in (place / "out/log.jsonl").read_text().splitlines()]
    ready = [line for line in lines if line["event"] == "worker_ready"]
    assert sorted(r["compiled"] > 0 for r in ready) == [False, True], ready
    assert {Path(r["folder"]).parts[: len(temporary.parts)] for r in ready} == {temporary.parts}
    (kept,) = temporary.glob("wsiseg-cache-*")
    assert (kept.stat().st_uid, kept.stat().st_mode & 0o777) == (12345, 0o700)
    assert "CPU kernels compiled" in done.stderr
    assert "preparing CPU kernels" in done.stdout

    again = as_nobody(sys.executable, "-m", "wsiseg", "doctor", cwd=place, TMPDIR=str(temporary))
    assert again.returncode == 0, again.stdout + again.stderr
    (line,) = [words for words in again.stdout.splitlines() if "CPU kernels" in words]
    assert " 0 compiled" in line, "doctor needs what segment needs, and finds it"

    assert run_here(*args, "--out", tmp_path / "mine").exit_code == 0
    table = f"nuclei/{SLIDE.stem}.parquet"
    assert (place / "out" / table).read_bytes() == (tmp_path / "mine" / table).read_bytes()


@pytest.mark.parametrize("taken", ["nothing", "open to all", "a link", "a file"])
def test_the_private_folder_belongs_to_the_user(taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    usual = tmp_path / f"wsiseg-cache-{os.geteuid()}"
    if taken == "open to all":
        usual.mkdir()
        usual.chmod(0o777)
    elif taken == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        usual.symlink_to(tmp_path / "elsewhere")
    elif taken == "a file":
        usual.write_text("")
    folder = caches.private_folder()
    assert folder is not None
    assert (folder == usual) == (taken == "nothing")
    assert folder.lstat().st_mode & 0o7777 == 0o700
    assert not folder.is_symlink()
    assert caches.private_folder() == folder, "one folder a process"


def test_a_home_that_can_be_written_to_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "CUPY_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    caches.place_caches()
    assert dict(os.environ) == before


def test_without_a_home_libraries_get_an_absolute_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", "relative")  # as ``~`` is where neither HOME nor passwd says what it is
    for name in ("XDG_CACHE_HOME", "CUPY_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    caches.place_caches()
    for name in ("XDG_CACHE_HOME", "CUPY_CACHE_DIR", "MPLCONFIGDIR"):
        assert Path(os.environ[name]).is_relative_to(tmp_path / f"wsiseg-cache-{os.geteuid()}"), name
        monkeypatch.delenv(name)

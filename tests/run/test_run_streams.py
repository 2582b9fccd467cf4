"""A run does not depend on who listens: streams that are closed, full, left or know only ASCII, and no temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run.conftest import environment, run_here

CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--workers", "1")


@pytest.fixture(scope="module")
def clean(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that somebody listened to."""
    out = tmp_path_factory.mktemp("clean") / "out"
    assert run_here("segment", crop_png, *CROP, "--out", out).exit_code == 0
    return out


def shell(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which ``$wsiseg`` is the command line."""
    full = {**environment(), **env, "wsiseg": f"{sys.executable} -m wsiseg"}
    return subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, timeout=600, env=full, check=False)


@pytest.mark.parametrize(
    ("around", "env"),
    [
        ("{}; exit $?", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("{} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", {}),
        ("{} >&-", {}),
        ("{} >&- 2>&- <&-", {}),
        ("{} >/dev/full 2>/dev/full", {}),
    ],
    ids=["C locale", "head", "no stdout", "nothing open", "full"],
)
def test_tables_are_written_whoever_listens(
    around: str, env: dict[str, str], clean: Path, crop_png: Path, tmp_path: Path
) -> None:
    done = shell(around.format(f"$wsiseg segment {crop_png} {' '.join(CROP)} --out out"), tmp_path, **env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/nuclei/crop.parquet").read_bytes() == (clean / "nuclei/crop.parquet").read_bytes()
    for name in ("slides.parquet", "slides.csv", "errors.parquet"):
        assert (tmp_path / "out" / name).is_file()
    assert "Traceback" not in done.stderr
    if env:
        assert "mm²" in done.stdout


def test_lost_messages_are_reported(clean: Path, tmp_path: Path) -> None:
    full = shell(f"$wsiseg status {clean} > /dev/full", tmp_path)
    assert full.returncode == 2
    assert full.stderr.splitlines() == ["wsiseg: standard output could not be written: No space left on device."]
    left = shell(f"$wsiseg status {clean} | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (left.returncode, left.stderr) == (0, ""), "who does not want to hear more is no error"


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.svs")  # as Latin-1 file systems have them
    (tmp_path / name).write_bytes(b"no slide")
    for env in ({"LC_ALL": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8"}):
        done = shell("$wsiseg info caf*.svs", tmp_path, **env)
        assert done.returncode == 1
        assert "caf" in done.stdout
        assert "UnicodeEncodeError" not in done.stderr
        assert "Traceback" not in done.stderr, done.stderr


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    code = (
        "import os; from wsiseg.cli.streams import steady_streams; steady_streams(); "
        "f = open('table', 'wb'); assert f.fileno() > 2, f.fileno(); os.write(1, b'words'); os.system('echo of a child'); "
        "f.write(b'data'); f.close()"
    )
    done = shell(f'exec {sys.executable} -c "{code}" <&- >&- 2>&-', tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "table").read_bytes() == b"data"


def test_without_a_temporary_folder(clean: Path, crop_png: Path, tmp_path: Path) -> None:
    """In a mount namespace in which all of them are read-only, what the run makes in its own folder serves."""
    can = os.geteuid() == 0 and shutil.which("unshare") is not None
    if not can or subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], check=False).returncode:
        pytest.skip("needs a mount namespace of its own: root, unshare")
    folders = ("/tmp", "/var/tmp", "/usr/tmp")
    if any(str(path).startswith(f"{d}/") for d in folders for path in (sys.prefix, sys.base_prefix, __file__)):
        pytest.skip("Python or the checkout lies in a temporary folder itself: it would be hidden too")
    shutil.copyfile(crop_png, tmp_path / "crop.png")
    hidden = "; ".join(f"[ ! -d {d} ] || mount -t tmpfs -o ro,size=1m none {d}" for d in folders)
    inside = f"mount --bind {tmp_path} /mnt; {hidden}; cd /proc; "  # where no file can be made either
    inside += (
        f"$wsiseg segment /mnt/crop.png {' '.join(CROP)} --out /mnt/out; echo code $?; $wsiseg plan /mnt/crop.png --mpp 0.499"
    )
    env = {k: v for k, v in environment().items() if k not in ("TMPDIR", "TEMP", "TMP")}
    full = ["unshare", "-m", "env", "-i", *(f"{k}={v}" for k, v in env.items()), f"wsiseg={sys.executable} -m wsiseg"]
    done = subprocess.run([*full, "bash", "-c", inside], capture_output=True, text=True, timeout=600, check=False)
    assert "code 0" in done.stdout, done.stderr
    assert (tmp_path / "out/nuclei/crop.parquet").read_bytes() == (clean / "nuclei/crop.parquet").read_bytes()
    assert not list((tmp_path / "out").glob(".tmp*"))
    assert done.returncode == 2, "a plan has no folder of its own"
    assert "No usable temporary directory" in done.stderr
    assert "Traceback" not in done.stderr

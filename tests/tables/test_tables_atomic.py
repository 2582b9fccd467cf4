"""A file is there whole or not at all, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsiseg.tables import atomic_create_bytes, atomic_path, atomic_write_bytes, sweep_partials

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    for data in (b"one", b"two, longer", b""):
        atomic_write_bytes(target, data)
        assert target.read_bytes() == data
    assert names(tmp_path) == ["a.bin"]


def test_temporary_is_in_the_same_folder_and_is_recognizable(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.bin") as partial:
        partial.write_bytes(b"x")
        assert partial.parent == tmp_path
        assert partial.name.startswith(f".a.bin.{os.getpid()}-")
        assert partial.name.endswith(".partial")
        assert not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)], ids=lambda e: type(e).__name__)
def test_any_exception_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.bin"
    atomic_write_bytes(target, b"old")

    def write_half() -> None:
        with atomic_path(target) as partial:
            partial.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_full_disk_at_sync_surfaces_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        atomic_write_bytes(tmp_path / "a.bin", b"data")
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_missing_folder_surfaces(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomic_write_bytes(tmp_path / "nowhere" / "a.bin", b"data")


def test_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    atomic_write_bytes(tmp_path / "a.bin", b"data")
    assert (tmp_path / "a.bin").read_bytes() == b"data"


def test_kill_leaves_whole_files_and_sweepable_rests(tmp_path: Path) -> None:
    code = (
        "import sys, itertools; from wsiseg.tables import atomic_write_bytes\n"
        "for i in itertools.count():\n"
        "    atomic_write_bytes(sys.argv[1] + f'/{i % 7}.bin', bytes([i % 256]) * 4_000_000)\n"
    )
    for delay in (0.05, 0.11, 0.17):
        writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
        while not list(tmp_path.glob("*.bin")):
            time.sleep(0.01)
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    (tmp_path / ".left.bin.1.partial").write_bytes(b"rest")
    for path in tmp_path.glob("*.bin"):
        data = path.read_bytes()
        assert len(data) == 4_000_000
        assert data == data[:1] * len(data)
    whole = sorted(p.name for p in tmp_path.glob("[0-9].bin"))
    assert sweep_partials(tmp_path) >= 1
    assert names(tmp_path) == whole
    assert sweep_partials(tmp_path) == 0


def test_sweep_goes_below_and_accepts_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "s" / "t").mkdir(parents=True)
    (tmp_path / "s" / "t" / ".x.parquet.12.partial").touch()
    (tmp_path / "s" / "x.parquet").touch()
    assert sweep_partials(tmp_path) == 1
    assert (tmp_path / "s" / "x.parquet").exists()
    assert sweep_partials(tmp_path / "none") == 0


def test_size_limit_of_the_process_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself refuses the bytes half-way (EFBIG stands for ENOSPC, which needs a full disk)."""
    code = (
        "import sys; from wsiseg.tables import atomic_write_bytes\n"
        "try:\n    atomic_write_bytes(sys.argv[1] + '/a.bin', bytes(1_000_000))\n"
        "except OSError as err:\n    sys.exit(err.errno)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, preexec_fn=limit, check=False)
    assert done.returncode == errno.EFBIG
    assert names(tmp_path) == []


def test_of_many_makers_exactly_one_makes_it(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    target = tmp_path / "run.json"
    texts = [f"{k} ".encode() * 5000 for k in range(16)]
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda text: atomic_create_bytes(target, text), texts))
    assert sum(made) == 1
    assert target.read_bytes() == texts[made.index(True)]
    assert os.listdir(tmp_path) == ["run.json"]


def test_without_hard_links_the_file_is_still_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert atomic_create_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a"]

"""Hostile inputs and broken machines: a clear message, whole files only, nothing lost, and the same bytes in the end."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import tifffile
from click.testing import CliRunner
from distributed import LocalCluster
from PIL import Image

from tests.run.conftest import SLIDE, environment, run_here
from tests.run.gate import Gate
from wsiseg import atomic
from wsiseg.cli import main
from wsiseg.results.folder import RunFolder

# fp32: what auto means is found by a timing, which may come out otherwise in another run
CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32")


@pytest.fixture(scope="module")
def clean(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table that an undisturbed run makes."""
    out = tmp_path_factory.mktemp("clean") / "out"
    assert run_here("segment", crop_png, *CROP, "--out", out).exit_code == 0
    return (out / "nuclei/crop.parquet").read_bytes()


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """The run's messages to the user."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("wsiseg").addHandler(handler)
    yield messages
    logging.getLogger("wsiseg").removeHandler(handler)


def assert_whole_files_only(out: Path) -> None:
    for path in out.rglob("*.*"):
        assert "partial" not in path.name
        if path.suffix == ".parquet":
            pq.read_metadata(path)
        if path.suffix == ".json":
            json.loads(path.read_text())


@pytest.fixture
def svs(tmp_path: Path) -> tuple[Path, Path, int, bytes]:
    """A copy of the real slide with one damaged JPEG tile, a mask of the tissue around it, and how to mend it."""
    path, mask = tmp_path / "slide.svs", tmp_path / "mask.png"
    shutil.copyfile(SLIDE, path)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        across = -(-page.imagewidth // page.tilewidth)
        offset, size = page.dataoffsets[5 * across + 5], page.databytecounts[5 * across + 5]
        shape = page.imagelength, page.imagewidth
    with path.open("r+b") as file:
        file.seek(offset)
        good = file.read(size)
        file.seek(offset)
        file.write(bytes(size))
    tissue = np.zeros(shape, np.uint8)
    tissue[1210:1420, 900:1700] = 255  # tile (5, 5) is 1200..1440 on both axes
    Image.fromarray(tissue[::10, ::10]).save(mask)
    return path, mask, offset, good


def test_damaged_tile_costs_that_tile_only(svs: tuple[Path, Path, int, bytes], tmp_path: Path, warned: list[str]) -> None:
    path, mask, offset, good = svs
    out = tmp_path / "out"
    command = ("segment", path, "--tissue-mask", mask, "--tile", "400", "--retries", "1", "--out", out)
    first = run_here(*command)
    assert first.exit_code == 1, first.output
    (row,) = pq.read_table(out / "slides.parquet").to_pylist()
    errors = pq.read_table(out / "errors.parquet").to_pylist()
    assert row["status"] == "partial"
    assert row["tiles_failed"] == len(errors) > 0
    assert row["tiles_done"] > 0
    assert row["n_nuclei"] == pq.read_table(out / "nuclei/slide.parquet").num_rows > 0
    for error in errors:
        assert error["error"].startswith("TileReadError")
        assert error["attempts"] == 2
        assert 1200 - 300 < error["x_px"] < 1440 + 100
        assert f"tile {error['tile_id']}" in first.output
    parts = {p: p.stat().st_mtime_ns for p in (out / "parts/slide").glob("*.parquet")}
    assert len(parts) == row["tiles_done"]
    again = run_here(*command)
    assert again.exit_code == 1
    assert {p: p.stat().st_mtime_ns for p in (out / "parts/slide").glob("*.parquet")} == parts, "only failed tiles are tried"

    with path.open("r+b") as file:
        file.seek(offset)
        file.write(good)
    mended = run_here(*command)
    assert mended.exit_code == 0, mended.output
    assert any("from the start: mtime_ns was" in w for w in warned), "the file changed, which is reported"
    clean = run_here(*command[:-1], tmp_path / "clean")
    assert clean.exit_code == 0
    assert (out / "nuclei/slide.parquet").read_bytes() == (tmp_path / "clean/nuclei/slide.parquet").read_bytes()


@pytest.mark.parametrize("where", ["000004.parquet", "crop.parquet", "crop.json", "slides.parquet", "run.json"])
def test_full_disk_stops_and_resumes(
    where: str, crop_png: Path, clean: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("segment", crop_png, *CROP, "--out", out)
    sync = atomic._sync_file

    def full(path: Path) -> None:
        if where in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "_sync_file", full)
        stopped = run_here(*command)
    assert stopped.exit_code == 2, stopped.output
    assert "No space left on device" in stopped.output
    assert "free some space" in stopped.output
    assert_whole_files_only(out)
    parts = {p: p.stat().st_mtime_ns for p in (out / "parts/crop").glob("*.parquet")}
    assert parts or where in ("slides.parquet", "run.json", "crop.json")
    resumed = run_here(*command)
    assert resumed.exit_code == 0, resumed.output
    assert (out / "nuclei/crop.parquet").read_bytes() == clean
    assert_whole_files_only(out)


def test_damaged_parts_are_done_again(crop_png: Path, clean: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    command = ("segment", crop_png, *CROP, "--out", out, "--keep-parts")
    assert run_here(*command).exit_code == 0
    parts = sorted((out / "parts/crop").glob("*.parquet"))
    for k, part in enumerate(parts[:3]):
        data = bytearray(part.read_bytes())
        if k == 0:
            data = data[: len(data) // 2]
        else:
            data[len(data) // 3 * k] ^= 0x10
        part.write_bytes(data)
    kept = {p: p.stat().st_mtime_ns for p in parts[3:]}
    (out / "slides/crop.json").unlink()
    assert run_here(*command).exit_code == 0
    assert (out / "nuclei/crop.parquet").read_bytes() == clean
    assert {p: p.stat().st_mtime_ns for p in parts[3:]} == kept


def test_other_mpp_or_mask_of_a_slide_is_done_again_and_reported(crop_png: Path, tmp_path: Path, warned: list[str]) -> None:
    out, manifest, mask = tmp_path / "out", tmp_path / "m.csv", tmp_path / "mask.png"

    def run(mpp: float, mask_path: str) -> tuple[str, int]:
        warned.clear()
        manifest.write_text(f"path,mpp,tissue_mask\n{crop_png},{mpp},{mask_path}\n")
        done = run_here("segment", manifest, "--out", out)
        assert done.exit_code == 0, done.output
        return " ".join(warned), pq.read_table(out / "slides.parquet").to_pylist()[0]["n_nuclei"]

    _, first = run(0.499, "")
    reported, same = run(0.499, "")
    assert same == first
    assert "from the start" not in reported
    reported, _ = run(0.45, "")
    assert "given mpp was 0.499, is 0.45" in reported
    assert "from the start" in reported
    half = np.zeros((54, 62), np.uint8)
    half[:, :20] = 255
    Image.fromarray(half).save(mask)
    reported, fewer = run(0.499, str(mask))
    assert "from the start" in reported
    assert 0 < fewer < first


def test_second_run_on_a_folder_is_refused(crop_png: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out").exclusive():
        second = run_here("segment", crop_png, *CROP, "--out", tmp_path / "out")
    assert second.exit_code == 2
    assert "Another wsiseg run" in second.output
    assert "--out" in second.output


BAD = {
    "out below a file": (["segment", "CROP", "--mpp", "0.5", "--out", "FILE/x"], 2, "Choose another --out"),
    "empty argument": (["segment", "", "--out", "OUT"], 2, "SLIDE argument is empty"),
    "glob without match": (["segment", "nothing*.svs", "--out", "OUT"], 2, "no file matches"),
    "empty manifest": (["segment", "EMPTY.csv", "--out", "OUT"], 2, "names no slide"),
    "unknown weights": (["segment", "CROP", "--mpp", "0.5", "--out", "OUT", "--weights", "superb"], 2, "'open', 'research'"),
    "weights in a plan": (["plan", "CROP", "--mpp", "0.5", "--weights", "superb"], 2, "'open', 'research'"),
    "mask of another shape": (["segment", "CROP", "--mpp", "0.5", "--out", "OUT", "--tissue-mask", "WIDE.png"], 1, "aspect"),
    "tile too small": (["segment", "CROP", "--out", "OUT", "--tile", "3"], 2, "64 to 16384"),
    "unknown option": (["plan", "CROP", "--config", "tile_px = 400"], 2, "no option 'tile_px'"),
    "text for a number": (["plan", "CROP", "--config", 'tile_wpx = "400"'], 2, "read.tile_wpx to be a whole number, got '400'"),
    "fraction for a whole": (["plan", "CROP", "--config", "tile_wpx = 400.5"], 2, "a whole number, got 400.5"),
    "word out of a list": (["plan", "CROP", "--config", 'reader = "cuccim"'], 2, "'auto', 'cucim', 'openslide'"),
    "reader of old": (["plan", "CROP", "--config", 'reader = "cucim-gpu"'], 2, "was removed"),
    "broken TOML": (["plan", "CROP", "--config", "tile_wpx ="], 2, "line 2"),
    "info": (["info", "gone.svs", "FILE"], 1, "gone.svs: no such file"),
    "no mpp": (["plan", "CROP"], 1, "--mpp"),
    "overlay outside": (["overlay", "RUN", "crop", "--region", "9000,0,5,5", "-o", "o.png"], 2, "outside slide crop"),
    "overlay of nothing": (["overlay", "RUN", "crop", "--region", "0,0,0,5", "-o", "o.png"], 2, "above 0"),
    "overlay ending": (["overlay", "RUN", "crop", "-o", "o.gif"], 2, "ends in .png"),
    "overlay of no slide": (["overlay", "RUN", "corp", "-o", "o.png"], 2, "It has: crop"),
}


@pytest.fixture(scope="module")
def stage(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of an empty slide region and the odd files that the cases name."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "FILE").write_text("not a slide")
    (folder / "EMPTY.csv").write_text("path,mpp\n")
    Image.new("L", (400, 100), 255).save(folder / "WIDE.png")
    small = np.zeros((54, 62), np.uint8)
    small[:10, :10] = 255
    Image.fromarray(small).save(folder / "small.png")
    done = run_here("segment", crop_png, *CROP, "--tissue-mask", folder / "small.png", "--out", folder / "RUN")
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_explained(case: str, stage: Path, crop_png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stage)
    args, code, words = BAD[case]
    args = [str(crop_png) if a == "CROP" else a for a in args]
    if "--config" in args:
        k = args.index("--config") + 1
        (stage / "c.toml").write_text(f"[read]\n{args[k]}\n")
        args[k] = "c.toml"
    result = run_here(*args)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())


@pytest.mark.parametrize("name", ["-dash first.png", "späce [1] ü.png"])
def test_odd_names_are_slides_too(name: str, crop_png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copyfile(crop_png, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((54, 62), np.uint8)
    mask[:20, :20] = 255
    Image.fromarray(mask).save("mask.png")
    done = run_here("segment", *CROP, "--tissue-mask", "mask.png", "--out", "öut dir", "--", name)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "öut dir/nuclei" / f"{Path(name).stem}.parquet").is_file()


def started(crop_png: Path, out: Path, gate: Gate) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "wsiseg", "segment", str(crop_png), *CROP, "--workers", "2", "--out", str(out)]
    env = {**environment(), **gate.environment}
    return subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_event(process: subprocess.Popen[str], out: Path, name: str) -> None:
    """Wait until the log of the run has an event of this name."""
    deadline_s = time.monotonic() + 240
    while f'"{name}"' not in (out / "log.jsonl").read_text(encoding="utf-8"):
        assert time.monotonic() < deadline_s, f"no {name} in the log"
        assert process.poll() is None, f"the run ended before it logged {name}"
        time.sleep(0.01)


@pytest.mark.parametrize("second", ["at once", "while the workers are being closed"])
def test_ctrl_c_twice_at_everyone_is_one_clear_line(second: str, crop_png: Path, tmp_path: Path) -> None:
    out, gate = tmp_path / "out", Gate(tmp_path / "gate")
    process = started(crop_png, out, gate)
    gate.wait(process, 2, out / "parts/crop")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: client and workers
    if second != "at once":
        wait_for_event(process, out, "run_ended")  # the client is out of its loop; the workers are still at their tiles
    os.killpg(process.pid, signal.SIGINT)
    gate.open()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "the same command resumes" in stderr
    assert "Traceback" not in stderr
    assert_whole_files_only(out)


def test_killed_worker_is_replaced(crop_png: Path, clean: bytes, tmp_path: Path) -> None:
    out, gate = tmp_path / "out", Gate(tmp_path / "gate")
    process = started(crop_png, out, gate)
    gate.wait(process, 2, out / "parts/crop")
    workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    workers[0].wait(60)
    gate.open()
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "lost" in stderr, "the tile that it was at is done by another"
    assert (out / "nuclei/crop.parquet").read_bytes() == clean
    assert not any(psutil.pid_exists(w.pid) for w in workers)


def test_runs_that_share_a_cluster_keep_to_their_folders(crop_png: Path, clean: bytes, tmp_path: Path) -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        scheduler_kwargs={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
        silence_logs=50,
        memory_limit=0,
    ) as cluster:
        for name in ("first", "second"):
            args = ["segment", str(crop_png), *CROP, "--scheduler", cluster.scheduler_address, "--out", str(tmp_path / name)]
            done = CliRunner().invoke(main, args)
            assert done.exit_code == 0, done.output
            assert (tmp_path / name / "nuclei/crop.parquet").read_bytes() == clean

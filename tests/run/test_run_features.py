"""Features in the pass: the bytes of ``wsiseg features`` afterwards, whatever the tiles, the halo and the interruptions."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from tests.run.conftest import environment, run_here
from tests.run.gate import Gate
from wsiseg.results.folder import RunFolder
from wsiseg.run import tile as tile_module
from wsiseg.run.features import measure_features

FAST = ("--precision", "fp32", "--engine", "eager")
CROP = ("--mpp", "0.499", "--tile", "240", *FAST)


@pytest.fixture(scope="module")
def crop_png(crop_rgb: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "crop.png"
    Image.fromarray(crop_rgb[150:370, 200:450]).save(path)
    return path


def features_of(out: Path) -> bytes:
    return (out / "features/crop.parquet").read_bytes()


def measured_afterwards(out: Path, copy: Path) -> bytes:
    """Return what ``wsiseg features`` writes for a copy of a run without its features."""
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("features"))
    measure_features(copy, "crop")
    return features_of(copy)


def overlaps_of_two_tiles(table: Path) -> int:
    """Count pairs of nuclei of different tiles that have an area in common."""
    found = pq.read_table(table, columns=["geometry", "tile_id"])
    shapes, tile = shapely.from_wkb(found["geometry"].to_numpy()), found["tile_id"].to_numpy()
    a, b = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    apart = tile[a] < tile[b]
    return int((shapely.area(shapely.intersection(shapes[a[apart]], shapes[b[apart]])) > 0).sum())


@pytest.fixture(scope="module")
def plain(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without features that keeps its parts."""
    out = tmp_path_factory.mktemp("plain") / "out"
    done = run_here("segment", crop_png, *CROP, "--keep-parts", "--out", out)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="module")
def expected(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return measured_afterwards(plain, tmp_path_factory.mktemp("expected") / "out")


def test_resampled_tiles_give_the_bytes_of_wsiseg_features(
    crop_png: Path, plain: Path, expected: bytes, tmp_path: Path
) -> None:
    done = run_here("segment", crop_png, *CROP, "--features", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert features_of(tmp_path / "out") == expected
    assert (tmp_path / "out/nuclei/crop.parquet").read_bytes() == (plain / "nuclei/crop.parquet").read_bytes()
    (row,) = pq.read_table(tmp_path / "out/slides.parquet").to_pylist()
    assert row["seconds_features"] > 0
    assert pq.read_table(plain / "slides.parquet")["seconds_features"].null_count == 1


@pytest.mark.parametrize("halo", [0, 6])
def test_nuclei_that_overlap_across_tiles_are_measured_as_they_lie(halo: int, crop_png: Path, tmp_path: Path) -> None:
    """With a halo smaller than a nucleus two tiles cut the same tissue differently."""
    (tmp_path / "c.toml").write_text(f"[read]\nhalo_wpx = {halo}\ntile_wpx = 96\n[write]\nfeatures = true\n")
    out = tmp_path / "out"
    done = run_here("segment", crop_png, "--mpp", "0.499", *FAST, "--config", tmp_path / "c.toml", "--out", out)
    assert done.exit_code == 0, done.output
    assert (overlaps_of_two_tiles(out / "nuclei/crop.parquet") > 0) == (halo > 0)
    assert features_of(out) == measured_afterwards(out, tmp_path / "copy")


def test_parts_of_a_run_without_features_are_measured_and_not_computed_again(
    crop_png: Path, plain: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain, out)
    folder = RunFolder(out)
    for path in (folder.table("crop"), folder.slide_json("crop")):  # as if it had been killed before it was finished
        path.unlink()

    def compute(*args: object) -> None:
        raise AssertionError("the network runs again")

    monkeypatch.setattr(tile_module, "_compute", compute)
    done = run_here("segment", crop_png, *CROP, "--features", "--out", out)
    assert done.exit_code == 0, done.output
    assert features_of(out) == expected
    assert folder.table("crop").read_bytes() == (plain / "nuclei/crop.parquet").read_bytes()


def test_a_slide_that_was_finished_without_them_is_measured_afterwards(
    crop_png: Path, plain: Path, expected: bytes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(plain, out)
    done = run_here("segment", crop_png, *CROP, "--features", "--out", out)
    assert done.exit_code == 0, done.output
    assert features_of(out) == expected


def test_killed_and_resumed(crop_png: Path, expected: bytes, tmp_path: Path) -> None:
    out, gate = tmp_path / "out", Gate(tmp_path / "gate", passes=2)
    command = [sys.executable, "-m", "wsiseg", "segment", str(crop_png), *CROP, "--features", "--out", str(out), "-q"]
    env = {**environment(), **gate.environment}
    run = subprocess.Popen([*command, "--workers", "1"], env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    gate.wait(run, 1, out / "parts/crop")
    os.killpg(run.pid, signal.SIGKILL)
    run.wait(60)
    assert not (out / "features").exists()
    done = run_here(*command[3:])
    assert done.exit_code == 0, done.output
    assert features_of(out) == expected


def test_a_slide_that_is_fetched_and_dropped_has_them(crop_png: Path, expected: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run_here("segment", f"file://{crop_png}", *CROP, "--features", "--out", out)
    assert done.exit_code == 0, done.output
    assert not (out / "staged").exists()
    found, wanted = pq.read_table(out / "features/crop.parquet"), pq.read_table(pa.BufferReader(expected))
    assert found.equals(wanted)


def test_a_slide_without_a_nucleus_has_an_empty_table(tmp_path: Path) -> None:
    Image.fromarray(np.full((300, 300, 3), 240, np.uint8)).save(tmp_path / "crop.png")
    done = run_here("segment", tmp_path / "crop.png", *CROP, "--features", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert pq.read_metadata(tmp_path / "out/features/crop.parquet").num_rows == 0
    assert features_of(tmp_path / "out") == measured_afterwards(tmp_path / "out", tmp_path / "copy")

"""The main job end to end on real pixels: same bytes, nothing lost, clear refusals."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

from tests.run.conftest import SLIDE, environment, run_here, wsiseg
from tests.run.gate import Gate

TILE = ("--tile", "400", "--workers", "2", "--precision", "fp32")


@pytest.fixture(scope="module")
def run(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    done = run_here("segment", crop_png, "--mpp", "0.499", "--cohort", "CMU", "--out", out, *TILE)
    assert done.exit_code == 0, done.output
    return out


def test_table_statistics_and_record_agree(run: Path) -> None:
    table = pq.read_table(run / "nuclei" / "crop.parquet")
    (row,) = pq.read_table(run / "slides.parquet").to_pylist()
    assert row["n_nuclei"] == table.num_rows > 50
    assert row["cohort"] == "CMU"
    assert row["status"] == "done"
    assert row["mpp_source"] == "user"
    areas = np.asarray(table["area_um2"], dtype=np.float64)
    assert row["area_mean_um2"] == pytest.approx(areas.mean(), rel=1e-5)
    assert row["area_std_um2"] == pytest.approx(areas.std(), rel=1e-4)
    assert row["area_p50_um2"] == pytest.approx(np.median(areas), rel=0.01)
    assert row["nuclei_per_mm2"] == pytest.approx(table.num_rows / row["tissue_mm2"])
    polygons = shapely.from_wkb(table["geometry"].to_numpy(zero_copy_only=False))
    assert shapely.is_valid(polygons).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(polygons)).all()
    assert shapely.area(polygons) * 0.499**2 == pytest.approx(areas, rel=0.02)
    record = json.loads((run / "run.json").read_text())
    assert record["results"]["weights_sha256"]
    assert not (run / "parts" / "crop").exists()


def test_two_worker_processes_give_the_same_bytes(run: Path, crop_png: Path, tmp_path: Path) -> None:
    again = wsiseg("segment", crop_png, "--mpp", "0.499", "--cohort", "CMU", "--out", tmp_path / "out", *TILE)
    assert again.returncode == 0, again.stderr
    assert "nuclei" in again.stdout
    assert "Traceback" not in again.stdout + again.stderr
    assert (tmp_path / "out/nuclei/crop.parquet").read_bytes() == (run / "nuclei/crop.parquet").read_bytes()


def test_same_command_again_does_nothing(run: Path, crop_png: Path) -> None:
    before = (run / "nuclei/crop.parquet").stat().st_mtime_ns
    again = run_here("segment", crop_png, "--mpp", "0.499", "--cohort", "CMU", "--out", run, *TILE)
    assert again.exit_code == 0, again.output
    assert (run / "nuclei/crop.parquet").stat().st_mtime_ns == before


def test_other_settings_are_refused_by_name(run: Path, crop_png: Path) -> None:
    other = run_here("segment", crop_png, "--mpp", "0.499", "--out", run, "--tile", "500", "--min-area-um2", "9")
    assert other.exit_code == 2
    assert "read.tile_wpx: folder has 400, this run has 500" in other.output
    assert "separate.min_area_um2" in other.output


def test_killed_at_random_moments_resumes_to_the_same_bytes(run: Path, crop_png: Path, tmp_path: Path) -> None:
    rng = random.Random(20)
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "wsiseg",
        "segment",
        str(crop_png),
        "--mpp",
        "0.499",
        "--cohort",
        "CMU",
        "--out",
        str(out),
        *TILE,
    ]
    (row,) = pq.read_table(run / "slides.parquet").to_pylist()
    gate, parts = Gate(tmp_path / "gate"), out / "parts" / "crop"
    for _ in range(5):
        before = len(list(parts.glob("*.parquet")))
        passes = row["tiles_done"] - before - 1
        gate.close(passes)  # the last tile waits: no kill comes too late
        process = subprocess.Popen(
            command,
            env={**environment(), **gate.environment},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while len(list(parts.glob("*.parquet"))) == before if passes else not gate.waiting():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.random() * 0.3)
        os.killpg(process.pid, signal.SIGKILL)  # client, scheduler and workers at once
        process.wait()
        assert any(parts.glob("*.parquet")), "the kills must hit a run that has work done"
        for table in (out / "nuclei").glob("*.parquet"):
            pq.read_metadata(table)  # whole or not there
    done = run_here(*command[3:])
    assert done.exit_code == 0, done.output
    assert (out / "nuclei/crop.parquet").read_bytes() == (run / "nuclei/crop.parquet").read_bytes()
    leftovers = [p for p in out.rglob("*") if "partial" in p.name]
    assert not leftovers


def test_bad_slides_are_entries_not_stops(crop_png: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    (slides / "good.png").write_bytes(crop_png.read_bytes())
    (slides / "broken.svs").write_bytes(b"this is not a slide" * 50)
    (slides / "truncated.svs").write_bytes(SLIDE.read_bytes()[:200_000])
    Image.new("RGB", (600, 500), (255, 255, 255)).save(slides / "white.png")
    manifest = slides / "m.csv"
    manifest.write_text("path,mpp\ngood.png,0.499\nbroken.svs,\ntruncated.svs,\nwhite.png,0.499\nnompp.png,\n")
    (slides / "nompp.png").write_bytes(crop_png.read_bytes())
    done = run_here("segment", manifest, "--out", tmp_path / "out", *TILE)
    assert done.exit_code == 1, done.output
    assert "3 failed" in done.output
    rows = {r["slide_id"]: r for r in pq.read_table(tmp_path / "out/slides.parquet").to_pylist()}
    assert {k: v["status"] for k, v in rows.items()} == {
        "good": "done",
        "broken": "failed",
        "truncated": "failed",
        "white": "empty",
        "nompp": "failed",
    }
    assert "MissingMppError" in rows["nompp"]["error"]
    assert "--mpp" in rows["nompp"]["error"]
    assert pq.read_table(tmp_path / "out/nuclei/white.parquet").num_rows == 0
    errors = pq.read_table(tmp_path / "out/errors.parquet").to_pylist()
    assert {e["slide_id"] for e in errors} == {"broken", "truncated", "nompp"}

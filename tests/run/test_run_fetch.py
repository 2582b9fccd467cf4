"""Slides of a manifest, fetched from a server that misbehaves: tables as of a run on local files, nothing fetched in vain."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image
from pydicom.uid import generate_uid

from tests.fetch.gdc_server import GdcServer, gdc_server
from tests.fetch.s3_server import s3_server
from tests.run.conftest import environment, run_here, wsiseg
from tests.run.dicoms import dicom_level
from tests.run.hosts import Hosts, reached

CROP = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32", "--engine", "eager")
NAMES = [f"TCGA-0{k}-DX1.{'abcdef'[k]}0" for k in range(6)]
TOKEN = "token-that-nobody-may-see-4f1d"


@pytest.fixture(scope="module")
def slides(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six crops of a real slide."""
    folder = tmp_path_factory.mktemp("slides")
    with Image.open(crop_png) as crop:
        for k, name in enumerate(NAMES):
            crop.crop((k * 60, k * 50, k * 60 + 220, k * 50 + 200)).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def local(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on local files."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert run_here("segment", slides, *CROP, "--out", out).exit_code == 0
    return out


@pytest.fixture
def server(tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GdcServer]:
    """A GDC server that has the slides and requires a token."""
    with gdc_server(tmp_path / "server") as running:
        monkeypatch.setenv("WSISEG_GDC_API", running.address)
        for k, name in enumerate(NAMES):
            running.put(f"id-{k}", (slides / f"{name}.png").read_bytes())
        (running.folder / "token").write_text(TOKEN)
        (tmp_path / "token.txt").write_text(TOKEN + "\n")
        yield running


def gdc_manifest(path: Path, slides: Path) -> Path:
    lines = ["id\tfilename\tmd5\tsize\tstate"]
    for k, name in enumerate(NAMES):
        data = (slides / f"{name}.png").read_bytes()
        lines.append(f"id-{k}\t{name}.png\t{hashlib.md5(data).hexdigest()}\t{len(data)}\treleased")
    lines.insert(2, f"id-x\tclinical.xml\t{'0' * 32}\t5\treleased")
    path.write_text("\n".join(lines) + "\n")
    return path


def assert_tables_equal(out: Path, local: Path, names: list[str] = NAMES) -> None:
    made = {p.name for p in (out / "nuclei").glob("*.parquet")}
    assert made == {f"{n}.parquet" for n in names}
    for name in made:
        assert (out / "nuclei" / name).read_bytes() == (local / "nuclei" / name).read_bytes(), name


def assert_no_secret(folder: Path, *texts: str) -> None:
    for text in texts:
        assert TOKEN not in text
    for path in folder.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path


def test_a_manifest_from_a_server_that_misbehaves(
    server: GdcServer, slides: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsiseg.fetch.download.REPORT_WAIT_S", 0.0)  # the workers are of this process
    size = (slides / f"{NAMES[3]}.png").stat().st_size
    # the first answer is to the question of the size, then every range of id-2 is wrong bytes once
    server.rules(**{"id-1": ["404 always"], "id-2": ["429 0", *["wrong"] * 3], "id-3": [f"cut {size // 9}"] * 4})
    out = tmp_path / "out"
    command = ("segment", gdc_manifest(tmp_path / "manifest.txt", slides), *CROP, "--out", out)
    done = run_here(*command, "--gdc-token-file", tmp_path / "token.txt")
    assert done.exit_code == 1, done.output
    assert_tables_equal(out, local, [*NAMES[:1], *NAMES[2:]])
    (error,) = pq.read_table(out / "errors.parquet").to_pylist()
    assert error["slide_id"] == NAMES[1]
    assert f"{server.address}/data/id-1: HTTP 404" in error["error"]
    assert "manifest.txt, line 4" in error["error"]
    assert f"slide {NAMES[2]}: {server.address}/data/id-2: HTTP 429" in (out / "log.jsonl").read_text(), "waits are reported"
    assert not (out / "staged").exists(), "nothing is left"
    assert "of the GDC manifest, ending .xml, no slide: 1 (clinical.xml)" in done.output
    assert_no_secret(out, done.output)
    rows = {r["slide_id"]: r for r in pq.read_table(out / "slides.parquet").to_pylist()}
    assert rows[NAMES[0]]["path"] == f"{server.address}/data/id-0"

    n = len(server.log())
    again = run_here(*command, "--gdc-token-file", tmp_path / "token.txt")
    assert again.exit_code == 1
    assert {e["id"] for e in server.log()[n:]} == {"id-1"}, "finished slides are not fetched again"
    server.rules()
    retried = run_here("segment", "--retry-failed", "--out", out, "--gdc-token-file", tmp_path / "token.txt")
    assert retried.exit_code == 0, retried.output
    assert_tables_equal(out, local)
    assert pq.read_metadata(out / "errors.parquet").num_rows == 0


def test_without_a_token_every_slide_is_a_row_of_error_that_states_it(server: GdcServer, slides: Path, tmp_path: Path) -> None:
    done = run_here("segment", gdc_manifest(tmp_path / "m.tsv", slides), *CROP, "--out", tmp_path / "out")
    assert done.exit_code == 1
    errors = pq.read_table(tmp_path / "out/errors.parquet").to_pylist()
    assert len(errors) == 6
    assert all("HTTP 401, no token was given" in e["error"] and "--gdc-token-file" in e["error"] for e in errors)


def test_killed_at_any_moment_the_same_command_continues(server: GdcServer, slides: Path, local: Path, tmp_path: Path) -> None:
    """What is finished, and every byte that is staged, is not fetched again: the server's log is the witness."""
    out = tmp_path / "out"
    server.rules(**{"id-1": ["404 always"]})
    (server.folder / "rate").write_text("150000")  # slow enough that the kill meets fetches and tiles
    manifest = gdc_manifest(tmp_path / "manifest.txt", slides)
    command = ["segment", manifest, *CROP, "--out", out, "--workers", "1", "--stage-gb", "0.0004"]
    command_line = [sys.executable, "-m", "wsiseg", *map(str, command)]
    env = {**environment(), "GDC_TOKEN": TOKEN}
    to_us = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    run = subprocess.Popen(command_line, env=env, start_new_session=True, **to_us)
    deadline = time.monotonic() + 120
    while len(list(out.glob("slides/*.json"))) < 2 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.random())
    os.killpg(run.pid, signal.SIGKILL)
    printed = run.communicate()[0]
    finished = {p.stem for p in out.glob("slides/*.json") if json.loads(p.read_text())["row"]["status"] == "done"}
    staged = {p.parent.name for p in out.glob("staged/*/fetched.json")}
    n = len(server.log())
    again = subprocess.run(command_line, env=env, timeout=300, check=False, **to_us)
    assert again.returncode == 1, again.stdout
    assert_tables_equal(out, local, [*NAMES[:1], *NAMES[2:]])
    fetched = {NAMES[int(e["id"][-1])] for e in server.log()[n:]}
    assert finished
    assert not fetched & (finished | staged)
    assert not (out / "staged").exists()
    assert_no_secret(out, printed, again.stdout)


def test_a_bucket_with_a_folder_of_slides(slides: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        for name in NAMES[:2]:
            bucket.put(f"cohort/{name}.png", (slides / f"{name}.png").read_bytes())
        out = tmp_path / "out"
        done = run_here("segment", "s3://slides/cohort/", *CROP, "--out", out, "--keep-staged", "--stage", tmp_path / "stage")
        assert done.exit_code == 0, done.output
        assert_tables_equal(out, local, NAMES[:2])
        kept = {p.name: p.read_bytes() for p in (tmp_path / "stage").rglob("*.png")}
        assert kept == {f"{n}.png": (slides / f"{n}.png").read_bytes() for n in NAMES[:2]}


def test_a_slide_larger_than_the_staging_folder_is_reported(server: GdcServer, slides: Path, tmp_path: Path) -> None:
    command = ("segment", gdc_manifest(tmp_path / "m.txt", slides), *CROP, "--out", tmp_path / "out", "--stage-gb", "0.00001")
    done = run_here(*command, "--gdc-token-file", tmp_path / "token.txt")
    assert done.exit_code == 1
    assert "exceed the limit of the staging folder, 0.000 GB (--stage-gb)" in done.output
    assert not server.log()


def test_of_two_hosts_each_fetches_its_own_slides_and_none_twice(
    server: GdcServer, slides: Path, local: Path, tmp_path: Path
) -> None:
    """Workers of two hosts, each with a staging folder of its own on what happens to be one disk."""
    out = tmp_path / "out"
    nothing = [{"do": "EIO", "at": "tile", "times": 0, "host": "nobody"}]
    env = {"WSISEG_GDC_API": server.address, "GDC_TOKEN": TOKEN}
    with Hosts(tmp_path / "hosts", rules=nothing, names=("one", "two"), env=env) as hosts:
        command = ["segment", gdc_manifest(tmp_path / "m.txt", slides), *CROP, "--out", out, "--scheduler", reached(hosts)]
        wait = "import sys; from distributed import Client; Client(sys.argv[1], timeout=60).wait_for_workers(2, timeout=120)"
        subprocess.run([sys.executable, "-c", wait, hosts.address], env=environment(), check=True, timeout=200)
        refused = wsiseg(*command)
        done = wsiseg(*command, "--stage", tmp_path / "stage", timeout=400)
    assert refused.returncode == 2
    assert "--stage" in refused.stderr
    assert done.returncode == 0, done.stderr
    assert_tables_equal(out, local)
    fetched = [e for e in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if e["event"] == "slide_fetched"]
    assert sorted(e["slide_id"] for e in fetched) == sorted(NAMES), "none twice"
    assert {e["host"] for e in fetched} <= {"one", "two"}
    for k, name in enumerate(NAMES):
        assert server.sent(f"id-{k}") == (slides / f"{name}.png").stat().st_size + 1, "and the byte by which the size is asked"
    assert not list((tmp_path / "stage").rglob("*.png"))


def test_of_a_series_in_a_bucket_the_needed_levels_are_fetched(
    tmp_path: Path, crop_rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    series = generate_uid()
    whole = tmp_path / "series.dicom"
    whole.mkdir()
    for k, step in enumerate((1, 2, 4)):
        path = dicom_level(whole / f"{k}.dcm", np.ascontiguousarray(crop_rgb[::step, ::step]), series, mpp=0.499 * step)
        d = pydicom.dcmread(path)
        d.ImagedVolumeWidth, d.ImagedVolumeHeight = (n * 0.499 / 1000 for n in crop_rgb.shape[1::-1])
        d.save_as(path)
    dicom_level(whole / "label.dcm", crop_rgb[:200, :200], series, flavor="LABEL")
    options = CROP[2:]
    assert run_here("segment", whole, *options, "--out", tmp_path / "local").exit_code == 0
    with s3_server() as bucket:
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        for path in whole.iterdir():
            bucket.put(f"idc/{path.name}", path.read_bytes())
        (tmp_path / "m.s5cmd").write_text("cp s3://slides/idc/* .\n")
        more = ("--keep-staged", "--stage", tmp_path / "stage")
        done = run_here("segment", tmp_path / "m.s5cmd", *options, "--out", tmp_path / "out", *more)
    assert done.exit_code == 0, done.output
    kept = {p.name for p in (tmp_path / "stage").rglob("*.dcm")}
    assert "0.dcm" in kept
    assert "label.dcm" not in kept
    assert kept < {p.name for p in whole.iterdir()}
    ours, theirs = (
        pq.read_table(tmp_path / f"{run}/nuclei/{name}.parquet") for run, name in (("out", "idc"), ("local", "series"))
    )
    assert ours.num_rows > 20
    assert ours.equals(theirs), "the same nuclei as of the whole series on disk"

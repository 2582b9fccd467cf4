"""Malformed input is refused with words or read; it never crashes the run, hangs it, or writes beside its folder.

A few hundred cases here; benchmarks/fuzz.py runs the same targets by the thousand.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from tests.fuzz import targets
from tests.run.conftest import run_here
from wsiseg.errors import SlideOpenError
from wsiseg.read import open_slide
from wsiseg.run.verify import verify_run

quick = settings(
    max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@quick
@given(st.integers(0, 2**31))
def test_slides(seed: int) -> None:
    with targets.scratch_folder() as scratch:
        assert targets.slide_case(seed, scratch) in ("accepted", "refused", "out of memory", "crashed")


@quick
@given(targets.tiff_metadata)
def test_tiff_metadata(case: object) -> None:
    targets.metadata_case(case, Path())


@quick
@given(targets.manifest)
def test_manifests(case: object) -> None:
    with targets.scratch_folder() as scratch:
        targets.manifest_case(case, scratch)


@quick
@given(targets.config)
def test_configs(case: object) -> None:
    with targets.scratch_folder() as scratch:
        targets.config_case(case, scratch)


@quick
@given(targets.import_seed)
def test_imports(seed: int) -> None:
    with targets.scratch_folder() as scratch:
        targets.import_case(seed, scratch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two tiny slides, one of which failed."""
    folder = tmp_path_factory.mktemp("whole")
    return targets.small_run(folder, run_here)


@quick
@given(targets.run_seed)
def test_run_folders(whole: Path, seed: int) -> None:
    with targets.scratch_folder() as scratch:
        targets.run_folder_case((seed, whole), scratch)


@pytest.fixture(scope="module")
def server(whole: Path) -> Iterator[tuple[int, str]]:
    pytest.importorskip("starlette", reason="the review page needs the extra 'review'")
    with targets.review_server(whole) as found:
        yield found


@quick
@given(targets.request)
def test_review_requests(server: tuple[int, str], case: object) -> None:
    targets.request_case(case, *server)


def test_a_run_continues_after_slides_that_are_garbage(tmp_path: Path) -> None:
    import random

    slides = tmp_path / "slides"
    slides.mkdir()
    for k in range(6):
        (slides / f"bad{k}.svs").write_bytes(
            targets.damaged(targets.small_tiff(k), random.Random(k))[: 3000 if k < 3 else None]
        )
    Image.new("RGB", (300, 300), "white").save(slides / "white.png")
    done = run_here("segment", slides, "--mpp", "0.5", "--out", tmp_path / "out")
    assert done.exit_code in (0, 1), done.output
    rows = {r["slide_id"]: r for r in pq.read_table(tmp_path / "out/slides.parquet").to_pylist()}
    assert len(rows) == 7
    assert rows["white"]["status"] == "empty"
    assert rows["bad0"]["status"] == "failed"
    assert verify_run(tmp_path / "out").ok


def test_decompression_bombs_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    line = zlib.compressobj(9)
    side = 40_000
    data = b"".join(line.compress(bytes(1 + side * 3)) for _ in range(200)) + line.flush()  # the rest of the lines is not there
    with path.open("wb") as stream:
        stream.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(stream, b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0")
        PngImagePlugin.putchunk(stream, b"IDAT", data)
        PngImagePlugin.putchunk(stream, b"IEND")
    start = time.process_time()
    with pytest.raises(SlideOpenError, match="decompression bomb"):
        open_slide(path, mpp=0.25)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("side", [2**25, 2**31 - 1])
def test_absurd_sizes_are_refused_with_a_message(side: int, tmp_path: Path) -> None:
    path = tmp_path / "absurd.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(np.zeros((256, 256, 3), np.uint8), tile=(256, 256), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for name in ("ImageWidth", "ImageLength"):
            tiff.pages[0].tags[name].overwrite(side, dtype="I")
    with pytest.raises(SlideOpenError):
        open_slide(path, mpp=0.25)


def test_a_slide_is_never_a_way_out_of_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    manifest = tmp_path / "m.csv"
    for name in ("x/..", "..", "x/../.."):
        manifest.write_text(f"path,mpp\n{name},0.5\n")
        done = run_here("segment", manifest, "--out", tmp_path / "out")
        assert done.exit_code == 2, (name, done.output)
        assert "plain name" in done.output
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.parquet"))


def test_threads_are_not_left_behind(server: tuple[int, str]) -> None:
    targets.request_case(("GET", "/api/state", "", b"", "own"), *server)
    assert threading.active_count() < 60

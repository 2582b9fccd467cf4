"""Copies of slides on a local disk: made once, bounded, of the file as it is now, gone in the end."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.run.conftest import run_here
from wsiseg.errors import SlideOpenError
from wsiseg.results import staging
from wsiseg.results.staging import drop_finished, prefetch, staged

ENOUGH_BYTES = 10**9


def slide(folder: Path, name: str = "a.svs", size: int = 1000) -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


def test_a_copy_is_made_once_and_again_when_the_slide_changed(tmp_path: Path) -> None:
    source, root = slide(tmp_path), tmp_path / "stage"
    copy = staged(source, "a", root, ENOUGH_BYTES)
    assert copy.read_bytes() == source.read_bytes()
    assert copy != source
    made = copy.stat().st_ino
    assert staged(source, "a", root, ENOUGH_BYTES).stat().st_ino == made
    slide(tmp_path, size=900)
    again = staged(source, "a", root, ENOUGH_BYTES)
    assert again.read_bytes() == source.read_bytes()


def test_of_many_workers_one_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = slide(tmp_path), tmp_path / "stage"
    copies = []
    copy = shutil.copy2
    monkeypatch.setattr(shutil, "copy2", lambda a, b: copies.append(a) or copy(a, b))
    workers = [threading.Thread(target=staged, args=(source, "a", root, ENOUGH_BYTES)) for _ in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(copies) == 1


def test_the_bound_holds_and_what_does_not_fit_is_read_where_it_is(tmp_path: Path) -> None:
    first, second, root = slide(tmp_path, "a.svs"), slide(tmp_path, "b.svs"), tmp_path / "stage"
    assert staged(first, "a", root, 1999).is_relative_to(root)
    assert staged(second, "b", root, 1999) == second
    finished = tmp_path / "slides"
    finished.mkdir()
    drop_finished(root, finished)
    assert (root / "a").exists(), "a slide in work is kept"
    (finished / "a.json").touch()
    drop_finished(root, finished)
    assert not (root / "a").exists()
    assert staged(second, "b", root, 1999).is_relative_to(root)


def test_folders_and_mirax_are_copied_whole_and_loose_files_are_not(tmp_path: Path) -> None:
    root = tmp_path / "stage"
    series = tmp_path / "series"
    series.mkdir()
    slide(series, "1.dcm")
    slide(series, "2.dcm")
    assert {p.name for p in staged(series, "series", root, ENOUGH_BYTES).iterdir()} == {"1.dcm", "2.dcm"}
    (tmp_path / "m").mkdir()
    slide(tmp_path / "m", "Data0001.dat")
    copy = staged(slide(tmp_path, "m.mrxs"), "m", root, ENOUGH_BYTES)
    assert (copy.parent / "m/Data0001.dat").read_bytes() == (tmp_path / "m/Data0001.dat").read_bytes()
    assert staged(series / "1.dcm", "1", root, ENOUGH_BYTES) == series / "1.dcm"


def test_a_full_disk_is_no_failure_but_a_bad_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, root = slide(tmp_path), tmp_path / "stage"

    def broken(number: int) -> None:
        def copy(a: object, b: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(shutil, "copy2", copy)

    broken(errno.ENOSPC)
    assert staged(source, "a", root, ENOUGH_BYTES) == source
    broken(errno.EIO)
    with pytest.raises(SlideOpenError, match="could not be copied"):
        staged(source, "a", root, ENOUGH_BYTES)
    assert not [p for p in root.rglob("*") if p.name != ".copying"], "nothing half is left"
    prefetch(source, "a", root, ENOUGH_BYTES)  # fails unseen: it is tried again when it is its turn


def test_a_run_with_copies_gives_the_same_bytes_and_records_what_could_not_be_copied(
    crop_png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = tmp_path / "slides"
    slides.mkdir()
    with Image.open(crop_png) as crop:
        for k, name in enumerate(("a", "b", "c")):
            crop.crop((k * 150, 0, k * 150 + 300, 260)).save(slides / f"{name}.png")
    options = ("--mpp", "0.499", "--tile", "400", "--precision", "fp32")
    plain = run_here("segment", slides, *options, "--out", tmp_path / "plain")
    assert plain.exit_code == 0, plain.output
    copied: list[str] = []
    copy = shutil.copy2

    def seen(source: Path, target: Path) -> None:
        if Path(source).name == "b.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        copied.append(Path(source).name)
        copy(source, target)

    monkeypatch.setattr(staging.shutil, "copy2", seen)
    done = run_here("segment", slides, *options, "--out", tmp_path / "out", "--stage", tmp_path / "stage")
    assert done.exit_code == 1, done.output
    assert sorted(copied) == ["a.png", "c.png"]
    for name in ("a", "c"):
        same = (tmp_path / f"out/nuclei/{name}.parquet").read_bytes()
        assert same == (tmp_path / f"plain/nuclei/{name}.parquet").read_bytes()
    rows = {r["slide_id"]: r for r in pq.read_table(tmp_path / "out/slides.parquet").to_pylist()}
    assert rows["a"]["path"] == str(slides / "a.png"), "the slide's own name, not the copy's"
    assert rows["b"]["status"] == "failed"
    assert "could not be copied" in rows["b"]["error"]
    assert not list((tmp_path / "stage").iterdir()), "no copy is left"

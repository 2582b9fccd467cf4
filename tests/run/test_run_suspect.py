"""Slides on which nothing is found: blank glass is empty, all else is suspect, named with its reason and in the exit code."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.run.conftest import run_here

SIDE = 640
ARGS = ("--mpp", "0.5", "--workers", "1", "--precision", "fp32")


def flat(color: tuple[int, int, int], noise: float, seed: int = 0) -> np.ndarray:
    pixels = np.asarray(color) + np.random.default_rng(seed).normal(0, noise, (SIDE, SIDE, 3))
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def slides(crop_rgb: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good slide, blank glass, stained tissue without a nucleus, ink alone, nothing but black."""
    folder = tmp_path_factory.mktemp("nothing")
    ink = flat((244, 244, 245), 1)
    ink[100:500, 100:500] = (30, 150, 110)
    pictures = {
        "blank": flat((240, 240, 241), 2),
        "black": np.zeros((SIDE, SIDE, 3), np.uint8),
        "good": crop_rgb,
        "ink": ink,
        "muscle": flat((226, 150, 190), 1),
    }
    for name, rgb in pictures.items():
        Image.fromarray(rgb).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def run(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("suspect") / "out"
    done = run_here("segment", slides, "--out", out, *ARGS)
    assert done.exit_code == 1, done.output
    return out, done.output


def rows(out: Path) -> dict[str, dict]:
    return {r["slide_id"]: r for r in pq.read_table(out / "slides.parquet").to_pylist()}


def test_every_slide_without_a_nucleus_is_named_with_its_reason(run: tuple[Path, str]) -> None:
    out, printed = run
    status = {name: r["status"] for name, r in rows(out).items()}
    assert status == {"blank": "empty", "black": "suspect", "good": "done", "ink": "suspect", "muscle": "suspect"}
    assert "1 done, 1 empty, 3 suspect" in printed
    assert "empty      slide blank: blank glass: tissue on 0 % of 0.102 mm2" in printed
    for name, reason in {
        "black": "no tissue was found, but the slide is not blank: 100 % black",
        "ink": "pen marks",
        "muscle": "no nucleus in 0.102 mm2 of tissue (100 % of the slide at 0.5 um/px)",
    }.items():
        assert reason in rows(out)[name]["error"]
        assert f"suspect    slide {name}: {rows(out)[name]['error']}" in printed
        assert json.loads((out / "slides" / f"{name}.json").read_text())["row"]["status"] == "suspect"
    with (out / "slides.csv").open(newline="") as stream:
        assert {r["slide_id"]: r["status"] for r in csv.DictReader(stream)} == status


def test_the_folder_states_it_to_other_users(run: tuple[Path, str]) -> None:
    out, _ = run
    reported = run_here("status", out)
    assert "1 done, 1 empty, 3 suspect" in reported.output
    assert "suspect    slide muscle: no nucleus in 0.102 mm2" in reported.output
    grouped = run_here("errors", out)
    assert grouped.exit_code == 1
    assert "Suspect: 1 slides" in grouped.output
    assert "--retry-failed" not in grouped.output
    checked = run_here("verify", out)
    assert checked.exit_code == 0, checked.output
    outliers = run_here("qc", "outliers", out)
    assert outliers.exit_code == 0, outliers.output
    flagged = {r["slide_id"]: r for r in pq.read_table(out / "qc" / "outliers.parquet").to_pylist()}
    assert flagged["muscle"]["tails"] == "status:suspect"
    assert flagged["muscle"]["reasons"].startswith("no nucleus in 0.102 mm2")


def test_suspect_slides_are_kept_and_done_again_with_another_mask(run: tuple[Path, str], slides: Path) -> None:
    out, _ = run
    before = {p.name: p.stat().st_mtime_ns for p in (out / "nuclei").iterdir()}
    again = run_here("segment", slides, "--out", out, *ARGS)
    assert again.exit_code == 1
    assert {p.name: p.stat().st_mtime_ns for p in (out / "nuclei").iterdir()} == before
    retry = run_here("segment", "--retry-failed", "--out", out, *ARGS[2:])
    assert retry.exit_code == 2
    assert "Nothing failed" in retry.output
    assert "3 slides are suspect" in retry.output


def test_a_given_mask_that_covers_nothing_or_no_nucleus_is_suspect(slides: Path, tmp_path: Path) -> None:
    with Image.open(slides / "good.png") as picture:
        width, height = picture.size
    mask = np.zeros((height, width), np.uint8)
    results = {}
    for name, corner in (("none", 0), ("beside", 10)):
        mask[:corner, :corner] = 255
        Image.fromarray(mask).save(tmp_path / "m.png")
        done = run_here("segment", slides / "good.png", "--tissue-mask", tmp_path / "m.png", "--out", tmp_path / name, *ARGS)
        assert done.exit_code == 1, done.output
        results[name] = rows(tmp_path / name)["good"]
    assert {r["status"] for r in results.values()} == {"suspect"}
    assert results["none"]["error"] == "the given tissue mask does not cover any part of the slide"
    assert "mm2 of the tissue mask given (" in results["beside"]["error"]


def test_blank_slides_alone_are_no_failure(slides: Path, tmp_path: Path) -> None:
    done = run_here("segment", slides / "blank.png", "--out", tmp_path / "out", *ARGS)
    assert done.exit_code == 0, done.output
    assert "empty      slide blank" in done.output


def test_a_folder_of_small_tiles_gives_the_nuclei_of_all(crop_rgb: np.ndarray, tmp_path: Path) -> None:
    """Of 128 px at 0.5 um, as of 256 px at 0.25 um, each is smaller than what is a speck on a slide."""
    for k, (y, x) in enumerate(((0, 0), (128, 128), (256, 256), (256, 0))):
        Image.fromarray(crop_rgb[y : y + 128, x : x + 128]).save(tmp_path / f"tile{k}.png")
    done = run_here("segment", f"{tmp_path}/tile*.png", "--out", tmp_path / "out", *ARGS)
    assert done.exit_code == 0, done.output
    assert {r["status"] for r in rows(tmp_path / "out").values()} == {"done"}
    for row in rows(tmp_path / "out").values():
        assert row["tissue_mm2"] == pytest.approx((128 * 0.5e-3) ** 2, rel=0.01)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_black_where_nothing_was_scanned_costs_no_nucleus_beside_it(crop_rgb: np.ndarray, tmp_path: Path, ending: str) -> None:
    """As from the same tissue amid white: the network finds less beside black, which converters leave in its place."""
    tissue = crop_rgb[:400, :400]
    for name, value in (("white", 255), ("black", 0)):
        canvas = np.full((900, 1000, 3), value, np.uint8)
        canvas[203:603, 305:705] = tissue  # on no px of the mask
        Image.fromarray(canvas).save(tmp_path / f"{name}.{ending}", **({"quality": 90} if ending == "jpg" else {}))
    done = run_here("segment", f"{tmp_path}/*.{ending}", "--out", tmp_path / "out", *ARGS)
    assert done.exit_code == 0, done.output
    n = {name: row["n_nuclei"] for name, row in rows(tmp_path / "out").items()}
    assert n["white"] > 100
    assert abs(n["black"] - n["white"]) < 0.05 * n["white"]

"""A run estimates the nuclei outside the tissue mask, from a sample that depends only on slide and mask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.run.conftest import run_here, wsiseg
from wsiseg.read import TissueMask, tissue_window
from wsiseg.types import Box

ARGS = ("--mpp", "0.5", "--workers", "1", "--precision", "fp32")
COLUMNS = ("outside_windows", "outside_nuclei", "outside_nuclei_low", "outside_nuclei_high", "outside_frac")


def row(out: Path, slide_id: str = "crop") -> dict[str, Any]:
    return next(r for r in pq.read_table(out / "slides.parquet").to_pylist() if r["slide_id"] == slide_id)


def markers(out: Path, slide_id: str = "crop") -> np.ndarray:
    """Return (x, y) of every nucleus's marker, working px."""
    ids = pq.read_table(out / "nuclei" / f"{slide_id}.parquet")["nucleus_id"].to_numpy()
    return np.stack([ids & (2**31 - 1), ids >> 31], axis=1)


@pytest.fixture(scope="module")
def half(crop_png: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mask that leaves out the lower half of a picture that is tissue nearly everywhere."""
    path = tmp_path_factory.mktemp("mask") / "crop.png"
    with Image.open(crop_png) as picture:
        mask = np.zeros((picture.height, picture.width), np.uint8)
    mask[: len(mask) // 2] = 255
    Image.fromarray(mask).save(path)
    return path


@pytest.fixture(scope="module")
def runs(crop_png: Path, half: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("outside")
    for name, more in {"whole": ("--tissue-mask", "all"), "half": ("--tissue-mask", half, "--keep-parts")}.items():
        done = run_here("segment", crop_png, "--out", folder / name, *ARGS, *more)
        assert done.exit_code == 0, done.output
    return {name: folder / name for name in ("whole", "half")}


def test_the_interval_holds_what_the_mask_leaves_out(runs: dict[str, Path]) -> None:
    found = row(runs["half"])
    mask = TissueMask.load(runs["half"] / "slides" / "crop.tissue.png")
    scale = found["scale"]
    size = Box(0, 0, round(found["width_px"] * scale), round(found["height_px"] * scale))
    x, y = markers(runs["whole"]).T
    off = ~tissue_window(mask, size, scale)[y, x]
    assert off.sum() > 20  # the oracle: the whole picture segmented
    assert found["tissue_mask"] == "given"
    assert found["outside_windows"] >= 1
    assert found["outside_nuclei_low"] <= off.sum() <= found["outside_nuclei_high"]
    total = found["n_nuclei"] + found["outside_nuclei"]
    assert found["outside_frac"] == pytest.approx(found["outside_nuclei"] / total)


def test_without_a_mask_nothing_is_outside(runs: dict[str, Path], crop_png: Path) -> None:
    found = row(runs["whole"])
    assert (found["tissue_mask"], [found[c] for c in COLUMNS]) == ("all", [0, 0.0, 0.0, 0.0, 0.0])
    with Image.open(crop_png) as picture:
        area_mm2 = picture.width * picture.height * 0.5**2 * 1e-6
    assert found["tissue_mm2"] == pytest.approx(area_mm2, rel=1e-3)
    assert set(map(tuple, markers(runs["half"]))) - set(map(tuple, markers(runs["whole"]))) <= _near_border(runs)


def _near_border(runs: dict[str, Path]) -> set[tuple[int, int]]:
    """Markers of the half run within a nucleus of its mask's border: cut there, they may have another marker."""
    border = round(row(runs["half"])["height_px"] * row(runs["half"])["scale"] / 2)
    return {(x, y) for x, y in map(tuple, markers(runs["half"])) if abs(y - border) < 80}


def test_tiles_and_workers_do_not_change_the_sample_nor_does_the_sample_change_the_nuclei(
    runs: dict[str, Path], crop_png: Path, half: Path, tmp_path: Path
) -> None:
    mask = ("--tissue-mask", str(half))
    done = wsiseg(
        "segment", crop_png, "--out", tmp_path / "b", *ARGS[:2], "--precision", "fp32", "--workers", "2", *mask, "--tile", "512"
    )
    assert done.returncode == 0, done.stderr
    assert {c: row(tmp_path / "b")[c] for c in COLUMNS} == {c: row(runs["half"])[c] for c in COLUMNS}
    assert np.array_equal(np.sort(markers(tmp_path / "b"), axis=0), np.sort(markers(runs["half"]), axis=0))
    assert (tmp_path / "b/slides/crop.mask.jpg").read_bytes() == (runs["half"] / "slides/crop.mask.jpg").read_bytes()


def test_a_killed_run_continues_to_the_same_row_and_picture(
    runs: dict[str, Path], crop_png: Path, half: Path, tmp_path: Path
) -> None:
    """As after a kill before the last step, with one sampled window done and one lost."""
    out = tmp_path / "resumed"
    shutil.copytree(runs["half"], out)
    (out / "slides" / "crop.json").unlink()
    (out / "slides" / "crop.mask.jpg").unlink()
    parts = sorted((out / "parts" / "crop" / "outside").glob("*.parquet"))
    assert len(parts) == row(runs["half"])["outside_windows"]
    parts[-1].unlink()
    done = run_here("segment", crop_png, "--out", out, *ARGS, "--tissue-mask", half)
    assert done.exit_code == 0, done.output
    timed = {"seconds_write", "seconds_outside"}
    assert {k: v for k, v in row(out).items() if k not in timed} == {
        k: v for k, v in row(runs["half"]).items() if k not in timed
    }
    for file in ("nuclei/crop.parquet", "slides/crop.mask.jpg"):
        assert (out / file).read_bytes() == (runs["half"] / file).read_bytes()
    assert not (out / "parts" / "crop").exists()


def test_the_row_states_how_the_slide_looks(runs: dict[str, Path]) -> None:
    found = row(runs["whole"])
    shares = ("ink_frac", "fold_frac", "stain_residual", "od_red_frac", "od_blue_frac", "sharpness", "sharpness_low")
    assert all(0 <= found[name] <= 1 for name in shares)
    assert found["nuclei_per_colored_mm2"] >= found["nuclei_per_mm2"] * 0.99  # of the same area, or of less


def test_the_picture_shows_slide_and_mask(runs: dict[str, Path], crop_rgb: np.ndarray) -> None:
    with Image.open(runs["half"] / "slides" / "crop.mask.jpg") as picture:
        seen = np.asarray(picture.convert("RGB")).astype(int)
    h = round(crop_rgb.shape[0] * seen.shape[1] / crop_rgb.shape[1])
    small, slide = (np.asarray(Image.fromarray(np.uint8(a)).resize((100, 87))).astype(int) for a in (seen[:h], crop_rgb))
    assert np.median(np.abs(small - slide)) < 4  # the slide itself
    border = seen[h // 2 - 4 : h // 2 + 4, 10:-10]
    green = (border[..., 1] > border[..., 0] + 40) & (border[..., 1] > border[..., 2] + 10)
    assert green.any(axis=0).mean() > 0.7  # the mask's outline along its lower end
    record = json.loads((runs["half"] / "slides" / "crop.json").read_text())
    assert record["mask_jpg"] == "slides/crop.mask.jpg"
    assert not list(runs["half"].rglob("*.partial"))


def test_a_manifest_and_the_plan_take_all(crop_png: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    glass = np.full((600, 900, 3), 244, np.uint8)
    Image.fromarray(glass).save(tmp_path / "glass.png")
    (tmp_path / "m.csv").write_text("path,tissue_mask,mpp\nglass.png,all,0.5\n")
    done = run_here("segment", "m.csv", "--out", "out", "--workers", "1", "--precision", "fp32")
    assert done.exit_code == 1, done.output  # nothing on it, and the whole slide was looked at
    assert row(tmp_path / "out", "glass")["tissue_mask"] == "all"
    assert row(tmp_path / "out", "glass")["tiles_empty"] == 0
    planned = run_here("plan", "glass.png", "--mpp", "0.5", "--tissue-mask", "all")
    assert planned.exit_code == 0, planned.output
    assert "1 slides, 0.1 mm²" in planned.output  # all of it

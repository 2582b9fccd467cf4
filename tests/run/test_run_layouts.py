"""A cohort of one crop in many layouts: those that show H&E give its nuclei, the others are rows with their reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from tests.run.conftest import run_here


@pytest.fixture
def cohort(crop_rgb: np.ndarray, tmp_path: Path) -> Path:
    folder = tmp_path / "slides"
    folder.mkdir()
    planes = np.moveaxis(crop_rgb, 2, 0).copy()
    tiles = {"tile": (128, 128)}
    size = {"PhysicalSizeX": 499.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 499.0, "PhysicalSizeYUnit": "nm"}
    deep = {"photometric": "rgb", "metadata": None, "resolution": (1e4 / 0.499, 1e4 / 0.499), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "a_plain.tif", crop_rgb, **deep, **tiles)
    tifffile.imwrite(folder / "b_pages.ome.tif", planes, photometric="minisblack", metadata={"axes": "CYX", **size}, **tiles)
    tifffile.imwrite(folder / "c_12bit.tif", crop_rgb.astype(np.uint16) * 16, **deep, **tiles)
    tifffile.imwrite(folder / "d_gray.tif", crop_rgb[..., 1], **{**deep, "photometric": "minisblack"}, **tiles)
    tifffile.imwrite(folder / "e_tenfold.tif", crop_rgb, **{**deep, "resolution": (2e5, 2e5)}, **tiles)
    Image.fromarray(crop_rgb).save(folder / "f_nompp.png")
    return folder


def test_a_cohort_of_layouts(cohort: Path, tmp_path: Path) -> None:
    done = run_here("segment", cohort, "--out", tmp_path / "out", "--workers", "1")
    assert done.exit_code == 1, done.output
    with (tmp_path / "out/slides.csv").open() as file:
        rows = {row["slide_id"][0]: row for row in csv.DictReader(file)}
    assert {k: rows[k]["status"] for k in "abc"} == dict.fromkeys("abc", "done")
    assert int(rows["a"]["n_nuclei"]) == int(rows["b"]["n_nuclei"]) == int(rows["c"]["n_nuclei"]) > 50
    reasons = {row["slide_id"][0]: row["error"] for row in pq.read_table(tmp_path / "out/errors.parquet").to_pylist()}
    assert {k: rows[k]["status"] for k in "def"} == dict.fromkeys("def", "failed")
    assert "1 sample of 8 bits" in reasons["d"]
    assert "0.05 microns per pixel" in reasons["e"]
    assert "states no microns per pixel" in reasons["f"]


def test_info_states_what_the_reader_sees(cohort: Path) -> None:
    result = run_here("info", cohort / "b_pages.ome.tif", cohort / "c_12bit.tif")
    assert result.exit_code == 0, result.output
    assert "3 samples of 8 bits, MINISBLACK, 3 pages of one sample each, tiles 128x128, compression NONE" in result.output
    assert "values read as 12 bits" in result.output
    assert result.output.count("tissue_frac") == 2
    assert "mpp_source         ome" in result.output
    bad = run_here("info", cohort / "d_gray.tif")
    assert bad.exit_code == 1
    assert "1 sample of 8 bits" in bad.output


def test_statements_that_disagree_are_in_the_log(crop_rgb: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "s.ome.tif"
    size = {"axes": "YXS", "PhysicalSizeX": 0.499, "PhysicalSizeY": 0.499}
    tifffile.imwrite(path, crop_rgb[:200, :200], photometric="rgb", metadata=size, resolution=(1e4, 1e4), resolutionunit=3)
    done = run_here("segment", path, "--out", tmp_path / "out", "--workers", "1")
    reported = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert any("microns per pixel disagree: 0.499 by OME-XML" in json.dumps(line) for line in reported), done.output

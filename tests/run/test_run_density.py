"""Maps beside every table, and the picture of a slide's density."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.export.test_features import blobs, make_run
from tests.run.conftest import SLIDE
from wsiseg.cli import main
from wsiseg.export.density import VIRIDIS, Density, density_picture, nice_ceil, tissue_density
from wsiseg.results.folder import RunFolder
from wsiseg.results.maps import maps_path, slide_maps_of
from wsiseg.tables import read_nuclei
from wsiseg.write import MAP_NAMES, MapLevel, maps_are_of


def level(count: np.ndarray, tissue: np.ndarray, cell_px: int = 32) -> MapLevel:
    values = np.full((len(MAP_NAMES), *count.shape), np.nan, np.float32)
    values[0], values[3] = count / (cell_px * 0.25e-3) ** 2, tissue
    return MapLevel(values, cell_px, 0.25, 0, 0)


def test_density_is_nuclei_over_tissue_up_to_its_border() -> None:
    tissue = np.zeros((120, 160))
    tissue[20:100, 30:130] = 1
    count = tissue * 0.5  # one nucleus in two cells, everywhere on the tissue
    got = tissue_density(level(count, tissue))
    assert np.isnan(got.per_mm2[tissue == 0]).all()
    assert got.per_mm2[tissue > 0] == pytest.approx(0.5 / (32 * 0.25e-3) ** 2, rel=1e-5)  # no rim where smoothing meets glass
    spot = np.zeros_like(tissue)
    spot[60, 80] = 3
    smooth = tissue_density(level(spot, np.full_like(tissue, np.nan))).per_mm2
    assert np.nansum(smooth) * (32 * 0.25e-3) ** 2 == pytest.approx(3, rel=0.05)  # nothing but the far tails is left out
    assert np.unravel_index(np.nanargmax(smooth), smooth.shape) == (60, 80)


@pytest.mark.parametrize(("value", "top"), [(0, 1), (0.9, 1), (1, 1), (1.01, 2), (2300, 2500), (8100, 10000), (19999, 20000)])
def test_scales_end_at_round_numbers(value: float, top: float) -> None:
    assert nice_ceil(value) == pytest.approx(top)


def test_the_picture_shows_the_colors_of_the_scale() -> None:
    values = np.full((10, 20), np.nan)
    values[:, :10] = 1000.0
    picture = density_picture(np.zeros((200, 400, 3), np.uint8), Density(values, 50.0), 4000.0, "S: 1 nuclei per mm²")
    colored = picture[300:400, 50:200].reshape(-1, 3)  # wider than high: the second panel stands below
    assert colored.std(axis=0).max() < 1
    expected = (255 - 255 * 0.5) * 0.28 + np.array(VIRIDIS[-1]) * 0.72
    assert colored.mean(axis=0) == pytest.approx(expected, abs=1.5)
    dark = (picture[480:500, :200].sum(axis=2) < 150).any(axis=0)
    assert dark[24 : 24 + 40].all()  # the ruler: a tenth of 4 mm, 40 px of 400


def test_maps_and_picture_of_a_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", blobs(3, 150), 1.0)
    record = run / f"slides/{SLIDE.stem}.json"
    known = json.loads(record.read_text())
    known["row"] |= {"n_nuclei": 5, "width_px": 2220, "height_px": 2967}
    record.write_text(json.dumps(known))
    maps = slide_maps_of(run, SLIDE.stem)
    table = run / f"nuclei/{SLIDE.stem}.parquet"
    stored = maps_path(RunFolder(run), SLIDE.stem)
    assert maps_are_of(stored, table)
    n = read_nuclei(table, columns=["cx"]).num_rows
    assert maps.named("nuclei_per_mm2").shape == (93, 70)
    whole = slide_maps_of(run, SLIDE.stem, max_cells=1)  # none is that coarse: the coarsest
    assert whole.cell_px == 64
    area_mm2 = 2220 * 2967 * (maps.mpp * 1e-3) ** 2
    weights = np.outer(np.clip(2967 - 64 * np.arange(47), 0, 64), np.clip(2220 - 64 * np.arange(35), 0, 64)) / (2220 * 2967)
    assert (whole.named("nuclei_per_mm2") * weights).sum() * area_mm2 == pytest.approx(n, rel=1e-4)
    done = CliRunner().invoke(main, ["overlay", str(run), SLIDE.stem, "--density", "-o", str(tmp_path / "d.png")])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "d.png") as picture:
        assert min(picture.size) > 1000
    both = CliRunner().invoke(main, ["overlay", str(run), SLIDE.stem, "--density", "--region", "0,0,9,9", "-o", "x.png"])
    assert both.exit_code == 2
    other = make_run(tmp_path / "other", blobs(9, 20), 1.0)
    table.write_bytes((other / f"nuclei/{SLIDE.stem}.parquet").read_bytes())
    assert not maps_are_of(stored, table)
    slide_maps_of(run, SLIDE.stem)  # a new table has new maps
    assert maps_are_of(stored, table)

"""Pictures in AnnData and SpatialData: pixels of OpenSlide's own, at the place that the scale factors say."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import openslide
import pytest
import zarr

from tests.command import call
from tests.export.test_features import blobs, make_run
from tests.run.conftest import SLIDE


def check(rgb: np.ndarray, scale: tuple[float, float]) -> None:
    """Compare a picture with the mean of what OpenSlide shows of the same place, for some pixels."""
    with openslide.OpenSlide(SLIDE) as slide:
        for x, y in ((100, 200), (rgb.shape[1] // 2, rgb.shape[0] // 2), (rgb.shape[1] // 3, rgb.shape[0] - 5)):
            place = round(x / scale[0]), round(y / scale[1])
            size = round(1 / scale[0]), round(1 / scale[1])
            block = np.asarray(slide.read_region(place, 0, size).convert("RGB"), np.float64)
            np.testing.assert_allclose(rgb[y, x], block.mean(axis=(0, 1)), atol=0.51)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("pictures") / "run", blobs(3, 40), 1.0)


def test_anndata_has_the_slide(run: Path, tmp_path: Path) -> None:
    call("export", run, "--to", "anndata", "-o", tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        library = file[f"uns/spatial/{SLIDE.stem}"]
        for name, side in (("hires", 2000), ("lowres", 600)):
            picture = library[f"images/{name}"]
            assert picture.attrs["encoding-type"] == "array"
            assert side / 2 < max(picture.shape) <= side
            scale = library[f"scalefactors/tissue_{name}_scalef"][()]
            check(picture[:], (scale, scale))


def test_spatialdata_has_the_slide(run: Path, tmp_path: Path) -> None:
    call("export", run, "--to", "spatialdata", "-o", tmp_path / "a.zarr")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="r")["images/slide"]
    (level,) = group.attrs["ome"]["multiscales"]
    systems = {t["output"]["name"]: t["scale"] for t in level["coordinateTransformations"]}
    assert systems["um"][1:] == pytest.approx([v * 0.499 for v in systems["global"][1:]])
    check(group["s0"][:].transpose(1, 2, 0), (1 / systems["global"][2], 1 / systems["global"][1]))


def test_without_the_slide_it_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = make_run(tmp_path / "run", blobs(3, 40), 1.0, path=Path("/nowhere/CMU-1-Small-Region.svs"))
    call("export", run, "--to", "anndata", "-o", tmp_path / "a.h5ad")
    assert "without its picture" in caplog.text
    assert "--path-map" in caplog.text
    with h5py.File(tmp_path / "a.h5ad") as file:
        library = file[f"uns/spatial/{SLIDE.stem}"]
        assert list(library["images"]) == []
        assert library["scalefactors/tissue_hires_scalef"][()] == 1
    caplog.clear()
    call("export", run, "--to", "anndata", "-o", tmp_path / "b.h5ad", "--path-map", f"/nowhere={SLIDE.parent}")
    with h5py.File(tmp_path / "b.h5ad") as file:
        assert set(file[f"uns/spatial/{SLIDE.stem}/images"]) == {"hires", "lowres"}

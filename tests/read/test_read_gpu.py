"""Pixels that a GPU decodes: taken where file and machine allow it and the probe is near OpenSlide's; else not, with why.

cuCIM's decoder for the GPU is a stand-in: its decoder for the CPU, and noise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tifffile

import wsiseg.read.cuslide as cuslide
from wsiseg.errors import TileReadError
from wsiseg.read import open_slide, read_on_device, read_working
from wsiseg.types import Box

pytest.importorskip("cucim", reason="cuCIM is not installed")
SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"


class There(np.ndarray):
    """Stands for memory of a GPU."""


@pytest.fixture
def gpu_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Install a GPU whose decoder is off by normal noise of that many grey levels."""

    def install(noise: float) -> None:
        import cucim

        real = cucim.CuImage

        class Image:
            def __init__(self, path: str) -> None:
                self._image = real(path)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._image, name)

            def read_region(self, corner: Any, size: Any, level: int = 0, device: str = "cpu") -> Any:
                pixels = np.asarray(self._image.read_region(corner, size, level=level))
                if device == "cpu":
                    return pixels
                assert device == "cuda"
                off = np.random.default_rng(sum(corner)).normal(0, noise, pixels.shape)
                return np.clip(np.round(pixels + off), 0, 255).astype(np.uint8)

        cupy = ModuleType("cupy")
        cupy.__dict__.update(
            ndarray=There,
            array=lambda a: np.array(a).view(There),
            full=lambda *a: np.full(*a).view(There),
            asnumpy=lambda a: np.array(a, subok=False),
        )
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setattr(cucim, "CuImage", Image)
        monkeypatch.setattr(cuslide, "cuda_report", lambda: (True, "one"))

    return install


def test_near_pixels_are_taken(gpu_with: Callable[[float], None]) -> None:
    gpu_with(1.5)
    slide = open_slide(SLIDE, reader="cucim-gpu")
    arbiter = open_slide(SLIDE, reader="openslide")
    assert (slide.meta.reader, slide.meta.reader_note) == ("cucim-gpu", "")
    box = Box(-10, 2900, 300, 120)  # reaches outside on the left and below
    there = read_on_device(slide, box)
    assert type(there) is There
    expected = arbiter.read_level(0, box.x, box.y, box.w, box.h)
    difference = np.abs(np.array(there, subok=False).astype(int) - expected)
    assert 0 < difference.mean() < cuslide.GPU_MEAN_LEVELS
    assert (np.asarray(there)[:, :10] == 255).all()
    np.testing.assert_array_equal(slide.read_level(0, box.x, box.y, box.w, box.h), there)  # the same decoder whoever asks
    assert read_working(slide, Box(0, 0, 40, 30), 1.996).shape == (30, 40, 3)
    assert slide.thumbnail(64).shape[2] == 3
    slide.close()
    with pytest.raises(TileReadError, match="expected reader cucim-gpu"):
        read_on_device(arbiter, box)
    arbiter.close()


def test_far_pixels_are_not(gpu_with: Callable[[float], None]) -> None:
    gpu_with(9.0)
    slide = open_slide(SLIDE, reader="cucim-gpu")
    assert slide.meta.reader == "cucim"
    assert "not decoded by the GPU: the GPU's pixels differ from OpenSlide's" in slide.meta.reader_note
    slide.close()


def test_files_that_are_no_jpeg_are_read_otherwise(gpu_with: Callable[[float], None], tmp_path: Path) -> None:
    gpu_with(0.0)
    path = tmp_path / "deflate.tiff"
    rgb = np.random.default_rng(0).integers(0, 256, (600, 700, 3)).astype(np.uint8)
    tifffile.imwrite(path, rgb, tile=(256, 256), compression="zlib", resolution=(40000, 40000), resolutionunit="CENTIMETER")
    slide = open_slide(path, reader="cucim-gpu")
    assert slide.meta.reader in ("cucim", "openslide")
    assert "its tiles are Deflate, and the GPU decodes JPEG" in slide.meta.reader_note
    np.testing.assert_array_equal(slide.read_level(0, 0, 0, 700, 600), rgb)
    slide.close()


def test_without_a_gpu_the_slide_is_read_all_the_same() -> None:
    from wsiseg.backend.cuda import cuda_report

    if cuda_report()[0]:
        pytest.skip("this machine has a GPU")
    slide = open_slide(SLIDE, reader="cucim-gpu")
    assert slide.meta.reader == "cucim"
    assert slide.meta.reader_note.startswith("not decoded by the GPU: CuPy is not installed")
    slide.close()

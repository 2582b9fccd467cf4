"""DICOM slides of every organization of frames: read as what they show, or refused by name; which levels a run needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid

from tests.run.dicoms import TILE_PX, dicom_level
from wsiseg.errors import SlideOpenError
from wsiseg.read import fit_tissue, open_slide, read_working
from wsiseg.read.dicom import dicom_header
from wsiseg.read.levels import needed_levels
from wsiseg.types import Box


@pytest.fixture(scope="module")
def rgb() -> np.ndarray:
    coarse = np.random.default_rng(0).integers(60, 250, (20, 24, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((30, 30, 1), np.uint8))


def frames_of(d: Dataset) -> list[bytes]:
    return list(generate_frames(d.PixelData, number_of_frames=d.NumberOfFrames))


def with_frames(d: Dataset, frames: list[bytes]) -> Dataset:
    d.NumberOfFrames = len(frames)
    d.PixelData = encapsulate(frames)
    d["PixelData"].VR = "OB"
    return d


def sparse(path: Path, d: Dataset) -> None:
    """Frames in reverse order, each with its place; the first tile of the slide is not stored."""
    across = -(-int(d.TotalPixelMatrixColumns) // TILE_PX)
    frames, items = frames_of(d), []
    order = list(range(len(frames)))[:0:-1]
    for k in order:
        item, place = Dataset(), Dataset()
        place.ColumnPositionInTotalImagePixelMatrix = k % across * TILE_PX + 1
        place.RowPositionInTotalImagePixelMatrix = k // across * TILE_PX + 1
        place.XOffsetInSlideCoordinateSystem = place.YOffsetInSlideCoordinateSystem = place.ZOffsetInSlideCoordinateSystem = 0.0
        item.PlanePositionSlideSequence = Sequence([place])
        items.append(item)
    d.DimensionOrganizationType = "TILED_SPARSE"
    d.PerFrameFunctionalGroupsSequence = Sequence(items)
    with_frames(d, [frames[k] for k in order]).save_as(path)


def concatenation(path: Path, d: Dataset) -> None:
    """The frames in two files."""
    frames, uid = frames_of(d), generate_uid()
    for k, (first, end) in enumerate(((0, len(frames) // 2), (len(frames) // 2, len(frames))), start=1):
        part = pydicom.dcmread(path)
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        part.ConcatenationUID, part.InConcatenationNumber, part.InConcatenationTotalNumber = uid, k, 2
        part.ConcatenationFrameOffsetNumber, part.SOPInstanceUIDOfConcatenationSource = first, "1.2.3.4"
        with_frames(part, frames[first:end]).save_as(path.with_name(f"part{k}.dcm"))
    path.unlink()


@pytest.mark.parametrize("organize", [sparse, concatenation])
def test_frames_stand_where_they_belong(organize: Callable[[Path, Dataset], None], rgb: np.ndarray, tmp_path: Path) -> None:
    path = dicom_level(tmp_path / "a.dcm", rgb, generate_uid())
    organize(path, pydicom.dcmread(path))
    slide = open_slide(tmp_path)
    shown = slide.read_level(0, 0, 0, rgb.shape[1], rgb.shape[0]).astype(int)
    slide.close()
    if organize is sparse:
        assert (shown[:TILE_PX, :TILE_PX] == 255).all(), "what is not stored is glass"
        shown[:TILE_PX, :TILE_PX] = rgb[:TILE_PX, :TILE_PX]
    assert np.abs(shown - rgb).mean() < 4, "JPEG"


def test_a_concatenation_without_all_its_parts_is_refused(rgb: np.ndarray, tmp_path: Path) -> None:
    path = dicom_level(tmp_path / "a.dcm", rgb, generate_uid())
    concatenation(path, pydicom.dcmread(path))
    (tmp_path / "part2.dcm").unlink()
    with pytest.raises(SlideOpenError, match="concatenation"):
        open_slide(tmp_path)


@pytest.mark.parametrize(
    ("tag", "says"), [("NumberOfOpticalPaths", "2 optical paths"), ("TotalPixelMatrixFocalPlanes", "2 focal planes")]
)
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "file"])
def test_several_images_of_the_tissue_are_refused_by_name(
    tag: str, says: str, folder: bool, rgb: np.ndarray, tmp_path: Path
) -> None:
    path = dicom_level(tmp_path / "a.dcm", rgb, generate_uid())
    d = pydicom.dcmread(path)
    setattr(d, tag, 2)
    with_frames(d, frames_of(d) * 2).save_as(path)
    with pytest.raises(SlideOpenError, match=f"{says}, expected one H&E image"):
        open_slide(tmp_path if folder else path)


def test_the_levels_that_a_run_needs_give_the_pixels_of_the_whole_series(tmp_path: Path) -> None:
    """Mask, and tiles at two resolutions, of level files that are there and of all of them."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    whole.mkdir()
    part.mkdir()
    coarse = np.random.default_rng(0).integers(60, 250, (64, 80, 3), dtype=np.uint8)
    level0 = np.kron(coarse, np.ones((64, 64, 1), np.uint8))
    series = generate_uid()
    for k, step in enumerate((1, 2, 4, 8, 16)):
        path = dicom_level(whole / f"{k}.dcm", np.ascontiguousarray(level0[::step, ::step]), series, mpp=0.25 * step)
        d = pydicom.dcmread(path)
        d.ImagedVolumeWidth, d.ImagedVolumeHeight = 5120 * 0.25 / 1000, 4096 * 0.25 / 1000
        d.save_as(path)
    dicom_level(whole / "label.dcm", level0[:100, :100], series, flavor="LABEL")
    for mpp_model, most in ((0.25, 3), (0.5, 3)):
        headers = [dicom_header(p.name, p.read_bytes()[: 1 << 16]) for p in sorted(whole.iterdir())]
        needed = needed_levels([h for h in headers if h is not None], mpp_model)
        assert "0.dcm" in needed
        assert "label.dcm" not in needed
        assert len(needed) <= most
        shutil.rmtree(part)
        part.mkdir()
        for name in needed:
            shutil.copyfile(whole / name, part / name)
        shown = []
        for folder in (whole, part):
            slide = open_slide(folder)
            scale = slide.meta.mpp / mpp_model
            shown.append((fit_tissue(slide).mask, read_working(slide, Box(100, 200, 300, 400), scale)))
            slide.close()
        assert (shown[0][0] == shown[1][0]).all()
        assert (shown[0][1] == shown[1][1]).all()
    with pytest.raises(SlideOpenError, match="2 series"):
        needed_levels(
            [h for h in headers if h]
            + [dicom_header("x", dicom_level(tmp_path / "x.dcm", level0[:300, :300], "1.2.9").read_bytes())],
            0.25,
        )  # type: ignore[list-item]

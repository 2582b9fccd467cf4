"""DICOM segmentations: the mask that highdicom reads is that of the table, on every level of the slide's series."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from tests.export.test_dicom_ann import HEIGHT, MPP, WIDTH, faults, level, series, table
from wsiseg.cli import main
from wsiseg.errors import EmptyExportError, InputError
from wsiseg.export import write_dicom_segmentation
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.tables import open_nuclei

__all__ = ["series", "table"]  # fixtures


def segmentation(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.seg.segread(path)


def test_the_mask_of_every_level_is_that_of_the_nuclei(table: Path, series: Path, tmp_path: Path) -> None:
    level(series / "odd.dcm", WIDTH * 2 // 5, HEIGHT * 2 // 5, mpp=2.5 * MPP)
    out = tmp_path / "s.dicom-seg"
    done = write_dicom_segmentation(open_nuclei(table), out, series=series / "large.dcm")
    nuclei = np.load(tmp_path / "s.npy") > 0
    assert done.n_nuclei > 30
    assert sorted(p.name for p in out.iterdir()) == ["level-0.dcm", "level-1.dcm", "level-2.dcm"]
    for number, (source, step) in enumerate((("large", 1.0), ("odd", 2.5), ("small", 4.0))):
        path = out / f"level-{number}.dcm"
        image, made = pydicom.dcmread(series / f"{source}.dcm"), segmentation(path)
        # a center on an edge (of every second pixel here) belongs to the pixel to its right and below
        y, x = (
            np.floor((np.arange(n) + 0.5) * step).astype(int)
            for n in (image.TotalPixelMatrixRows, image.TotalPixelMatrixColumns)
        )
        found = made.get_total_pixel_matrix(combine_segments=True)
        np.testing.assert_array_equal(found > 0, nuclei[np.ix_(y, x)])
        (segment,) = made.SegmentSequence
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "84640000"
        referenced = made.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
        assert referenced == image.SOPInstanceUID
        to_mm = hd.spatial.ImageToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
        for frame in made.PerFrameFunctionalGroupsSequence:
            at = frame.PlanePositionSlideSequence[0]
            corner = [at.ColumnPositionInTotalImagePixelMatrix - 0.5, at.RowPositionInTotalImagePixelMatrix - 0.5]
            mm = [float(at[f"{axis}OffsetInSlideCoordinateSystem"].value) for axis in "XYZ"]
            np.testing.assert_allclose(to_mm(np.array([corner]))[0], mm, atol=1e-6)
        assert not faults(path)
    kept = sum(len(pydicom.dcmread(p).PerFrameFunctionalGroupsSequence) for p in out.iterdir())
    assert kept < 8 * 6 + 4 * 3 + 2 * 2, "frames without a nucleus are left out"
    pyramid = {(d.SeriesInstanceUID, d.PyramidUID) for d in map(pydicom.dcmread, out.iterdir())}
    assert len(pyramid) == 1


def test_the_same_table_has_the_same_uids(table: Path, series: Path, tmp_path: Path) -> None:
    seen = []
    for name in ("a", "b"):
        write_dicom_segmentation(open_nuclei(table), tmp_path / name, series=series / "large.dcm")
        files = [pydicom.dcmread(p) for p in sorted((tmp_path / name).iterdir())]
        seen.append([(d.SOPInstanceUID, d.SeriesInstanceUID, d.PyramidUID, d.PixelData) for d in files])
    assert seen[0] == seen[1]
    assert len({uid for uid, *_ in seen[0]}) == 2


def test_what_cannot_be_a_segmentation_is_refused(table: Path, series: Path, tmp_path: Path) -> None:
    run = str(table.parent.parent)
    command = ["export", run, "--to", "dicom-seg", "-o", str(tmp_path / "out")]
    assert "--dicom-series" in CliRunner().invoke(main, command).output
    named = [*command, "--dicom-series", str(series / "large.dcm")]
    for option in (["--region", "0,0,9,9"], ["--sample", "3"]):
        assert f"omit {option[0]}" in CliRunner().invoke(main, [*named, *option]).output
    assert CliRunner().invoke(main, named).exit_code == 0
    assert (tmp_path / "out/s.dicom-seg/level-1.dcm").is_file()
    again = CliRunner().invoke(main, named)
    assert again.exit_code == 2
    assert "already exists" in again.output
    with pytest.raises(InputError, match="9000 x 9000 px"):
        write_dicom_segmentation(open_nuclei(table), tmp_path / "x", series=series / "other.dcm")
    np.save(tmp_path / "none.npy", np.zeros((HEIGHT, WIDTH), np.int32))
    import_files([tmp_path / "none.npy"], "labels", tmp_path / "none", ImportOptions(mpp=MPP, slide_id="none"))
    with pytest.raises(EmptyExportError):
        write_dicom_segmentation(
            open_nuclei(tmp_path / "none/nuclei/none.parquet"), tmp_path / "x", series=series / "large.dcm"
        )
    assert not (tmp_path / "x").exists()

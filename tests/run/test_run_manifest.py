"""SLIDE arguments are resolved to slides, or to a message with advice."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wsiseg.errors import DuplicateSlideError, InputError, ManifestError
from wsiseg.read import slide_id_of
from wsiseg.results.manifest import SlideInput, collect_slides


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.svs",
        "a.tiff",
        "notes.txt",
        ".hidden.svs",
        "TCGA-02-0001-01Z-00-DX1.83fce43e-42ac-4dcd-b156-2908e75f2e47.svs",
    ):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def test_folder_takes_slides_in_name_order(folder: Path) -> None:
    assert [s.slide_id for s in collect_slides([str(folder)])] == [
        "TCGA-02-0001-01Z-00-DX1.83fce43e-42ac-4dcd-b156-2908e75f2e47",
        "a",
        "b",
    ]


def test_glob_and_file(folder: Path) -> None:
    assert [s.slide_id for s in collect_slides([str(folder / "*.tiff"), str(folder / "b.svs")])] == ["a", "b"]


def test_dicom_folder_is_one_slide(tmp_path: Path) -> None:
    series = tmp_path / "case1.dicom"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"x")
    (series / "2.dcm").write_bytes(b"x")
    assert [s.slide_id for s in collect_slides([str(series)])] == ["case1"]
    assert [s.slide_id for s in collect_slides([str(tmp_path)])] == ["case1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,cohort,mpp\nb.svs,BRCA,0.5\n", SlideInput("b", "{}/b.svs", "BRCA", 0.5)),
        ("wsi,mpp\nb.svs,\n", SlideInput("b", "{}/b.svs", "given", 0.3)),
        ("path,wsi_mpp,wsi_magnification\nb.svs,0.25,40\n", SlideInput("b", "{}/b.svs", "given", 0.25)),
    ],
    ids=["own", "trident", "cellvit"],
)
def test_manifest_columns(folder: Path, text: str, expected: SlideInput) -> None:
    (folder / "m.csv").write_text(text)
    (slide,) = collect_slides([str(folder / "m.csv")], cohort="given", mpp=0.3)
    assert slide == SlideInput(expected.slide_id, expected.path.format(folder), expected.cohort, expected.mpp)


def test_parquet_manifest_equals_csv(folder: Path) -> None:
    (folder / "m.csv").write_text("path,cohort,mpp\nb.svs,X,0.25\na.tiff,Y,\n")
    pq.write_table(pa.table({"path": ["b.svs", "a.tiff"], "cohort": ["X", "Y"], "mpp": [0.25, None]}), folder / "m.parquet")
    assert collect_slides([str(folder / "m.csv")]) == collect_slides([str(folder / "m.parquet")])


def test_refusals_name_the_way_out(folder: Path, tmp_path: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "b.tif").write_bytes(b"x")
    with pytest.raises(DuplicateSlideError, match=r"b\.svs.*b\.tif"):
        collect_slides([str(folder / "b.svs"), str(folder / "sub" / "b.tif")])
    with pytest.raises(InputError, match="no such file"):
        collect_slides([str(folder / "missing.svs")])
    (folder / "bad.csv").write_text("file_name,mpp\nb.svs,0.5\n")
    with pytest.raises(ManifestError, match="column 'path'"):
        collect_slides([str(folder / "bad.csv")])
    (folder / "bad2.csv").write_text("path,mpp\nb.svs,about 0.5\n")
    with pytest.raises(ManifestError, match=r"line 2 .*um/px.*about 0\.5"):
        collect_slides([str(folder / "bad2.csv")])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="have no slide"):
        collect_slides([str(empty)])


def test_tissue_mask_folder(folder: Path) -> None:
    masks = folder / "masks"
    masks.mkdir()
    (masks / "b.png").write_bytes(b"x")
    (slide,) = collect_slides([str(folder / "b.svs")], tissue_mask=str(masks))
    assert slide.tissue_mask == str(masks / "b.png")
    with pytest.raises(InputError, match=r"contains no a\.png"):
        collect_slides([str(folder / "a.tiff")], tissue_mask=str(masks))


def test_slide_id_keeps_a_barcode_verbatim() -> None:
    assert slide_id_of("x/TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF.svs") == "TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF-D8FB-45CF"

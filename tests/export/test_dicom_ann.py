"""DICOM annotations: written for highdicom and dciodvfy, read from highdicom, in 2D and 3D."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
import shapely
from click.testing import CliRunner
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from tests.run.dicoms import WHOLE_SLIDE, _header
from wsiseg.cli import main
from wsiseg.errors import EmptyExportError, FormatError, InputError
from wsiseg.export import READERS, Provenance, Source, write_dicom_annotations
from wsiseg.export.imports import ImportOptions, import_files
from wsiseg.tables import Selection, open_nuclei, with_features
from wsiseg.types import Box

MPP, WIDTH, HEIGHT = 0.25, 4000, 3000
POLYGON, ELLIPSE, RECTANGLE, POINT = (
    getattr(hd.ann.GraphicTypeValues, n) for n in ("POLYGON", "ELLIPSE", "RECTANGLE", "POINT")
)


def level(path: Path, width: int = WIDTH, height: int = HEIGHT, series: str = "1.2.9", mpp: float = MPP) -> Any:
    """Write the header of a slide's level, turned by 90 degrees on the glass as scanners often have it."""
    d = _header(path, WHOLE_SLIDE, series)
    d.ImageType, d.Modality = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "SM"
    d.PatientName, d.PatientSex, d.PatientBirthDate, d.AccessionNumber, d.StudyID = "N", "O", "", "", "1"
    d.StudyDate, d.StudyTime, d.ReferringPhysicianName = "20260101", "000000", ""
    d.Rows = d.Columns = 256
    d.TotalPixelMatrixColumns, d.TotalPixelMatrixRows = width, height
    d.NumberOfFrames = -(-width // 256) * -(-height // 256)
    d.ImageOrientationSlide = [0.0, -1.0, 0.0, -1.0, 0.0, 0.0]
    d.ContainerIdentifier, d.IssuerOfTheContainerIdentifierSequence = "C", []
    d.ContainerTypeCodeSequence = [hd.sr.CodedConcept("433466003", "SCT", "Microscope slide")]
    d.SpecimenDescriptionSequence = [hd.SpecimenDescription("S", generate_uid())]
    origin, measures, shared = Dataset(), Dataset(), Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 20.0, 40.0
    origin.ZOffsetInSlideCoordinateSystem = 0.0
    d.TotalPixelMatrixOriginSequence = [origin]
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    shared.PixelMeasuresSequence = [measures]
    d.SharedFunctionalGroupsSequence = [shared]
    path.parent.mkdir(exist_ok=True)
    d.save_as(path, enforce_file_format=True)
    return d


@pytest.fixture
def series(tmp_path: Path) -> Path:
    level(tmp_path / "dicom/small.dcm", WIDTH // 4, HEIGHT // 4, mpp=4 * MPP)
    level(tmp_path / "dicom/large.dcm")
    level(tmp_path / "dicom/other.dcm", 9000, 9000, series="1.2.8")
    return tmp_path / "dicom"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of a labelled image of discs and squares."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    labels = np.zeros((HEIGHT, WIDTH), np.int32)
    rng = np.random.default_rng(0)
    for k, (cx, cy) in enumerate(rng.uniform(100, 2900, (60, 2)), start=1):
        window = (slice(int(cy) - 20, int(cy) + 20), slice(int(cx) - 20, int(cx) + 20))
        disc = np.hypot(x[window] - cx, y[window] - cy) < rng.uniform(4, 15)
        labels[window][disc] = k
    np.save(tmp_path / "s.npy", labels)
    import_files([tmp_path / "s.npy"], "labels", tmp_path / "run", ImportOptions(mpp=MPP, slide_id="s", components=True))
    return tmp_path / "run/nuclei/s.parquet"


def shapes_of(table: Path) -> list[Any]:
    found = pq.read_table(table)
    return list(shapely.from_wkb(found["geometry"].to_numpy(zero_copy_only=False)))


def read_back(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.ann.annread(path)


def faults(path: Path) -> list[str]:
    """Return the errors of dciodvfy. That of Debian finds one in every 2D object: a missing attribute that must be missing."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    false = "Error - Only valid for AnnotationCoordinateType of 3D - attribute <CommonZCoordinateValue> = <>"
    absent = all("CommonZCoordinateValue" not in group for group in pydicom.dcmread(path).get("AnnotationGroupSequence", []))
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    return [line for line in lines if line != false or not absent]


def test_highdicom_reads_the_rings_and_areas_that_were_written(table: Path, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.dcm"
    done = write_dicom_annotations(open_nuclei(table), out, series=series / "large.dcm")
    (group,) = read_back(out).AnnotationGroupSequence
    rings = group.get_graphic_data(hd.ann.AnnotationCoordinateTypeValues.SCOORD)
    expected = shapes_of(table)
    assert done.n_nuclei == len(rings) == len(expected) > 30
    for ring, shape in zip(rings, expected, strict=True):
        assert (ring[0] != ring[-1]).any(), "not closed"
        np.testing.assert_array_equal(ring, shapely.get_coordinates(shape)[:-1])
    names, values, units = group.get_measurements()
    assert [(n.value, n.scheme_designator) for n in names] == [("42798000", "SCT")]
    assert units[0].value == "um2"
    np.testing.assert_array_equal(values[:, 0], pq.read_table(table)["area_um2"].to_numpy())
    np.testing.assert_allclose(values[:, 0], shapely.area(expected) * MPP**2, rtol=1e-6)
    assert (group.annotated_property_category.value, group.annotated_property_type.value) == ("91723000", "84640000")
    data = pydicom.dcmread(out)
    assert (
        data.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPInstanceUID
        == pydicom.dcmread(series / "large.dcm").SOPInstanceUID
    )
    assert (
        "imported from labels"
        in data.AnnotationGroupSequence[0].AnnotationGroupAlgorithmIdentificationSequence[0].AlgorithmName
    )
    assert not faults(out)


def test_millimetres_are_where_highdicom_puts_the_pixels(table: Path, series: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.dcm"
    region = Box(0, 0, 2000, 2000)
    write_dicom_annotations(open_nuclei(table), out, Selection(region), series=series / "large.dcm", three_d=True)
    (group,) = read_back(out).AnnotationGroupSequence
    rings = group.get_graphic_data(hd.ann.AnnotationCoordinateTypeValues.SCOORD3D)
    image = pydicom.dcmread(series / "large.dcm")
    to_mm = hd.spatial.ImageToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
    centers = [shapely.get_coordinates(s.centroid)[0] for s in shapes_of(table)]
    expected = [s for s, c in zip(shapes_of(table), centers, strict=True) if (c < 2000).all()]
    assert len(rings) == len(expected)
    for ring, shape in zip(rings, expected, strict=True):
        np.testing.assert_allclose(ring, to_mm(shapely.get_coordinates(shape)[:-1]), atol=1e-9)
    assert not faults(out)
    shutil.copyfile(out, series / "annotations.dcm")
    import_files([series / "annotations.dcm"], "dicom-ann", tmp_path / "back", ImportOptions(slide_id="s"))
    again = shapes_of(tmp_path / "back/nuclei/s.parquet")
    assert sorted(np.round(shapely.area(again), 3)) == sorted(np.round(shapely.area(expected), 3))
    assert shapely.total_bounds(again) == pytest.approx(shapely.total_bounds(expected), abs=1e-4)
    with pytest.raises(FormatError, match="--slide-file"):
        import_files([out], "dicom-ann", tmp_path / "none", ImportOptions(mpp=MPP))


def test_features_are_measurements_and_missing_ones_are_left_out(table: Path, series: Path, tmp_path: Path) -> None:
    from wsiseg.run.features import FeatureOptions, measure_features

    measure_features(table.parent.parent, "s", FeatureOptions(pixels=False))
    out, path = tmp_path / "a.dcm", table.parent.parent / "features/s.parquet"
    found = pq.read_table(path)
    nearest = [None if k % 7 == 0 else v for k, v in enumerate(found["nearest_um"].to_pylist())]
    column = found.schema.get_field_index("nearest_um")
    pq.write_table(found.set_column(column, found.schema.field(column), pa.array(nearest, pa.float32())), path)
    source = with_features(open_nuclei(table))
    write_dicom_annotations(source, out, series=series / "large.dcm")
    (group,) = read_back(out).AnnotationGroupSequence
    names, values, _ = group.get_measurements()
    by_name = dict(zip([n.meaning for n in names], values.T, strict=True))
    features = pq.read_table(table.parent.parent / "features/s.parquet")
    np.testing.assert_array_equal(by_name["Solidity"], features["solidity"].to_numpy())
    assert "Eosin optical density, mean" not in by_name, "not measured"
    np.testing.assert_array_equal(by_name["Distance to the nearest nucleus"], np.array(nearest, np.float32))
    assert not faults(out)


def test_a_slide_that_is_no_dicom_and_one_of_another_size_are_refused_with_numbers(
    table: Path, series: Path, tmp_path: Path
) -> None:
    run = table.parent.parent
    result = CliRunner().invoke(main, ["export", str(run), "--to", "dicom-ann", "-o", str(tmp_path / "a.dcm")])
    assert result.exit_code == 2
    assert "--dicom-series" in result.output
    with pytest.raises(InputError, match="9000 x 9000 px"):
        write_dicom_annotations(open_nuclei(table), tmp_path / "a.dcm", series=series / "other.dcm")
    with pytest.raises(InputError, match="one DICOM series, found 2"):
        write_dicom_annotations(open_nuclei(table), tmp_path / "a.dcm", series=series)
    nowhere = Selection(Box(3990, 2990, 5, 5))
    with pytest.raises(EmptyExportError):
        write_dicom_annotations(open_nuclei(table), tmp_path / "a.dcm", nowhere, series=series / "large.dcm")
    assert not (tmp_path / "a.dcm").exists()
    named = ["--dicom-series", str(series / "large.dcm"), "-o", str(tmp_path / "a.dcm")]
    assert CliRunner().invoke(main, ["export", str(run), "--to", "dicom-ann", *named]).exit_code == 0


def foreign(path: Path, image: Any, groups: list[tuple[str, Any, list[np.ndarray]]], three_d: bool = False) -> Path:
    """Write annotations by highdicom, as other tools do."""
    made = [
        hd.ann.AnnotationGroup(
            number=k,
            uid=hd.UID(),
            label=label,
            annotated_property_category=Code("91723000", "SCT", "Anatomical Structure"),
            annotated_property_type=Code("84640000", "SCT", "Nucleus"),
            graphic_type=graphic,
            graphic_data=data,
            algorithm_type="MANUAL",
        )
        for k, (label, graphic, data) in enumerate(groups, start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = hd.ann.MicroscopyBulkSimpleAnnotations(
            [image], "3D" if three_d else "2D", made, hd.UID(), 1, hd.UID(), 1, "M", "M", "1", "1"
        )
        whole.save_as(path)
    return path


def read(path: Path, **known: Any) -> tuple[list[Any], list[str], Provenance]:
    provenance = Provenance("dicom-ann")
    shapes: list[Any] = []
    names: list[str] = []
    for part in READERS["dicom-ann"](Source(path, **known), provenance):
        ends = part.ring_offsets
        shapes += [shapely.Polygon(part.xy[a:b]) for a, b in pairwise(ends)]
        names += part.class_name or [""] * len(part)
    return shapes, names, provenance


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_kinds_and_groups_of_others_are_read(dtype: type, series: Path, tmp_path: Path) -> None:
    image = pydicom.dcmread(series / "large.dcm")
    triangles = [np.array([[10, 10], [30, 10], [10, 40]], dtype), np.array([[50, 50], [90, 50], [90, 60], [50, 60]], dtype)]
    ellipse = [np.array([[100, 200], [140, 200], [120, 190], [120, 210]], dtype)]
    rectangle = [np.array([[1, 1], [5, 1], [5, 9], [1, 9]], dtype)]
    points = [np.array([[7, 7]], dtype), np.array([[8, 8]], dtype)]
    path = foreign(
        tmp_path / "a.dcm",
        image,
        [("tumor", POLYGON, triangles), ("round", ELLIPSE, ellipse), ("box", RECTANGLE, rectangle), ("dots", POINT, points)],
    )
    shapes, names, provenance = read(path)
    assert names == ["tumor", "tumor", "round", "box"]
    assert [s.area for s in shapes[:2]] == [300, 400]
    assert shapes[2].area == pytest.approx(np.pi * 20 * 10, rel=0.01)
    assert shapes[2].bounds == pytest.approx((100, 190, 140, 210), abs=0.1)
    assert shapes[3].bounds == (1, 1, 5, 9)
    assert provenance.skipped == {"annotations of type POINT": 2}


def test_one_polygon_without_an_index_list_and_several(series: Path, tmp_path: Path) -> None:
    image = pydicom.dcmread(series / "large.dcm")
    one, two = np.array([[10, 10], [30, 10], [10, 40.0]]), np.array([[50, 50], [90, 50], [90, 60.0]])
    path = foreign(tmp_path / "a.dcm", image, [("", POLYGON, [one])])
    data = pydicom.dcmread(path)
    del data.AnnotationGroupSequence[0].LongPrimitivePointIndexList
    data.save_as(path)
    assert read(path)[0][0].area == 300
    path = foreign(tmp_path / "b.dcm", image, [("", POLYGON, [one, two])])
    data = pydicom.dcmread(path)
    whole = bytes(data.AnnotationGroupSequence[0].LongPrimitivePointIndexList)
    for broken in (None, whole[:4], np.array([1, 2], "<i4").tobytes(), np.array([1, 90], "<i4").tobytes()):
        if broken is None:
            del data.AnnotationGroupSequence[0].LongPrimitivePointIndexList
        else:
            data.AnnotationGroupSequence[0].LongPrimitivePointIndexList = broken
        data.save_as(path)
        with pytest.raises(FormatError, match="group 1"):
            read(path)


def test_3d_of_others_with_one_z_and_with_many(series: Path, tmp_path: Path) -> None:
    image = pydicom.dcmread(series / "large.dcm")
    to_mm = hd.spatial.ImageToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
    corners = np.array([[10, 10], [30, 10], [10, 40.0]])
    flat, tilted = to_mm(corners), to_mm(corners) + np.array([[0, 0, 0], [0, 0, 0.001], [0, 0, 0.002]])
    for name, ring in (("flat", flat), ("tilted", tilted)):
        path = foreign(tmp_path / f"{name}.dcm", image, [("", POLYGON, [ring, ring])], three_d=True)
        shapes, _, provenance = read(path, slide=str(series / "large.dcm"))
        assert [s.area for s in shapes] == pytest.approx([300, 300], rel=1e-6)
        assert shapes[0].bounds == pytest.approx((10, 10, 30, 40), abs=1e-6)
        assert provenance.mpp == pytest.approx(MPP)


def test_what_is_no_annotation_object_is_named(series: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="VL Whole Slide"):
        read(series / "large.dcm")
    (tmp_path / "x.dcm").write_bytes(b"no dicom")
    with pytest.raises(FormatError, match="expected a DICOM file"):
        read(tmp_path / "x.dcm")

"""Read nuclei from DICOM Microscopy Bulk Simple Annotations of any tool: polygons, ellipses, rectangles, in 2D or 3D."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.export.geojson import CHUNK_NUCLEI
from wsiseg.export.incoming import Incoming, Provenance, Source, from_rings
from wsiseg.read.dicom import dicom_facts

__all__ = ["read_dicom_annotations"]

ANNOTATIONS = "1.2.840.10008.5.1.4.1.1.91.1"
"""SOP class: Microscopy Bulk Simple Annotations Storage."""

ELLIPSE_POINTS = 64
Float = npt.NDArray[np.float64]


def read_dicom_annotations(source: Source, provenance: Provenance) -> Iterator[Incoming]:
    """Yield the annotations of all groups, in order; with several groups, a group's label becomes ``class_name``.

    Ellipses become polygons of 64 vertices. Points and lines are skipped and counted. 3D coordinates need the slide's DICOM
    series, in the same folder or given as the slide, which also states the microns per pixel.

    Raises
    ------
    FormatError
        The file is not such an object, its arrays are damaged, or it has 3D coordinates and there is no series.
    """
    data = _dataset(source.path)
    image = _source_image(data, source)
    if image is not None:
        provenance.width_px, provenance.height_px = int(image.TotalPixelMatrixColumns), int(image.TotalPixelMatrixRows)
        provenance.mpp = _mpp(image)
    provenance.missing += ["center_prob"]
    three_d = str(data.get("AnnotationCoordinateType")) == "3D"
    to_px = _Inverse(image, source.path) if three_d else None
    groups = list(data.get("AnnotationGroupSequence") or [])
    for number, group in enumerate(groups, start=1):
        where = f"{source.path}, group {number}"
        label = str(group.get("AnnotationGroupLabel") or "")
        graphic = str(group.get("GraphicType") or "")
        n = int(group.get("NumberOfAnnotations") or 0)
        if graphic in ("POINT", "POLYLINE"):
            provenance.skip(f"annotations of type {graphic}", n)
            continue
        if graphic not in ("POLYGON", "ELLIPSE", "RECTANGLE"):
            raise FormatError(f"{where}: expected POLYGON, ELLIPSE, RECTANGLE, POINT or POLYLINE, got {graphic!r}.")
        xy, offsets = _shapes(group, graphic, n, where, three_d=three_d, to_px=to_px)
        for first in range(0, n, CHUNK_NUCLEI):
            last = min(n, first + CHUNK_NUCLEI)
            rings = [xy[offsets[k] : offsets[k + 1]] for k in range(first, last)]
            names = [label] * len(rings) if len(groups) > 1 else None
            yield from_rings(rings, source, [f"{where}, annotation {k + 1}" for k in range(first, last)], class_name=names)


def _dataset(path: Path) -> Any:
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(path)
            kind = data.get("SOPClassUID")
    except (InvalidDicomError, OSError, ValueError, KeyError, EOFError) as err:
        raise FormatError(f"{path}: expected a DICOM file ({err}).") from err
    if str(kind) != ANNOTATIONS:
        raise FormatError(
            f"{path}: expected Microscopy Bulk Simple Annotations, got {getattr(kind, 'name', kind) or 'no SOP class at all'}."
        )
    return data


def _shapes(
    group: Any, graphic: str, n: int, where: str, *, three_d: bool, to_px: _Inverse | None
) -> tuple[Float, npt.NDArray[np.int64]]:
    """Return the vertices of all outlines of a group, px, and the start of each."""
    values, width = _values(group, where, three_d=three_d)
    index = group.get("LongPrimitivePointIndexList")
    if graphic == "POLYGON" and index is not None:
        begins = np.frombuffer(index, "<i4").astype(np.int64) - 1
        if len(begins) != n:
            raise FormatError(f"{where}: expected {n} indices, one per annotation, got {len(begins)}.")
    elif graphic == "POLYGON":
        if n > 1:
            raise FormatError(
                f"{where}: expected the list of the starts of {n} polygons (LongPrimitivePointIndexList), got none."
            )
        begins = np.zeros(n, np.int64)
    else:
        begins = np.arange(n, dtype=np.int64) * 4 * width
    ends = np.r_[begins, values.size]
    if (np.diff(ends) <= 0).any() or (ends % width).any() or (n and begins[0] != 0):
        raise FormatError(
            f"{where}: expected indices that ascend from 1 in steps of {width} values, up to {values.size}; got others."
        )
    if graphic != "POLYGON" and values.size != n * 4 * width:
        raise FormatError(
            f"{where}: expected {4 * width} values for each of {n} annotations of type {graphic}, got {values.size} in all."
        )
    points = values.reshape(-1, width)
    if to_px is not None:
        z = float(group.CommonZCoordinateValue) if width == 2 else 0.0
        points = to_px(np.column_stack([points, np.full(len(points), z)]) if width == 2 else points)
    offsets = ends // width
    if graphic == "ELLIPSE":
        return _ellipses(points[:, :2].reshape(-1, 4, 2))
    return points[:, :2], offsets


def _values(group: Any, where: str, *, three_d: bool) -> tuple[Float, int]:
    """Return all coordinates of a group, and the number of coordinates of a point."""
    width = 3 if three_d and "CommonZCoordinateValue" not in group else 2
    for name, kind in (("PointCoordinatesData", "<f4"), ("DoublePointCoordinatesData", "<f8")):
        raw = group.get(name)
        if raw is not None:
            if len(raw) % (np.dtype(kind).itemsize * width):
                raise FormatError(
                    f"{where}: {name} has {len(raw)} bytes, which is not a multiple of a point of {width} values."
                )
            return np.frombuffer(raw, kind).astype(np.float64), width
    raise FormatError(f"{where}: expected coordinates (PointCoordinatesData or DoublePointCoordinatesData), got none.")


def _ellipses(corners: Float) -> tuple[Float, npt.NDArray[np.int64]]:
    """Return polygons of ellipses given by the ends of their major and minor axes, float64 (n, 4, 2)."""
    center = corners.mean(axis=1)
    major, minor = (corners[:, 1] - corners[:, 0]) / 2, (corners[:, 3] - corners[:, 2]) / 2
    t = np.linspace(0, 2 * np.pi, ELLIPSE_POINTS, endpoint=False)
    xy = center[:, None] + major[:, None] * np.cos(t)[:, None] + minor[:, None] * np.sin(t)[:, None]
    return xy.reshape(-1, 2), np.arange(len(corners) + 1, dtype=np.int64) * ELLIPSE_POINTS


class _Inverse:
    """Transformation from millimeters in the frame of reference to px of the total pixel matrix."""

    def __init__(self, image: Any | None, path: Path) -> None:
        if image is None:
            raise FormatError(
                f"{path}: its coordinates are 3D (mm in the slide's frame of reference), which needs the slide's DICOM series. "
                "Give one of its files by --slide-file, or put the series into the same folder."
            )
        origin = image.TotalPixelMatrixOriginSequence[0]
        self._at = np.array([float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem)])
        down, across = _spacing(image)
        row, column = np.array(image.ImageOrientationSlide, np.float64).reshape(2, 3)[:, :2]
        self._to = np.linalg.inv(np.column_stack([row * across, column * down]))

    def __call__(self, points: Float) -> Float:
        """Return the points in px; the origin in DICOM is the center of the first pixel, here its corner."""
        return (points[:, :2] - self._at) @ self._to.T + 0.5


def _spacing(image: Any) -> tuple[float, float]:
    """Return the spacing of rows and of columns, mm."""
    shared = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    down, across = (float(v) for v in shared.PixelSpacing)
    return down, across


def _mpp(image: Any) -> float | None:
    try:
        return 1000 * sum(_spacing(image)) / 2
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


def _source_image(data: Any, source: Source) -> Any | None:
    """Return the header of the image to which the annotations refer, else of the slide's largest level; None if not found."""
    import pydicom

    wanted = {str(i.get("ReferencedSOPInstanceUID")) for i in data.get("ReferencedImageSequence") or []}
    places = [Path(source.slide)] if source.slide else []
    folders = [p if p.is_dir() else p.parent for p in (*places, source.path)]
    found: list[Any] = []
    for path in dict.fromkeys(p for folder in folders for p in sorted(folder.iterdir()) if p.is_file()):
        facts = dicom_facts(path)
        if facts is not None and facts.is_volume:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(path, stop_before_pixels=True)
            if str(header.SOPInstanceUID) in wanted:
                return header
            found.append((facts, header))
    named = [h for f, h in found if source.slide and Path(source.slide).is_file() and f.series == _series(source.slide)]
    return max(named, key=lambda h: int(h.TotalPixelMatrixColumns), default=None)


def _series(path: str) -> str:
    facts = dicom_facts(path)
    return facts.series if facts is not None else ""

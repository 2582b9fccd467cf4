"""Write a polygon table as DICOM Microscopy Bulk Simple Annotations (PS3.3, C.37).

highdicom makes the object with the attributes of its source image and a group of one nucleus. The arrays of the group are then
replaced by those of the table, which are streamed by row groups to a file that pydicom copies, so that polygons are never
Python objects.
"""

from __future__ import annotations

import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg import __version__
from wsiseg.errors import EmptyExportError, FormatError, InputError
from wsiseg.libraries import optional
from wsiseg.read.dicom import dicom_facts
from wsiseg.results.folder import RunFolder
from wsiseg.results.reopen import slide_place
from wsiseg.results.slide_record import slide_record
from wsiseg.tables import atomic_path, table_fingerprint
from wsiseg.tables.source import Chunk, Exported, NucleiFile, Selection, iter_chunks

__all__ = ["MEASUREMENTS", "algorithm_of", "level_headers", "table_uid", "write_dicom_annotations"]

OWN_CODES = "99WSISEG"
"""Coding scheme of measurements that have no code in a standard."""

CATEGORY = ("91723000", "SCT", "Anatomical Structure")
NUCLEUS = ("84640000", "SCT", "Nucleus")
"""Codes of what is annotated or segmented: category and type."""

ORIGIN = {
    "manufacturer": "wsiseg",
    "manufacturer_model_name": "wsiseg",
    "software_versions": __version__,
    "device_serial_number": "none",
    "content_label": "NUCLEI",
    "content_description": "Nuclei of H&E",
}
"""Facts that every DICOM object of wsiseg states of itself."""

MEASUREMENTS: dict[str, tuple[str, str, str, str, str]] = {
    "area_um2": ("42798000", "SCT", "Area", "um2", "square micrometer"),
    "perimeter_um": ("perimeter", OWN_CODES, "Perimeter", "um", "micrometer"),
    "major_um": ("major", OWN_CODES, "Major axis of the ellipse of equal moments", "um", "micrometer"),
    "minor_um": ("minor", OWN_CODES, "Minor axis of the ellipse of equal moments", "um", "micrometer"),
    "eccentricity": ("eccentricity", OWN_CODES, "Eccentricity of the ellipse of equal moments", "1", "no units"),
    "circularity": ("circularity", OWN_CODES, "Circularity", "1", "no units"),
    "solidity": ("solidity", OWN_CODES, "Solidity", "1", "no units"),
    "hematoxylin_od_mean": ("hematoxylin_mean", OWN_CODES, "Hematoxylin optical density, mean", "1", "no units"),
    "hematoxylin_od_std": ("hematoxylin_std", OWN_CODES, "Hematoxylin optical density, standard deviation", "1", "no units"),
    "eosin_od_mean": ("eosin_mean", OWN_CODES, "Eosin optical density, mean", "1", "no units"),
    "eosin_od_std": ("eosin_std", OWN_CODES, "Eosin optical density, standard deviation", "1", "no units"),
    "nearest_um": ("nearest", OWN_CODES, "Distance to the nearest nucleus", "um", "micrometer"),
    "local_density_per_mm2": ("density", OWN_CODES, "Nuclei within 50 um per area", "/mm2", "per square millimeter"),
}
"""Columns of a table ``with_features`` as measurements: code value, scheme, meaning, unit (UCUM) and its meaning. Without
features only the area is written."""


def write_dicom_annotations(
    source: NucleiFile,
    out: Path,
    selection: Selection | None = None,
    *,
    series: Path | None = None,
    three_d: bool = False,
) -> Exported:
    """Write nuclei as one annotation object (``.dcm``): polygons, areas and, for a table ``with_features``, features.

    Coordinates are columns and rows of the total pixel matrix of the largest level, float32, with (0, 0) at the corner of the
    first pixel; rings are not closed. UIDs depend only on the table and the options; only the time of writing differs.

    Parameters
    ----------
    series
        A DICOM file of the slide's series, or its folder, if the slide itself is not DICOM. None: the slide of the run.
    three_d
        Write millimeters in the slide's frame of reference instead, float64, with the same z for all.

    Raises
    ------
    InputError
        The slide is not a DICOM series and none is given, or the size of the slide differs from that of the series.
    EmptyExportError
        There is no nucleus; the standard does not allow an empty group.
    """
    optional("highdicom", "dicom")
    image = level_headers(source, series)[0]
    wanted = [name for name in MEASUREMENTS if name in source.columns] if "eccentricity" in source.columns else ["area_um2"]
    to_mm = _Matrix(image) if three_d else None
    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
        n, starts, columns, first = 0, [np.zeros(0, np.int64)], {name: [np.zeros(0, np.float32)] for name in wanted}, None
        at = 0
        for chunk in iter_chunks(source, selection or Selection(), wanted):
            points, lengths = _open_rings(chunk)
            placed = points.astype("<f4") if to_mm is None else to_mm.plane(points)
            spool.write(placed.tobytes())
            ends = at + np.cumsum(2 * lengths)
            starts.append(np.r_[at, ends[:-1]] + 1)  # index of values, from 1
            at = int(ends[-1])
            for name in wanted:
                columns[name].append(chunk.column(name).astype(np.float32))
            first = placed[: lengths[0]].astype(np.float64) if first is None else first
            n += len(chunk)
        if first is None:
            raise EmptyExportError(f"{source.path}: there is no nucleus to export, and DICOM does not allow an empty group.")
        spool.seek(0)
        told = f"{image.SOPInstanceUID} {selection} {wanted} {three_d}"
        measured = {name: np.concatenate(parts) for name, parts in columns.items()}
        measured = {
            name: values for name, values in measured.items() if np.isfinite(values).any()
        }  # leave out features that were never measured
        made = _object(source, image, told, first, measured, to_mm)
        group = made.AnnotationGroupSequence[0]
        group.NumberOfAnnotations = n
        index = np.concatenate(starts)
        if index[-1] > 2**31 - 1:
            raise FormatError(
                f"{source.path}: {at:,} coordinates, too many for one annotation group. Export parts of it (--region)."
            )
        group.LongPrimitivePointIndexList = index.astype("<i4").tobytes()
        name = "PointCoordinatesData" if to_mm is None else "DoublePointCoordinatesData"
        for stale in ("PointCoordinatesData", "DoublePointCoordinatesData"):
            if stale in group:
                delattr(group, stale)
        setattr(group, name, spool)
        with atomic_path(out) as partial:
            made.save_as(str(partial), enforce_file_format=True)
    return Exported(out, n)


class _Matrix:
    """Position of the total pixel matrix in the slide's frame of reference."""

    def __init__(self, image: Any) -> None:
        import highdicom as hd

        self._to = hd.spatial.ImageToReferenceTransformer.for_image(image, for_total_pixel_matrix=True)
        self.z = float(self._to(np.zeros((1, 2)))[0, 2])

    def plane(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return x and y in mm of points in px."""
        return np.ascontiguousarray(self._to(points)[:, :2], "<f8")


def _open_rings(chunk: Chunk) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the vertices of all rings without the closing ones, and the number of vertices of each ring."""
    keep = np.ones(len(chunk.xy), np.bool_)
    keep[chunk.ring_offsets[1:] - 1] = False
    return chunk.xy[keep], np.diff(chunk.ring_offsets) - 1


def level_headers(source: NucleiFile, series: Path | None) -> list[Any]:
    """Return the headers of the levels of the slide's DICOM series, the largest first; of a concatenation, its first file's.

    Raises
    ------
    InputError
        There is no series, or its size is not that of the table's slide.
    """
    import pydicom

    named = series is not None
    path = series if series is not None else _slide_of(source)
    files = [path] if path is not None and path.is_file() else sorted(path.iterdir()) if path is not None else []
    found = [f for p in files if (f := dicom_facts(p)) is not None and f.is_volume]
    if path is not None and path.is_file() and found:  # the other levels are in the same folder
        beside = (dicom_facts(p) for p in sorted(path.parent.iterdir()) if p.is_file())
        found = [f for f in beside if f is not None and f.is_volume and f.series == found[0].series]
    if not found:
        raise InputError(
            f"{path}: expected a DICOM whole-slide image, found none." if named else
            f"{source.path}: its slide is not a DICOM series ({path or 'its path is not known'}), which annotations need. "
            "Convert the slide (wsidicomizer, OpenSlide's dicom tools) and name the series by --dicom-series."
        )  # fmt: skip
    if len({f.series for f in found}) > 1:
        raise InputError(
            f"{path}: expected one DICOM series, found {len({f.series for f in found})}. Name a file of one: --dicom-series."
        )
    best = max(found, key=lambda f: f.columns_px)  # of equals the first
    if (best.columns_px, best.rows_px) != (source.width_px, source.height_px):
        raise InputError(
            f"{best.path}: the largest level has {best.columns_px} x {best.rows_px} px, but the slide of {source.path} has "
            f"{source.width_px} x {source.height_px} px, so annotations would be misplaced. Name a series of the same slide."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about values of the scanner that violate the standard
        levels = {(f.columns_px, f.rows_px): f for f in reversed(found)}
        return [pydicom.dcmread(levels[size].path, stop_before_pixels=True) for size in sorted(levels, reverse=True)]


def _slide_of(source: NucleiFile) -> Path | None:
    folder = RunFolder(source.path.parent.parent)
    try:
        return Path(slide_place(folder, slide_record(folder, source.path.stem)))
    except (FormatError, InputError, OSError):
        return None


def table_uid(source: NucleiFile, what: str) -> Any:
    """Return a UID that depends only on the table and the text ``what``."""
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=["wsiseg", table_fingerprint(source.path), what])


def _object(
    source: NucleiFile,
    image: Any,
    made_of: str,
    ring: npt.NDArray[np.float64],
    columns: dict[str, npt.NDArray[np.float32]],
    to_mm: _Matrix | None,
) -> Any:
    """Return the annotation object with one nucleus, and the measurements of all nuclei."""
    import highdicom as hd
    from pydicom.sr.coding import Code

    kind = hd.ann.AnnotationCoordinateTypeValues.SCOORD if to_mm is None else hd.ann.AnnotationCoordinateTypeValues.SCOORD3D
    graphic = ring.astype(np.float32) if to_mm is None else np.column_stack([ring, np.full(len(ring), to_mm.z)])
    measured = []
    for name, values in columns.items():
        value, scheme, meaning, unit, unit_meaning = MEASUREMENTS[name]
        item = hd.ann.Measurements(Code(value, scheme, meaning), values[:1] * 0, Code(unit, "UCUM", unit_meaning))
        measured.append((item, values))
    group = hd.ann.AnnotationGroup(
        number=1,
        uid=table_uid(source, f"group {made_of}"),
        label="nuclei",
        annotated_property_category=Code(*CATEGORY),
        annotated_property_type=Code(*NUCLEUS),
        graphic_type=hd.ann.GraphicTypeValues.POLYGON,
        graphic_data=[graphic],
        algorithm_type=hd.ann.AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_of(source),
        measurements=[item for item, _ in measured],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = hd.ann.MicroscopyBulkSimpleAnnotations(
            source_images=[image],
            annotation_coordinate_type=kind,
            annotation_groups=[group],
            series_instance_uid=table_uid(source, f"series {made_of}"),
            series_number=1000,
            sop_instance_uid=table_uid(source, f"instance {made_of}"),
            instance_number=1,
            **ORIGIN,
        )
    for item, values in zip(made.AnnotationGroupSequence[0].MeasurementsSequence, columns.values(), strict=True):
        _fill(item, values)
    return made


def _fill(item: Any, values: npt.NDArray[np.float32]) -> None:
    """Set the values of a measurement; if some nuclei have none, only the others are stored, with a list of their indices."""
    there = np.isfinite(values)
    stored = item.MeasurementValuesSequence[0]
    stored.FloatingPointValues = values[there].astype("<f4").tobytes()
    if not there.all():
        stored.AnnotationIndexList = (np.flatnonzero(there) + 1).astype("<i4").tobytes()


def algorithm_of(source: NucleiFile) -> Any:
    """Return the description of the algorithm: version and weights of wsiseg, or the tool from which the table was imported."""
    import highdicom as hd
    from pydicom.sr.coding import Code

    model = source.facts.get("model") or {}
    family = Code("123110", "DCM", "Artificial Intelligence")
    if source.imported:
        tool = str(source.imported.get("format") or "another tool")
        return hd.AlgorithmIdentificationSequence(
            name=f"imported from {tool}"[:64], family=family, version="not stated", source="wsiseg import"
        )
    known = {k: str(model[k])[:64] for k in ("weights", "weights_sha256", "precision") if k in model}
    return hd.AlgorithmIdentificationSequence(
        name="wsiseg",
        family=family,
        version=str(source.facts.get("wsiseg") or __version__),
        source="wsiseg",
        parameters=known or None,
    )

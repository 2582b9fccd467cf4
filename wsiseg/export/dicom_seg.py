"""Write a polygon table as DICOM Segmentation (PS3.3, A.51): a mask of all nuclei, one binary object per level of the slide.

highdicom makes each object with the attributes of its source level and a single frame; the frames are then those of the table,
drawn block by block and streamed to the file. Frames without a nucleus are left out (TILED_SPARSE). So memory holds a block of
pixels with its nuclei, and the positions of the frames, about 6 KB each.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import EmptyExportError, FormatError
from wsiseg.export.dicom_ann import CATEGORY, NUCLEUS, ORIGIN, algorithm_of, level_headers, table_uid
from wsiseg.labels import rasterize_rings
from wsiseg.libraries import optional
from wsiseg.tables import atomic_folder
from wsiseg.tables.source import Exported, NucleiFile
from wsiseg.tables.windows import RingWindows

__all__ = ["write_dicom_segmentation"]

FRAME_PX = 512
BLOCK_FRAMES = 16
"""Frames of a row that are drawn together at level 0; fewer where a frame shows more of the slide."""

MAX_BYTES = 2**32 - 2
"""Largest pixel data that an uncompressed DICOM object can hold."""


def write_dicom_segmentation(source: NucleiFile, out: Path, *, series: Path | None = None, overwrite: bool = False) -> Exported:
    """Write ``out``, a folder of ``level-0.dcm``, ``level-1.dcm``, ...: one for each level of the slide's series.

    A pixel is 1 if its center is inside a nucleus. UIDs follow from the table and the series; only the time of writing
    differs.

    Parameters
    ----------
    series
        A DICOM file of the slide's series or its folder, for a slide that is no DICOM itself. Default: the slide of the run.

    Raises
    ------
    InputError
        ``out`` exists; the slide is no DICOM series and none is named, or the series is of a slide of another size.
    EmptyExportError
        There is no nucleus.
    FormatError
        A level's frames are more than one object can hold.
    """
    optional("highdicom", "dicom")
    images = level_headers(source, series)
    with RingWindows(source.path) as rings, atomic_folder(out, overwrite=overwrite) as folder:
        if not len(rings):
            raise EmptyExportError(f"{source.path}: no nucleus to write; a segmentation of nothing has no frame.")
        largest = _spacing(images[0])
        for number, image in enumerate(images):
            zoom = largest / _spacing(image)  # px of this level per level-0 px, (y, x)
            with ExitStack() as stack:
                spool = stack.enter_context(tempfile.TemporaryFile(dir=folder))
                places = _spooled(_frames(rings, image, zoom), spool, source)
                made = _object(source, image, number)
                organization = table_uid(source, f"segmentation dimensions {image.SOPInstanceUID}")
                for item in (*made.DimensionOrganizationSequence, *made.DimensionIndexSequence):
                    item.DimensionOrganizationUID = organization
                _fill(made, image, places, spool)
                made.save_as(str(folder / f"level-{number}.dcm"), enforce_file_format=True)
    return Exported(out, source.n_nuclei)


def _spacing(image: Any) -> npt.NDArray[np.float64]:
    """Return mm between rows and between columns."""
    measures = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return np.array([float(v) for v in measures.PixelSpacing])


def _frames(rings: RingWindows, image: Any, zoom: npt.NDArray[np.float64]) -> Iterator[tuple[int, int, npt.NDArray[np.bool_]]]:
    """Yield (row, column, mask) of the frames in which a nucleus is, row by row, counted from 0."""
    height, width = int(image.TotalPixelMatrixRows), int(image.TotalPixelMatrixColumns)
    step = FRAME_PX * max(1, int(BLOCK_FRAMES * zoom.prod()))
    for top in range(0, height, FRAME_PX):
        for left in range(0, width, step):
            w = min(step, -(-(width - left) // FRAME_PX) * FRAME_PX)
            mask = _drawn(rings, left, top, w, zoom)
            if mask is None:
                continue
            mask[height - top :] = False  # frames at the border reach beyond the slide
            mask[:, width - left :] = False
            for x in range(0, w, FRAME_PX):
                frame = mask[:, x : x + FRAME_PX]
                if frame.any():
                    yield top // FRAME_PX, (left + x) // FRAME_PX, frame


def _drawn(rings: RingWindows, x: int, y: int, w: int, zoom: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_] | None:
    """Return a block of a level as bool (FRAME_PX, w); ``None``: no nucleus is near."""
    by, bx = zoom
    near = rings.near(x / bx, y / by, (x + w) / bx, (y + FRAME_PX) / by)
    if not len(near):
        return None
    return rasterize_rings(near.xy * (bx, by), near.offsets, (FRAME_PX, w), origin=(x, y)) > 0


def _spooled(
    frames: Iterator[tuple[int, int, npt.NDArray[np.bool_]]], spool: IO[bytes], source: NucleiFile
) -> npt.NDArray[np.int64]:
    """Write frames, one bit a pixel, and return their rows and columns, int64 (N, 2); one blank frame if there is none."""
    places: list[tuple[int, int]] = []
    for row, column, mask in frames:
        places.append((row, column))
        spool.write(np.packbits(mask.ravel(), bitorder="little").tobytes())
    if not places:
        places.append((0, 0))
        spool.write(bytes(FRAME_PX**2 // 8))
    n_bytes = spool.tell()
    if n_bytes > MAX_BYTES:
        raise FormatError(
            f"{source.path}: {len(places):,} frames of {FRAME_PX} px with nuclei are {n_bytes / 1e9:.1f} GB, and an object "
            f"holds {MAX_BYTES / 1e9:.1f} GB. Export annotations (--to dicom-ann) instead."
        )
    spool.seek(0)
    return np.array(places, np.int64)


def _object(source: NucleiFile, image: Any, number: int) -> Any:
    """Return a segmentation object of a level, as if it had one frame."""
    import highdicom as hd
    from pydicom.sr.coding import Code

    one = copy.deepcopy(image)
    one.TotalPixelMatrixColumns = one.TotalPixelMatrixRows = FRAME_PX
    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="nuclei",
        segmented_property_category=Code(*CATEGORY),
        segmented_property_type=Code(*NUCLEUS),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm_of(source),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hd.seg.Segmentation(
            source_images=[one],
            pixel_array=np.ones((FRAME_PX, FRAME_PX), np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_instance_uid=table_uid(source, f"segmentation series {image.SeriesInstanceUID}"),
            series_number=1001,
            sop_instance_uid=table_uid(source, f"segmentation {image.SOPInstanceUID}"),
            instance_number=number + 1,
            **ORIGIN,
            tile_pixel_array=True,
            tile_size=(FRAME_PX, FRAME_PX),
            dimension_organization_type=hd.DimensionOrganizationTypeValues.TILED_SPARSE,
            pyramid_uid=table_uid(source, f"segmentation pyramid {image.SeriesInstanceUID}"),
            pyramid_label="nuclei",
        )


def _fill(made: Any, image: Any, places: npt.NDArray[np.int64], spool: IO[bytes]) -> None:
    """Give an object its frames in place of the one that it was made with."""
    import highdicom as hd
    from pydicom.dataset import Dataset

    made.PatientOrientation = None  # of type 2 for validators that do not know slides
    made.TotalPixelMatrixColumns, made.TotalPixelMatrixRows = image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows
    made.NumberOfFrames = len(places)
    origin = image.TotalPixelMatrixOriginSequence[0]
    matrix = {
        "x_offset": float(origin.XOffsetInSlideCoordinateSystem),
        "y_offset": float(origin.YOffsetInSlideCoordinateSystem),
        "rows": FRAME_PX,
        "columns": FRAME_PX,
        "image_orientation": [float(v) for v in image.ImageOrientationSlide],
        "pixel_spacing": _spacing(image).tolist(),
    }
    index = np.stack([np.unique(axis, return_inverse=True)[1] + 1 for axis in places.T], axis=1).tolist()
    derivation = made.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence
    groups = []
    for (row, column), numbers in zip(places.tolist(), index, strict=True):
        content, group = Dataset(), Dataset()
        content.DimensionIndexValues = [1, *numbers]
        group.DerivationImageSequence = derivation
        group.FrameContentSequence = [content]
        group.PlanePositionSlideSequence = hd.utils.compute_plane_position_tiled_full(row + 1, column + 1, **matrix)
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = groups
    made.PixelData = spool

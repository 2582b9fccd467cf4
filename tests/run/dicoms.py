"""DICOM whole slides, made small: JPEG tiles in the layout that scanners write (TILED_FULL), one file a level, label beside."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import JPEGBaseline8Bit, generate_uid

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
CT = "1.2.840.10008.5.1.4.1.1.2"
TILE_PX = 256


def dicom_level(path: Path, rgb: np.ndarray, series: str, mpp: float = 0.5, flavor: str = "VOLUME") -> Path:
    """Write one instance of a slide: a pyramid level, or its label (``flavor`` LABEL)."""
    side = TILE_PX if flavor == "VOLUME" else max(rgb.shape[:2])
    frames = []
    for y in range(0, rgb.shape[0], side):
        for x in range(0, rgb.shape[1], side):
            tile = np.full((side, side, 3), 255, np.uint8)
            piece = rgb[y : y + side, x : x + side]
            tile[: piece.shape[0], : piece.shape[1]] = piece
            stream = io.BytesIO()
            Image.fromarray(tile).save(stream, "JPEG", quality=95, subsampling=0)
            frames.append(stream.getvalue())
    d = _header(path, WHOLE_SLIDE, series)
    d.ImageType = ["ORIGINAL", "PRIMARY", flavor, "NONE"]
    d.Modality = "SM"
    d.Rows = d.Columns = side
    d.TotalPixelMatrixRows, d.TotalPixelMatrixColumns = rgb.shape[:2]
    d.TotalPixelMatrixFocalPlanes = 1
    d.NumberOfOpticalPaths = 1
    d.NumberOfFrames = len(frames)
    d.DimensionOrganizationType = "TILED_FULL"
    d.SamplesPerPixel, d.PlanarConfiguration, d.PhotometricInterpretation = 3, 0, "YBR_FULL_422"
    d.BitsAllocated = d.BitsStored = 8
    d.HighBit, d.PixelRepresentation = 7, 0
    measures = Dataset()
    measures.PixelSpacing = [mpp / 1000, mpp / 1000]
    measures.SliceThickness = 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    path_item = Dataset()
    path_item.OpticalPathIdentifier = "0"
    d.OpticalPathSequence = Sequence([path_item])
    d.PixelData = encapsulate(frames)
    d["PixelData"].VR = "OB"
    d.save_as(path, enforce_file_format=True)
    return path


def dicom_other(path: Path, sop_class: str = CT) -> Path:
    """Write a DICOM file that is no slide: a radiological image without pixels."""
    d = _header(path, sop_class, generate_uid())
    d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    d.Modality = "CT"
    d.save_as(path, enforce_file_format=True)
    return path


def _header(path: Path, sop_class: str, series: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    d = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    d.SOPClassUID, d.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    d.StudyInstanceUID, d.SeriesInstanceUID = "1.2.3", series
    d.FrameOfReferenceUID = generate_uid()
    d.PatientID = "P"
    return d

"""Find which DICOM files are whole slides, and which belong together. OpenSlide reads the pixels.

A slide is a *series* (one Series Instance UID) of VL Whole Slide Microscopy instances: one file per pyramid level, and often
one each for label, overview and thumbnail. Files of several series may be in one folder, with any name and ending.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

__all__ = ["DicomFile", "dicom_facts", "dicom_folder_series", "dicom_header", "may_be_dicom", "series_of",
           "several_images", "slide_series"]  # fmt: skip

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class: VL Whole Slide Microscopy Image Storage (DICOM PS3.4, B.5)."""

NO_PIXELS_OF_A_SLIDE = frozenset({"LABEL", "OVERVIEW", "THUMBNAIL", "MACRO", "LOCALIZER"})
"""Third value of Image Type (PS3.3, C.8.12.4.1.1) of instances that belong to a slide but do not show its tissue."""

_MAGIC_AT = 128
_WANTED = (0x00080008, 0x00080016, 0x0020000E, 0x00480001, 0x00480006, 0x00480007)
_LAST_TAG = 0x00480007
_COUNTS = (0x00480302, 0x00480303)


@dataclass(frozen=True, slots=True)
class DicomFile:
    """The fields of a DICOM file's header that wsiseg uses.

    ``series`` is the Series Instance UID, ``kind`` the SOP class in words, ``flavor`` the third value of Image Type; the size
    is that of the level in px, ``width_mm`` the width that it shows (0: not stated).
    """

    path: str
    series: str
    kind: str
    whole_slide: bool
    flavor: str
    columns_px: int
    rows_px: int
    width_mm: float = 0.0

    @property
    def is_volume(self) -> bool:
        """Return whether these are pixels of a slide, not its label, overview or thumbnail."""
        return self.whole_slide and self.flavor not in NO_PIXELS_OF_A_SLIDE


def may_be_dicom(name: str) -> bool:
    """Return whether a file of this name may be DICOM: it ends in ``.dcm``, or has no ending, or one of digits (a UID)."""
    ending = os.path.splitext(name)[1].lower()
    return ending in ("", ".dcm", ".dicom") or ending[1:].isdigit()


def dicom_facts(path: str | Path) -> DicomFile | None:
    """Return the header of a DICOM file; ``None`` if the file is not DICOM, its header is damaged, or it cannot be read."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return _facts(str(path), stat.st_size, stat.st_mtime_ns)


def dicom_header(name: str, data: bytes) -> DicomFile | None:
    """Return the header parsed from a DICOM file's first bytes; ``None`` if they are not DICOM or end inside the header."""
    if data[_MAGIC_AT : _MAGIC_AT + 4] != b"DICM":
        return None
    return _header(name, io.BytesIO(data))


@lru_cache(maxsize=1 << 16)
def _facts(path: str, size_bytes: int, mtime_ns: int) -> DicomFile | None:
    try:
        with open(path, "rb") as stream:
            if stream.read(_MAGIC_AT + 4)[_MAGIC_AT:] != b"DICM":
                return None
            return _header(path, stream)
    except OSError:
        return None


def _header(path: str, stream: object) -> DicomFile | None:
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_partial

    stream.seek(0)  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that break a rule of the standard are accepted here
            found = read_partial(stream, stop_when=lambda tag, vr, length: tag > _LAST_TAG, specific_tags=list(_WANTED))
            flavors = [str(v).upper() for v in _values(found.get("ImageType"))]
            sop_class = found.get("SOPClassUID") or found.file_meta.get("MediaStorageSOPClassUID")
            return DicomFile(
                path=path,
                series=str(found.get("SeriesInstanceUID") or ""),
                kind=str(getattr(sop_class, "name", sop_class) or "no SOP class"),
                whole_slide=str(sop_class) == WHOLE_SLIDE,
                flavor=flavors[2] if len(flavors) > 2 else "",
                columns_px=int(found.get("TotalPixelMatrixColumns") or 0),
                rows_px=int(found.get("TotalPixelMatrixRows") or 0),
                width_mm=float(found.get("ImagedVolumeWidth") or 0.0),
            )
    except (InvalidDicomError, EOFError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError):
        return None  # pydicom raises these on bytes that are not a header


def several_images(path: str | Path) -> str:
    """Describe the several images of the tissue in a DICOM file; empty if it has one, or does not belong to a slide.

    OpenSlide shows only the first optical path, and cannot show focal planes.
    """
    facts = dicom_facts(path)
    if facts is None or not facts.is_volume:
        return ""
    from pydicom.filereader import read_partial

    with warnings.catch_warnings(), open(path, "rb") as stream:
        warnings.simplefilter("ignore")
        header = read_partial(stream, stop_when=lambda tag, vr, length: tag > max(_COUNTS), specific_tags=list(_COUNTS))
    counts = {"optical paths": header.get("NumberOfOpticalPaths"), "focal planes": header.get("TotalPixelMatrixFocalPlanes")}
    return " and ".join(f"{n} {name}" for name, n in counts.items() if n and int(n) > 1)


def _values(value: object) -> Iterable[object]:
    if value is None or isinstance(value, str):
        return str(value or "").split("\\")
    return value if isinstance(value, Iterable) else [value]


def slide_series(files: Iterable[DicomFile]) -> dict[str, list[DicomFile]]:
    """Return the slides among files: the whole-slide instances of each Series Instance UID, the largest level first.

    A series without any level (such as a label alone) is not a slide. Levels of the same size are ordered by file name.
    """
    series: dict[str, list[DicomFile]] = {}
    for file in files:
        if file.whole_slide:
            series.setdefault(file.series, []).append(file)
    return {
        uid: sorted(members, key=lambda f: (not f.is_volume, -f.columns_px * f.rows_px, f.path))
        for uid, members in series.items()
        if any(f.is_volume for f in members)
    }


def series_of(path: str | Path) -> list[Path]:
    """Return the files in the same folder that belong to a DICOM file's series, sorted; only itself if it is no slide."""
    own = dicom_facts(path)
    if own is None or not own.whole_slide or not own.series:
        return [Path(path)]
    folder = os.path.dirname(path)
    names = [name for name in os.listdir(folder or ".") if may_be_dicom(name)]
    files = [os.path.join(folder, name) for name in names]
    found = {f for f in files if (facts := dicom_facts(f)) is not None and facts.series == own.series}
    return sorted(Path(f) for f in found | {str(path)})


def dicom_folder_series(folder: str | Path) -> dict[str, list[DicomFile]]:
    """Return the slides directly in a folder (see ``slide_series``). Raises ``OSError`` if the folder cannot be listed."""
    paths = (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if may_be_dicom(name))
    return slide_series(f for f in map(dicom_facts, paths) if f is not None)

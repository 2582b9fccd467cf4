"""Convert public nucleus data sets to the unified layout: detect the format, read it and write the set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wsiseg.datasets.formats.arrays import has_mat, has_pannuke, read_mat, read_pannuke
from wsiseg.datasets.formats.layout import AnnotatedImage, Conversion, write_dataset
from wsiseg.datasets.formats.masks import (
    has_dsb2018,
    has_nucfuse,
    has_pcns,
    has_tnbc,
    read_dsb2018,
    read_nucfuse,
    read_pcns,
    read_tnbc,
)
from wsiseg.datasets.formats.outlines import has_imagej, has_monuseg, read_imagej, read_monuseg
from wsiseg.errors import FormatError

__all__ = ["FORMATS", "SourceFormat", "convert", "detect_format"]


@dataclass(frozen=True, slots=True)
class SourceFormat:
    """A public format: functions that detect and read it, and facts that its publication states."""

    name: str
    meaning: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Iterator[AnnotatedImage]]
    magnification: str = ""


FORMATS: dict[str, SourceFormat] = {
    f.name: f
    for f in (
        SourceFormat("monuseg", "MoNuSeg: .tif and Aperio .xml", has_monuseg, read_monuseg, "40x"),
        SourceFormat("imagej", "CryoNuSeg, NuInsSeg: label masks or ImageJ ROI zips", has_imagej, read_imagej, "40x"),
        SourceFormat("pcns", "Hou et al. (TCIA): *_labeled_mask_corrected.png", has_pcns, read_pcns, "40x"),
        SourceFormat("tnbc", "TNBC: Slide_XX and binary GT_XX", has_tnbc, read_tnbc, "40x"),
        SourceFormat("dsb2018", "Data Science Bowl 2018: images/ and masks/", has_dsb2018, read_dsb2018, "mixed"),
        SourceFormat("pannuke", "PanNuke: images.npy and masks.npy", has_pannuke, read_pannuke, "40x"),
        SourceFormat("mat", "CoNSeP, CPM: Images/*.png and Labels/*.mat", has_mat, read_mat),
        SourceFormat("nucfuse", "NucFuseRank: .tif and .npy of one stem", has_nucfuse, read_nucfuse),
    )
}
"""Readable formats by name, the most specific first, which is the order of detection."""


def detect_format(source: str | Path) -> str:
    """Return the name in ``FORMATS`` of the data set in a folder.

    Raises
    ------
    FormatError
        The folder does not exist, or has no known format.
    """
    source = Path(source)
    if not source.is_dir():
        raise FormatError(f"{source}: the folder does not exist.")
    for name, known in FORMATS.items():
        if known.matches(source):
            return name
    expected = "; ".join(f"{f.name} ({f.meaning})" for f in FORMATS.values())
    raise FormatError(f"{source}: not a known data set. Expected one of: {expected}.")


def convert(
    format_name: str, source: str | Path, out: str | Path, *, mpp: float | None = None, licence: str = "", name: str = ""
) -> Conversion:
    """Convert a public data set to the unified layout.

    Parameters
    ----------
    format_name
        A key of ``FORMATS``, or ``auto``.
    source
        Folder of the set as it was published, unpacked.
    out
        An empty or new folder.
    mpp
        Microns per pixel of every image, for sets that do not state it; overrides what they state.
    licence, name
        Facts for ``INFO.json``; the name's default is that of ``out``.

    Returns
    -------
    Conversion

    Raises
    ------
    FormatError
        The format is unknown, files are damaged or missing, an image id is not unique, or ``out`` has a set already.
    """
    source, out = Path(source), Path(out)
    if format_name != "auto" and format_name not in FORMATS:
        raise FormatError(f"datasets: no format {format_name!r}. Expected auto or one of {sorted(FORMATS)}.")
    if not source.is_dir():
        raise FormatError(f"{source}: the folder does not exist.")
    known = FORMATS[detect_format(source) if format_name == "auto" else format_name]
    images = known.read(source)
    if mpp is not None:
        images = (replace(image, mpp=mpp) for image in images)
    facts = {"name": name or out.name, "license": licence or "unknown", "magnification": known.magnification or "unknown"}
    return write_dataset(images, out, known.name, facts)

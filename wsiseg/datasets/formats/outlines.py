"""Sets whose truth is drawn: MoNuSeg (Aperio XML), CryoNuSeg and NuInsSeg (ImageJ ROIs and label masks)."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiseg.datasets.formats.layout import AnnotatedImage, read_rgb
from wsiseg.errors import BackendUnavailableError, FormatError
from wsiseg.labels import rasterize_rings, read_labels

__all__ = ["has_imagej", "has_monuseg", "read_imagej", "read_monuseg", "repair_overlap_sums", "roi_labels"]

Labels = npt.NDArray[np.int32]


def has_monuseg(source: Path) -> bool:
    """Whether there are Aperio ``.xml`` annotations and ``.tif`` pictures of the same stems."""
    stems = {p.stem for p in source.rglob("*.xml")}
    return any(p.stem in stems for p in source.rglob("*.tif"))


def read_monuseg(source: Path) -> Iterator[AnnotatedImage]:
    """Read MoNuSeg (Kumar et al. 2017): ``<stem>.tif`` with Aperio ImageScope ``<stem>.xml``, in any folders.

    Regions are drawn in file order and the first owns a pixel, as in the set's own MATLAB script; a pixel belongs to the
    region that contains its center. ``MicronsPerPixel`` is the XML's. The group is the TCGA patient.
    """
    pictures = {p.stem: p for p in sorted(source.rglob("*.tif"))}
    for path in sorted(source.rglob("*.xml")):
        if path.stem not in pictures:
            raise FormatError(f"{path}: no picture {path.stem}.tif under {source}.")
        rgb = read_rgb(pictures[path.stem])
        rings, mpp = _aperio_regions(path)
        xy = np.concatenate(rings) if rings else np.zeros((0, 2))
        offsets = np.r_[0, np.cumsum([len(ring) for ring in rings])].astype(np.int64)
        labels = rasterize_rings(xy, offsets, (rgb.shape[0], rgb.shape[1]), overlap="first")
        patient = "-".join(path.stem.split("-")[:3]) if path.stem.startswith("TCGA-") else ""
        yield AnnotatedImage(path.stem, rgb, labels, mpp=mpp, group=patient)


def _aperio_regions(path: Path) -> tuple[list[npt.NDArray[np.float64]], float | None]:
    try:
        root = ET.parse(path).getroot()
        rings = [
            np.array([(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")]).reshape(-1, 2)
            for region in root.iter("Region")
        ]
        stated = float(root.attrib.get("MicronsPerPixel") or 0)
    except (ET.ParseError, KeyError, ValueError, OSError) as err:
        raise FormatError(f"{path}: not an Aperio annotation file: {err}") from err
    return [ring for ring in rings if len(ring) >= 3], stated or None


def has_imagej(source: Path) -> bool:
    """Return whether a folder contains ``tissue images`` and label masks or ImageJ ROI zips."""
    return any(_truth_folders(p) for p in _tissue_folders(source))


def read_imagej(source: Path) -> Iterator[AnnotatedImage]:
    """Read CryoNuSeg and NuInsSeg: ``tissue images/`` with, beside or below, ImageJ ROI zips and label masks.

    The first of these that exists is used: ``label masks modify`` (overlaps belong to the larger id); the ROI zips (drawn in
    order, overlaps belong to the later ROI, which is the same rule); ``label masks``. In the last, overlapping pixels contain
    the **sum** of the ids: they are assigned to the larger id (``repair_overlap_sums``), or the file is refused.
    """
    for tissue in _tissue_folders(source):
        truths = _truth_folders(tissue)
        if not truths:
            raise FormatError(f"{tissue}: no 'label masks modify', ROI zips or 'label masks' beside it.")
        kind, folder = truths[0]
        organ = tissue.parent.name if tissue.parent != source else ""
        for picture in sorted(p for p in tissue.iterdir() if p.suffix.lower() in {".png", ".tif"}):
            rgb = read_rgb(picture)
            notes: tuple[str, ...] = ()
            if kind == "zip":
                labels = roi_labels(_truth_file(folder, picture.stem, (".zip",)), (rgb.shape[0], rgb.shape[1]))
            else:
                labels = read_labels(_truth_file(folder, picture.stem, (".tif", ".png")))
                if kind == "sum":
                    labels, n = repair_overlap_sums(labels, picture.stem)
                    notes = (f"{n} overlap regions with summed ids given to the greater id",) if n else ()
            yield AnnotatedImage(picture.stem.replace(" ", "_"), rgb, labels, organ=organ, notes=notes)


def _tissue_folders(source: Path) -> list[Path]:
    own = [source] if source.name.lower() == "tissue images" else []
    return own + sorted(p for p in source.rglob("*") if p.is_dir() and p.name.lower() == "tissue images")


def _truth_folders(tissue: Path) -> list[tuple[str, Path]]:
    """Return the usable truths of a folder of pictures, best first; several annotators: the first in order of name."""
    below = sorted(p for p in tissue.parent.rglob("*") if p.is_dir())
    found = [("ids", p) for p in below if p.name.lower() in {"label masks modify", "label masks modified"}]
    found += [("zip", p) for p in below if any(p.glob("*.zip"))]
    found += [("sum", p) for p in below if p.name.lower() == "label masks"]
    return found


def _truth_file(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    for suffix in suffixes:
        if (folder / f"{stem}{suffix}").is_file():
            return folder / f"{stem}{suffix}"
    raise FormatError(f"{folder}: no truth {stem}{suffixes[0]} for the picture {stem}.")


def roi_labels(path: Path, shape: tuple[int, int]) -> Labels:
    """Draw the ROIs of an ImageJ zip (or a folder of ``.roi``) in order, the later over the earlier; int32 (H, W).

    ImageJ's vertices are pixel corners. The published masks of CryoNuSeg and NuInsSeg were drawn by MATLAB, which took them for
    centers counted from 1: they lie half a pixel up and left of these.

    Raises
    ------
    BackendUnavailableError
        roifile is not installed.
    FormatError
        The file contains no ImageJ ROIs.
    """
    try:
        import roifile
    except ImportError as err:
        raise BackendUnavailableError(f"{path}: ImageJ ROIs need roifile: pip install 'wsiseg[train]' or roifile.") from err
    import zipfile

    try:
        rois = [roifile.roiread(p) for p in sorted(path.glob("*.roi"))] if path.is_dir() else roifile.roiread(path)
    except (ValueError, OSError, zipfile.BadZipFile) as err:
        raise FormatError(f"{path}: not a zip of ImageJ ROIs: {err}") from err
    rings: list[npt.NDArray[np.float64]] = []
    owner: list[int] = []
    for number, roi in enumerate(rois if isinstance(rois, list) else [rois]):
        parts = roi.coordinates(multi=True)
        rings += [np.asarray(part, np.float64) for part in parts]
        owner += [number] * len(parts)
    xy = np.concatenate(rings) if rings else np.zeros((0, 2))
    offsets = np.r_[0, np.cumsum([len(ring) for ring in rings])].astype(np.int64)
    return rasterize_rings(xy, offsets, shape, ring_polygons=np.asarray(owner, np.int64))


def repair_overlap_sums(labels: Labels, name: str = "label mask") -> tuple[Labels, int]:
    """Repair "label masks" in which pixels that belong to two nuclei a and b contain a + b.

    True ids are 1..n without a gap. A region is *explained* if its id is the sum of two ids that touch it. n is the largest id
    that has a region which is not explained; the nucleus of each true id is its largest region. All other explained regions are
    overlaps and are assigned to the larger id of the sum. One case cannot be distinguished: if the nucleus with the last id
    touches two others whose ids sum to its own, it is taken for their overlap.

    Parameters
    ----------
    labels : int32 (H, W)
        Label mask as read.
    name
        What to call it in the error.

    Returns
    -------
    labels : int32 (H, W)
    n_regions : int
        Number of overlap regions that were assigned to a nucleus.

    Raises
    ------
    FormatError
        An id can be neither a nucleus nor a sum.
    """
    regions = _regions(labels)
    n_true = max((r.ident for r in regions if r.pair is None), default=0)
    gaps = sorted(set(range(1, n_true + 1)) - {r.ident for r in regions})
    if gaps:
        raise FormatError(
            f"{name}: id {n_true} can be neither a nucleus (the smaller id {gaps[0]} is missing) nor the sum of two ids that "
            "touch it. Use 'label masks modify' or the ROI zips."
        )
    largest: dict[int, int] = {}
    for region in regions:
        largest[region.ident] = max(largest.get(region.ident, 0), len(region.rows))
    sums = {r.ident: r.pair for r in regions if r.pair is not None and r.ident > n_true}

    def greatest(ident: int) -> int:
        return ident if ident <= n_true else max(greatest(part) for part in sums[ident])

    out, repaired = labels.copy(), 0
    for region in regions:
        nucleus = region.ident <= n_true and len(region.rows) == largest[region.ident]
        if region.pair is not None and not nucleus:
            out[region.rows, region.columns] = max(greatest(part) for part in region.pair)
            repaired += 1
    return out, repaired


@dataclass(frozen=True, slots=True, eq=False)
class _Region:
    """An 8-connected region of one id, and two touching ids that sum to it (if any)."""

    ident: int
    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    pair: tuple[int, int] | None


def _regions(labels: Labels) -> list[_Region]:
    from scipy import ndimage

    square = np.ones((3, 3), np.uint8)
    found: list[_Region] = []
    for ident, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        rows, columns = (slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        window = labels[rows, columns]
        parts, n = ndimage.label(window == ident, structure=square)
        for part in range(1, n + 1):
            region = parts == part
            near = set(np.unique(window[ndimage.binary_dilation(region, structure=square) & ~region]).tolist()) - {0}
            pairs = [(a, ident - a) for a in near if ident - a in near and a < ident - a]
            y, x = np.nonzero(region)
            found.append(_Region(ident, y + rows.start, x + columns.start, max(pairs, default=None)))
    return found

"""Read label images (StarDist, HoVer-NeXt, Cellpose, ...) window by window, and convert traced windows to nuclei of a slide.

``wsiseg.export.imports`` calls ``wsiseg.vectorize`` in between, which traces the labels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.export.incoming import Flag, Incoming, Provenance, Source, closed
from wsiseg.labels import LABEL_SUFFIXES, id_parts, open_label_store, read_label_file, require_ids
from wsiseg.tables.jsonstream import read_json
from wsiseg.types import Box, PolygonBatch

__all__ = ["LabelWindow", "class_names", "incoming_of_batch", "label_windows", "open_label_map"]

BLOCK_PX = 4096
HALO_PX = 512
WHOLE_PX = 1 << 26
"""Zarr arrays up to this size are read at once and interpreted like label images; larger ones are read window by window."""
"""A label larger than this would be cut at the border of a block; such labels are far above the limit of the flag GIANT."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelWindow:
    """The labels of one window of a map, renumbered 1..N; the anchor of a label is its first pixel in raster order.

    Attributes
    ----------
    labels : int32 (H, W)
        Every label is a single 4-connected region.
    anchors : int32 (N, 2)
        (x, y) in px of the window.
    ids : int64 (N,)
        Ids of the labels in the map.
    flags : uint8 (N,)
        ``Flag.SPLIT`` if a label was in several pieces; the largest one is kept.
    read, core
        The window, and the part of it whose anchors belong to this window, map px.
    """

    labels: npt.NDArray[np.int32]
    anchors: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int64]
    flags: npt.NDArray[np.uint8]
    read: Box
    core: Box


def open_label_map(path: Path, *, components: bool = False, notes: list[str] | None = None) -> Any:
    """Return an array-like (H, W) of ids: an image or ``.npy`` in memory, or a Zarr array (folder or ``.zip``).

    Parameters
    ----------
    components
        Each connected part of nonzero px is a nucleus, even if its values differ.
    notes
        Receives a note for each way in which the file was not interpreted as plain ids.

    Raises
    ------
    FormatError
        The file is not a label image, has an impossible size, or has values with so many parts each that they must be classes.
    """
    name = path.name.lower()
    if path.is_dir() or name.endswith(".zip"):
        array = open_label_store(path)
        if math.prod(array.shape) <= WHOLE_PX:
            return _whole(path, components, notes)
        if components or _is_mask(array):
            (notes if notes is not None else []).append("a mask without ids: each connected part becomes a nucleus")
            return ZarrMask(array)
        return array
    if name.endswith(LABEL_SUFFIXES):
        return _whole(path, components, notes)
    raise FormatError(f"{path}: expected a label image ({', '.join(LABEL_SUFFIXES)}) or a Zarr array (folder or .zip).")


def _whole(path: Path, components: bool, notes: list[str] | None) -> npt.NDArray[np.int32]:
    found = read_label_file(path, components=components)
    (notes if notes is not None else []).extend(found.notes)
    require_ids(len(np.unique(found.labels[found.labels > 0])), id_parts(found.labels), str(path))
    return found.labels


@dataclass(frozen=True, slots=True, eq=False)
class ZarrMask:
    """A Zarr array used as a mask: every connected part of the values that are not 0 is a nucleus."""

    array: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Size as (H, W)."""
        return int(self.array.shape[0]), int(self.array.shape[1])

    def __getitem__(self, window: Any) -> npt.NDArray[np.int32]:
        """Return a window with its parts numbered 1..N.

        The same part may have different numbers in different windows, which ``label_windows`` allows.
        """
        return _pieces(np.asarray(self.array[window]) > 0)[0].astype(np.int32)


def _is_mask(array: Any) -> bool:
    """Return whether a Zarr array has only one nonzero value, 1 or the maximum of its type; stops at a second value."""
    value = 0
    for y in range(0, array.shape[0], BLOCK_PX):
        for x in range(0, array.shape[1], BLOCK_PX):
            found = np.unique(np.asarray(array[y : y + BLOCK_PX, x : x + BLOCK_PX]))
            found = found[found > 0]
            if len(found) > 1 or (len(found) and value not in (0, int(found[0]))):
                return False
            value = int(found[0]) if len(found) else value
    return value in (1, 255, 65535) or (value > 0 and value == np.iinfo(array.dtype).max)


def label_windows(labels: Any, block_px: int = BLOCK_PX, halo_px: int = HALO_PX) -> Iterator[LabelWindow]:
    """Yield the windows of a label map; a label belongs to the window whose core contains its first pixel in raster order.

    Only one window is in memory at a time. Pieces that are not 4-connected to the largest piece of a label are left out, and
    the label is flagged.
    """
    height, width = (int(v) for v in labels.shape)
    for y in range(0, height, block_px):
        for x in range(0, width, block_px):
            core = Box(x, y, min(block_px, width - x), min(block_px, height - y))
            x0, y0 = max(0, x - halo_px), max(0, y - halo_px)
            read = Box(x0, y0, min(width, core.x1 + halo_px) - x0, min(height, core.y1 + halo_px) - y0)
            part = np.asarray(labels[read.y : read.y1, read.x : read.x1])
            ids = np.unique(part)
            ids = ids[ids > 0]  # negative: not annotated
            if len(ids):
                number = np.searchsorted(ids, part).astype(np.int32) + 1
                number[part <= 0] = 0
                yield _window(number, ids.astype(np.int64), read, core)


def _window(labels: npt.NDArray[np.int32], ids: npt.NDArray[np.int64], read: Box, core: Box) -> LabelWindow:
    n = len(ids)
    flags = np.zeros(n, np.uint8)
    for k, box in _in_pieces(labels, n):
        view = labels[box]
        pieces, count = _pieces(view == k)
        sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
        view[(pieces != 0) & (pieces != int(sizes.argmax()) + 1)] = 0
        flags[k - 1] |= Flag.SPLIT
    flat = labels.ravel()
    where = np.flatnonzero(flat)
    first = np.full(n + 1, -1, np.int64)
    first[flat[where[::-1]]] = where[::-1]  # reversed, so that the first pixel is written last
    anchors = np.stack([first[1:] % read.w, first[1:] // read.w], axis=1).astype(np.int32)
    return LabelWindow(labels, anchors, ids, flags, read, core)


def _pieces(mask: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int32], int]:
    from scipy import ndimage

    pieces, count = ndimage.label(mask)
    return pieces, int(count)


def _in_pieces(labels: npt.NDArray[np.int32], n: int) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """Yield (label, its bounding box) of labels that are not one 4-connected region.

    Runs of equal label along the rows are nodes of a graph, and contacts between runs of adjacent rows are edges. A label is
    one region if its runs are one component of that graph.
    """
    from scipy import ndimage, sparse
    from scipy.sparse.csgraph import connected_components

    height, width = labels.shape
    padded = np.zeros((height, width + 1), np.int32)
    padded[:, :-1] = labels
    flat = padded.ravel()
    begins = np.flatnonzero((flat != 0) & (flat != np.roll(flat, 1)))
    run = np.cumsum((flat != 0) & (flat != np.roll(flat, 1))).reshape(padded.shape) - 1
    touch = (padded[1:] == padded[:-1]) & (padded[1:] != 0)
    above, below = run[:-1][touch], run[1:][touch]
    graph = sparse.coo_matrix((np.ones(len(above), np.int8), (above, below)), shape=(len(begins), len(begins)))
    _, component = connected_components(graph, directed=False)
    owner = flat[begins]
    pairs = np.unique(owner.astype(np.int64) * (len(begins) + 1) + component)
    counts = np.bincount((pairs // (len(begins) + 1)).astype(np.int64), minlength=n + 1)
    split = np.flatnonzero(counts > 1)
    if len(split):
        boxes = ndimage.find_objects(labels)
        for k in split.tolist():
            yield k, boxes[k - 1]


def incoming_of_batch(
    batch: PolygonBatch, window: LabelWindow, source: Source, mpp: float, names: Mapping[int, str] | None = None
) -> Incoming:
    """Return the traced polygons of a window as nuclei of the slide, with the measured columns of ``vectorize``.

    Parameters
    ----------
    batch
        Result of ``wsiseg.vectorize.vectorize`` for the window: nuclei with an anchor in the core, in raster order of anchors.
    source
        ``scale`` is map px per level-0 px; ``dx, dy`` is the position of the map's origin, level-0 px.
    mpp
        um per level-0 px.
    names
        Class name of each id of the map.
    """
    at = np.asarray(batch.columns["nucleus_id"])
    owned = window.labels[at // 2**31 - window.read.y, at % 2**31 - window.read.x] - 1
    um = mpp / source.scale
    shift = np.array([source.dx, source.dy])
    columns = {
        "cx": batch.columns["cx_wpx"] / source.scale + source.dx,
        "cy": batch.columns["cy_wpx"] / source.scale + source.dy,
        "area_px": batch.columns["area_wpx"] / source.scale**2,
        "area_um2": batch.columns["area_wpx"] * um**2,
        "perimeter_um": batch.columns["perimeter_wpx"] * um,
        "major_um": batch.columns["major_wpx"] * um,
        "minor_um": batch.columns["minor_wpx"] * um,
        "orientation_rad": batch.columns["orientation_rad"],
    }
    xy = np.asarray(batch.xy, np.float64) / source.scale + shift
    classes = None if names is None else [names.get(int(i), "") for i in window.ids[owned]]
    return Incoming(*closed(xy, batch.ring_offsets), window.flags[owned], class_name=classes, columns=columns)


def class_names(path: Path, provenance: Provenance) -> dict[int, str]:
    """Return the class of each id from HoVer-NeXt's ``class_inst.json``: ``{id: [class, [y, x]]}``.

    Raises
    ------
    FormatError
        Invalid JSON, or JSON without this structure.
    """
    tree = read_json(path)
    names: dict[int, str] = {}
    try:
        for key, value in tree.items():
            number = int(value[0])
            names[int(key)] = str(number)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError) as err:
        raise FormatError(f"{path}: expected HoVer-NeXt's {{id: [class, [y, x]]}} ({err!r}).") from err
    provenance.notes.append(f"class_name contains the class numbers of {path.name}: {json.dumps(sorted(set(names.values())))}")
    return names

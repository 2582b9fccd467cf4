"""Label images: read and write them, and draw polygons into them.

A label image is an integer array (H, W): 0 background, every other value one nucleus. Evaluation and training use them too, so
this package does not import the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.atomic import atomic_path
from wsiseg.errors import FormatError
from wsiseg.labels.arrays import LABEL_SUFFIXES, read_array
from wsiseg.labels.stores import is_label_store, open_label_store

__all__ = [
    "LABEL_SUFFIXES",
    "LabelFile",
    "compact_labels",
    "id_parts",
    "rasterize_rings",
    "read_label_file",
    "read_labels",
    "require_ids",
    "split_components",
    "write_labels",
]

Overlap = Literal["first", "last"]
_INT32_MAX = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, eq=False)
class LabelFile:
    """A label image after its values are interpreted.

    Attributes
    ----------
    labels : int32 (H, W)
        0 background; ids as in the file if they fit int32, else renumbered 1..N in ascending order.
    unknown : bool (H, W) or None
        Pixels that were not annotated (negative in the file): neither nucleus nor background.
    notes
        Messages about values that were not read as plain ids.
    """

    labels: npt.NDArray[np.int32]
    unknown: npt.NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = ()


def read_labels(path: str | Path) -> npt.NDArray[np.int32]:
    """Return ``read_label_file(path).labels``: int32 (H, W), 0 also where nothing was annotated."""
    return read_label_file(path).labels


def read_label_file(path: str | Path, *, components: bool = False) -> LabelFile:
    """Read a label image.

    Parameters
    ----------
    path
        ``.png``, ``.tif``, ``.npy``, ``.npz`` (one array, or a sparse matrix of SciPy), ``_seg.npy`` of Cellpose,
        a Zarr array (folder or ``.zip``), or ``.mat``
        (MATLAB up to v7.2; ``inst_map``, else its only 2-D array). Floats that are whole numbers are taken as ids, and so are
        colors that each fill a region on black. A mask has no ids: its 8-connected parts become the nuclei. An image is a mask
        if it has one bit, or one value besides 0 that is 1 or the largest of its type, or that forms three parts or more.
    components
        Treat every image as a mask.

    Returns
    -------
    LabelFile

    Raises
    ------
    FormatError
        The file is missing, damaged, of an unknown type, or a photograph.
    """
    path = Path(path)
    if is_label_store(path):
        return _label_file(np.asarray(open_label_store(path)[...]), path, components)
    suffix = path.suffix.lower()
    if suffix not in LABEL_SUFFIXES:
        raise FormatError(
            f"{path}: expected a label image with one of the endings {', '.join(LABEL_SUFFIXES)}, got {suffix or 'none'}."
        )
    if not path.is_file():
        raise FormatError(f"{path}: the label image does not exist.")
    return _label_file(read_array(path), path, components)


def write_labels(path: str | Path, labels: npt.NDArray[Any]) -> Path:
    """Write a label image; the file appears complete or not at all.

    Parameters
    ----------
    path
        ``.png`` (uint16; refused above 65535) or ``.tif`` (uint32, zlib).
    labels : integer (H, W)
        Non-negative ids.

    Returns
    -------
    Path
        ``path``.

    Raises
    ------
    FormatError
        The file name has another ending, or ids do not fit the file type.
    """
    path = Path(path)
    largest, smallest = (int(labels.max()), int(labels.min())) if labels.size else (0, 0)
    limit = {".png": 0xFFFF, ".tif": 0xFFFFFFFF, ".tiff": 0xFFFFFFFF}.get(path.suffix.lower())
    if limit is None:
        raise FormatError(f"{path}: labels are written as .png (uint16) or .tif (uint32), not {path.suffix!r}.")
    if smallest < 0 or largest > limit:
        raise FormatError(f"{path}: ids {smallest} to {largest} do not fit 0 to {limit}; renumber them or write .tif.")
    with atomic_path(path) as partial:
        if path.suffix.lower() == ".png":
            from PIL import Image

            Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint16)).save(partial, format="PNG", optimize=False)
        else:
            import tifffile

            tifffile.imwrite(partial, np.ascontiguousarray(labels, dtype=np.uint32), compression="zlib")
    return path


def compact_labels(labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Renumber ids to 1..N in ascending order, 0 kept; int32 (H, W)."""
    values, inverse = np.unique(labels, return_inverse=True)
    instance = values != 0
    rank = np.where(instance, np.cumsum(instance), 0).astype(np.int32)
    return rank[inverse].reshape(labels.shape)


def split_components(mask: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Give each 8-connected part of a mask an id 1..N; int32 (H, W)."""
    from scipy import ndimage

    return ndimage.label(np.asarray(mask) != 0, structure=np.ones((3, 3), np.uint8), output=np.int32)[0]


def rasterize_rings(
    xy: npt.NDArray[Any],
    ring_offsets: npt.NDArray[Any],
    shape: tuple[int, int],
    ids: npt.NDArray[Any] | None = None,
    ring_polygons: npt.NDArray[Any] | None = None,
    overlap: Overlap = "last",
    origin: tuple[int, int] = (0, 0),
) -> npt.NDArray[np.int32]:
    """Draw polygons: a pixel belongs to a polygon if its center is inside (even-odd).

    Rings on pixel edges give exactly the pixels that they enclose, since no center is on them. A center that is on a
    ring belongs to the inside to its right and below (half-open), so polygons that share an edge share no pixel.

    Parameters
    ----------
    xy : number (V, 2)
        Vertices in a frame where pixel (i, j) covers [i, i + 1) x [j, j + 1). Rings may be open or closed.
    ring_offsets : integer (R + 1,)
        Ring k is ``xy[ring_offsets[k]:ring_offsets[k + 1]]``.
    shape
        (H, W) of the raster; polygons are clipped to it.
    ids : integer (P,), optional
        Id of each polygon; default 1..P.
    ring_polygons : integer (R,), optional
        Polygon of each ring (holes are further rings of it); default: one ring per polygon.
    overlap
        Which polygon gets a pixel that several cover: the first or the last.
    origin
        (x, y) of the raster's first pixel in the rings' frame. Overlapping windows are equal in the pixels that they share.

    Returns
    -------
    int32 (H, W)
    """
    offsets = np.asarray(ring_offsets, np.int64)
    n_rings = len(offsets) - 1
    polygon = np.arange(n_rings) if ring_polygons is None else np.asarray(ring_polygons, np.int64)
    n_polygons = int(polygon.max()) + 1 if n_rings else 0
    values = np.arange(1, n_polygons + 1, dtype=np.int32) if ids is None else np.asarray(ids).astype(np.int32)
    labels = np.zeros(shape, np.int32)
    owner, row, start, stop = _spans(np.asarray(xy, np.float64), offsets, polygon, shape, origin)
    order = np.argsort(owner, kind="stable")
    if overlap == "first":
        order = order[::-1]
    owner, row, start, stop = owner[order], row[order], start[order], stop[order]
    width = stop - start
    total = int(width.sum())
    if total:
        begins = np.cumsum(width) - width
        flat = np.arange(total) - np.repeat(begins - (row * shape[1] + start), width)
        labels.ravel()[flat] = np.repeat(values[owner], width)  # for equal indices the last assignment wins
    return labels


def _spans(
    xy: npt.NDArray[np.float64],
    offsets: npt.NDArray[np.int64],
    polygon: npt.NDArray[np.int64],
    shape: tuple[int, int],
    origin: tuple[int, int],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return polygon, row, first and one-past-last column of every run of pixel centers inside."""
    left, above = origin
    right, below = left + shape[1], above + shape[0]
    lengths = np.diff(offsets)
    ring = np.repeat(np.arange(len(lengths)), lengths)
    following = np.arange(1, len(xy) + 1)
    filled = lengths > 0
    following[offsets[1:][filled] - 1] = offsets[:-1][filled]  # the last vertex is followed by its ring's first
    a, b = xy[: len(ring)], xy[following[: len(ring)]]
    top, bottom = np.minimum(a[:, 1], b[:, 1]), np.maximum(a[:, 1], b[:, 1])
    # rows whose center y + 0.5 is in [top, bottom)
    first = np.clip(np.ceil(top - 0.5), above, below).astype(np.int64)
    last = np.clip(np.ceil(bottom - 0.5), above, below).astype(np.int64)
    n = np.maximum(last - first, 0)
    edge = np.repeat(np.arange(len(a)), n)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(n) - n, n) + first[edge]
    ax, ay, bx, by = a[edge, 0], a[edge, 1], b[edge, 0], b[edge, 1]
    cross = ax + (rows + 0.5 - ay) * ((bx - ax) / (by - ay))
    columns = np.clip(np.ceil(cross - 0.5), left, right).astype(np.int64)
    owner = polygon[ring[edge]]
    order = np.lexsort((columns, rows, owner))
    owner, rows, columns = owner[order], rows[order] - above, columns[order] - left
    return owner[::2], rows[::2], columns[::2], columns[1::2]  # closed rings cross every row an even number of times


def _label_file(array: npt.NDArray[Any], path: Path, components: bool) -> LabelFile:
    """Distinguish ids, masks, colors and pixels that are not annotated."""
    notes: list[str] = []
    if array.ndim == 3 and array.shape[2] in (2, 3, 4):
        array = _of_colors(array, path, notes)
    if array.ndim != 2:
        raise FormatError(
            f"{path}: expected a label image (H, W), got shape {array.shape}. Of several planes, save the one with ids."
        )
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.isfinite(array).all() or (whole != array).any():
            raise FormatError(f"{path}: expected whole-number ids, got fractions or nan in {array.dtype}.")
        array = whole.astype(np.int64)
    if array.dtype.kind not in "iub":
        raise FormatError(f"{path}: expected integer ids, got {array.dtype}.")
    unknown = None
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        unknown = array < 0
        array = np.where(unknown, 0, array)
        notes.append(f"{int(unknown.sum()):,} of {unknown.size:,} px are negative: not annotated, and not scored")
    value = _only_value(array)
    if components or array.dtype.kind == "b" or value:
        parts = split_components(array)
        if components or array.dtype.kind == "b" or _is_mask(value, int(parts.max(initial=0)), array.dtype):
            if parts.max(initial=0) > 1:
                notes.append(f"a mask without ids: its {int(parts.max()):,} connected parts are the nuclei")
            return LabelFile(parts, unknown, (*notes, *_background(parts)))
    notes += _wrapped(array)
    if array.size and int(array.max()) > _INT32_MAX:
        array = compact_labels(array)
    labels = array.astype(np.int32)
    return LabelFile(labels, unknown, (*notes, *_background(labels)))


def _wrapped(array: npt.NDArray[Any]) -> list[str]:
    """Return a note if -1 was perhaps saved as the largest number of an unsigned type."""
    top = int(array.max(initial=0))
    if array.dtype.kind != "u" or top != np.iinfo(array.dtype).max or int(array.max(initial=0, where=array != top)) >= top - 1:
        return []
    n_px = int(np.count_nonzero(array == top))
    text = f"the id {top} ({n_px:,} px) is the largest of {array.dtype} and taken as a nucleus"
    return [f"{text}: if it means -1 (not annotated), save a signed type"]


def _background(labels: npt.NDArray[np.int32]) -> list[str]:
    """Return a note if one label covers most of the image, as in masks with a white background or ids that begin at 1."""
    largest = np.bincount(labels[labels > 0], minlength=1) if labels.size and int(labels.max()) < labels.size else np.zeros(1)
    k, n_px = int(largest.argmax()), int(largest.max())
    if 2 * n_px <= labels.size:
        return []
    return [f"the nucleus {k} covers {n_px / labels.size:.0%} of the image: is it the background, which must be 0?"]


def _only_value(array: npt.NDArray[Any]) -> int:
    """Return the one value that is not 0, or 0 if there are none or several."""
    if array.dtype.kind == "b" or array.size == 0:
        return 0
    top = int(array.max())
    return top if top and not ((array != 0) & (array != top)).any() else 0


def _is_mask(value: int, n_parts: int, dtype: np.dtype[Any]) -> bool:
    """Return whether an image with one value besides 0 is a mask: 1 or the type's maximum, or any value in 3 parts or more."""
    full = {1, 255, 65535, int(np.iinfo(dtype).max)}
    return value in full or n_parts > 2


def _of_colors(array: npt.NDArray[Any], path: Path, notes: list[str]) -> npt.NDArray[Any]:
    """Return ids of an image whose colors are ids (R + 256 G + 65536 B); a photograph is refused."""
    if array.shape[2] == 2 and not np.isin(np.unique(array[..., 1]), (0, np.iinfo(np.uint8).max)).all():
        raise FormatError(
            f"{path}: expected a label image (H, W), got shape {array.shape}: two planes, such as ids and classes. "
            "Save the plane with the ids."
        )
    if array.shape[2] == 2 or array.shape[2] == 4:  # the last channel is opacity
        array = np.where(array[..., -1:] == 0, 0, array[..., :-1])
    gray = array.shape[2] == 1 or bool((array == array[..., :1]).all())
    if gray and array.dtype == np.uint8 and len(np.unique(array[..., 0])) <= 2:
        return np.asarray(array[..., 0])
    if array.dtype.kind not in "iu" or int(array.max(initial=0)) > 255 or int(array.min(initial=0)) < 0:
        raise FormatError(f"{path}: expected a label image (H, W), got shape {array.shape} of {array.dtype}.")
    wide = array.astype(np.int64)
    code = wide[..., 0] if gray else wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]
    n_colors = len(np.unique(code[code != 0]))
    n_runs = int(np.count_nonzero(np.diff(code, axis=1))) + code.shape[0]
    if not (code == 0).any() or n_runs * 3 > code.size or n_colors > 65535 or id_parts(code) > 3 * n_colors + 3:
        raise FormatError(
            f"{path}: expected a label image (H, W), got shape {array.shape}; is it an RGB picture? Its {n_colors:,} colors do "
            "not each fill a region on black, as those of instances do."
        )
    notes.append(f"{n_colors:,} colors on black are taken as ids (R + 256 G + 65536 B)")
    return code


def id_parts(labels: npt.NDArray[Any]) -> int:
    """Return the number of 8-connected regions of equal nonzero value in an integer image (H, W).

    Runs of equal value along the rows are nodes, contacts between runs of neighboring rows are edges.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    padded = np.zeros((labels.shape[0], labels.shape[1] + 1), labels.dtype)
    padded[:, :-1] = labels
    flat = padded.ravel()
    begins = (flat != 0) & (flat != np.roll(flat, 1))
    run = np.cumsum(begins).reshape(padded.shape) - 1
    above, below = [], []
    for left, right in ((0, 0), (0, 1), (1, 0)):  # straight down and both diagonals; the last column is empty
        upper, lower = (slice(k, padded.shape[1] - j) for k, j in ((left, right), (right, left)))
        touch = (padded[:-1, upper] == padded[1:, lower]) & (padded[1:, lower] != 0)
        above.append(run[:-1, upper][touch])
        below.append(run[1:, lower][touch])
    ends = np.concatenate(above), np.concatenate(below)
    n = int(np.count_nonzero(begins))
    graph = sparse.coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(n, n))
    return int(connected_components(graph)[0]) if n else 0


def require_ids(n_ids: int, n_parts: int, where: str) -> None:
    """Raise ``FormatError`` if there are many more regions than ids: the values are then classes, not instances."""
    if n_ids and n_parts >= 3 * n_ids and n_parts >= n_ids + 8:
        raise FormatError(
            f"{where}: its {n_ids:,} values form {n_parts:,} separate parts: expected one part per nucleus. Is it a map of "
            "classes or a mask? With --components each connected part is a nucleus."
        )

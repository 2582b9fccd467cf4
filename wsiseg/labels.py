"""Label images: read and write them, and draw polygons into them.

A label image is an integer array (H, W): 0 background, every other value one nucleus. Several stages meet in it (evaluation
scores it, training learns from it), so it lives below the stages.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError

__all__ = ["LABEL_SUFFIXES", "compact_labels", "rasterize_rings", "read_labels", "split_components", "write_labels"]

LABEL_SUFFIXES: tuple[str, ...] = (".png", ".tif", ".tiff", ".npy", ".mat")
"""File name endings that ``read_labels`` reads."""

Overlap = Literal["first", "last"]
_MAT_KEYS = ("inst_map", "instance_map", "labels", "label")
_INT32_MAX = np.iinfo(np.int32).max


def read_labels(path: str | Path) -> npt.NDArray[np.int32]:
    """Read a label image.

    Parameters
    ----------
    path
        ``.png``, ``.tif``, ``.npy`` or ``.mat`` (MATLAB up to v7.2; ``inst_map``, else its only 2-D array). Floats that
        hold whole numbers are taken as ids. A mask of only 0 and 255, or a 1-bit image, holds no ids: its 8-connected
        parts become the nuclei.

    Returns
    -------
    int32 (H, W)
        Ids as in the file, where they fit int32; else renumbered 1..N in ascending order.

    Raises
    ------
    FormatError
        The file is missing or broken, of another kind, or an RGB picture.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in LABEL_SUFFIXES:
        raise FormatError(f"{path}: {suffix or 'no suffix'} is no label image. Expected one of {', '.join(LABEL_SUFFIXES)}.")
    if not path.is_file():
        raise FormatError(f"{path}: no such label image.")
    try:
        array = _READERS[suffix](path)
    except (OSError, ValueError, EOFError, NotImplementedError) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: could not be read as a label image: {err}") from err
    return _as_int32(array, path)


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
        Another suffix, or ids that the file cannot hold.
    """
    path = Path(path)
    largest, smallest = (int(labels.max()), int(labels.min())) if labels.size else (0, 0)
    limit = {".png": 0xFFFF, ".tif": 0xFFFFFFFF, ".tiff": 0xFFFFFFFF}.get(path.suffix.lower())
    if limit is None:
        raise FormatError(f"{path}: labels are written as .png (uint16) or .tif (uint32), not {path.suffix!r}.")
    if smallest < 0 or largest > limit:
        raise FormatError(f"{path}: ids {smallest} to {largest} do not fit 0 to {limit}; renumber them or write .tif.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        if path.suffix.lower() == ".png":
            from PIL import Image

            Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint16)).save(temporary, optimize=False)
        else:
            import tifffile

            tifffile.imwrite(temporary, np.ascontiguousarray(labels, dtype=np.uint32), compression="zlib")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
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
    """Draw polygons: a pixel belongs to a polygon where its center is inside (even-odd).

    Rings on pixel edges come out exactly as the pixels they enclose, since no center lies on them. A center that lies on a
    ring belongs to the inside to its right and below (half-open), so polygons that share an edge share no pixel.

    Parameters
    ----------
    xy : number (V, 2)
        Vertices in a frame where pixel (i, j) covers [i, i + 1) x [j, j + 1). Rings may be open or closed.
    ring_offsets : integer (R + 1,)
        Ring k is ``xy[ring_offsets[k]:ring_offsets[k + 1]]``.
    shape
        (H, W) of the raster; what lies outside is clipped.
    ids : integer (P,), optional
        Id of each polygon; default 1..P.
    ring_polygons : integer (R,), optional
        Polygon of each ring (holes are further rings of it); default: one ring a polygon.
    overlap
        Which polygon owns a pixel that several cover: the first or the last.
    origin
        (x, y) of the raster's first pixel in the rings' frame. Windows drawn so agree where they overlap, to the last pixel.

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
        labels.ravel()[flat] = np.repeat(values[owner], width)  # of equal indices the last assignment stays
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
    # rows whose center y + 0.5 lies in [top, bottom)
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


def _read_image(path: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with Image.open(path) as image:
        array = np.asarray(image)
        return array.astype(np.uint8) * 255 if image.mode == "1" else array


def _read_tiff(path: Path) -> npt.NDArray[Any]:
    import tifffile

    return np.asarray(tifffile.imread(path))


def _read_npy(path: Path) -> npt.NDArray[Any]:
    return np.asarray(np.load(path, allow_pickle=False))


def _read_mat(path: Path) -> npt.NDArray[Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    except MatReadError as err:
        raise FormatError(f"{path}: could not be read as a label image: {err}") from err
    named = [content[k] for k in _MAT_KEYS if k in content]
    maps = named or [v for v in content.values() if isinstance(v, np.ndarray) and v.ndim == 2 and min(v.shape) > 1]
    if not named and len(maps) != 1:
        raise FormatError(f"{path}: expected inst_map or one 2-D array, got {sorted(content)}.")
    return np.asarray(maps[0])


_READERS = {".png": _read_image, ".tif": _read_tiff, ".tiff": _read_tiff, ".npy": _read_npy, ".mat": _read_mat}


def _as_int32(array: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int32]:
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[:, :, 0]
    if array.ndim != 2:
        raise FormatError(f"{path}: expected a label image (H, W), got shape {array.shape}; is it an RGB picture?")
    if array.dtype.kind == "f":
        whole = np.rint(array)
        if not np.isfinite(array).all() or (whole != array).any():
            raise FormatError(f"{path}: expected whole-number ids, got fractions or nan in {array.dtype}.")
        array = whole.astype(np.int64)
    if array.dtype.kind == "b" or (array.dtype == np.uint8 and bool(np.isin(array, (0, 255)).all()) and array.any()):
        return split_components(array)
    if array.dtype.kind not in "iu":
        raise FormatError(f"{path}: expected integer ids, got {array.dtype}.")
    if array.size and (int(array.max()) > _INT32_MAX or int(array.min()) < 0):
        return compact_labels(array)
    return array.astype(np.int32)

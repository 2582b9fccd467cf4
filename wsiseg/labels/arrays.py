"""Read the array of a label image file, unchanged; no code in the file is ever run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError
from wsiseg.labels.cellpose import read_seg

__all__ = ["LABEL_SUFFIXES", "read_array"]

LABEL_SUFFIXES: tuple[str, ...] = (".png", ".tif", ".tiff", ".npy", ".npz", ".mat")
"""File name endings of label images."""

_MAP_KEYS = ("inst_map", "instance_map", "labels", "label", "masks", "mask")
_CLASS_KEYS = frozenset(("type_map", "class_map", "types", "classes"))
_SPARSE_KEYS = frozenset(("format", "shape", "data"))
MAX_SPARSE_PX = 1 << 32


def read_array(path: Path) -> npt.NDArray[Any]:
    """Return the array (H, W) of a label image; axes of length 1 are dropped.

    Raises
    ------
    FormatError
        The file is damaged, or contains no array or several that can be the label image.
    """
    try:
        array = _READERS[path.suffix.lower()](path)
    except (OSError, ValueError, EOFError, NotImplementedError, KeyError, TypeError, zipfile.BadZipFile) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{path}: could not be read as a label image: {err}") from err
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return array


def _read_image(path: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def _read_tiff(path: Path) -> npt.NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        n_series = len(tiff.series)
        array = np.asarray(tiff.asarray())
        if n_series > 1 and tiff.series[1].shape == tiff.series[0].shape:
            raise FormatError(
                f"{path}: contains {n_series} images of {array.shape}: expected one label image. Save the one with the ids."
            )
        return array


def _read_npy(path: Path) -> npt.NDArray[Any]:
    with path.open("rb") as stream:
        magic = stream.read(6)
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except ValueError:
        if magic != b"\x93NUMPY":
            raise
    return read_seg(path)


def _read_npz(path: Path) -> npt.NDArray[Any]:
    with np.load(path, allow_pickle=False) as archive:
        names = set(archive.files)
        if names >= _SPARSE_KEYS:
            shape = tuple(int(n) for n in archive["shape"])
            if len(shape) != 2 or not 0 < shape[0] * shape[1] <= MAX_SPARSE_PX:
                raise FormatError(f"{path}: expected a sparse label image (H, W) of up to {MAX_SPARSE_PX} px, got {shape}.")
            from scipy import sparse

            return np.asarray(sparse.load_npz(path).toarray())
        return _the_map({name: archive[name] for name in archive.files}, path)


def _read_mat(path: Path) -> npt.NDArray[Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        content = {k: v for k, v in loadmat(path).items() if not k.startswith("__")}
    except MatReadError as err:
        raise FormatError(f"{path}: could not be read as a label image: {err}") from err
    return _the_map(content, path)


def _the_map(content: dict[str, Any], path: Path) -> npt.NDArray[Any]:
    """Return the label image among named arrays: by its name, else the only 2-D array."""
    named = [content[k] for k in _MAP_KEYS if k in content]
    maps = named or [
        v for k, v in content.items() if k not in _CLASS_KEYS and isinstance(v, np.ndarray) and v.ndim == 2 and min(v.shape) > 1
    ]
    if not named and len(maps) != 1:
        raise FormatError(f"{path}: expected inst_map or one 2-D array, got {sorted(content)}.")
    return np.asarray(maps[0])


_READERS = {
    ".png": _read_image,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mat": _read_mat,
}

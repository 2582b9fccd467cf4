"""Label maps as Zarr arrays: a folder, or a ``.zip`` of one (``pinst_pp.zip`` of HoVer-NeXt)."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from wsiseg.errors import FormatError

__all__ = ["is_label_store", "open_label_store"]

MAX_LABEL_PX = 1 << 34
_MARKS = ("zarr.json", ".zarray", ".zgroup")


def is_label_store(path: Path) -> bool:
    """Return whether a path is a Zarr array or group: a folder, or a zip of one."""
    if path.is_dir():
        return path.suffix.lower() == ".zarr" or any((path / mark).is_file() for mark in _MARKS)
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] in _MARKS for name in archive.namelist())


def open_label_store(path: Path) -> Any:
    """Return the one Zarr array (H, W) of a store, read by windows.

    Raises
    ------
    FormatError
        The path is no Zarr store, or contains several arrays or none that is integer (H, W).
    """
    import zarr
    from zarr.storage import LocalStore, ZipStore

    try:
        store: Any = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
        node = zarr.open(store, mode="r")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:
        raise FormatError(f"{path}: expected a Zarr array of labels ({err}).") from err
    if isinstance(node, zarr.Group):
        arrays = [a for _, a in node.arrays()]
        if len(arrays) != 1:
            raise FormatError(f"{path}: expected one Zarr array, got a group of {len(arrays)}.")
        node = arrays[0]
    if node.ndim != 2 or node.dtype.kind not in "iu" or node.shape[0] * node.shape[1] > MAX_LABEL_PX:
        raise FormatError(f"{path}: expected integer labels (H, W) of up to {MAX_LABEL_PX} px, got {node.dtype} {node.shape}.")
    return node

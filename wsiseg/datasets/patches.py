"""Write annotated sets as patches into one sharded Zarr v3 store, and read whole images from it.

A store has one group per set, with the arrays ``rgb`` uint8 (N, P, P, 3) and ``labels`` int32 (N, P, P): the images cut row by
row into squares of P px, white and 0 beyond their edges. The group's attributes are ``info`` (the set's ``INFO.json``) and
``images`` (id, height, width, first patch). A chunk is one patch, a shard (one file) 64 of them: thousands of small pictures
become a few files, and any reader of Zarr gets patch k as ``group["rgb"][k]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import FormatError
from wsiseg.tables import atomic_folder

__all__ = ["PATCH_PX", "is_patch_store", "read_patched", "stored_info", "write_patch_set", "writing_store"]

PATCH_PX = 256
_SHARD_PATCHES = 64
_KIND = "wsiseg patches"

Picture = tuple[str, NDArray[np.uint8], NDArray[np.int32]]


def is_patch_store(path: Path) -> bool:
    """Whether a path is a store of patches, not a folder of sets."""
    return (path / "zarr.json").is_file()


def writing_store(out: Path, fill: Callable[[Any], None], patch_px: int = PATCH_PX) -> None:
    """Create the store ``out`` and call ``fill`` with its root group; the store appears complete or not at all.

    Raises
    ------
    FormatError
        ``out`` already exists.
    """
    import zarr

    if out.exists():
        raise FormatError(f"{out} already exists. Give another name, or delete it.")
    with atomic_folder(out) as partial:
        fill(zarr.open_group(str(partial), mode="w", zarr_format=3, attributes={"kind": _KIND, "patch_px": patch_px}))


def write_patch_set(
    root: Any, dataset: str, info: dict[str, Any], pictures: Iterable[Picture], sizes: list[tuple[int, int]]
) -> int:
    """Write one set into an open store and return its number of patches.

    Parameters
    ----------
    pictures
        (id, RGB uint8 (H, W, 3), labels int32 (H, W)), one after another: only a shard's patches are held in memory.
    sizes
        (H, W) of each picture, needed beforehand to create Zarr arrays of the final size.
    """
    side = int(root.attrs["patch_px"])
    total = sum(-(-h // side) * -(-w // side) for h, w in sizes)
    group = root.create_group(dataset)
    shard = min(_SHARD_PATCHES, total)
    arrays = []
    for name, rest, dtype, fill in (("rgb", (3,), "uint8", 255), ("labels", (), "int32", 0)):
        square = (side, side, *rest)
        layout = {"shape": (total, *square), "chunks": (1, *square), "shards": (shard, *square)}
        arrays.append(group.create_array(name, **layout, dtype=dtype, fill_value=fill))
    images: list[dict[str, Any]] = []
    held: list[list[NDArray[Any]]] = [[], []]
    written = first = 0
    for image_id, rgb, labels in pictures:
        for waiting, squares in zip(held, (_squares(rgb, side, 255), _squares(labels, side, 0)), strict=True):
            waiting.extend(squares)
        images.append({"id": image_id, "height": labels.shape[0], "width": labels.shape[1], "first": first})
        first = written + len(held[0])
        while len(held[0]) >= shard:
            written += _flush(arrays, held, written, shard)
    if held[0]:
        written += _flush(arrays, held, written, len(held[0]))
    if written != total:
        raise FormatError(f"Set {dataset}: the pictures do not have the sizes given ({written} patches, expected {total}).")
    group.attrs.update({"info": info, "images": images})
    return total


def stored_info(store: Path, dataset: str) -> tuple[dict[str, Any], list[str]]:
    """Return a stored set's ``INFO.json`` and its image ids, in order. Raises ``FormatError``, see ``read_patched``."""
    attributes = dict(_group(store, dataset).attrs)
    return attributes["info"], [image["id"] for image in attributes["images"]]


def read_patched(store: Path, dataset: str, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Return one whole image of a store: RGB uint8 (H, W, 3) and labels int32 (H, W).

    Raises
    ------
    FormatError
        The store is not a patch store, or does not have this set or image.
    """
    group = _group(store, dataset)
    images: Any = group.attrs["images"]
    facts = next((image for image in images if image["id"] == image_id), None)
    if facts is None:
        raise FormatError(f"{store}: the set {dataset} has no image {image_id!r}.")
    h, w, first = (int(facts[k]) for k in ("height", "width", "first"))
    side = group["rgb"].shape[1]
    rows, columns = -(-h // side), -(-w // side)
    part = slice(first, first + rows * columns)
    rgb = np.asarray(group["rgb"][part]).reshape(rows, columns, side, side, 3).transpose(0, 2, 1, 3, 4)
    labels = np.asarray(group["labels"][part]).reshape(rows, columns, side, side).transpose(0, 2, 1, 3)
    return (
        np.ascontiguousarray(rgb.reshape(rows * side, columns * side, 3)[:h, :w]),
        np.ascontiguousarray(labels.reshape(rows * side, columns * side)[:h, :w]),
    )


def _group(store: Path, dataset: str) -> Any:
    facts = store / dataset / "zarr.json"
    return _opened(store, dataset, facts.stat().st_mtime_ns if facts.is_file() else 0)


@lru_cache(maxsize=16)  # the list of images of a set is long and would be parsed for every image
def _opened(store: Path, dataset: str, _mtime_ns: int) -> Any:
    import zarr

    try:
        root = zarr.open_group(str(store), mode="r")
        if root.attrs.get("kind") != _KIND:
            raise FormatError(f"{store}: a Zarr store, but not of patches. Make one with: wsiseg datasets patches ROOT OUT")
        return root[dataset]
    except KeyError as err:
        raise FormatError(f"{store}: no set {dataset!r}, only {sorted(root.group_keys())}.") from err
    except (OSError, ValueError) as err:
        if isinstance(err, FormatError):
            raise
        raise FormatError(f"{store}: not a readable patch store: {err}") from err


def _squares(image: NDArray[Any], side: int, fill: int) -> list[NDArray[Any]]:
    h, w = image.shape[:2]
    padded = np.full((-(-h // side) * side, -(-w // side) * side, *image.shape[2:]), fill, image.dtype)
    padded[:h, :w] = image
    return [padded[y : y + side, x : x + side] for y in range(0, h, side) for x in range(0, w, side)]


def _flush(arrays: list[Any], held: list[list[NDArray[Any]]], at: int, n: int) -> int:
    for array, waiting in zip(arrays, held, strict=True):
        array[at : at + n] = np.stack(waiting[:n])
        del waiting[:n]
    return n

"""Write a polygon table as a label image: PNG or TIFF of a region, or sharded OME-Zarr 0.5 of a whole slide."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError
from wsiseg.labels import write_labels
from wsiseg.tables import atomic_folder
from wsiseg.tables.regions import rasterize_region
from wsiseg.tables.source import Exported, NucleiFile
from wsiseg.types import Box
from wsiseg.write.ome import OME_VERSION, multiscales

__all__ = ["write_label_image", "write_ome_labels"]

MAX_REGION_PX = 1 << 30
CHUNK_PX = 512
SHARD_PX = 4096
SMALLEST_LEVEL_PX = 1024


def write_label_image(source: NucleiFile, out: Path, region: Box | None = None) -> Exported:
    """Write the labels 1..N of a region (default: the slide) as ``.png`` (uint16) or ``.tif`` (uint32).

    Raises
    ------
    InputError
        The region is too large for one image in memory.
    FormatError
        There are more nuclei than the pixel type can number.
    """
    region = _region(source, region)
    if region.w * region.h > MAX_REGION_PX:
        raise InputError(
            f"Expected a region of at most {MAX_REGION_PX} px for one image, got {region.w} x {region.h}. "
            "Choose a smaller --region, or export to ome-zarr."
        )
    labels = rasterize_region(source, region)
    write_labels(out, labels)
    seen = np.unique(labels)
    return Exported(out, int(np.count_nonzero(seen)))


def write_ome_labels(
    source: NucleiFile, out: Path, region: Box | None = None, *, overwrite: bool = False, shard_px: int = SHARD_PX
) -> Exported:
    """Write ``out`` (``*.zarr``) as OME-Zarr 0.5 with the label image ``labels/nuclei``, sharded Zarr v3, shard by shard.

    Label k is the nucleus ``labels/nuclei/nucleus_id[k - 1]``. Each level has every second pixel of the previous one, because
    averages of labels would be meaningless.

    Raises
    ------
    InputError
        ``out`` exists, or the slide's size is not known and no region is given.
    """
    import zarr

    region = _region(source, region)
    ids = _sorted_ids(source)
    with atomic_folder(out, overwrite=overwrite) as folder:
        root = zarr.open_group(str(folder), mode="w", zarr_format=3, attributes={"ome": {"version": OME_VERSION}})
        attributes = {"ome": {"version": OME_VERSION, "labels": ["nuclei"]}}
        group = root.create_group("labels", attributes=attributes).create_group("nuclei")
        arrays = _create_levels(group, region, shard_px)
        for level, array in enumerate(arrays):
            if level == 0:
                for box in _shards(array.shape, shard_px):
                    _put(array, box, rasterize_region(source, Box(region.x + box.x, region.y + box.y, box.w, box.h), ids))
            else:
                for box in _shards(array.shape, shard_px):
                    finer = arrays[level - 1][2 * box.y : 2 * box.y1 : 2, 2 * box.x : 2 * box.x1 : 2]
                    _put(array, box, np.asarray(finer)[: box.h, : box.w])
        store = group.create_array("nucleus_id", shape=(max(1, len(ids)),), dtype="int64", chunks=(1 << 18,))
        if len(ids):
            store[:] = ids
        steps = [(source.mpp * 2**k, source.mpp * 2**k) for k in range(len(arrays))]
        origin = (region.y * source.mpp, region.x * source.mpp)
        group.attrs["ome"] = {
            "version": OME_VERSION,
            "multiscales": multiscales("nuclei", steps, [origin] * len(steps)),
            "image-label": {"source": {"image": "../../"}},
        }
    return Exported(out, len(ids))


def _region(source: NucleiFile, region: Box | None) -> Box:
    if region is not None:
        if region.w <= 0 or region.h <= 0:
            raise InputError(f"Expected a region (x,y,w,h) with w and h above 0, got {region.w} x {region.h}.")
        return region
    if source.width_px <= 0 or source.height_px <= 0:
        raise InputError(f"{source.path}: the slide's size is not known: add --region x,y,w,h (level-0 px).")
    return Box(0, 0, source.width_px, source.height_px)


def _sorted_ids(source: NucleiFile) -> npt.NDArray[np.int64]:
    import pyarrow.parquet as pq

    return np.sort(pq.read_table(str(source.path), columns=["nucleus_id"])["nucleus_id"].to_numpy())


def _create_levels(group: Any, region: Box, shard_px: int) -> list[Any]:
    import zarr

    shape, arrays = (region.h, region.w), list[Any]()
    while True:
        chunk = min(CHUNK_PX, shard_px)
        arrays.append(
            group.create_array(
                str(len(arrays)),
                shape=shape,
                dtype="int32",
                chunks=(chunk, chunk),
                shards=(shard_px, shard_px),
                fill_value=0,
                compressors=zarr.codecs.ZstdCodec(level=3),
                dimension_names=("y", "x"),
            )
        )
        if max(shape) <= SMALLEST_LEVEL_PX:
            return arrays
        shape = ((shape[0] + 1) // 2, (shape[1] + 1) // 2)


def _shards(shape: tuple[int, int], side: int) -> Iterator[Box]:
    for y in range(0, shape[0], side):
        for x in range(0, shape[1], side):
            yield Box(x, y, min(side, shape[1] - x), min(side, shape[0] - y))


def _put(array: Any, box: Box, labels: npt.NDArray[np.int32]) -> None:
    if labels.any():  # a shard that is not written reads as zeros
        array[box.y : box.y1, box.x : box.x1] = labels

"""Compute exact coarse maps of a slide from its polygon table: nuclear density, mean area, material and tissue fraction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import FormatError, InputError
from wsiseg.tables import atomic_folder, table_fingerprint
from wsiseg.tables.source import Exported, NucleiFile
from wsiseg.types import Box
from wsiseg.write.ome import OME_VERSION, multiscales

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["MAP_NAMES", "MapLevel", "SlideMaps", "map_cell_px", "maps_are_of", "read_maps", "slide_maps", "write_maps"]

MAP_NAMES = ("nuclei_per_mm2", "area_mean_um2", "material_frac", "tissue_frac")
"""Channels of the stored maps, per area of the cell (not of its tissue)."""

MAP_UNITS = ("1/mm^2", "um^2", "1", "1")

CELL_PX = 32
MAX_CELLS = 1 << 22
"""Maximum number of cells of a slide's finest map; computing a map of this size takes about 250 MB."""

MAX_SPAN = 6
"""Nuclei of up to this many cells along a side are added together as arrays, larger ones one by one."""

SHARD_CELLS = 1024

Float = npt.NDArray[np.float64]
TissueOf = Callable[[Box, int], npt.NDArray[np.float64]]
"""Takes a region and the side of a cell, level-0 px; returns the tissue area of each cell, level-0 px^2."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideMaps:
    """Additive sums on a grid of square cells, so that a coarser map is their sum over blocks.

    Attributes
    ----------
    count : int64 (H, W)
        Nuclei with their centroid in the cell.
    area_um2 : float64 (H, W)
        Sum of their areas.
    covered_px, valid_px : float64 (H, W)
        Level-0 px of the cell covered by nuclei (the area of each is spread evenly over its bounding box); px of the cell that
        are in the region.
    tissue_px : float64 (H, W) or None
        Level-0 px of the cell that are tissue; None: unknown.
    cell_px
        Side of a cell, level-0 px.
    """

    count: npt.NDArray[np.int64]
    area_um2: npt.NDArray[np.float64]
    covered_px: npt.NDArray[np.float64]
    valid_px: npt.NDArray[np.float64]
    cell_px: int
    mpp: float
    tissue_px: npt.NDArray[np.float64] | None = None

    def halved(self) -> SlideMaps:
        """Return the maps with cells of twice the side."""
        sums = [_block_sum(a) for a in (self.count, self.area_um2, self.covered_px, self.valid_px)]
        tissue = None if self.tissue_px is None else _block_sum(self.tissue_px)
        return SlideMaps(sums[0].astype(np.int64), sums[1], sums[2], sums[3], 2 * self.cell_px, self.mpp, tissue)

    def stack(self, rows: slice = slice(None), columns: slice = slice(None)) -> npt.NDArray[np.float32]:
        """Return float32 (4, h, w) in the order of ``MAP_NAMES``; nan for unknown values and means of no nuclei."""
        part = (rows, columns)
        count, valid = self.count[part], self.valid_px[part]
        with np.errstate(divide="ignore", invalid="ignore"):
            density = count / (valid * self.mpp**2 * 1e-6)
            mean = self.area_um2[part] / count
            cover = self.covered_px[part] / valid
            tissue = np.full(count.shape, np.nan) if self.tissue_px is None else np.minimum(self.tissue_px[part] / valid, 1)
        return np.stack([density, mean, cover, tissue]).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class MapLevel:
    """One level of stored maps: ``values`` float32 (4, H, W) as ``MAP_NAMES``, cells of ``cell_px`` level-0 px."""

    values: npt.NDArray[np.float32]
    cell_px: int
    mpp: float
    x: int
    y: int

    def named(self, name: str) -> npt.NDArray[np.float32]:
        """Return one map, float32 (H, W)."""
        values: npt.NDArray[np.float32] = self.values[MAP_NAMES.index(name)]
        return values


def map_cell_px(width_px: int, height_px: int) -> int:
    """Return the side of the finest cells of a slide: 32 level-0 px, doubled until there are at most ``MAX_CELLS``."""
    cell = CELL_PX
    while -(-width_px // cell) * -(-height_px // cell) > MAX_CELLS:
        cell *= 2
    return cell


def slide_maps(
    source: NucleiFile, region: Box | None = None, cell_px: int = CELL_PX, tissue: TissueOf | None = None
) -> SlideMaps:
    """Return the maps of a region (default: the slide), reading the table once, without its polygons, in bounded memory.

    Parameters
    ----------
    cell_px
        Side of a cell in level-0 px, 4 or more.
    tissue
        Returns the tissue area of each cell (``wsiseg.read.tissue_cells`` of the slide's mask).

    Raises
    ------
    InputError
        ``cell_px`` is below 4, or the slide's size is not known and no region is given.
    """
    if cell_px < 4:
        raise InputError(f"Expected cells of 4 px or more, got {cell_px}.")
    region = region or Box(0, 0, source.width_px, source.height_px)
    if region.w <= 0 or region.h <= 0:
        raise InputError(f"{source.path}: the slide's size is not known. Give a --region x,y,w,h.")
    shape = (-(-region.h // cell_px), -(-region.w // cell_px))
    count = np.zeros(shape, np.int64)
    area, covered = np.zeros(shape), np.zeros(shape)
    for chunk in _centers(source):
        at = [(chunk[c].to_numpy() - o) / cell_px for c, o in (("cy", region.y), ("cx", region.x))]
        inside = (at[0] >= 0) & (at[0] * cell_px < region.h) & (at[1] >= 0) & (at[1] * cell_px < region.w)
        cell = tuple(a[inside].astype(np.int64) for a in at)
        np.add.at(count, cell, 1)
        np.add.at(area, cell, chunk["area_um2"].to_numpy()[inside].astype(np.float64))
        _spread(covered, chunk, region, cell_px)
    rows, columns = (np.clip(n - np.arange(k) * cell_px, 0, cell_px) for n, k in ((region.h, shape[0]), (region.w, shape[1])))
    valid = np.outer(rows, columns).astype(np.float64)
    on_tissue = None if tissue is None else tissue(region, cell_px)
    return SlideMaps(count, area, covered, valid, cell_px, source.mpp, on_tissue)


def write_maps(
    source: NucleiFile,
    out: Path,
    region: Box | None = None,
    *,
    cell_px: int = CELL_PX,
    tissue: TissueOf | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write ``out`` (``*.zarr``): an OME-Zarr 0.5 image (c, y, x), float32, sharded, levels that halve down to 64 cells.

    Channels are ``MAP_NAMES``, nan where a cell has no value. The attribute ``wsiseg`` states units, cells and the table.
    """
    import zarr

    maps = slide_maps(source, region, cell_px, tissue)
    origin = region or Box(0, 0, source.width_px, source.height_px)
    cells, sums = [], int(maps.count.sum())
    with atomic_folder(out, overwrite=overwrite) as folder:
        root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        while True:
            cells.append(maps.cell_px)
            _write_level(root, str(len(cells) - 1), maps)
            if max(maps.count.shape) <= 64:
                break
            maps = maps.halved()
        steps = [(cell * source.mpp, cell * source.mpp) for cell in cells]
        # a cell's center is the mean of its pixels' centers
        middles = [(cell - 1) / 2 for cell in cells]
        firsts = [((origin.y + m) * source.mpp, (origin.x + m) * source.mpp) for m in middles]
        entry = multiscales("maps", steps, firsts, channels=True)
        channels = [{"label": name} for name in MAP_NAMES]
        root.attrs["ome"] = {"version": OME_VERSION, "multiscales": entry, "omero": {"channels": channels}}
        root.attrs["wsiseg"] = {
            "of": table_fingerprint(source.path), "slide_id": source.slide_id, "mpp": source.mpp, "x": origin.x, "y": origin.y,
            "cell_px": cells, "maps": list(MAP_NAMES), "units": list(MAP_UNITS),
        }  # fmt: skip
    return Exported(out, sums)


def read_maps(path: str | Path, max_cells: int = MAX_CELLS) -> MapLevel:
    """Return the finest level of stored maps that has at most ``max_cells`` cells (the coarsest, if all have more).

    Raises
    ------
    FormatError
        The folder does not contain maps of wsiseg.
    """
    import zarr

    try:
        root = zarr.open_group(str(path), mode="r", zarr_format=3)
        facts: Any = root.attrs["wsiseg"]
        if list(facts["maps"]) != list(MAP_NAMES):
            raise KeyError("maps")
        cells = [int(c) for c in facts["cell_px"]]
        sizes = [int(np.prod(np.asarray(root[str(k)].shape[1:]))) for k in range(len(cells))]
        level = next((k for k, n in enumerate(sizes) if n <= max_cells), len(cells) - 1)
        values = np.asarray(root[str(level)])
        return MapLevel(values, cells[level], float(facts["mpp"]), int(facts["x"]), int(facts["y"]))
    except (OSError, KeyError, TypeError, ValueError) as err:
        raise FormatError(
            f"{path}: expected the maps of a slide, made by wsiseg ({err!r}). Remove this folder; wsiseg then makes it again."
        ) from err


def maps_are_of(path: Path, table: Path) -> bool:
    """Return whether stored maps exist and were made from the polygon table in its present state."""
    import zarr

    try:
        facts: Any = zarr.open_group(str(path), mode="r", zarr_format=3).attrs["wsiseg"]
        return bool(facts["of"] == table_fingerprint(table) and list(facts["maps"]) == list(MAP_NAMES))
    except (OSError, KeyError, TypeError, ValueError):
        return False


def _write_level(root: Any, name: str, maps: SlideMaps) -> None:
    import zarr

    height, width = maps.count.shape
    array = root.create_array(
        name,
        shape=(len(MAP_NAMES), height, width),
        dtype="float32",
        chunks=(1, 256, 256),
        shards=(len(MAP_NAMES), SHARD_CELLS, SHARD_CELLS),
        fill_value=np.nan,
        compressors=zarr.codecs.ZstdCodec(level=3),
        dimension_names=("c", "y", "x"),
    )
    for y, x in _blocks(height, width, SHARD_CELLS):
        rows, columns = slice(y, min(y + SHARD_CELLS, height)), slice(x, min(x + SHARD_CELLS, width))
        array[:, rows, columns] = maps.stack(rows, columns)


def _blocks(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    return ((y, x) for y in range(0, height, side) for x in range(0, width, side))


def _centers(source: NucleiFile) -> Iterator[pa.Table]:
    """Yield the columns from which maps are computed, one row group after the other; no polygon is read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(str(source.path)) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=["cx", "cy", "area_um2", "area_px", "bbox"])


def _spread(covered: Float, table: pa.Table, region: Box, cell_px: int) -> None:
    """Add each nucleus's area to the cells under it, evenly over its bounding box, so that sums are exact at any cell size."""
    box = table["bbox"].combine_chunks()
    low, high = (
        np.stack([np.asarray(box.field(a + end), np.float64) - o for a, o in (("y", region.y), ("x", region.x))]) / cell_px
        for end in ("min", "max")
    )
    density = table["area_px"].to_numpy().astype(np.float64) / np.maximum(np.prod(high - low, axis=0), 1e-9)
    first = np.floor(low).astype(np.int64)
    span = (np.ceil(high).astype(np.int64) - first).max(axis=0)
    few = span <= MAX_SPAN
    height, width = covered.shape
    for dy in range(int(span[few].max(initial=0))):
        for dx in range(int(span[few].max(initial=0))):
            y, x = first[0] + dy, first[1] + dx
            sides = [np.minimum(high[k], c + 1) - np.maximum(low[k], c) for k, c in enumerate((y, x))]
            hit = few & (sides[0] > 0) & (sides[1] > 0) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
            np.add.at(covered, (y[hit], x[hit]), (density * sides[0] * sides[1])[hit])
    for k in np.flatnonzero(~few).tolist():  # very large nuclei of imported tables: few, each over many cells
        edges = [np.arange(n) for n in covered.shape]
        sides = [np.clip(np.minimum(high[a, k], e + 1) - np.maximum(low[a, k], e), 0, None) for a, e in enumerate(edges)]
        covered += density[k] * np.outer(*sides)


def _block_sum(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    padded = np.zeros(tuple(n + n % 2 for n in array.shape), np.float64)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).sum(axis=(1, 3))

"""A polygon table -> coarse maps of a slide: nuclear density, mean area and material fraction, exact at every level."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wsiseg.errors import InputError
from wsiseg.export.folders import atomic_folder
from wsiseg.export.raster import OME_VERSION, multiscales, rasterize_region
from wsiseg.export.source import Exported, NucleiFile, Selection, iter_chunks
from wsiseg.types import Box

__all__ = ["MAP_NAMES", "SlideMaps", "slide_maps", "write_maps"]

MAP_NAMES = ("nuclei_per_mm2", "area_mean_um2", "material_frac")
COVER_STEP = 4
"""Level-0 px per pixel on which coverage is counted: 64 samples a cell of 32 px."""

BLOCK_CELLS = 256


@dataclass(frozen=True, slots=True, eq=False)
class SlideMaps:
    """Additive sums on a grid of square cells: a coarser map is their sum over blocks, never a mean of means.

    Attributes
    ----------
    count : int64 (H, W)
        Nuclei with their centroid in the cell.
    area_um2 : float64 (H, W)
        Sum of their areas.
    covered_px, valid_px : float64 (H, W)
        Level-0 px of the cell covered by nuclei; px of the cell that lie in the region.
    cell_px
        Side of a cell, level-0 px.
    """

    count: npt.NDArray[np.int64]
    area_um2: npt.NDArray[np.float64]
    covered_px: npt.NDArray[np.float64]
    valid_px: npt.NDArray[np.float64]
    cell_px: int
    mpp: float

    def halved(self) -> SlideMaps:
        """Return the maps with cells of twice the side."""
        sums = [_block_sum(a) for a in (self.count, self.area_um2, self.covered_px, self.valid_px)]
        return SlideMaps(sums[0].astype(np.int64), sums[1], sums[2], sums[3], 2 * self.cell_px, self.mpp)

    def stack(self) -> npt.NDArray[np.float32]:
        """Return float32 (3, H, W) as named by ``MAP_NAMES``; nan where there is nothing to average."""
        with np.errstate(divide="ignore", invalid="ignore"):
            density = self.count / (self.valid_px * self.mpp**2 * 1e-6)
            mean = self.area_um2 / self.count
            cover = self.covered_px / self.valid_px
        return np.stack([density, mean, cover]).astype(np.float32)


def slide_maps(source: NucleiFile, region: Box | None = None, cell_px: int = 32) -> SlideMaps:
    """Return the maps of a region (default: the slide), reading the table twice in bounded memory.

    Parameters
    ----------
    cell_px
        Side of a cell in level-0 px, a multiple of 4. Coverage is sampled at every fourth px.

    Raises
    ------
    InputError
        Another side, or the slide's size is not known and no region is given.
    """
    if cell_px < COVER_STEP or cell_px % COVER_STEP:
        raise InputError(f"Expected a cell of a multiple of {COVER_STEP} px, got {cell_px}.")
    region = region or Box(0, 0, source.width_px, source.height_px)
    if region.w <= 0 or region.h <= 0:
        raise InputError(f"{source.path}: the slide's size is not known; name a --region x,y,w,h.")
    shape = (-(-region.h // cell_px), -(-region.w // cell_px))
    count = np.zeros(shape, np.int64)
    area = np.zeros(shape, np.float64)
    for chunk in iter_chunks(source, Selection(region), ["area_um2"]):
        cell = [((chunk.column(c) - o) // cell_px).astype(np.int64) for c, o in (("cy", region.y), ("cx", region.x))]
        flat = np.ravel_multi_index((cell[0], cell[1]), shape)
        count += np.bincount(flat, minlength=count.size).reshape(shape)
        area += np.bincount(flat, chunk.column("area_um2"), minlength=count.size).reshape(shape)
    rows, columns = (np.clip(n - np.arange(k) * cell_px, 0, cell_px) for n, k in ((region.h, shape[0]), (region.w, shape[1])))
    valid = np.outer(rows, columns).astype(np.float64)
    covered = np.minimum(_covered(source, region, cell_px, shape), valid)
    return SlideMaps(count, area, covered, valid, cell_px, source.mpp)


def write_maps(
    source: NucleiFile, out: Path, region: Box | None = None, *, cell_px: int = 32, overwrite: bool = False
) -> Exported:
    """Write ``out`` (``*.zarr``): an OME-Zarr 0.5 image (c, y, x), float32, sharded, levels that halve down to 64 cells.

    Channels are ``MAP_NAMES``, nan where a cell has nothing to say.
    """
    import zarr

    maps = slide_maps(source, region, cell_px)
    origin = region or Box(0, 0, source.width_px, source.height_px)
    levels = [maps]
    while max(levels[-1].count.shape) > 64:
        levels.append(levels[-1].halved())
    with atomic_folder(out, overwrite=overwrite) as folder:
        root = zarr.open_group(str(folder), mode="w", zarr_format=3)
        for k, level in enumerate(levels):
            stack = level.stack()
            array = root.create_array(
                str(k),
                shape=stack.shape,
                dtype="float32",
                chunks=(1, 256, 256),
                shards=(3, 1024, 1024),
                fill_value=np.nan,
                compressors=zarr.codecs.ZstdCodec(level=3),
                dimension_names=("c", "y", "x"),
            )
            array[:] = stack
        steps = [(level.cell_px * source.mpp, level.cell_px * source.mpp) for level in levels]
        # a cell's center lies in the middle of its pixels' centers
        middles = [(level.cell_px - 1) / 2 for level in levels]
        firsts = [((origin.y + m) * source.mpp, (origin.x + m) * source.mpp) for m in middles]
        channels = [{"label": name} for name in MAP_NAMES]
        entry = multiscales("maps", steps, firsts, channels=True)
        ome = {"version": OME_VERSION, "multiscales": entry, "omero": {"channels": channels}}
        root.attrs["ome"] = ome
    return Exported(out, int(maps.count.sum()))


def _covered(source: NucleiFile, region: Box, cell_px: int, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    samples = cell_px // COVER_STEP
    covered = np.zeros(shape, np.float64)
    for row in range(0, shape[0], BLOCK_CELLS):
        for column in range(0, shape[1], BLOCK_CELLS):
            h, w = min(BLOCK_CELLS, shape[0] - row), min(BLOCK_CELLS, shape[1] - column)
            box = Box(region.x + column * cell_px, region.y + row * cell_px, w * cell_px, h * cell_px)
            inside = rasterize_region(source, box, downsample=COVER_STEP) != 0
            blocks = inside.reshape(h, samples, w, samples).sum(axis=(1, 3))
            covered[row : row + h, column : column + w] = blocks * COVER_STEP**2
    return covered


def _block_sum(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    padded = np.zeros(tuple(n + n % 2 for n in array.shape), np.float64)
    padded[: array.shape[0], : array.shape[1]] = array
    return padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).sum(axis=(1, 3))

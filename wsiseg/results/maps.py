"""Make and read the maps of a slide, ``RUN/maps/<slide_id>.zarr``, which belong to a version of its table."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from wsiseg.errors import InputError
from wsiseg.read import TissueMask, tissue_cells
from wsiseg.results.folder import RunFolder
from wsiseg.tables import open_nuclei
from wsiseg.write import MapLevel, map_cell_px, maps_are_of, read_maps, write_maps

__all__ = ["make_maps", "maps_path", "slide_maps_of", "tissue_of"]


def maps_path(folder: RunFolder, slide_id: str) -> Path:
    """Return the path of a slide's maps."""
    return folder.root / "maps" / f"{slide_id}.zarr"


def tissue_of(folder: RunFolder, slide_id: str) -> TissueMask | None:
    """Return a slide's stored tissue mask; None if there is none, as for imports without their slide."""
    path = folder.tissue_png(slide_id)
    return TissueMask.load(path) if path.is_file() else None


def make_maps(folder: RunFolder, slide_id: str, tissue: TissueMask | None = None) -> Path:
    """Write the maps of a slide from its table; return their path.

    Parameters
    ----------
    tissue
        The slide's mask; None: the stored one.

    Raises
    ------
    FormatError
        The table or the stored mask cannot be read.
    """
    mask = tissue if tissue is not None else tissue_of(folder, slide_id)
    source = open_nuclei(folder.table(slide_id))
    cell_px = map_cell_px(source.width_px, source.height_px)
    cells = None if mask is None else partial(tissue_cells, mask)
    out = maps_path(folder, slide_id)
    for left in out.parent.glob(f".{out.name}.*"):  # left by a killed process; the run folder has only one writer
        shutil.rmtree(left, ignore_errors=True)
    write_maps(source, out, cell_px=cell_px, tissue=cells, overwrite=True)
    return out


def slide_maps_of(run: Path, slide_id: str, max_cells: int = 1 << 22) -> MapLevel:
    """Return a slide's maps at the finest level with at most ``max_cells`` cells; make them if missing or out of date.

    Raises
    ------
    InputError
        The slide has no table.
    FormatError
        The table cannot be read.
    """
    folder = RunFolder(run)
    table = folder.table(slide_id)
    if not table.is_file():
        raise InputError(f"Slide {slide_id} has no polygon table in {run}.")
    path = maps_path(folder, slide_id)
    if not maps_are_of(path, table):
        make_maps(folder, slide_id)
    return read_maps(path, max_cells)

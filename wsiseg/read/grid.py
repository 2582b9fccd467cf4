"""The tile grid: the cores of the tiles cover the plane of working px exactly once."""

from __future__ import annotations

from wsiseg.errors import ConfigError
from wsiseg.read.mask_window import tissue_frac
from wsiseg.read.tissue import TissueMask
from wsiseg.read.working import working_size
from wsiseg.types import Box, SlideMeta, Tile

__all__ = ["tile_grid"]


def tile_grid(meta: SlideMeta, scale: float, tile_wpx: int, halo_wpx: int, tissue: TissueMask | None) -> list[Tile]:
    """Cut a slide into tiles.

    Parameters
    ----------
    meta
        The slide.
    scale
        Working px per level-0 px.
    tile_wpx
        Side of a core in working px; cores at the right and bottom edge are cut at the slide's edge.
    halo_wpx
        How far ``Tile.read`` reaches beyond the core on all sides, also beyond the slide.
    tissue
        The slide's mask, from which ``Tile.tissue_frac`` of each core is computed; ``None``: every tile counts as tissue (1.0).

    Returns
    -------
    list of Tile
        Row-major; ``tile_id`` counts the full grid, so it does not depend on the tissue.

    Raises
    ------
    ConfigError
        A side that is not positive, or a negative halo.
    """
    if tile_wpx < 1 or halo_wpx < 0:
        raise ConfigError(f"Expected a positive tile side and a halo of at least 0 working px, got {tile_wpx} and {halo_wpx}.")
    width, height = working_size(meta, scale)
    cores = [
        Box(x, y, min(tile_wpx, width - x), min(tile_wpx, height - y))
        for y in range(0, height, tile_wpx)
        for x in range(0, width, tile_wpx)
    ]
    return [
        Tile(meta.slide_id, k, core, core.padded(halo_wpx), scale, 1.0 if tissue is None else tissue_frac(tissue, core, scale))
        for k, core in enumerate(cores)
    ]

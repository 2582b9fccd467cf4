"""Make small pictures of a table's slide, which squidpy and spatialdata-plot show behind nuclei."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiseg.errors import WsisegError
from wsiseg.log import log
from wsiseg.read import Slide
from wsiseg.read._thumbnail import thumbnail_plan
from wsiseg.results.reopen import slide_of_table
from wsiseg.tables.source import NucleiFile
from wsiseg.write.elements import put_number, tell

__all__ = ["HIRES_PX", "LOWRES_PX", "Thumbnail", "put_pictures", "thumbnails_of"]

HIRES_PX = 2000
"""Longer side of the larger picture, as of Space Ranger's ``hires``."""

LOWRES_PX = 600


@dataclass(frozen=True, slots=True, eq=False)
class Thumbnail:
    """A picture of the whole slide, uint8 (H, W, 3), and its px per level-0 px in x and y."""

    rgb: npt.NDArray[np.uint8]
    scale_x: float
    scale_y: float


def thumbnails_of(source: NucleiFile, path_map: Sequence[str] = ()) -> dict[str, Thumbnail]:
    """Return the pictures ``hires`` and ``lowres``; an empty dict and a warning if the slide cannot be opened."""
    try:
        slide = slide_of_table(source.path, path_map)
        try:
            return {name: _of(slide, side) for name, side in (("hires", HIRES_PX), ("lowres", LOWRES_PX))}
        finally:
            slide.close()
    except (WsisegError, OSError, KeyError) as err:
        log.warning("slide %s is exported without its picture (squidpy: img=False): %s", source.slide_id, err)
        return {}


def _of(slide: Slide, side_px: int) -> Thumbnail:
    level, block_px = thumbnail_plan(slide.level_sizes_px, side_px)
    (level_w, level_h), meta = slide.level_sizes_px[level], slide.meta
    return Thumbnail(
        slide.thumbnail(side_px), level_w / (meta.width_px * block_px), level_h / (meta.height_px * block_px)
    )  # of whole blocks, of which the last may extend beyond the slide


def put_pictures(images: Any, scales: Any, pictures: dict[str, Thumbnail]) -> None:
    """Add pictures and their scales to the ``images`` and ``scalefactors`` of squidpy's ``uns["spatial"][library]``."""
    for name, picture in pictures.items():
        if type(images).__module__.startswith("h5py"):
            made = images.create_dataset(name, data=picture.rgb, compression="gzip", compression_opts=4)
        else:
            made = images.create_array(name, data=picture.rgb)
        tell(made, "array", "0.2.0")
        put_number(scales, f"tissue_{name}_scalef", picture.scale_x)

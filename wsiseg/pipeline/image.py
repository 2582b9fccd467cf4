"""Segment one picture, such as an annotated crop, as a slide of one tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wsiseg.config import RunConfig
from wsiseg.normalize import fit_stain
from wsiseg.pipeline.window import WindowPixels, stain_aim, window_maps, window_nuclei
from wsiseg.read import ArraySlide, fit_tissue, read_working, scale_for, tissue_window, unscanned_window, working_size
from wsiseg.separate import SeparateParams, resolve_params
from wsiseg.types import Box, PolygonBatch
from wsiseg.vectorize import rasterize

if TYPE_CHECKING:
    from wsiseg.predict import Model

__all__ = ["ImageMaps", "find_nuclei", "image_nuclei", "map_image", "segment_image", "separate_maps"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageMaps:
    """The network's maps of one picture with its halo: enough to separate it again with other thresholds.

    Attributes
    ----------
    prob : uint8 (2, H, W)
        Center and material maps of the picture and a halo, working px.
    core
        The picture in working px; its origin is (0, 0).
    halo_wpx
        Width of the halo.
    scale, mpp
        Working px per picture px, and microns per working px.
    shape : (int, int)
        Height and width of the picture, in its own px.
    """

    prob: NDArray[np.uint8]
    core: Box
    halo_wpx: int
    scale: float
    mpp: float
    shape: tuple[int, int]

    @property
    def inner(self) -> NDArray[np.uint8]:
        """Return the maps of the picture without its halo, working px."""
        halo = self.halo_wpx
        return self.prob[:, halo : halo + self.core.h, halo : halo + self.core.w]


def segment_image(rgb: NDArray[np.uint8], mpp: float, model: Model, config: RunConfig, image_id: str = "") -> NDArray[np.int32]:
    """Segment one picture as a slide of one tile: the stages of ``pipeline.window`` in their order, and its polygons drawn.

    As in a run, nothing is segmented outside the tissue mask, so that scores are those of a run's results.

    Returns
    -------
    int32 (H, W)
        Instances at the picture's own pixels, 0 background.
    """
    maps = map_image(rgb, mpp, model, config, image_id)
    return separate_maps(maps, resolve_params(config.separate, model.separate_defaults, maps.mpp))


def map_image(
    rgb: NDArray[np.uint8], mpp: float, model: Model, config: RunConfig, image_id: str = "", *, everywhere: bool = False
) -> ImageMaps:
    """Predict one picture as a slide of one tile: the first half of ``segment_image``; ``everywhere``: no tissue mask."""
    slide = ArraySlide(rgb, mpp=mpp, slide_id=image_id)
    scale = scale_for(mpp, model.mpp, config.read.mpp_tolerance_frac)
    aim = stain_aim(model, config)
    stain = fit_stain(aim.method, rgb, np.ones(rgb.shape[:2], bool), aim.params)
    core = Box(0, 0, *working_size(slide.meta, scale))
    box = core.padded(config.read.halo_wpx)
    window = model.input_box(box)
    mask = fit_tissue(slide)
    tissue, unscanned = tissue_window(mask, box, scale), unscanned_window(mask, window, scale)
    pixels = WindowPixels(read_working(slide, window, scale), None if everywhere else tissue, unscanned)
    prob = window_maps(model, pixels, box, stain)
    return ImageMaps(np.asarray(prob), core, config.read.halo_wpx, scale, mpp / scale, rgb.shape[:2])


def image_nuclei(maps: ImageMaps, params: SeparateParams) -> PolygonBatch:
    """Return the polygons of a predicted picture, working px."""
    return window_nuclei(maps.prob, maps.core.padded(maps.halo_wpx), maps.core, params).batch


def find_nuclei(rgb: NDArray[np.uint8], mpp: float, model: Model, config: RunConfig) -> tuple[PolygonBatch, float]:
    """Return the polygons of one picture, working px, and the microns per working px."""
    maps = map_image(rgb, mpp, model, config)
    return image_nuclei(maps, resolve_params(config.separate, model.separate_defaults, maps.mpp)), maps.mpp


def separate_maps(maps: ImageMaps, params: SeparateParams) -> NDArray[np.int32]:
    """Return the instances of a predicted picture at its own pixels, int32 (H, W): the second half of ``segment_image``."""
    labels: NDArray[np.int32] = rasterize(image_nuclei(maps, params), maps.core)
    if maps.scale == 1.0:
        return labels
    # polygons follow working px edges, so a pixel's center is in the polygon of the working px that contains it
    rows, cols = (np.minimum(((np.arange(n) + 0.5) * maps.scale).astype(np.int64), m - 1)
                  for n, m in zip(maps.shape, labels.shape, strict=True))  # fmt: skip
    return labels[np.ix_(rows, cols)]

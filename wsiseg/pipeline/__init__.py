"""The steps of one window in their order: normalize, predict, separate, vectorize. Defined once, used by every task.

Input: pixels and the slide's constants. Output: probability maps, instances, polygons. Tiles of slides, pictures segmented
from Python, scores on annotated images and the fitting of thresholds all go through ``window_maps`` and ``window_nuclei``.
"""

from __future__ import annotations

from wsiseg.pipeline.densities import with_densities
from wsiseg.pipeline.image import ImageMaps, image_nuclei, map_image, segment_image, separate_maps
from wsiseg.pipeline.look import network_look, picture_look
from wsiseg.pipeline.scale import MppEstimate, estimate_mpp, mpp_to_segment_at
from wsiseg.pipeline.window import StageClock, WindowNuclei, WindowPixels, stain_aim, window_maps, window_nuclei, window_stats

__all__ = [
    "ImageMaps",
    "MppEstimate",
    "StageClock",
    "WindowNuclei",
    "WindowPixels",
    "estimate_mpp",
    "image_nuclei",
    "map_image",
    "mpp_to_segment_at",
    "network_look",
    "picture_look",
    "segment_image",
    "separate_maps",
    "stain_aim",
    "window_maps",
    "window_nuclei",
    "window_stats",
    "with_densities",
]

"""Read a fixed sample of a slide's tissue at working resolution, to fit slide constants such as stain vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsiseg.read._window import RGB
from wsiseg.read.mask_window import tissue_window
from wsiseg.read.slide import Slide
from wsiseg.read.tissue import TissueMask
from wsiseg.read.working import read_working, working_size
from wsiseg.types import Box

__all__ = ["stain_sample"]


def stain_sample(
    slide: Slide, tissue: TissueMask, scale: float, *, n_patches: int = 64, patch_wpx: int = 128
) -> tuple[RGB, npt.NDArray[np.bool_]]:
    """Read patches spread evenly over the tissue; nothing is random, so a slide always gives the same sample.

    A thumbnail of 8 um/px would blend nuclei and cytoplasm, and the stain vectors fitted to it would be too similar.

    Parameters
    ----------
    slide, tissue
        An open slide and its mask.
    scale
        Working px per level-0 px.

    Returns
    -------
    rgb : uint8 (n * patch_wpx, patch_wpx, 3)
        Patches in one column. ``n`` is ``n_patches``, or the number of mask px with tissue if that is less.
    on_tissue : bool (n * patch_wpx, patch_wpx)
        Tissue mask of the patches.

    Raises
    ------
    TileReadError
    """
    ys, xs = np.nonzero(tissue.mask)
    n = min(n_patches, len(ys))
    if n == 0:
        return np.empty((0, patch_wpx, 3), np.uint8), np.empty((0, patch_wpx), np.bool_)
    width, height = working_size(slide.meta, scale)
    patches, masks = [], []
    for k in (np.arange(n) * 2 + 1) * len(ys) // (2 * n):
        x = int((tissue.x0 + (xs[k] + 0.5) * tissue.px_w) * scale) - patch_wpx // 2
        y = int((tissue.y0 + (ys[k] + 0.5) * tissue.px_h) * scale) - patch_wpx // 2
        box = Box(max(0, min(x, width - patch_wpx)), max(0, min(y, height - patch_wpx)), patch_wpx, patch_wpx)
        patches.append(read_working(slide, box, scale))
        masks.append(tissue_window(tissue, box, scale))
    return np.concatenate(patches), np.concatenate(masks)

"""Choose the method of stain normalization, and fit the parameters of a slide's stain.

======== ================================================================================================================
method   ``Stain.params``
======== ================================================================================================================
none     ()
reinhard means of l, alpha, beta, then standard deviations of l, alpha, beta (6 numbers; see ``reinhard``)
macenko  hematoxylin vector (r, g, b), eosin vector (r, g, b), 99th percentiles of both concentrations (8; see ``macenko``)
======== ================================================================================================================

If the reference is not the method's own, the same number of values follow for it: those of the image that the network's
training images were normalized to (``Stain`` of that image, the ``aim`` of ``fit_stain``).

A slide without enough tissue to fit (``MIN_FIT_PX``) gets method ``none`` and is not normalized.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from wsiseg.errors import ConfigError
from wsiseg.normalize import macenko, reinhard
from wsiseg.types import Stain

__all__ = ["MIN_FIT_PX", "fit_stain", "normalize"]

MIN_FIT_PX = 256
_N_PARAMS = {"reinhard": 6, "macenko": 8}
_WHITE_U8 = 250  # a px at least this bright in all channels is glass, and is not used to fit the stain


def fit_stain(
    method: str, thumbnail_rgb: npt.NDArray[np.uint8], tissue: npt.NDArray[np.bool_], aim: tuple[float, ...] = ()
) -> Stain:
    """Fit the stain of a slide.

    Parameters
    ----------
    method
        ``none``, ``reinhard`` or ``macenko``.
    thumbnail_rgb : uint8 (h, w, 3)
        A thumbnail, or better a sample of patches at working resolution, where nuclei and cytoplasm are not blended.
    tissue : bool (h, w)
        Which px are tissue.
    aim
        ``Stain.params`` of the image to whose colors slides are normalized; none: the method's own reference.

    Returns
    -------
    Stain
        Method ``none`` if there is too little tissue to fit, or only one stain in it.

    Raises
    ------
    ConfigError
        The method is unknown, the shapes do not match, or ``aim`` is of another method.
    """
    if method not in ("none", "reinhard", "macenko"):
        raise ConfigError(f"Expected normalize.method to be none, reinhard or macenko, got {method!r}.")
    if thumbnail_rgb.ndim != 3 or thumbnail_rgb.shape[2] != 3 or thumbnail_rgb.shape[:2] != tissue.shape:
        raise ConfigError(f"Expected rgb (h, w, 3) and tissue (h, w), got {thumbnail_rgb.shape} and {tissue.shape}.")
    if method == "none":
        return Stain()
    if aim and len(aim) != _N_PARAMS[method]:
        raise ConfigError(f"Expected a {method} reference of {_N_PARAMS[method]} numbers, got {len(aim)}.")
    pixels = thumbnail_rgb[tissue.astype(np.bool_)]
    pixels = pixels[pixels.min(axis=1) < _WHITE_U8]
    if len(pixels) < MIN_FIT_PX:
        return Stain()
    params = reinhard.fit(pixels) if method == "reinhard" else macenko.fit(pixels)
    return Stain() if params is None else Stain("reinhard" if method == "reinhard" else "macenko", (*params, *aim))


def normalize(rgb: npt.NDArray[np.uint8], stain: Stain) -> npt.NDArray[np.uint8]:
    """Map pixels to the reference slide's colors.

    Parameters
    ----------
    rgb : uint8 (..., 3)
        Pixels of the slide that ``stain`` was fitted on.
    stain
        From ``fit_stain``.

    Returns
    -------
    uint8, the shape of ``rgb``
        On the device of ``rgb``; ``rgb`` itself for method ``none``. A px depends only on its own value and on ``stain``.
    """
    if stain.method == "none":
        return rgb
    if stain.method == "reinhard":
        return reinhard.apply(rgb, stain.params)
    return macenko.apply(rgb, stain.params)

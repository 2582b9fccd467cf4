"""Choose the reference image of stain normalization from the training images, as Mahbod et al. 2019 do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.datasets.samples import Sample, load_sample
from wsiseg.errors import ConfigError

__all__ = ["choose_reference", "histogram_difference"]

_LUMA = np.array((299, 587, 114))  # ITU-R BT.601, per mille


def histogram_difference(rgb: NDArray[np.uint8], labels: NDArray[Any]) -> float:
    """Return the difference of the gray histograms of nuclei and background: half the summed absolute difference.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        The image.
    labels : integer (H, W)
        Its label image, 0 for background.

    Returns
    -------
    float
        From 0 (equal, or nuclei or background are absent) to 1 (no common gray value); each histogram (256 bins) sums to 1.
    """
    gray = (rgb.reshape(-1, 3) @ _LUMA + 500) // 1000
    nucleus = labels.reshape(-1) > 0
    if nucleus.all() or not nucleus.any():
        return 0.0
    inside, outside = (np.bincount(gray[mask], minlength=256) / mask.sum() for mask in (nucleus, ~nucleus))
    return float(np.abs(inside - outside).sum() / 2)


def choose_reference(samples: Sequence[Sample]) -> tuple[Sample, float]:
    """Return the image with the largest ``histogram_difference``, and that difference.

    This is the automatic choice of Mahbod et al. 2019 (doi 10.1007/978-3-030-23937-4_9). Of equal images the first is chosen.

    Raises
    ------
    ConfigError
        ``samples`` is empty.
    """
    if not samples:
        raise ConfigError("Expected images to choose a stain reference from, got none.")
    differences = [histogram_difference(*load_sample(s)) for s in samples]
    best = int(np.argmax(differences))
    return samples[best], differences[best]

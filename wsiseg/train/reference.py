"""The reference image of stain normalization, chosen from the training images as Mahbod et al. 2019 do."""

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
    """Return how far apart the gray histograms of nuclei and background are: half the summed absolute difference.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
    labels : integer (H, W)
        0 background.

    Returns
    -------
    float
        0 (alike, or one of the two is absent) to 1 (no gray value in common); each histogram (256 bins) sums to 1.
    """
    gray = (rgb.reshape(-1, 3) @ _LUMA + 500) // 1000
    nucleus = labels.reshape(-1) > 0
    if nucleus.all() or not nucleus.any():
        return 0.0
    inside, outside = (np.bincount(gray[mask], minlength=256) / mask.sum() for mask in (nucleus, ~nucleus))
    return float(np.abs(inside - outside).sum() / 2)


def choose_reference(samples: Sequence[Sample]) -> tuple[Sample, float]:
    """Return the image whose nuclei differ most from their background, and by how much.

    The automatic choice of Mahbod et al. 2019 (doi 10.1007/978-3-030-23937-4_9); of equals, the first.

    Raises
    ------
    ConfigError
        No images.
    """
    if not samples:
        raise ConfigError("Expected images to choose a stain reference from, got none.")
    differences = [histogram_difference(*load_sample(s)) for s in samples]
    best = int(np.argmax(differences))
    return samples[best], differences[best]

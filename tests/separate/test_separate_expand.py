"""Expansion: against every pixel's distance to every pixel, and against windows of itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wsiseg.errors import InputError
from wsiseg.separate import expand


def oracle(labels: np.ndarray, reach_squared: int) -> np.ndarray:
    """Return the answer by distances of all pixels to all pixels, and SciPy's components."""
    out = np.zeros_like(labels)
    seeds = np.argwhere(labels)
    for p in np.ndindex(labels.shape):
        near = sorted((int(((s - p) ** 2).sum()), int(labels[tuple(s)])) for s in seeds)
        if near and near[0][0] <= reach_squared:
            out[p] = near[0][1]
    for k in np.unique(labels[labels > 0]):
        parts, n = ndimage.label(out == k)
        own = np.bincount(parts[labels == k], minlength=n + 1)
        own[0] = 0
        out[(out == k) & (parts != own.argmax())] = 0
    return out


def picture(seed: int, shape: tuple[int, int], n: int) -> np.ndarray:
    """Return blobs and single pixels with labels in no order, some in several parts, some inside others."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for k in rng.permutation(n) + 1:
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        h, w = rng.integers(1, 5, 2)
        labels[y : y + h, x : x + w] = k
    return labels


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 16), st.integers(1, 16), st.integers(0, 12), st.integers(0, 60))
def test_each_pixel_is_its_nearest_nucleus(seed: int, h: int, w: int, n: int, reach_squared: int) -> None:
    labels = picture(seed, (h, w), n)
    before = labels.copy()
    np.testing.assert_array_equal(expand(labels, reach_squared), oracle(labels, reach_squared))
    np.testing.assert_array_equal(labels, before)


def test_a_window_gives_what_the_whole_gives() -> None:
    labels = ndimage.label(np.random.default_rng(5).random((200, 220)) < 0.02)[0].astype(np.int32)
    whole = expand(labels, 50)
    for y, x in ((0, 0), (60, 50), (110, 130)):
        part = expand(labels[y : y + 90, x : x + 90], 50)
        inner = (slice(15, 75), slice(15, 75))  # nuclei of a few px, twice the reach inside
        np.testing.assert_array_equal(part[inner], whole[y : y + 90, x : x + 90][inner])


def test_what_are_no_labels_is_refused() -> None:
    for labels, reach in ((np.zeros((3, 3)), 4), (np.zeros(3, np.int32), 4), (np.zeros((3, 3), np.int32), -1)):
        with pytest.raises(InputError, match="expand"):
            expand(labels, reach)

"""Components from concurrent joins are those that SciPy finds, each named by its least pixel."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from scipy import ndimage as ndi

from tests.kernels.host import HostBackend, on_host
from tests.oracles.maps import spiral
from wsiseg.backend import BLOCK, BLOCK_2D, blocks_for, blocks_over


def components(backend: HostBackend, mask: np.ndarray) -> np.ndarray:
    H, W = mask.shape
    root = backend.empty((H, W), "int32")
    backend.launch("label_start", blocks_for(H * W), BLOCK, (backend.upload(mask.astype(np.uint16)), 1, H * W, root))
    backend.launch("label_join", blocks_over((H, W)), BLOCK_2D, (W, H, root))
    backend.launch("label_flatten", blocks_for(H * W), BLOCK, (H * W, root))
    return backend.to_host(root)


def expected(mask: np.ndarray) -> np.ndarray:
    labels, n = ndi.label(mask)
    least = np.full(n + 1, -1)
    at = np.arange(mask.size).reshape(mask.shape)
    if n:
        least[1:] = ndi.minimum(at, labels, np.arange(1, n + 1))
    return least[labels]


@pytest.mark.parametrize("seed", [0, 1, 9])
@pytest.mark.parametrize("fill", [0.0, 0.5, 0.59, 0.64, 1.0])
def test_percolation(kernel_library: ctypes.CDLL, fill: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random((300, 517)) < fill
    with on_host(kernel_library, seed, 7) as backend:
        np.testing.assert_array_equal(components(backend, mask), expected(mask))


def test_comb_and_spiral(kernel_library: ctypes.CDLL) -> None:
    comb = np.zeros((257, 255), bool)
    comb[:, ::2] = comb[-1] = True  # teeth that meet at the very end
    for mask in (comb, comb[::-1], comb.T, spiral(255, 4) > 0):
        for os_threads in (1, 7):
            with on_host(kernel_library, 3, os_threads) as backend:
                np.testing.assert_array_equal(components(backend, mask), expected(mask))

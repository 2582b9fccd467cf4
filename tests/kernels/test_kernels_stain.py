"""Macenko's and Reinhard's normalization on a device: the host's answer in every bit."""

from __future__ import annotations

import numpy as np

from tests.kernels.conftest import Machine
from wsiseg.normalize import normalize
from wsiseg.types import Stain

PARAMS = (
    0.65,
    0.70,
    0.29,
    0.07,
    0.99,
    0.11,
    1.4,
    0.7,
)  # Ruifrok and Johnston's H and E vectors; a pale slide


def test_macenko_equals_the_host(machine: Machine) -> None:
    rng = np.random.default_rng(4)
    rgb = np.concatenate([rng.integers(0, 256, (61, 50, 3)), [[[0, 0, 0]] * 50, [[255, 255, 255]] * 50]]).astype(np.uint8)
    stain = Stain("macenko", PARAMS)
    expected = normalize(rgb, stain)
    assert (expected != rgb).mean() > 0.5
    np.testing.assert_array_equal(machine.get(normalize(machine.put(rgb), stain)), expected)


def test_reinhard_equals_the_host(machine: Machine) -> None:
    rng = np.random.default_rng(5)
    tissue = rng.normal((170, 110, 160), (30, 35, 25), (80, 60, 3)).clip(0, 255)
    ends = [[[0, 0, 0]] * 60, [[255, 255, 255]] * 60]
    rgb = np.concatenate([rng.integers(0, 256, (61, 60, 3)), tissue, ends]).astype(np.uint8)
    stain = Stain("reinhard", (-0.45, -0.06, 0.018, 0.25, 0.06, 0.011))
    expected = normalize(rgb, stain)
    assert (expected != rgb).mean() > 0.3
    np.testing.assert_array_equal(machine.get(normalize(machine.put(rgb), stain)), expected)

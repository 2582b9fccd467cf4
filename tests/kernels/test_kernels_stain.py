"""Macenko's normalization on a device: the host's answer in every bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.conftest import Machine
from wsiseg.errors import BackendUnavailableError
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


def test_reinhard_says_that_it_stays_on_the_host(quick_machine: Machine) -> None:
    rgb = quick_machine.put(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(BackendUnavailableError, match="stays on the host"):
        normalize(rgb, Stain("reinhard", (-0.5, -0.1, 0.0, 0.3, 0.05, 0.01)))

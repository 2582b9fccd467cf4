"""One comparison for all machines: the package's doors on the device against the CPU's answers, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from wsiseg.separate import SeparateParams, find_markers, separate
from wsiseg.types import Box, Instances, PolygonBatch
from wsiseg.vectorize import tile_stats, vectorize

LOOSE = SeparateParams(8000, 2040, 3, 256, 0, True, 1, 262143)
STRICT = SeparateParams(16320, 2040, 4, 640, 3000, True, 12, 900, 2700, 60)
PLAIN = SeparateParams(16320, 2040, 6, 0, 0, False, 12, 5000)
ALL_PARAMS = {"loose": LOOSE, "strict": STRICT, "plain": PLAIN}


def core_of(read: Box) -> Box:
    """A core that leaves some nuclei to neighbours."""
    return Box(read.x + read.w // 8, read.y, max(1, read.w * 3 // 4), max(1, read.h - 3))


def same_batch(got: PolygonBatch, expected: PolygonBatch) -> None:
    np.testing.assert_array_equal(got.xy, expected.xy)
    np.testing.assert_array_equal(got.ring_offsets, expected.ring_offsets)
    assert (got.xy.dtype, got.ring_offsets.dtype) == (np.int32, np.int64)
    assert list(got.columns) == list(expected.columns)
    for name, values in expected.columns.items():
        assert got.columns[name].dtype == values.dtype, name
        assert got.columns[name].tobytes() == values.tobytes(), name


def check_map(machine: Any, prob: np.ndarray, params: SeparateParams) -> Instances:
    """Separate, vectorize and sum up one window on the device and on the CPU; return the CPU's instances."""
    expected = separate(prob, params)
    there = machine.put(prob)
    got = separate(there, params)
    labels, anchors = machine.get(got.labels), machine.get(got.anchors)
    np.testing.assert_array_equal(anchors, expected.anchors)
    np.testing.assert_array_equal(labels, expected.labels)
    assert labels.dtype == anchors.dtype == np.int32
    np.testing.assert_array_equal(machine.get(find_markers(there, params)), find_markers(prob, params))
    read = Box(70_000, 90_000, prob.shape[2], prob.shape[1])
    for core in (read, core_of(read)):
        same_batch(vectorize(got, there, read, core), vectorize(expected, prob, read, core))
        assert tile_stats(there, got, read, core) == tile_stats(prob, expected, read, core)
    return expected

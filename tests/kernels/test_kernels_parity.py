"""Kernels equal the CPU's own code in every bit, on adversarial maps, random ones and tissue, whatever the schedule."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from benchmarks.synthetic import synthetic_tile
from tests.kernels.conftest import Machine
from tests.kernels.host import device_array, on_host
from tests.kernels.parity import ALL_PARAMS, LOOSE, check_map, same_batch
from tests.oracles import contours as ring_oracle
from tests.oracles import separation as oracle
from tests.oracles.maps import adversarial, random_maps, spiral
from wsiseg.config import SeparateConfig
from wsiseg.errors import InputError
from wsiseg.separate import SeparateParams, resolve_params, separate
from wsiseg.types import Box, Instances
from wsiseg.vectorize import rasterize, vectorize

MAPS = adversarial()
arm = spiral(97, 5)  # winds through sixteen blocks of the flood
MAPS["wide_spiral"] = np.stack([np.where(np.indices(arm.shape).sum(0) % 61 == 0, arm, 0), arm]).astype(np.uint8)


@pytest.mark.parametrize("name", sorted(MAPS))
def test_adversarial_maps(machine: Machine, name: str) -> None:
    check_map(machine, MAPS[name], LOOSE)


@pytest.mark.parametrize("params", ["strict", "plain"])
@pytest.mark.parametrize("name", sorted(MAPS))
def test_adversarial_maps_with_other_options(one_machine: Machine, name: str, params: str) -> None:
    check_map(one_machine, MAPS[name], ALL_PARAMS[params])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prob=random_maps(),
    compactness_q256=st.sampled_from([0, 256, 4096]),
    radius=st.integers(1, 6),
    threshold=st.sampled_from([1, 1500, 2040, 4080]),
    recall=st.booleans(),
    merge_depth=st.sampled_from([0, 1, 3000, 65280]),
    merge_share_q256=st.sampled_from([0, 1, 90, 256]),
    min_area=st.sampled_from([1, 5, 40]),
    max_area=st.sampled_from([50, 262143]),
    min_material=st.sampled_from([0, 2100, 3000]),
)
def test_random_maps(
    quick_machine: Machine,
    prob: np.ndarray,
    compactness_q256: int,
    radius: int,
    threshold: int,
    recall: bool,
    merge_depth: int,
    merge_share_q256: int,
    min_area: int,
    max_area: int,
    min_material: int,
) -> None:
    limits = (min_area, max_area, min_material, merge_share_q256)
    p = SeparateParams(4000, threshold, radius, compactness_q256, merge_depth, recall, *limits)
    check_map(quick_machine, prob, p)


@pytest.mark.parametrize("name", ["spiral", "bridge", "nested", "plateaus", "noise_33", "fine_checkerboard", "one_row"])
def test_equal_to_the_written_definition(quick_machine: Machine, name: str) -> None:
    """Without the CPU's code in between: separation and rings against the plain oracles."""
    prob, p = MAPS[name], ALL_PARAMS["strict"]
    there = quick_machine.put(prob)
    found = separate(there, p)
    labels, markers = oracle.separate(prob, p)
    np.testing.assert_array_equal(quick_machine.get(found.labels), labels)
    assert [(y, x) for x, y in quick_machine.get(found.anchors).tolist()] == markers
    box = Box(0, 0, prob.shape[2], prob.shape[1])
    batch = vectorize(found, there, box, box)
    for k in range(len(markers)):
        ring = batch.xy[batch.ring_offsets[k] : batch.ring_offsets[k + 1]]
        assert [tuple(v) for v in ring.tolist()] == ring_oracle.ring_of(labels == k + 1)


@pytest.mark.parametrize("fill", [0.45, 0.6, 0.8])
def test_rough_components(machine: Machine, fill: float) -> None:
    """Percolation clusters: corner touches, leaking holes, one-pixel necks; moments of big, ragged regions to the last unit."""
    rng = np.random.default_rng(int(fill * 100))
    labels, n = ndi.label(rng.random((97, 129)) < fill)
    labels = labels.astype(np.int32)
    first = np.array([np.flatnonzero(labels.ravel() == k)[0] for k in range(1, n + 1)])
    anchors = np.stack([first % 129, first // 129], axis=1).astype(np.int32)
    prob = rng.integers(0, 256, (2, *labels.shape)).astype(np.uint8)
    read = Box(3, 2**30, 129, 97)
    there = Instances(labels=machine.put(labels), anchors=machine.put(anchors))
    expected = vectorize(Instances(labels=labels, anchors=anchors), prob, read, read)
    same_batch(vectorize(there, machine.put(prob), read, read), expected)


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return synthetic_tile(36, 224, seed=2).prob


def test_tissue(machine: Machine, tissue: np.ndarray) -> None:
    params = resolve_params(SeparateConfig(), {}, 0.25)
    found = check_map(machine, tissue, params)
    assert len(found.anchors) > 20
    sliced = np.ascontiguousarray(tissue[:, 7:203, 11:200])
    whole = machine.put(tissue)
    there = separate(whole[:, 7:203, 11:200], params)  # a view: not in C order
    np.testing.assert_array_equal(machine.get(there.labels), separate(sliced, params).labels)


def test_flood_crosses_blocks_in_several_rounds(kernel_library: ctypes.CDLL) -> None:
    prob = np.zeros((2, 8, 420), np.uint8)
    prob[1] = 255
    prob[0, 4, [4, 20]] = 255  # both markers at one end: the flood passes 13 blocks, one a round
    p = SeparateParams(1, 2040, 6, 0, 0, True, 1, 262143)
    with on_host(kernel_library, seed=5) as backend:
        there = separate(device_array(prob), p)
        assert backend.launches["flood_round"] >= 13
        assert backend.launches["descend"] == 1
        np.testing.assert_array_equal(backend.to_host(there.labels), separate(prob, p).labels)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("down", [False, True])
def test_marker_on_the_rim_is_the_only_way_out_of_its_block(one_machine: Machine, flip: bool, down: bool) -> None:
    """The flood leaves its block of 32 px at a marker, whose state is there from the beginning and never changes."""
    prob = np.zeros((2, 1, 96), np.uint8)
    prob[1, 0, 5:64] = 255
    prob[0, 0, [10, 31]] = 255
    prob = prob[:, :, ::-1] if flip else prob  # then the marker lies on the left rim of block 2
    prob = np.ascontiguousarray(prob.transpose(0, 2, 1) if down else prob)
    found = check_map(one_machine, prob, SeparateParams(1, 2040, 6, 0, 0, True, 1, 262143))
    assert np.bincount(found.labels.ravel())[1:].min() >= 10
    assert len(found.anchors) == 2


@pytest.mark.parametrize("name", ["noise_65", "plateaus", "fine_checkerboard"])
def test_more_peaks_than_threads(one_machine: Machine, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Threads that take several pieces of a list; without a least distance, every second pixel may be a peak."""
    monkeypatch.setattr("wsiseg.separate._cuda.STRIDE_THREADS", 256)
    check_map(one_machine, MAPS[name], SeparateParams(1, 1, 1, 0, 200, True, 1, 262143))


def test_one_component_of_many_markers(machine: Machine) -> None:
    prob = np.full((2, 96, 129), 255, np.uint8)
    prob[0] = 0
    prob[0, 8::16, 8::16] = 255  # 48 markers on one plateau
    found = check_map(machine, prob, SeparateParams(1, 2040, 6, 0, 0, True, 1, 262143))
    assert len(found.anchors) == 48


def test_a_saddle_exactly_as_deep_as_requested_separates(one_machine: Machine) -> None:
    prob = np.zeros((2, 20, 40), np.uint8)
    prob[1] = 255
    prob[0, 8:12, 6:34] = 120
    prob[0, 9:11, [10, 11, 28, 29]] = 200
    c = oracle.smooth(prob[0], (1, 4, 6, 4, 1))
    lower = min(c[9:11, 8:14].max(), c[9:11, 26:32].max())
    depth = int(lower - c[9:11, 14:26].max())  # of the highest way between the two
    assert depth > 0
    share = max(q for q in range(257) if int(lower) * q // 256 <= depth)
    for merge_depth, merge_share_q256, n in (
        (depth, 0, 2),
        (depth + 1, 0, 1),
        (0, share, 2),
        (0, share + 1, 1),
        (depth, share, 2),
    ):
        p = SeparateParams(16320, 2040, 6, 0, merge_depth, False, 1, 262143, 0, merge_share_q256)
        assert len(check_map(one_machine, prob, p).anchors) == n


def test_label_without_pixels_is_refused(quick_machine: Machine) -> None:
    labels, anchors = np.zeros((8, 8), np.int32), np.array([[3, 3]], np.int32)
    there = Instances(labels=quick_machine.put(labels), anchors=quick_machine.put(anchors))
    box = Box(0, 0, 8, 8)
    with pytest.raises(InputError, match="label 1 has none"):
        vectorize(there, quick_machine.put(np.zeros((2, 8, 8), np.uint8)), box, box)


def test_result_is_a_table_on_the_host(quick_machine: Machine, tissue: np.ndarray) -> None:
    found = separate(quick_machine.put(tissue), LOOSE)
    box = Box(0, 0, 224, 224)
    batch = vectorize(found, quick_machine.put(tissue), box, box)
    assert all(type(a) is np.ndarray for a in (batch.xy, batch.ring_offsets, *batch.columns.values()))
    painted = rasterize(batch, box)
    labels = quick_machine.get(found.labels)
    assert (painted == labels)[labels > 0].all()

"""The kernels equal the written definition in every pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import separation as oracle
from tests.oracles.maps import adversarial, random_maps
from wsiseg.separate import MERGE_REACH_PX, SeparateParams, find_markers, separate

MAPS = adversarial()


def params(**changes: object) -> SeparateParams:
    values: dict[str, object] = {
        "center_threshold": 16320,
        "material_threshold": 2040,
        "marker_radius_px": 4,
        "compactness_q256": 512,
        "merge_depth": 0,
        "merge_share_q256": 0,
        "seed_recall": True,
        "min_area_px": 12,
        "max_area_px": 5000,
    }
    return SeparateParams(**{**values, **changes})  # type: ignore[arg-type]


def assert_equals_oracle(prob: np.ndarray, p: SeparateParams) -> None:
    got = separate(prob, p)
    labels, markers = oracle.separate(prob, p)
    assert got.labels.dtype == got.anchors.dtype == np.int32
    assert [(y, x) for x, y in got.anchors.tolist()] == markers
    np.testing.assert_array_equal(got.labels, labels)


@pytest.mark.parametrize("compactness_q256", [0, 640])
@pytest.mark.parametrize("name", sorted(MAPS))
def test_adversarial_maps(name: str, compactness_q256: int) -> None:
    assert_equals_oracle(MAPS[name], params(compactness_q256=compactness_q256))


@pytest.mark.parametrize("name", ["nested", "leaking_hole", "bridge", "all_255"])
@pytest.mark.parametrize("limits", [(1, 300), (600, 700), (150, 262143)])
def test_size_limits_count_holes(name: str, limits: tuple[int, int]) -> None:
    assert_equals_oracle(MAPS[name], params(min_area_px=limits[0], max_area_px=limits[1]))


@pytest.mark.parametrize("min_material", [1, 2600, 3200, 4080])
@pytest.mark.parametrize("name", sorted(MAPS))
def test_unsure_labels_are_dropped(name: str, min_material: int) -> None:
    assert_equals_oracle(MAPS[name], params(min_area_px=1, min_material=min_material))


def test_the_least_material_itself_is_enough() -> None:
    """Discs of material 150 and 151: a threshold of 16 * 151 keeps only the second, whatever the values of the smoothed map."""
    prob = np.zeros((2, 40, 80), np.uint8)
    y, x = np.mgrid[:40, :80]
    for cx, value in ((20, 150), (60, 151)):
        disc = np.hypot(x - cx, y - 20) <= 9
        prob[1][disc], prob[0][20, cx] = value, 255
    found = separate(prob, params(center_threshold=1, min_material=16 * 151))
    assert found.anchors.tolist() == [[60, 20]]
    assert len(separate(prob, params(center_threshold=1, min_material=16 * 150)).anchors) == 2
    assert len(separate(prob, params(center_threshold=1, min_material=16 * 151 + 1)).anchors) == 0


@settings(max_examples=150, deadline=None)
@given(
    prob=random_maps(),
    compactness_q256=st.sampled_from([0, 256, 4096]),
    radius=st.integers(1, 6),
    threshold=st.sampled_from([1, 1500, 2040, 4080]),
    recall=st.booleans(),
    merge_depth=st.sampled_from([0, 1, 3000, 65280]),
    merge_share_q256=st.sampled_from([0, 1, 90, 256]),
    min_area=st.sampled_from([1, 5, 40]),
    min_material=st.sampled_from([0, 2100, 3000]),
)
def test_random_maps(
    prob: np.ndarray,
    compactness_q256: int,
    radius: int,
    threshold: int,
    recall: bool,
    merge_depth: int,
    merge_share_q256: int,
    min_area: int,
    min_material: int,
) -> None:
    p = params(
        compactness_q256=compactness_q256,
        marker_radius_px=radius,
        material_threshold=threshold,
        seed_recall=recall,
        merge_depth=merge_depth,
        merge_share_q256=merge_share_q256,
        min_area_px=min_area,
        min_material=min_material,
    )
    assert_equals_oracle(prob, p)
    _, _, markers = oracle.markers_of(prob, p, MERGE_REACH_PX)
    assert [(y, x) for x, y in find_markers(prob, p).tolist()] == markers


@settings(max_examples=15, deadline=None)
@given(prob=random_maps(), seed=st.integers(0, 1000))
def test_states_do_not_depend_on_the_order_of_relaxation(prob: np.ndarray, seed: int) -> None:
    m, mask, markers = oracle.markers_of(prob, params(min_area_px=1))
    f = oracle.landscape(m, markers, 512)
    assert oracle.states_by_relaxation(f, mask, markers, seed) == oracle.states_by_heap(f, mask, markers)


def test_non_contiguous_maps_are_the_same_maps() -> None:
    prob = MAPS["noise_65"]
    wide = np.zeros((2, prob.shape[1] * 2, prob.shape[2] * 2), np.uint8)
    wide[:, ::2, ::2] = prob
    np.testing.assert_array_equal(separate(wide[:, ::2, ::2], params()).labels, separate(prob, params()).labels)

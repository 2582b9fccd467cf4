"""What the heads learn: one bump a nucleus, a gap where two touch, from any label numbers."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from wsiseg.errors import ConfigError
from wsiseg.train import CenterKind, make_targets

KINDS = get_args(CenterKind)


def two_discs(gap: int = 0) -> np.ndarray:
    y, x = np.mgrid[:60, :90]
    labels = np.zeros((60, 90), np.int32)
    labels[np.hypot(x - 28, y - 30) <= 14] = 7
    labels[(np.hypot(x - 57 - gap, y - 30) <= 14) & (labels == 0)] = 300
    return labels


@pytest.mark.parametrize("kind", KINDS)
def test_each_nucleus_has_one_bump_inside_it(kind: str) -> None:
    labels = two_discs()
    center = make_targets(labels, kind)[0]  # type: ignore[arg-type]
    assert center[labels == 0].max() == 0
    _, bumps = ndimage.label(center > 127)
    assert bumps == 2
    for value in (7, 300):
        inside = labels == value
        peak = np.argwhere((center == center[inside].max()) & inside).mean(0)
        assert np.hypot(*(peak - np.argwhere(inside).mean(0))) < 2
        assert center[inside].max() >= 250


def test_material_opens_only_where_nuclei_touch() -> None:
    """The oracle looks at all eight neighbors of every pixel."""
    labels = two_discs()
    material = make_targets(labels, touching=0.6)[1]
    H, W = labels.shape
    for y in range(1, H - 1):
        for x in range(1, W - 1):
            around = set(labels[y - 1 : y + 2, x - 1 : x + 2].ravel()) - {0}
            expected = (255 if len(around) == 1 else 153) if labels[y, x] else 0
            assert material[y, x] == expected, (y, x)
    assert (material == 255).sum() < (labels > 0).sum()
    apart = two_discs(gap=4)
    assert np.array_equal(make_targets(apart)[1] > 0, apart > 0)


def test_narrow_gaps_weigh_more() -> None:
    weight = make_targets(two_discs(gap=2), border_weight=3.0)[2]
    assert weight[30, 43] == 3 * 64
    assert weight[5, 5] == 64
    assert set(np.unique(weight)) == {64, 192}


def test_small_nuclei_weigh_more() -> None:
    """The oracle takes each pixel's nucleus, or for background the smallest nucleus in the 5x5 px around it."""
    labels = two_discs(gap=6)
    labels[2:12, 2:12] = 5  # 100 px
    labels[40:44, 2:6] = 6  # 16 px
    weight = make_targets(labels, border_weight=1.0, small_weight=2.5)[2]
    area = {v: int((labels == v).sum()) for v in np.unique(labels)}
    for y, x in np.ndindex(labels.shape):
        around = labels[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        near = {int(labels[y, x])} if labels[y, x] else set(around.ravel().tolist())
        expected = max([1.0, *(min(2.5, max(1.0, (350 / area[v]) ** 0.75)) for v in near - {0})])
        assert weight[y, x] == round(64 * expected), (y, x)
    assert set(np.unique(weight)) == {64, 160}
    assert np.array_equal(make_targets(labels, small_weight=1.0), make_targets(labels))
    both = make_targets(two_discs(gap=2), border_weight=3.9, small_weight=3.9)[2]
    assert both.max() == round(3.9 * 64), "large nuclei have no additional weight"


def test_the_ellipse_follows_the_nucleus() -> None:
    """On an ellipse with half axes 24 and 8, the bump falls to exp(-(2 t)^2 / 1.28) at the share t of either half axis."""
    y, x = np.mgrid[:80, :80]
    labels = (((x - 40) / 24) ** 2 + ((y - 40) / 8) ** 2 <= 1).astype(np.int32)
    center = make_targets(labels, "ellipse")[0] / 255
    for t, (dx, dy) in ((0.5, (12, 0)), (0.5, (0, 4)), (0.25, (6, 0))):
        assert center[40 + dy, 40 + dx] == pytest.approx(np.exp(-((2 * t) ** 2) / 1.28), abs=0.04)


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.int32, (12, 15), elements=st.integers(0, 3)), st.permutations([1, 2, 3]))
def test_label_numbers_do_not_matter(labels: np.ndarray, order: list[int]) -> None:
    renamed = np.array([0, *[1000 * v for v in order]])[labels]
    for kind in KINDS:
        assert np.array_equal(make_targets(labels, kind), make_targets(renamed, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_image_has_empty_targets(kind: str) -> None:
    targets = make_targets(np.zeros((8, 9), np.uint16), kind)  # type: ignore[arg-type]
    assert targets.shape == (3, 8, 9)
    assert targets[:2].max() == 0
    assert (targets[2] == 64).all()


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="ellipse"):
        make_targets(np.zeros((4, 4), int), "square")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="touching"):
        make_targets(np.zeros((4, 4), int), touching=1.5)
    with pytest.raises(ConfigError, match="border_weight"):
        make_targets(np.zeros((4, 4), int), border_weight=9)
    with pytest.raises(ConfigError, match="small_weight"):
        make_targets(np.zeros((4, 4), int), small_weight=0.5)

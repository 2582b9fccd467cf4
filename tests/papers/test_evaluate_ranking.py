"""The ranking of data sets against the published table, and its parts against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wsiseg.errors import FormatError
from wsiseg.metrics import instance_scores
from wsiseg.papers import (
    TileScore,
    choose_windows,
    cross_matrix,
    draw_ranking,
    held_out_groups,
    mean_of,
    paper_scores,
    rank_sets,
    tile_windows,
)

# Torbati et al. 2026, arXiv 2601.20104: PQ % on the unified test set after training on one set alone (HoVerNeXt, CellViT).
PUBLISHED = {
    "PCNS": (55.66, 55.14),
    "PUMA": (55.75, 54.74),
    "MoNuSeg": (53.38, 55.11),
    "CPM17": (51.86, 51.58),
    "TNBC": (46.39, 48.67),
    "NuInsSeg": (44.92, 48.54),
    "CoNSeP": (46.41, 44.97),
    "MoNuSAC": (47.28, 40.40),
    "DSB": (43.83, 38.44),
    "CryoNuSeg": (35.57, 40.82),
}
PUBLISHED_HOVERNEXT_RANKS = {
    "PCNS": 2, "PUMA": 1, "MoNuSeg": 3, "CPM17": 4, "TNBC": 7, "NuInsSeg": 8, "CoNSeP": 6, "MoNuSAC": 5, "DSB": 9,
    "CryoNuSeg": 10,
}  # fmt: skip


def published() -> dict[str, dict[str, float]]:
    return {n: {s: v[k] / 100 for s, v in sorted(PUBLISHED.items())} for k, n in enumerate(("HoVerNeXt", "CellViT"))}


def test_the_published_order_and_ranks() -> None:
    ranked = rank_sets(published())
    assert [r.name for r in ranked] == list(PUBLISHED), "the order of the paper's table"
    assert {r.name: r.rank["HoVerNeXt"] for r in ranked} == PUBLISHED_HOVERNEXT_RANKS
    assert ranked[0].mean_pq == pytest.approx((0.5566 + 0.5514) / 2)


def test_the_mean_rank_would_order_them_otherwise() -> None:
    """What the order is by is not free: CoNSeP has the better mean rank than NuInsSeg, and stands below it."""
    by_name = {r.name: r for r in rank_sets(published())}
    assert by_name["CoNSeP"].mean_rank == 6.5 < by_name["NuInsSeg"].mean_rank == 7.0
    assert by_name["CryoNuSeg"].mean_rank == 9.0 < by_name["DSB"].mean_rank == 9.5


def test_equals_share_a_rank_and_gaps_are_refused() -> None:
    ranked = rank_sets({"n": {"a": 0.4, "b": 0.5, "c": 0.4}})
    assert [(r.name, r.mean_rank) for r in ranked] == [("b", 1.0), ("a", 2.5), ("c", 2.5)]
    assert rank_sets({}) == []
    with pytest.raises(FormatError, match="'a', 'b'"):
        rank_sets({"n": {"a": 0.4, "b": 0.5}, "m": {"a": 0.1}})
    with pytest.raises(FormatError, match="nan"):
        rank_sets({"n": {"a": math.nan}})


def squares(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    labels = np.zeros((40, 40), np.int32)
    for k, (y, x, h, w) in enumerate(boxes, 1):
        labels[y : y + h, x : x + w] = k
    return labels


def test_scores_are_the_papers() -> None:
    truth, shifted = squares((5, 5, 10, 10), (25, 25, 10, 10)), squares((5, 6, 10, 10), (25, 25, 10, 10))
    plain, paper = instance_scores(shifted, truth), paper_scores(shifted, truth)
    assert (paper["pq"], paper["aji"], paper["dice"]) == (plain.pq, plain.aji, plain.dice2)
    unmatched = squares((5, 11, 10, 10))
    assert instance_scores(unmatched, truth).aji > 0
    assert instance_scores(unmatched, truth).dice2 > 0
    assert paper_scores(unmatched, truth) == {"pq": 0, "aji": 0, "dice": 0}, "no match, no score"
    nothing = np.zeros((40, 40), np.int32)
    assert all(math.isnan(v) for v in paper_scores(nothing, nothing).values())
    assert paper_scores(nothing, truth)["dice"] == 0


def test_tiny_objects_count_on_neither_side() -> None:
    truth = squares((5, 5, 10, 10), (0, 30, 3, 5))
    pred = squares((5, 5, 10, 10), (38, 0, 2, 7))
    assert paper_scores(pred, truth)["pq"] == pytest.approx(1 / 2)
    assert paper_scores(pred, truth, least_px=16)["pq"] == 1.0
    assert paper_scores(pred, truth, least_px=15)["pq"] == pytest.approx(1 / 1.5), "15 px are 15 px"


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 30)
)
def test_held_out_groups_suffice_or_are_half(tiles: dict[str, int], n: int) -> None:
    held = held_out_groups(tiles, n)
    assert held < set(tiles), "something is left to train on"
    assert 1 <= len(held) <= len(tiles) // 2
    assert sum(tiles[g] for g in held) >= n or len(held) == len(tiles) // 2
    assert held == held_out_groups(dict(reversed(tiles.items())), n)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(FormatError, match="two groups"):
        held_out_groups({"a": 9}, 3)


def test_windows_tile_and_take_turns() -> None:
    windows = tile_windows("i", "g", (600, 520), 256)
    assert [(w.x, w.y, w.w, w.h) for w in windows] == [
        (0, 0, 256, 256),
        (256, 0, 256, 256),
        (0, 256, 256, 256),
        (256, 256, 256, 256),
    ]
    assert [(w.w, w.h) for w in tile_windows("small", "g", (100, 300), 256)] == [(256, 100)]
    many = [w for image, group in (("a", "1"), ("b", "1"), ("c", "2")) for w in tile_windows(image, group, (512, 512), 128)]
    chosen = choose_windows(many, 4)
    assert sorted(w.group for w in chosen) == ["1", "1", "2", "2"]
    assert {w.image for w in chosen} == {"a", "b", "c"}
    assert choose_windows(many, 0) == many
    assert choose_windows(many, 4) == chosen


def test_cross_matrix_and_figure(tmp_path) -> None:
    values = {("a", "a"): (0.8, 0.6), ("a", "b"): (0.2, math.nan), ("b", "a"): (0.1,), ("b", "b"): (0.9,)}
    scores = [
        TileScore("net", trained, tested, str(k), pq, pq, pq)
        for (trained, tested), row in values.items()
        for k, pq in enumerate(row)
    ]
    matrix = cross_matrix(scores, ["a", "b", "c"], ["a", "b"])
    np.testing.assert_allclose(matrix, [[0.7, 0.2], [0.1, 0.9], [math.nan, math.nan]])
    assert math.isnan(mean_of([], "pq"))
    ranked = rank_sets({"net": {"a": 0.5, "b": 0.4}})
    path = draw_ranking(ranked, {"net": matrix[:2]}, {"net": [(1, 0.5), (2, 0.55)]}, tmp_path / "r.png")
    with Image.open(path) as picture:
        assert picture.size == (1240, 800)
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 10

"""Polygons that lie over one another in scores: each is a detection, and none is matched twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.evaluation import evaluate_paths
from wsiseg.evaluation.inputs import draw_rings, load_rings
from wsiseg.labels import write_labels
from wsiseg.metrics import instance_scores


def write(path: Path, shapes: list) -> Path:
    features = [{"type": "Feature", "geometry": shapely.geometry.mapping(s), "properties": {}} for s in shapes]
    path.write_text(json.dumps(features))
    return path


BOXES = [shapely.box(20 * i, 5, 20 * i + 12, 17) for i in range(10)]


@pytest.mark.parametrize("times", [2, 3])
def test_duplicates_are_false_positives(tmp_path: Path, times: int) -> None:
    once, many = write(tmp_path / "a.geojson", BOXES), write(tmp_path / "b.geojson", BOXES * times)
    score = evaluate_paths(many, once).scores[0]
    assert (score.n_pred, score.n_truth, score.matched[0]) == (10 * times, 10, 10)
    assert score.pq == pytest.approx(2 * 10 / (10 + 10 * times))
    assert score.precision == pytest.approx(1 / times)
    assert (score.recall, score.sq, score.dice) == (1.0, 1.0, 1.0)  # pixels are those of one layer
    assert score.aji == pytest.approx(1 / times)  # what is left over joins the denominator
    assert score.aji_plus == pytest.approx(1 / times)
    turned = evaluate_paths(once, many).scores[0]
    assert (turned.n_truth, turned.recall, turned.precision) == (10 * times, pytest.approx(1 / times), 1.0)
    both = evaluate_paths(many, many).scores[0]
    assert (both.pq, both.matched) == (1.0, (10 * times,) * 10)
    truth = np.zeros((17, 192), np.int32)
    for k in range(10):
        truth[5:17, 20 * k : 20 * k + 12] = k + 1
    write_labels(tmp_path / "t.png", truth)
    assert evaluate_paths(many, tmp_path / "t.png").scores[0] == score


def test_a_nucleus_all_covered_by_others_is_still_one(tmp_path: Path) -> None:
    halves = [shapely.box(0, 0, 10, 20), shapely.box(10, 0, 20, 20)]
    path = write(tmp_path / "a.geojson", [shapely.box(0, 0, 20, 20), *halves])
    score = evaluate_paths(path, write(tmp_path / "b.geojson", halves)).scores[0]
    assert (score.n_pred, score.n_truth, score.matched[0]) == (3, 2, 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 8)), min_size=1, max_size=12))
def test_every_polygon_with_a_pixel_is_in_some_layer(tmp_path_factory: pytest.TempPathFactory, boxes: list) -> None:
    path = write(tmp_path_factory.mktemp("o") / "a.geojson", [shapely.box(x, y, x + s, y + s) for x, y, s in boxes])
    layers = np.atleast_3d(draw_rings(load_rings(path), (30, 30)).labels)
    layers = layers if layers.shape[-1] != 1 else layers[..., 0][None]
    seen = np.unique(layers)
    assert seen[seen > 0].tolist() == list(range(1, len(boxes) + 1))
    covered = np.zeros((30, 30), bool)
    for x, y, s in boxes:
        covered[y : y + s, x : x + s] = True
    assert np.array_equal(layers[0] > 0, covered)
    score = instance_scores(layers, layers, layered=True)
    assert score.pq == 1.0
    assert score.n_pred == len(boxes)

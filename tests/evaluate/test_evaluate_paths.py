"""Folders paired by name, scored, summarized, written and compared."""

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from wsiseg.errors import FormatError
from wsiseg.evaluation import compare_runs, evaluate_paths, evaluation_table, load_instances, write_evaluation
from wsiseg.labels import write_labels
from wsiseg.metrics import SCORE_NAMES, instance_scores


def grid(seed, side=300, shift=0):
    rng = np.random.default_rng(seed)
    labels = np.zeros((side, side), np.int32)
    for k, (y, x) in enumerate(rng.integers(0, side - 14, (40, 2)), 1):
        labels[y + shift : y + 12 + shift, x : x + 12] = k
    return labels


@pytest.fixture
def folders(tmp_path):
    truth, pred = tmp_path / "truth", tmp_path / "pred"
    truth.mkdir()
    pred.mkdir()
    from PIL import Image

    for i in range(4):
        labels = grid(i)
        write_labels(truth / f"im_{i}.labels.png", labels)
        Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(truth / f"im_{i}.png")  # the picture beside its labels
        if i % 2:
            write_labels(pred / f"im_{i}.tif", grid(i, shift=i))
        else:
            np.save(pred / f"im_{i}.npy", grid(i, shift=i))
    (truth / "INFO.json").write_text("{}")
    np.save(pred / "other.npy", grid(9))
    return pred, truth


def test_folders_pair_by_name_and_score_each_image(folders):
    pred, truth = folders
    got = evaluate_paths(pred, truth)
    assert got.names == ("im_0", "im_1", "im_2", "im_3")
    assert got.unused == ("other",)
    for i in range(4):
        assert got.scores[i] == instance_scores(grid(i, shift=i), grid(i))
    assert got.hou is not None
    assert got.hou.n_patches == 4
    assert got.counts.n == 4
    summary = got.summary()
    assert summary["mean"]["pq"] == pytest.approx(np.mean([s.pq for s in got.scores]))
    assert summary["pooled"]["n_truth"] == sum(s.n_truth for s in got.scores)


def test_missing_predictions_are_never_silent(folders):
    pred, truth = folders
    (pred / "im_3.tif").unlink()
    with pytest.raises(FormatError, match=r"1 of 4 truths have no prediction.*im_3"):
        evaluate_paths(pred, truth)
    assert evaluate_paths(pred, truth, missing="skip").names == ("im_0", "im_1", "im_2")
    scored = evaluate_paths(pred, truth, missing="empty")
    assert (scored.scores[3].n_pred, scored.scores[3].pq) == (0, 0.0)


def test_pairs_that_cannot_be_made_say_so(folders, tmp_path):
    pred, truth = folders
    with pytest.raises(FormatError, match="two files or two folders"):
        evaluate_paths(pred / "im_0.npy", truth)
    with pytest.raises(FormatError, match="no such"):
        evaluate_paths(tmp_path / "none", truth)
    elsewhere = tmp_path / "else"
    elsewhere.mkdir()
    np.save(elsewhere / "z.npy", grid(0))
    with pytest.raises(FormatError, match=r"no file of .* pairs"):
        evaluate_paths(elsewhere, truth)
    np.save(pred / "im_1.npy", grid(1))
    with pytest.raises(FormatError, match="are both for image"):
        evaluate_paths(pred, truth)


def test_other_sizes_name_the_image(tmp_path):
    np.save(tmp_path / "p.npy", grid(0, 60))
    np.save(tmp_path / "t.npy", grid(0, 80))
    with pytest.raises(FormatError, match=r"^t: .*same"):
        evaluate_paths(tmp_path / "p.npy", tmp_path / "t.npy")


def test_ignored_areas(folders, tmp_path):
    pred, truth = folders
    masks = tmp_path / "masks"
    masks.mkdir()
    mask = np.zeros((300, 300), np.uint8)
    mask[:, 100:] = 255
    np.save(masks / "im_2.npy", mask)
    got = evaluate_paths(pred, truth, ignore=masks)
    assert got.scores[2] == instance_scores(grid(2, shift=2)[:, :100], grid(2)[:, :100])
    assert got.scores[1] == instance_scores(grid(1, shift=1), grid(1))


def test_polygons_are_drawn_on_the_truth(tmp_path):
    shapely = pytest.importorskip("shapely")
    labels = np.zeros((40, 50), np.int32)
    labels[3:9, 4:12], labels[20:30, 20:24] = 1, 2
    boxes = [shapely.box(4, 3, 12, 9), shapely.box(20, 20, 24, 30)]
    features = [{"type": "Feature", "geometry": shapely.geometry.mapping(b), "properties": {}} for b in boxes]
    (tmp_path / "p.geojson").write_text(json.dumps(features))
    (tmp_path / "q.geojson").write_text(json.dumps(features[:1]))
    write_labels(tmp_path / "t.png", labels)
    assert evaluate_paths(tmp_path / "p.geojson", tmp_path / "t.png").scores[0].pq == 1.0
    assert evaluate_paths(tmp_path / "t.png", tmp_path / "p.geojson").scores[0].pq == 1.0
    assert evaluate_paths(tmp_path / "q.geojson", tmp_path / "p.geojson").scores[0].recall == 0.5


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_tables_read_back(folders, tmp_path, suffix):
    pred, truth = folders
    empty = np.zeros((300, 300), np.int32)
    np.save(pred / "im_9.npy", empty)
    write_labels(truth / "im_9.labels.png", empty)
    evaluation = evaluate_paths(pred, truth)
    path = write_evaluation(evaluation, tmp_path / f"scores{suffix}")
    if suffix == ".csv":
        with path.open() as file:
            rows = [{k: float(v) if k != "image" else v for k, v in row.items()} for row in csv.DictReader(file)]
    elif suffix == ".json":
        tree = json.loads(path.read_text())
        assert tree["summary"]["mean"]["pq"] == evaluation.summary()["mean"]["pq"]
        rows = [{k: math.nan if v is None else v for k, v in row.items()} for row in tree["images"]]
    else:
        rows = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    for row, expected in zip(rows, evaluation.rows(), strict=True):
        assert row == pytest.approx(expected, nan_ok=True) if "image" not in row else row.pop("image") == expected.pop("image")
        assert row == pytest.approx(expected, nan_ok=True)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(FormatError, match=r"\.csv"):
        write_evaluation(evaluation, tmp_path / "scores.xlsx")


def test_the_screen_table_has_every_image_and_both_summaries(folders):
    evaluation = evaluate_paths(*folders)
    headings, rows = evaluation_table(evaluation)
    assert [row[0] for row in rows] == [*evaluation.names, "mean", "pooled"]
    assert all(len(row) == len(headings) for row in rows)
    assert set(SCORE_NAMES) <= set(headings)
    assert rows[0][headings.index("pq")] == f"{evaluation.scores[0].pq:.3f}"
    assert len(evaluation_table(evaluation, images=False)[1]) == 2


def test_runs_compare_on_the_same_images(folders, tmp_path):
    pred, truth = folders
    a = evaluate_paths(pred, truth)
    perfect = evaluate_paths(truth, truth)
    got = compare_runs(perfect, a)
    assert got.mean_difference == pytest.approx(1 - np.mean([s.pq for s in a.scores]))
    assert compare_runs(a, a).p_value == 1.0
    (pred / "im_3.tif").unlink()
    with pytest.raises(FormatError, match="im_3"):
        compare_runs(perfect, evaluate_paths(pred, truth, missing="skip"))


@pytest.mark.skipif("WSISEG_DATA" not in os.environ, reason="needs the given data sets")
def test_real_predictions_with_ambiguous_areas():
    root = Path(os.environ["WSISEG_DATA"]) / "formats" / "nuc_eval_examples"
    got = evaluate_paths(root / "Prediction", root / "GT", ignore=root / "amb_masks")
    assert got.names == ("human_bladder_01", "human_bladder_02")
    for name, score in zip(got.names, got.scores, strict=True):
        keep = load_instances(root / "amb_masks" / f"{name}.png") == 0
        expected = instance_scores(
            load_instances(root / "Prediction" / f"{name}.npy") * keep, load_instances(root / "GT" / f"{name}.tif") * keep
        )
        assert score == expected
        assert 0.4 < score.pq < 1  # a trained network's prediction of these tiles, not noise

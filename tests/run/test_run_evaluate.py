"""``wsiseg evaluate --data``: what it scores is what ``wsiseg segment`` writes, and the table lists its images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tests.run.conftest import run_here
from wsiseg.cli import main
from wsiseg.config import PredictConfig, RunConfig
from wsiseg.evaluation import load_instances
from wsiseg.evaluation.scoring import choose_samples, summarize_images
from wsiseg.labels import read_labels, write_labels
from wsiseg.metrics import instance_scores, paired_test
from wsiseg.pipeline import mpp_to_segment_at, segment_image
from wsiseg.predict import load_model

MPP = 0.499


@pytest.fixture(scope="module")
def found(crop_rgb: np.ndarray) -> np.ndarray:
    config = RunConfig(predict=PredictConfig(precision="fp32"))
    return segment_image(crop_rgb[:260, :300], MPP, load_model(config.predict), config)


def write_set(root: Path, name: str, images: dict[str, tuple[np.ndarray, np.ndarray]], **info: object) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    for image_id, (rgb, labels) in images.items():
        Image.fromarray(rgb).save(folder / f"{image_id}.png")
        write_labels(folder / f"{image_id}.labels.png", labels)
    (folder / "INFO.json").write_text(json.dumps({"name": name, "mpp": MPP, **info}))
    return folder


@pytest.fixture(scope="module")
def data(crop_rgb: np.ndarray, found: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets whose truth is the network's own answer: one of held-out patients by its name, one never trained on."""
    root = tmp_path_factory.mktemp("sets")
    rgb = crop_rgb[:260, :300]
    spoiled = np.where(np.arange(300) < 180, found, 0).astype(np.int32)
    write_set(root, "tnbc", {"tnbc_01_1": (rgb, found), "tnbc_03_1": (rgb, found), "tnbc_03_2": (rgb, spoiled)})
    write_set(root, "new", {"p": (rgb, found), "q": (rgb, spoiled)}, organs=["colon"], group_per_image={"p": "a", "q": "b"})
    return root


def evaluate(*args: object) -> str:
    result = CliRunner().invoke(main, ["evaluate", *map(str, args)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(("mpp", "least_pq"), [(0.25, 1.0), (0.43, 0.97)])
def test_instances_are_those_of_the_product(crop_rgb: np.ndarray, tmp_path: Path, mpp: float, least_pq: float) -> None:
    """The run has several tiles. Where pixels are resampled, its table rounds vertices by up to 1/16 px: few change sides."""
    config = RunConfig(predict=PredictConfig(precision="fp32"))
    found = segment_image(crop_rgb[:260, :300], mpp, load_model(config.predict), config)
    Image.fromarray(crop_rgb[:260, :300]).save(tmp_path / "crop.png")
    Image.fromarray(np.full((260, 300), 255, np.uint8)).save(tmp_path / "all_tissue.png")
    done = run_here(
        "segment", tmp_path / "crop.png", "--mpp", mpp, "--out", tmp_path / "run", "--tile", 200, "--workers", 1,
        "--precision", "fp32", "--tissue-mask", tmp_path / "all_tissue.png",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    written = load_instances(tmp_path / "run" / "nuclei" / "crop.parquet", (260, 300))
    scores = instance_scores(written, found)
    assert scores.n_truth == scores.n_pred > 15
    assert scores.matched[0] == scores.n_pred
    assert scores.pq >= least_pq


def test_table_json_and_labels(data: Path, found: np.ndarray, tmp_path: Path) -> None:
    text = evaluate(
        "--data", data, "--precision", "fp32", "--out", tmp_path / "o.json", "--labels", tmp_path / "labels",
        "--gallery", tmp_path / "worst.png", "--crops", 2,
    )  # fmt: skip
    assert "new: these weights were not trained on this set" in text
    tree = json.loads((tmp_path / "o.json").read_text())
    assert str(data) not in (tmp_path / "o.json").read_text()
    assert tree["command"] == "wsiseg evaluate --data ROOT --weights default --split validation --precision fp32"
    assert len(tree["model"]["sha256"]) == 64
    assert tree["machine"]["cores"] >= 1
    assert [(r["set"], r["image"]) for r in tree["images"]] == [
        ("new", "p"), ("new", "q"), ("tnbc", "tnbc_03_1"), ("tnbc", "tnbc_03_2"),
    ]  # fmt: skip
    spoiled = instance_scores(found, np.where(np.arange(300) < 180, found, 0))
    tnbc = tree["sets"]["tnbc"]
    assert tnbc["mean"]["pq"] == pytest.approx((1 + spoiled.pq) / 2)
    assert (tnbc["images"], tnbc["patients"], tree["sets"]["new"]["patients"]) == (2, 1, 2)
    assert tnbc["failures"]["extra"] > 0 == tnbc["failures"]["missed"]
    assert tnbc["hou2020"]["n_patches"] == 2
    assert tree["sets"]["new"]["pq_interval"] == pytest.approx([spoiled.pq, 1.0])  # two patients: both of one, or of the other
    assert tree["patients"]["new"]["a"]["pq"] == 1.0
    assert (read_labels(tmp_path / "labels" / "new" / "p.labels.png") == found).all()
    with Image.open(tmp_path / "worst.png") as picture:
        assert picture.width > 1000


def test_splits_limits_rows_and_protocol(data: Path, tmp_path: Path) -> None:
    assert [s.image_id for s in choose_samples(data, ["tnbc"], "train")] == ["tnbc_01_1"]
    assert [s.image_id for s in choose_samples(data, [], "all", 1)] == ["p", "tnbc_01_1"]
    text = evaluate("--data", data, "--sets", "tnbc", "--split", "all", "--by", "patient", "--precision", "fp32")
    assert "tnbc 01" in text
    assert "tnbc: the weights were trained on 1 of 3 images" in text
    text = evaluate("--data", data, "--sets", "new", "--limit", 1, "--protocol", "hou2020", "--out", tmp_path / "h.json")
    assert "Instance-Dice" in text
    assert [r["row"] for r in json.loads((tmp_path / "h.json").read_text())["hou2020"]] == ["colon", "all patches"]


def test_two_weights_are_tested_image_by_image(data: Path, tmp_path: Path) -> None:
    text = evaluate(
        "--data", data, "--weights", "research", "--against", "open", "--precision", "fp32", "--out", tmp_path / "o.json"
    )
    assert "research minus open" in text
    tree = json.loads((tmp_path / "o.json").read_text())
    rows = {(t["set"], t["score"]): t for t in tree["against"]["tests"]}
    a, b = ([i["pq"] for i in part["images"]] for part in (tree, tree["against"]))
    expected = paired_test(a, b)
    assert rows["all images", "pq"]["p_value"] == pytest.approx(expected.p_value)
    assert rows["all images", "pq"]["mean_difference"] == pytest.approx(expected.mean_difference)
    assert tree["against"]["model"]["weights"] == "open"


def test_what_is_not_there_is_named(data: Path, tmp_path: Path) -> None:
    for args, reported in (
        (["--data", data, "--sets", "monuseg"], "It has: new, tnbc"),
        (["--data", data, "--weights", "best"], "No weights named"),
        (["--data", data, "--sets", "new", "--out", tmp_path / "o.csv"], ".json"),
        (["--data", tmp_path], "no annotated set found"),
    ):
        result = CliRunner().invoke(main, ["evaluate", *map(str, args)])
        assert result.exit_code == 2
        assert reported in result.output


def test_unknown_scale_is_reported(data: Path, crop_rgb: np.ndarray, found: np.ndarray, tmp_path: Path) -> None:
    write_set(tmp_path, "odd", {"x": (crop_rgb[:260, :300], found)}, mpp="unknown")
    model = load_model(RunConfig().predict)
    estimate = mpp_to_segment_at(crop_rgb[:260, :300], model, RunConfig())
    assert estimate is not None
    said = evaluate("--data", tmp_path)
    assert "odd: 1 of 1 images state no microns per pixel: estimated from the nuclei of 1: median" in said
    assert f"{estimate:.3f} to {estimate:.3f} um/px" in said
    assert f"{MPP} um/px was taken (--mpp)" in evaluate("--data", tmp_path, "--mpp", MPP)
    blank = np.full((200, 200, 3), 240, np.uint8)
    write_set(tmp_path / "b", "blank", {"x": (blank, np.zeros((200, 200), np.int32))}, mpp="unknown")
    assert "1 with too few nuclei for an estimate segmented without resampling" in evaluate("--data", tmp_path / "b")


def test_nothing_scored_is_nan_not_an_error() -> None:
    from wsiseg.datasets import Sample
    from wsiseg.evaluation.scoring import ImageResult
    from wsiseg.metrics import Scores

    sample = Sample("x", "new", "g", "", "", None, False)
    summary = summarize_images([ImageResult(sample, 0.25, "stated", Scores(), (), {"matched": 0}, 1.0, 0.0)])
    assert np.isnan(summary.mean["pq"])
    assert np.isnan(summary.pq_interval[0])

"""``wsiseg rank`` on generated sets whose right order is known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.run.conftest import run_here
from wsiseg.datasets import list_samples
from wsiseg.errors import ConfigError, FormatError
from wsiseg.labels import read_labels, write_labels
from wsiseg.papers.ranking import RankOptions, rank_datasets
from wsiseg.papers.unified import UnifyOptions, unify

SETS = ("alpha", "beta", "gamma")
TILES = UnifyOptions(SETS, test_tiles=2, side=64)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three sets of four images (four patients), each image two tiles of four discs."""
    y, x = np.mgrid[:64, :128]
    for seed, name in enumerate(SETS):
        folder = tmp_path / "sets" / name
        folder.mkdir(parents=True)
        (folder / "INFO.json").write_text(json.dumps({"mpp": 0.25, "license": "CC0"}))
        for image in range(4):
            labels = np.zeros((64, 128), np.uint16)
            for k in range(8):
                cx, cy = 16 + 32 * (k % 4) + seed, 16 + 32 * (k // 4) + image % 2
                labels[np.hypot(x - cx, y - cy) <= 10] = k + 1
            rgb = np.where(labels[..., None] > 0, (80, 50, 130 + 9 * seed), (235, 190, 215)).astype(np.uint8)
            Image.fromarray(rgb).save(folder / f"{name}{image}.png")
            Image.fromarray(labels).save(folder / f"{name}{image}.labels.png")
    return tmp_path / "sets"


def test_no_patient_on_both_sides(root: Path, tmp_path: Path) -> None:
    made = unify(root, tmp_path / "out", TILES)
    for name in SETS:
        train, test = (list_samples(tmp_path / "out" / part, (name,)) for part in ("train", "test"))
        assert not {s.group for s in train} & {s.group for s in test}
        assert len(test) == 2
        assert made[name] == {
            "train_tiles": len(train), "train_groups": len({s.group for s in train}), "train_nuclei": 4 * len(train),
            "test_tiles": 2, "test_groups": 1, "test_nuclei": 8,
        }  # fmt: skip
        assert {s.mpp for s in train} == {0.25}


def test_excluded_nuclei_and_images(root: Path, tmp_path: Path) -> None:
    plain = unify(root, tmp_path / "plain", TILES)
    tested = list_samples(tmp_path / "plain" / "test", ("beta",))[0]
    image = tested.group
    trained = list_samples(tmp_path / "plain" / "train", ("gamma",))[0].group
    table = tmp_path / "macrophages.csv"
    table.write_text(f"set,image,id\nbeta,{image},1\nbeta,{image},2\ngamma,{trained},\n")
    made = unify(root, tmp_path / "out", UnifyOptions(SETS, test_tiles=2, side=64, exclude=table))
    assert made["beta"]["test_nuclei"] == plain["beta"]["test_nuclei"] - 2
    assert not [
        s for part in ("train", "test") for s in list_samples(tmp_path / "out" / part, ("gamma",)) if s.group == trained
    ]
    with pytest.raises(ConfigError, match="another exclude"):
        unify(root, tmp_path / "out", TILES)
    table.write_text("image,id\nx,1\n")
    with pytest.raises(FormatError, match="set,image"):
        unify(root, tmp_path / "other", UnifyOptions(SETS, exclude=table))


def planted(out: Path, folder: Path, quality: dict[str, int]) -> Path:
    """Label images of a program that shifts every nucleus by so many px, by the set that it was trained on."""
    for trained, shift in quality.items():
        for name in SETS:
            for tile in (out / "test" / name).glob("*.labels.png"):
                to = folder / trained / name / tile.name
                to.parent.mkdir(parents=True, exist_ok=True)
                write_labels(to, np.roll(read_labels(tile), shift, 1))
    return folder


def test_planted_order_is_found(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unify(root, out, TILES)
    first = planted(out, tmp_path / "first", {"alpha": 3, "beta": 1, "gamma": 2, "beta+gamma": 0})
    second = planted(out, tmp_path / "second", {"alpha": 3, "beta": 2, "gamma": 1})
    whole = planted(out, tmp_path / "whole", {"": 0})
    run = run_here(
        "rank", root, "--out", out, "--sets", ",".join(SETS), "--network", "none", "--test-tiles", "2", "--tile", "64",
        "--predictions", f"first={first}", "--predictions", f"second={second}", "--predictions", f"foundation={whole}",
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    tree = json.loads((out / "ranking.json").read_text())
    assert [r["name"] for r in tree["ranking"]] == ["beta", "gamma", "alpha"]
    assert [r["mean_rank"] for r in tree["ranking"]] == [1.5, 1.5, 3.0]
    assert tree["ranking"][0]["rank"] == {"first": 1.0, "second": 2.0}
    assert tree["fusion"]["first"][-1] == {"k": 2, "sets": ["beta", "gamma"], "pq": 1.0}
    assert len(tree["fusion"]["second"]) == 1, "nobody trained it on two"
    models = {(m["network"], m["trained_on"]): m for m in tree["models"]}
    assert models["foundation", "as given"]["pq"] == 1.0
    assert "foundation" not in tree["ranking"][0]["pq"]
    assert 0 < models["first", "alpha"]["pq"] < models["first", "gamma"]["pq"] < models["first", "beta"]["pq"] < 1
    assert tree["cross"]["first"]["alpha"]["beta"] == pytest.approx(models["first", "alpha"]["pq"], abs=0.1)
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (4 + 3 + 1) * 6
    assert "| 1 | beta |" in run.output
    with Image.open(out / "ranking.png") as picture:
        assert picture.size[0] > 1000


def test_trained_networks_are_kept(root: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    options = RankOptions(networks=("tiny",), macenko=True, best=2, steps=4, batch=2, patch_px=64)
    done = rank_datasets(root, tmp_path / "out", TILES, options, on_line=notes.append)
    assert len([t for t in notes if "training" in t]) == 3 + 3 + 1
    assert len(done.tables.stain) == 3
    assert [p.k for p in done.tables.fusion["tiny"]] == [1, 2]
    card = json.loads((tmp_path / "out/models/tiny+macenko/alpha/weights/alpha.json").read_text())
    assert (card["stain_method"], card["data"]["sets"]) == ("macenko", ["alpha"])
    assert card["separate_defaults"], "thresholds were fitted"
    again: list[str] = []
    assert rank_datasets(root, tmp_path / "out", TILES, options, on_line=again.append).tables.models == done.tables.models
    assert again == []
    run = run_here("rank", root, "--out", tmp_path / "out", "--network", "tiny", "--tile", "32", "--test-tiles", "2")
    assert run.exit_code == 2
    assert "another side" in run.output


def test_tiles_alone_for_other_programs(root: Path, tmp_path: Path) -> None:
    run = run_here("rank", root, "--out", tmp_path / "out", "--network", "none", "--test-tiles", "2", "--tile", "64")
    assert run.exit_code == 0, run.output
    assert "| gamma |" in run.output
    assert len(list((tmp_path / "out" / "test").glob("*/*.labels.png"))) == 6
    assert not (tmp_path / "out" / "models").exists()


def test_what_cannot_be_ranked_is_explained(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    unify(root, out, TILES)
    folder = planted(out, tmp_path / "some", {"alpha": 0})
    next((folder / "alpha" / "beta").iterdir()).unlink()
    args = ["rank", root, "--out", out, "--network", "none", "--test-tiles", "2", "--tile", "64"]
    for given, reported in (
        (f"some={folder}", "no label image"),
        ("nothing", "NAME=FOLDER"),
        ("some=absent", "no folder of predictions"),
    ):
        run = run_here(*args, "--predictions", given)
        assert run.exit_code == 2
        assert reported in run.output.replace("\n", " ")
    run = run_here(
        "rank", root, "--out", tmp_path / "new", "--network", "resnet", "--test-tiles", "2", "--tile", "64", "--steps", "2"
    )
    assert run.exit_code == 2
    assert "resnet" in run.output

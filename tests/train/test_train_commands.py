"""The commands about data and training say what they did, and refuse what cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from wsiseg.cli.main import main
from wsiseg.datasets import list_samples


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "sets" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30), "pink").save(folder / "x.png")
    labels = np.zeros((30, 40), np.uint16)
    labels[5:15, 5:15] = 1
    Image.fromarray(labels).save(folder / "x.labels.png")
    (folder / "INFO.json").write_text(json.dumps({"mpp": 0.25}))
    return tmp_path / "sets"


def test_patches_then_masks(root: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["datasets", "patches", str(root), str(tmp_path / "p.zarr"), "--patch", "16"])
    assert run.exit_code == 0, run.output
    assert "a: 6 patches of 16 px" in run.output
    assert [s.image_id for s in list_samples(tmp_path / "p.zarr", ("a",))] == ["x"]
    run = CliRunner().invoke(main, ["datasets", "masks", str(root / "a"), "--out", str(tmp_path / "m")])
    assert run.exit_code == 0, run.output
    assert "masks of 1 images" in run.output
    assert (tmp_path / "m" / "weighted_maps" / "x.png").is_file()
    again = CliRunner().invoke(main, ["datasets", "patches", str(root), str(tmp_path / "p.zarr")])
    assert again.exit_code == 2
    assert "already exists" in again.output


def test_folds_need_a_kind(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('name = "a"')
    run = CliRunner().invoke(main, ["train", str(config), "--folds", "3"])
    assert run.exit_code == 2
    assert "--cv" in run.output
    run = CliRunner().invoke(main, ["train", str(config), "--cv", "organ"])
    assert run.exit_code == 2
    assert "licence" in run.output

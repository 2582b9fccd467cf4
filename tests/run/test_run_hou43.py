"""``--model hou43``: the published network, targets and thresholds, the same in the recipe, the files and the card."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from wsiseg.config import RunConfig, SeparateConfig
from wsiseg.labels import write_labels
from wsiseg.predict import build_net
from wsiseg.separate import resolve_params, separate
from wsiseg.train import make_targets
from wsiseg.train.presets import MODELS
from wsiseg.train.training import TrainConfig, train_from_toml

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PUBLISHED = {"center_threshold_frac": 0.07, "material_threshold_frac": 0.33, "compactness": 1.0}


def test_the_recipe_written_out_is_the_recipe() -> None:
    written = tomllib.loads((SCRIPTS / "train_hou43.toml").read_text())
    assert {name: written[name] for name in MODELS["hou43"]} == MODELS["hou43"]
    assert TrainConfig.from_toml(SCRIPTS / "train_hou43.toml") == TrainConfig.from_toml(SCRIPTS / "train_hou43.toml", "hou43")
    assert sum(p.numel() for p in build_net("hou43").parameters()) == 5_746_706


def test_centers_are_three_by_three() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[5:12, 5:12] = 3
    labels[20:30, 18:35] = 7
    center = make_targets(labels, "point", 1.0, 1.0)[0]
    parts, n = ndimage.label(center == 255)
    assert n == 2
    np.testing.assert_array_equal(np.bincount(parts.ravel())[1:], [9, 9])
    middles = np.array(ndimage.center_of_mass(center, parts, [1, 2]), np.float64)
    np.testing.assert_allclose(middles, [[8, 8], [24.5, 26]], atol=0.5)


def test_thresholds_of_a_card_are_the_published_ones(tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "toy"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.zeros((64, 64), np.int32)
    labels[20:35, 20:35] = 1
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "a.png")
    write_labels(folder / "a.labels.png", labels)
    (folder / "INFO.json").write_text(json.dumps({"license": "CC0", "mpp": 0.25}))
    (tmp_path / "c.toml").write_text(
        f'name = "toy"\nlicence = "CC0"\ndata_root = "{tmp_path / "sets"}"\npatch_px = 32\n[sets]\ntoy = 1.0\n'
        "[loop]\nsteps = 1\nbatch = 1\nwarmup_steps = 1\n"
    )
    run = train_from_toml(tmp_path / "c.toml", model="hou43")
    card = json.loads((run / "weights" / "toy.json").read_text())
    assert card["net"] == "hou43"
    assert {name: card["separate_defaults"][name] for name in PUBLISHED} == PUBLISHED
    ours = resolve_params(SeparateConfig(), card["separate_defaults"], 0.25)
    assert (ours.min_area_px, ours.seed_recall) == (20, True)
    # and the file for other weights says the same
    assert resolve_params(RunConfig.from_toml(SCRIPTS / "segment_hou43.toml").separate, {}, 0.25) == ours


@pytest.mark.parametrize(("side", "center", "found"), [(5, 0, 1), (4, 0, 0), (5, 30, 1)])
def test_seed_recall_and_least_size(side: int, center: int, found: int) -> None:
    """Material without a center is a nucleus of its own from 20 px on: 25 px are, 16 are not."""
    params = resolve_params(RunConfig.from_toml(SCRIPTS / "segment_hou43.toml").separate, {}, 0.25)
    prob = np.zeros((2, 40, 40), np.uint8)
    prob[1, 10 : 10 + side, 10 : 10 + side] = 255
    prob[0, 12, 12] = center
    assert separate(prob, params).labels.max() == found

"""Weights and cards: what is loaded is what was saved, and anything else is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wsiseg.config import PredictConfig, SeparateConfig
from wsiseg.errors import WeightsError
from wsiseg.predict import as_stored, build_net, load_model, load_weights, save_weights, weights_path
from wsiseg.separate import resolve_params

FITTED = {"compactness": 1.0}
CARD: dict[str, Any] = {"name": "t", "mpp": 0.25, "stain_method": "none", "licence": "CC0", "separate_defaults": FITTED}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(build_net("tiny"), "tiny", CARD, tmp_path / "t.safetensors")
    return tmp_path / "t.safetensors"


def test_round_trip_is_exact_once_rounded(tmp_path: Path) -> None:
    net = as_stored(build_net("tiny"))
    save_weights(net, "tiny", CARD, tmp_path / "a.safetensors")
    loaded, card = load_weights(str(tmp_path / "a.safetensors"))
    for name, tensor in net.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert card["licence"] == "CC0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_same_net_same_bytes(saved: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_weights(build_net("tiny"), "tiny", CARD, tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == saved.read_bytes()


def test_altered_weights_are_refused(saved: Path) -> None:
    raw = bytearray(saved.read_bytes())
    raw[-1] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(WeightsError, match="altered"):
        load_weights(str(saved))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "lean"}, "does not fit"),
        ({"net": "other"}, "Expected one of"),
        ({"mpp": None}, "mpp"),
        ({"licence": None}, "licence"),
    ],
)
def test_a_wrong_card_is_refused(saved: Path, change: dict[str, Any], message: str) -> None:
    card = saved.with_suffix(".json")
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(WeightsError, match=message):
        load_weights(str(saved))


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    saved.with_suffix(".json").unlink()
    with pytest.raises(WeightsError, match="card"):
        load_weights(str(saved))
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights(str(tmp_path / "none.safetensors"))
    with pytest.raises(WeightsError, match="research"):
        load_weights("reserch")


@pytest.mark.parametrize("name", ["default", "open", "research"])
def test_shipped_weights_load_and_their_thresholds_are_known(name: str) -> None:
    model = load_model(PredictConfig(weights=name, precision="fp32"))
    resolve_params(SeparateConfig(), model.separate_defaults, model.mpp)
    assert model.licence
    assert model.card["scores"]
    assert ("NC" in model.licence) == ("monuseg" in model.card["data"]["sets"])


def test_shipped_weights_are_small() -> None:
    folder = weights_path("default").parent
    assert sum(p.stat().st_size for p in folder.iterdir()) < 15e6

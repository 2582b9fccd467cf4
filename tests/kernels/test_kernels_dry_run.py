"""``scripts/on_gpu.sh --dry``: every step of a lent machine's time on the CPU, with tiny sizes; each writes its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu_expectations, gpu_stages, gpu_train
from benchmarks.synthetic import synthetic_tile
from tests.kernels.parity import LOOSE
from tests.oracles.maps import adversarial
from wsiseg.datasets import list_samples, load_sample
from wsiseg.normalize import normalize
from wsiseg.predict import load_weights
from wsiseg.types import Stain

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def carry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU's answers and training images, as they would be carried."""
    folder = tmp_path_factory.mktemp("carry")
    cases = {
        "bridge/loose": gpu_expectations.answers(adversarial()["bridge"], LOOSE),
        "tissue_192": gpu_expectations.answers(synthetic_tile(20, 192, seed=3).prob, LOOSE),
    }
    flat = {f"{case}|{name}": values for case, parts in cases.items() for name, values in parts.items()}
    rgb = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    for key, method, params in (("", "macenko", gpu_expectations.STAIN), ("reinhard", "reinhard", gpu_expectations.REINHARD)):
        out = normalize(rgb, Stain(method, params))  # type: ignore[arg-type]
        flat |= {f"stain|{key or 'params'}": np.array(params), f"stain|{key}{'_' if key else ''}out": out}
    np.savez(folder / "gpu_expectations.npz", **{"stain|rgb": rgb}, **flat, **gpu_expectations.network_answers(160))
    sets(folder / "sets")
    gpu_train.pack(folder / "sets", ("painted",), 10**6, folder / "train.zip")
    return folder


def sets(root: Path) -> None:
    (root / "painted").mkdir(parents=True)
    (root / "painted" / "INFO.json").write_text(json.dumps({"licence": "CC0", "mpp": 0.25}))
    for k in range(2):
        rng = np.random.default_rng(k)
        labels = np.zeros((128, 128), np.uint16)
        y, x = np.mgrid[:128, :128]
        for number, (cy, cx) in enumerate(rng.integers(16, 112, (6, 2)), 1):
            labels[np.hypot(y - cy, x - cx) < 9] = number
        rgb = np.where(labels[..., None] > 0, (90, 60, 140), (235, 210, 225)).astype(np.uint8)
        Image.fromarray(rgb).save(root / "painted" / f"{k}.png")
        Image.fromarray(labels).save(root / "painted" / f"{k}.labels.png")


@pytest.fixture(scope="module")
def results(carry: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "on_gpu.sh", "--dry", out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "WSISEG_NO_WHEELS": "1", "WSISEG_CARRY": str(carry)},
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    return {**found, "folder": out}


def test_every_step_writes_its_json_and_claims_nothing(results: dict[str, Any]) -> None:
    steps = {"gpu_parity_cpu", "gpu_cpu", "gpu_end_to_end_cpu", "gpu_train_cpu"}
    assert steps == set(results) - {"folder"}
    for name in steps:
        assert results[name]["measured"] is False, name
        assert results[name]["device"] == "cpu"
        assert results[name]["machine"]["cpu"]


def test_what_the_json_of_each_step_answers(results: dict[str, Any]) -> None:
    parity = results["gpu_parity_cpu"]
    assert parity["kernels"] == {"cases": 3, "not_equal": {}}
    assert parity["network_fp32"] == {"eager": {"most_levels": 0, "differing_frac": 0.0, "repeatable": True}}
    assert parity["concurrent"] == {"tiles": 12, "at_once": 3, "equal": True}
    (tile,) = results["gpu_cpu"]["tiles"].values()
    assert {"separate", "vectorize", "tile_stats", "normalize (reinhard)", "upload rgb (pinned)"} <= set(tile["stages"])
    assert set(tile["network"]) == {"eager"}
    rows = [row for row in results["gpu_end_to_end_cpu"]["rows"] if "tiles" in row]
    assert rows
    assert all(row["s_per_mm2"] > 0 and row["bound"] for row in rows)
    train = results["gpu_train_cpu"]
    assert train["steps_planned"] >= 2
    assert train["lines"][-1]["step"] == train["steps_planned"]
    assert (results["folder"] / "train" / "ema.pt").stat().st_size > 1000
    assert (results["folder"] / "train" / "checkpoint.pt").is_file()


def test_training_there_follows_its_config(carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights to begin with, a teacher, shares and loop are the config's; a pack of other sets is refused."""
    config = tmp_path / "there.toml"
    config.write_text(
        'name = "a"\nlicence = "x"\ninit = "open"\nteacher = "open"\npatch_px = 64\n'
        "[sets]\npainted = 0.5\nabsent = 0.5\n[loop]\nbatch = 1\nlearning_rate = 1e-9\n"
    )
    argv = ["gpu_train", "run", str(tmp_path), "--pack", str(carry / "train.zip"), "--device", "cpu", "--minutes", "0.01"]
    monkeypatch.setattr(gpu_train, "PROBE_STEPS", 2)
    monkeypatch.setattr(sys, "argv", [*argv, "--config", str(config)])
    gpu_train.main()
    found = json.loads((tmp_path / "gpu_train_cpu.json").read_text())
    assert found["training"]["sets"] == {"painted": 0.5}
    assert (found["training"]["teacher"], found["training"]["loop"]["batch"]) == ("open", 1)
    assert found["training"]["augment_on"] == "batch", "as on a GPU"
    assert found["training"]["loop"]["steps"] == found["steps_planned"], "as run, not as the config plans"
    loop = gpu_train.loop_run(tmp_path)
    assert (loop["steps"], loop["batch"]) == (found["steps_planned"], 1), "the card of exported weights too"
    averaged = torch.load(tmp_path / "train" / "ema.pt", weights_only=True)["ema"]
    begun = load_weights("open")[0].state_dict()
    assert max(float((averaged[k] - v).abs().max()) for k, v in begun.items() if "weight" in k) < 1e-3, "begun with open"
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="painted"):
        gpu_train.main()


def test_a_wrong_answer_is_reported(carry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(carry / "gpu_expectations.npz") as stored:
        parts = dict(stored)
    parts["network|maps"] = np.where(parts["network|maps"] > 128, parts["network|maps"] - 9, parts["network|maps"] + 9)
    parts["bridge/loose|anchors"] = parts["bridge/loose|anchors"] + 1
    np.savez(tmp_path / "wrong.npz", **parts)
    monkeypatch.setattr(gpu_stages, "EXPECTATIONS", tmp_path / "wrong.npz")
    from benchmarks import gpu_parity

    monkeypatch.setattr(sys, "argv", ["gpu_parity", "--device", "cpu", "--out", str(tmp_path)])
    assert gpu_parity.main() == 1
    found = json.loads((tmp_path / "gpu_parity_cpu.json").read_text())
    assert found["kernels"]["not_equal"] == {"bridge/loose": ["anchors"]}
    assert found["network_fp32"]["eager"]["most_levels"] == 9


def test_a_pack_holds_what_training_may_see(carry: Path, tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(carry / "train.zip") as file:
        file.extractall(tmp_path)
    packed, whole = list_samples(tmp_path, ("painted",)), list_samples(carry / "sets", ("painted",))
    assert [s.image_id for s in packed] == [s.image_id for s in whole]
    for a, b in zip(packed, whole, strict=True):
        np.testing.assert_array_equal(load_sample(a)[1], load_sample(b)[1])
        assert np.abs(load_sample(a)[0].astype(int) - load_sample(b)[0]).max() < 40
    with pytest.raises(SystemExit, match="expected at most"):
        gpu_train.pack(carry / "sets", ("painted",), 100, tmp_path / "small.zip")

"""``--model two-stage``: from a training run to weights that segment slides as any others do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from PIL import Image

from tests.run.test_run_tiling import nuclei_at
from tests.train.test_train_run import write_data
from wsiseg.config import PredictConfig, ReadConfig, RunConfig
from wsiseg.normalize import fit_stain
from wsiseg.pipeline import segment_image
from wsiseg.predict import load_model, load_weights, predict
from wsiseg.results.folder import RunFolder
from wsiseg.results.manifest import SlideInput
from wsiseg.train.training import TrainConfig, train_from_toml
from wsiseg.types import Box, Stain

CONFIG = """
name = "pair"
licence = "CC0"
data_root = "{root}"
net = "lean"
patch_px = 64
[sets]
tnbc = 1.0
[loop]
steps = 30
batch = 2
warmup_steps = 2
report_every = 10
validate_every = 100
precision = "fp32"
"""


def add_eosin(path: Path, rng: np.random.Generator) -> None:
    with Image.open(path) as picture:
        density = -np.log((np.array(picture).astype(float) + 1) / 256)
    density += rng.exponential(0.15, (*density.shape[:2], 1)) * (0.07, 0.99, 0.11)
    Image.fromarray((256 * np.exp(-density) - 1).clip(0, 255).round().astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    write_data(folder / "data")
    for k, image in enumerate(sorted((folder / "data/tnbc").glob("tnbc_??_1.png"))):  # more than two colors, or no two stains
        add_eosin(image, np.random.default_rng(k))
    path = folder / "config.toml"
    path.write_text(CONFIG.format(root=folder / "data"))
    return train_from_toml(path, model="two-stage") / "weights" / "pair.safetensors"


def test_the_preset_is_the_paper(weights: Path) -> None:
    net, card = load_weights(str(weights))
    assert sum(p.numel() for p in net.parameters()) == 2 * 1_941_105
    assert card["stain_method"] == "macenko"
    chosen = card["stain_reference"]["image"]
    assert chosen in {f"tnbc_{p}_1" for p in ("01", "02", "04")}
    with Image.open(weights.parents[2] / "data/tnbc" / f"{chosen}.png") as picture:
        rgb = np.array(picture)
    assert tuple(card["stain_reference"]["params"]) == fit_stain("macenko", rgb, np.ones(rgb.shape[:2], bool)).params
    loop = card["training"]["loop"]
    assert (loop["loss"]["entropy"], loop["loss"]["dice"], loop["loss"]["center_loss"]) == (0.5, 1.0, "mse")
    assert (card["training"]["center"], card["training"]["touching"], card["training"]["border_weight"]) == ("distance", 0, 1)
    assert card["separate_defaults"]["min_area_um2"] == 1.25
    script = Path(__file__).parents[2] / "scripts" / "train_two_stage.toml"
    shipped, as_preset = TrainConfig.from_toml(script), TrainConfig.from_toml(script, "two-stage")
    assert as_preset == shipped, "the file writes out what the preset sets"


def test_its_weights_segment_and_no_tile_shows(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(PredictConfig(weights=str(weights), precision="fp32", window_wpx=256))
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:200, :232]
    nucleus = np.zeros(y.shape, bool)
    for cx, cy in rng.integers(15, 185, (30, 2)):
        nucleus |= np.hypot(x - cx, y - cy) <= 9
    rgb = np.where(nucleus[..., None], (80, 50, 130), (235, 190, 215)) + rng.integers(-8, 9, (*y.shape, 3))
    rgb = rgb.clip(0, 255).astype(np.uint8)

    def maps(out: Box) -> np.ndarray:
        box = model.input_box(out)
        window = np.full((box.h, box.w, 3), 255, np.uint8)
        x0, y0 = max(box.x, 0), max(box.y, 0)
        part = rgb[y0 : box.y1, x0 : box.x1]
        window[y0 - box.y :, x0 - box.x :][: part.shape[0], : part.shape[1]] = part
        return np.asarray(predict(model, window, box, out))

    whole = maps(Box(0, 0, 232, 200))
    assert len(np.unique(whole)) > 20, "maps of something"
    for part in (Box(0, 0, 100, 90), Box(100, 0, 132, 90), Box(37, 90, 160, 110)):
        np.testing.assert_array_equal(maps(part), whole[:, part.y : part.y + part.h, part.x : part.x + part.w])

    asked = []
    monkeypatch.setattr(
        "wsiseg.pipeline.image.fit_stain", lambda method, rgb, mask, aim: asked.append((method, aim)) or Stain()
    )
    found = segment_image(rgb, 0.25, model, RunConfig())
    assert asked == [("macenko", tuple(model.card["stain_reference"]["params"]))], "what the card says"
    assert found.max() > 3
    assert np.bincount(found.ravel())[1:].min() >= 20
    assert (found[nucleus] > 0).mean() > 0.5 > 2 * (found[~nucleus] > 0).mean(), "what it calls nuclei are the nuclei"


def test_a_slide_in_tiles_and_whole(weights: Path, crop_png: Path, tmp_path: Path) -> None:
    slide = SlideInput("crop", str(crop_png), mpp=0.499)
    tiled, whole = (
        nuclei_at(side, slide, tmp_path / str(side), precision="fp32", weights=str(weights)) for side in (400, 4000)
    )
    assert len(whole) > 20
    reference = load_weights(str(weights))[1]["stain_reference"]["params"]
    for side in (400, 4000):
        stain = json.loads(RunFolder(tmp_path / str(side)).slide_json("crop").read_text())["stain"]
        assert stain["params"][8:] == reference, "a slide is brought to what training images were brought to"
    differ = [k for k in tiled.keys() | whole.keys() if tiled.get(k) != whole.get(k)]
    shapes = shapely.from_wkb([maps[k] for k in differ for maps in (tiled, whole) if k in maps])
    x0, y0, x1, y1 = shapely.bounds(shapes).reshape(-1, 4).T
    reach_px = ReadConfig().halo_wpx * 0.25 / 0.499
    assert (np.maximum(x1 - x0, y1 - y0) > reach_px).all(), "what fits into the halo is the same; what does not is no nucleus"
    assert len(differ) < 0.1 * len(whole)


def test_a_small_crop_is_normalized_as_in_training(
    weights: Path, crop_rgb: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tissue mask stands between: it may find nothing in a crop, and the network would see colors that it never saw."""
    seen = []
    monkeypatch.setattr("wsiseg.pipeline.window.normalize", lambda rgb, stain: seen.append(stain.method) or rgb)
    model = load_model(PredictConfig(weights=str(weights), precision="fp32"))
    for part in (crop_rgb[:128, :128], crop_rgb[200:328, 300:428]):
        segment_image(np.ascontiguousarray(part), 0.25, model, RunConfig())
    assert seen == ["macenko", "macenko"]

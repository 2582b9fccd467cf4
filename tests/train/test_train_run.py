"""``train_from_toml``: from a config file to weights that load, with thresholds and scores in their card."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import openslide
import pytest
from PIL import Image

from wsiseg.config import PredictConfig
from wsiseg.errors import ConfigError
from wsiseg.predict import load_model, load_weights
from wsiseg.train.training import TrainConfig, load_teacher, train_from_toml

SLIDE = Path(__file__).parents[1] / "data" / "CMU-1-Small-Region.svs"

CONFIG = """
name = "small"
licence = "CC0"
out = "run"
data_root = "{root}"
net = "tiny"
patch_px = 64
validate = {validate}

[sets]
tnbc = 1.0

[loop]
steps = {steps}
batch = 2
warmup_steps = 2
report_every = 4
validate_every = 8
precision = "fp32"
"""


def write_data(root: Path) -> None:
    """Dark discs on pink, four patients, one of them (03) held out."""
    folder = root / "tnbc"
    folder.mkdir(parents=True)
    (folder / "INFO.json").write_text('{"mpp": "0.25"}')
    y, x = np.mgrid[:128, :128]
    for k, patient in enumerate(("01", "02", "03", "04")):
        labels = np.zeros((128, 128), np.uint16)
        for n in range(9):
            cx, cy = 22 + 40 * (n % 3) + k, 22 + 40 * (n // 3)
            labels[np.hypot(x - cx, y - cy) <= 11] = n + 1
        rgb = np.where(labels[..., None] > 0, (80, 50, 130), (235, 190, 215)).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"tnbc_{patient}_1.png")
        Image.fromarray(labels).save(folder / f"tnbc_{patient}_1.labels.png")


def config_file(folder: Path, steps: int, validate: bool = False) -> Path:
    if not (folder / "data").exists():
        write_data(folder / "data")
    path = folder / "config.toml"
    path.write_text(CONFIG.format(root=folder / "data", steps=steps, validate=str(validate).lower()))
    return path


def test_a_run_leaves_weights_with_scores(tmp_path: Path) -> None:
    run = train_from_toml(config_file(tmp_path, steps=8, validate=True))
    lines = [json.loads(text) for text in (run / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    assert 0 <= lines[-1]["pq_tnbc"] <= 1
    with Image.open(run / "curve.png") as picture:
        assert picture.size[0] > 100
    model = load_model(PredictConfig(weights=str(run / "weights" / "small.safetensors"), precision="fp32"))
    card = model.card
    assert card["scores"]["tnbc"]["nuclei"] == 9
    assert card["data"]["validation_images"] == ["tnbc_03_1"]
    assert set(model.separate_defaults) >= {"center_threshold_frac", "material_threshold_frac", "min_area_um2"}
    assert str(tmp_path) not in json.dumps(card), "a card names no path of the machine that made it"


def test_two_runs_write_the_same_weights_and_curve(tmp_path: Path) -> None:
    runs = [train_from_toml(config_file(tmp_path / side, steps=6)) for side in ("a", "b") if (tmp_path / side).mkdir() is None]
    first, second = ((run / "weights" / "small.safetensors").read_bytes() for run in runs)
    assert first == second
    losses = [[json.loads(t)["loss"] for t in (run / "curve.jsonl").read_text().splitlines()] for run in runs]
    assert losses[0] == losses[1]


def test_resume_needs_to_be_requested(tmp_path: Path) -> None:
    path = config_file(tmp_path, steps=4)
    train_from_toml(path)
    with pytest.raises(ConfigError, match="Resume"):
        train_from_toml(path)
    longer = config_file(tmp_path, steps=8)
    run = train_from_toml(longer, resume=True)
    assert json.loads((run / "curve.jsonl").read_text().splitlines()[-1])["step"] == 8


def test_a_run_continues_from_the_weights_it_is_given(tmp_path: Path) -> None:
    first = train_from_toml(config_file(tmp_path, steps=4)) / "weights" / "small.safetensors"
    path = config_file(tmp_path, steps=1)
    text = path.read_text().replace('net = "tiny"', f'net = "tiny"\ninit = "{first.relative_to(tmp_path)}"')
    path.write_text(re.sub('out = ".*"', 'out = "second"', text))
    held, card = load_weights(str(train_from_toml(path) / "weights" / "small.safetensors"))
    begun, _ = load_weights(str(first))
    moved = max(float((held.state_dict()[k] - v).abs().max()) for k, v in begun.state_dict().items() if "weight" in k)
    assert 0 < moved < 0.02, "one step away from where it began"
    assert card["training"]["init"] == first.name, "a card names no path of the machine that made it"
    path.write_text(path.read_text().replace('net = "tiny"', 'net = "lean_w16"'))
    with pytest.raises(ConfigError, match="which is 'tiny'"):
        train_from_toml(path)


def test_a_run_is_taught_by_the_weights_it_is_given(tmp_path: Path) -> None:
    teacher = train_from_toml(config_file(tmp_path, steps=4)) / "weights" / "small.safetensors"
    path = config_file(tmp_path, steps=2)
    plain = path.read_text()
    taught = plain.replace('net = "tiny"', f'net = "tiny"\nteacher = "{teacher.relative_to(tmp_path)}"\nteacher_share = 1.0')
    losses = []
    for out, text in (("alone", plain), ("taught", taught)):
        path.write_text(re.sub('out = ".*"', f'out = "{out}"', text))
        card = json.loads((train_from_toml(path) / "weights" / "small.json").read_text())
        losses.append(json.loads((tmp_path / out / "curve.jsonl").read_text().splitlines()[-1])["loss"])
    assert card["training"]["teacher"] == teacher.name
    assert losses[0] != losses[1], "from the same seed"
    with pytest.raises(ConfigError, match="teacher_share"):
        TrainConfig.from_tree({"name": "a", "licence": "x", "sets": {"a": 1.0}, "teacher_share": 1.5})


def test_bad_configs_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.toml"
    path.write_text("name = ")
    with pytest.raises(ConfigError, match=r"c\.toml"):
        TrainConfig.from_toml(path)
    path.write_text('name = "a"\nlicence = "x"\nspeed = 3\n[sets]\na = 1.0\n')
    with pytest.raises(ConfigError, match="speed"):
        TrainConfig.from_toml(path)
    path.write_text('name = "a"\n')
    with pytest.raises(ConfigError, match="licence"):
        TrainConfig.from_toml(path)
    path.write_text('name = "a"\nlicence = "x"\n[sets]\na = 1.0\n')
    monkeypatch.delenv("WSISEG_DATA", raising=False)
    with pytest.raises(ConfigError, match="WSISEG_DATA"):
        train_from_toml(path)


def test_a_config_is_completed_by_its_base(tmp_path: Path) -> None:
    (tmp_path / "under").mkdir()
    first = tmp_path / "under" / "first.toml"
    first.write_text(
        'name = "a"\nlicence = "x"\nout = "one"\n[sets]\na = 0.5\nb = 0.5\n'
        "[augment]\njpeg_p = 0.1\nnoise_p = 0.2\n[loop]\nseed = 3\n"
    )
    second = tmp_path / "second.toml"
    second.write_text('base = "under/first.toml"\nout = "two"\n[sets]\nc = 1.0\n[augment]\njpeg_p = 0.7\n')
    got, whole = TrainConfig.from_toml(second), TrainConfig.from_toml(first)
    assert (got.name, got.out, got.sets, got.loop) == ("a", "two", {"c": 1.0}, whole.loop)
    assert got.augment == dataclasses.replace(whole.augment, jpeg_p=0.7)
    first.write_text('base = "../second.toml"\n')
    with pytest.raises(ConfigError, match="its own base"):
        TrainConfig.from_toml(second)
    second.write_text("base = 3\n")
    with pytest.raises(ConfigError, match="expected base"):
        TrainConfig.from_toml(second)


@pytest.mark.parametrize(
    ("name", "value"), [("unknown_scale", 0.8), ("jpeg_p", 1.5), ("noise_p", -0.1), ("elastic_px", -1.0), ("scale_min", 0.0),
                        ("scale_max", 0.5), ("gamma", float("nan"))]
)  # fmt: skip
def test_augmentation_outside_its_range_is_an_error_that_names_it(tmp_path: Path, name: str, value: float) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f'name = "a"\nlicence = "x"\n[sets]\na = 1.0\n[augment]\n{name} = {value}\n')
    with pytest.raises(ConfigError, match=name):
        TrainConfig.from_toml(path)


def test_a_teacher_sees_an_image_at_the_resolution_of_its_network() -> None:
    """Half as many px per side, to be magnified by 2: nearly the maps of the whole image, at the px of the small one."""
    teacher = load_teacher("open")
    with openslide.OpenSlide(SLIDE) as slide:
        crop = slide.read_region((900, 1100), 0, (310, 270)).convert("RGB").resize((620, 540))  # 0.25 um/px
    whole = teacher(np.asarray(crop), 1.0)
    height, width = 270, 310
    small = np.asarray(crop.resize((width, height), Image.Resampling.BOX))
    seen = teacher(small, 2.0)
    assert seen.dtype == np.uint8
    assert seen.shape == (2, height, width)
    expected = whole.reshape(2, height, 2, width, 2).mean((2, 4))
    wrong = teacher(small, 1.0).astype(float)
    for head in (0, 1):
        assert np.corrcoef(seen[head].ravel(), expected[head].ravel())[0, 1] > 0.9
        assert np.abs(seen[head] - expected[head]).mean() < 0.5 * np.abs(wrong[head] - expected[head]).mean()


OPEN = ("open_begun", "open_stains", "open_small_nuclei", "open_taught", "open_taught_again", "open")
RESEARCH = tuple(f"research{part}" for part in ("_begun", "_stains", "_small_nuclei", "_teacher", "_taught", "_crops", ""))


@pytest.mark.parametrize("name", [*OPEN, *RESEARCH])
def test_the_shipped_configs_are_valid(name: str) -> None:
    config = TrainConfig.from_toml(Path(__file__).parents[2] / "scripts" / f"train_{name}.toml")
    assert config.name == (name if name == "research_teacher" else name.split("_")[0])
    assert config.data_root == ""
    assert sum(config.sets.values()) == pytest.approx(1)
    assert ("NC" in config.licence) == ("monuseg" in config.sets)


@pytest.mark.parametrize("chain", [OPEN, RESEARCH])
def test_each_run_of_a_recipe_begins_with_what_an_earlier_one_wrote(chain: tuple[str, ...]) -> None:
    scripts = Path(__file__).parents[2] / "scripts"
    written = {"../runs/wide.safetensors"}  # by benchmarks.capacity widen
    for name in chain:
        config = TrainConfig.from_toml(scripts / f"train_{name}.toml")
        needed = {w for w in (config.init, config.teacher) if w.endswith(".safetensors")}
        assert needed <= written, name
        written.add(f"{config.out}/weights/{config.name}.safetensors")
    assert config.out == f"../runs/{chain[-1]}"

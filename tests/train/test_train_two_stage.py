"""The two-stage U-Net of Mahbod et al. 2019: its losses, its reference image, its separation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.train.test_train_run import write_data
from wsiseg.datasets import list_samples
from wsiseg.errors import ConfigError
from wsiseg.pipeline import ImageMaps
from wsiseg.train import LossConfig, choose_reference, histogram_difference, two_head_loss
from wsiseg.train.presets import separation_by_size, with_model
from wsiseg.train.training import TrainConfig
from wsiseg.train.validation import Judged
from wsiseg.types import Box


def pair_of_heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = [torch.Generator().manual_seed(k) for k in range(3)]
    logits, target = torch.randn(2, 2, 4, 4, generator=draw[0]), torch.rand(2, 2, 4, 4, generator=draw[1])
    return logits, target, 1 + torch.rand(2, 1, 4, 4, generator=draw[2])


def test_squared_error_and_half_the_entropy() -> None:
    logits, target, weight = pair_of_heads()
    loss, terms = two_head_loss(logits, target, weight, LossConfig(center_loss="mse", entropy=0.5))
    squared = entropy = 0.0
    dice = []
    for n in range(2):
        a = b = 0.0
        for y in range(4):
            for x in range(4):
                distance = float(logits[n, 0, y, x]) / 4 + 0.5
                material = 1 / (1 + math.exp(-float(logits[n, 1, y, x])))
                t = target[n, :, y, x].tolist()
                w = float(weight[n, 0, y, x])
                squared += w * (distance - t[0]) ** 2 / 32
                entropy -= w * (t[1] * math.log(material) + (1 - t[1]) * math.log(1 - material)) / 32
                a, b = a + material * t[1], b + material**2 + t[1] ** 2
        dice.append(1 - (2 * a + 1) / (b + 1))
    assert float(loss) == pytest.approx(squared + 0.5 * entropy + sum(dice) / 2, rel=1e-4)
    assert {k: float(v) for k, v in terms.items()} == pytest.approx(
        {"center_mse": squared, "material_ce": entropy, "material_dice": sum(dice) / 2}, rel=1e-4
    )


def test_a_silent_distance_map_still_learns() -> None:
    """The slope of the squared error does not fade with the map: an empty one is pulled up as hard as a full one is down."""
    logits = torch.full((1, 2, 4, 4), -12.0, requires_grad=True)
    loss, _ = two_head_loss(logits, torch.ones(1, 2, 4, 4), torch.ones(1, 1, 4, 4), LossConfig(center_loss="mse", material=0))
    loss.backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 0].sum()) < -1


def test_losses_as_they_were_to_the_last_bit() -> None:
    """The terms that came later leave every curve made before them as it was."""
    logits, target, weight = pair_of_heads()
    p = torch.sigmoid(logits)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    per_head = (entropy * weight).mean((0, 2, 3))
    overlap = 2 * (p * target).sum((2, 3)) + 1
    dice = (1 - overlap / ((p * p).sum((2, 3)) + (target * target).sum((2, 3)) + 1)).mean(0)
    before = (torch.tensor([1.0, 1.0]) * (per_head + 1.0 * dice)).sum()
    assert torch.equal(two_head_loss(logits, target, weight, LossConfig())[0], before)


def test_unknown_choices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="center_loss"):
        LossConfig(center_loss="mae")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'two-stage'"):
        with_model({}, "three-stage")
    path = tmp_path / "c.toml"
    for option in ("stain", "separation"):
        path.write_text(f'name = "a"\nlicence = "x"\n{option} = "other"\n[sets]\na = 1.0\n')
        with pytest.raises(ConfigError, match=option):
            TrainConfig.from_toml(path)


def test_histogram_difference_of_known_grays() -> None:
    labels = np.zeros((10, 10), np.int32)
    labels[:5] = 1
    gray = np.where(labels > 0, 60, 200).astype(np.uint8)
    rgb = np.repeat(gray[..., None], 3, 2)
    assert histogram_difference(rgb, labels) == 1.0
    rgb[:2] = 200  # two fifths of the nuclei look like background
    assert histogram_difference(rgb, labels) == pytest.approx(0.6)
    assert histogram_difference(rgb, np.zeros_like(labels)) == histogram_difference(rgb, np.ones_like(labels)) == 0.0
    red = np.zeros((10, 10, 3), np.uint8)
    red[:5, :, 0], red[5:, :, 1] = 100, 51  # 0.299 * 100 and 0.587 * 51 are one gray: 30
    assert histogram_difference(red, labels) == 0.0


def test_the_clearest_image_is_the_reference(tmp_path: Path) -> None:
    write_data(tmp_path)
    faint = tmp_path / "tnbc" / "tnbc_01_1.png"
    with Image.open(faint) as image:
        Image.fromarray(np.full_like(np.asarray(image), 180)).save(faint)
    chosen, difference = choose_reference(list_samples(tmp_path, ("tnbc",)))
    assert (chosen.image_id, difference) == ("tnbc_02_1", 1.0)
    with pytest.raises(ConfigError, match="none"):
        choose_reference([])


@pytest.mark.parametrize(("radius", "expected"), [(8, 4), (16, 8), (2, 1)])
def test_markers_are_as_far_apart_as_the_mean_nucleus_requires(radius: int, expected: int, tmp_path: Path) -> None:
    write_data(tmp_path)
    sample = list_samples(tmp_path, ("tnbc",))[0]
    y, x = np.mgrid[:90, :90]
    prob = np.zeros((2, 90, 90), np.uint8)
    for cx, cy in ((20, 20), (65, 20), (20, 65)):
        prob[1][np.hypot(x - cx, y - cy) <= radius] = 200
    prob[1, 80:83, 80:83] = 255  # 9 px: no nucleus
    maps = ImageMaps(np.pad(prob, ((0, 0), (7, 7), (7, 7))), Box(0, 0, 90, 90), 7, 1.0, 0.25, (90, 90))
    found, diameter = separation_by_size([Judged(sample, maps, np.zeros((90, 90), np.int32))], 0.25)
    if radius > 2:
        assert diameter == pytest.approx(2 * radius, rel=0.1)
    assert found["marker_radius_wpx"] == expected
    assert found["min_area_um2"] == 20 * 0.25**2
    assert separation_by_size([], 0.25)[1] == 0.0

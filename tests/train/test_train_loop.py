"""The loop: the same seed gives the same curve, and an interrupted run ends where an uninterrupted one does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from wsiseg.errors import ConfigError
from wsiseg.predict import build_net
from wsiseg.train import Batch, LoopConfig, LossConfig, TrainingRun, fit, learning_rate_factor, two_head_loss

CONFIG = LoopConfig(steps=12, batch=2, learning_rate=1e-2, warmup_steps=3, report_every=2, precision="fp32", ema_decay=0.9)


def batch(step: int) -> Batch:
    rng = torch.Generator().manual_seed(step)
    blob = (torch.rand(2, 1, 8, 8, generator=rng) > 0.6).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
    rgb = (1 - 2 * blob).expand(2, 3, 32, 32) + 0.1 * torch.randn(2, 3, 32, 32, generator=rng)
    return Batch(rgb, torch.cat([blob * 0.5, blob], 1), torch.ones(2, 1, 32, 32))


Result = tuple[list[dict[str, float]], dict[str, torch.Tensor]]


def run(folder: Path, stop_after: int | None = None, resume: bool = False) -> Result:
    torch.manual_seed(0)
    net = fit(build_net("tiny"), batch, CONFIG, TrainingRun(folder, resume, stop_after))
    lines = [json.loads(text) for text in (folder / "curve.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines], net.state_dict()


def test_same_seed_same_curve(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert first[0] == second[0]
    assert all(torch.equal(first[1][k], second[1][k]) for k in first[1])
    assert first[0][-1]["loss"] < first[0][0]["loss"], "it learns"


@pytest.mark.parametrize("killed_at", [4, 5])
def test_kill_and_resume_equals_uninterrupted(tmp_path: Path, killed_at: int) -> None:
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop_after=killed_at)
    rest = run(tmp_path / "cut", resume=True)
    assert all(torch.equal(whole[1][k], rest[1][k]) for k in whole[1])
    assert rest[0][-1]["step"] == CONFIG.steps
    if killed_at % CONFIG.report_every == 0:
        assert rest[0] == whole[0]


def test_a_line_beyond_the_checkpoint_is_made_again(tmp_path: Path) -> None:
    """Killed between the curve and the checkpoint: no step appears twice."""
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop_after=4)
    with (tmp_path / "cut" / "curve.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 1.0}) + "\n")
    assert run(tmp_path / "cut", resume=True)[0] == whole[0]


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "a", stop_after=2)
    with pytest.raises(ConfigError, match="Resume"):
        run(tmp_path / "a")


def test_divergence_stops_with_advice(tmp_path: Path) -> None:
    def broken(step: int) -> Batch:
        good = batch(step)
        return Batch(good.rgb * float("nan"), good.target, good.weight)

    with pytest.raises(ConfigError, match="learning rate"):
        fit(build_net("tiny"), broken, CONFIG, TrainingRun(tmp_path))


def test_learning_rate_rises_then_falls() -> None:
    config = LoopConfig(steps=100, warmup_steps=10)
    factors = [learning_rate_factor(s, config) for s in range(101)]
    assert factors[9] == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_against_a_plain_formula(weighted: bool) -> None:
    logits = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    target = torch.rand(1, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    weight = 1 + torch.rand(1, 1, 3, 3, generator=torch.Generator().manual_seed(2))
    expected = 0.0
    for head, scale in ((0, 2.0), (1, 1.0)):
        entropy = a = b = 0.0
        for y in range(3):
            for x in range(3):
                p, t = float(torch.sigmoid(logits[0, head, y, x])), float(target[0, head, y, x])
                focus = abs(p - t) ** 2
                entropy -= focus * float(weight[0, 0, y, x]) * (t * math.log(p) + (1 - t) * math.log(1 - p))
                w = float(weight[0, 0, y, x]) if weighted else 1.0
                a, b = a + w * p * t, b + w * (p * p + t * t)
        expected += scale * (entropy / 9 + 0.5 * (1 - (2 * a + 1) / (b + 1)))
    config = LossConfig(center=2.0, dice=0.5, focal_gamma=2.0, weighted_dice=weighted)
    loss, terms = two_head_loss(logits, target, weight, config)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    assert set(terms) == {"center_ce", "material_ce", "center_dice", "material_dice"}


def test_a_perfect_prediction_costs_nothing() -> None:
    target = (torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    loss, _ = two_head_loss((target * 2 - 1) * 40, target, torch.ones(2, 1, 16, 16), LossConfig())
    assert float(loss) < 1e-4

"""Train a refiner that makes synthetic pictures look like real ones, and compute a weight for each synthetic picture.

Random numbers of a step depend only on seed and step, so a resumed run gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from wsiseg.errors import ConfigError, InputError
from wsiseg.tables import atomic_path
from wsiseg.train.loop import TrainingRun
from wsiseg.train.losses import LossConfig, two_head_loss
from wsiseg.train.synth.nets import Discriminator, Refiner
from wsiseg.train.targets import make_targets

__all__ = ["WEIGHT_RANGE", "RefineConfig", "importance_weights", "load_refiner", "refine_and_weigh", "train_refiner"]

WEIGHT_RANGE = (0.2, 2.0)
"""Limits of the weights of pictures (Hou et al. 2019)."""

Rgb = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class RefineConfig:
    """Options of the training of the refiner.

    Attributes
    ----------
    steps, batch, crop_px
        Optimizer steps of each network, patches per step, and side of a patch, px (a multiple of 8).
    width
        Channels of both networks at full resolution.
    keep
        Weight of the mean absolute change, which keeps nuclei at their labels.
    steadiness
        Weight of the squared gradient of the discriminator at real pictures (Mescheder et al. 2018), which stabilizes training.
    hard
        Weight of the hard-example term, which rewards patches with a high loss of the task network, up to ``hard_limit``; above
        it, labels would be wrong rather than hard. Not used without a task network.
    device
        ``cpu`` or ``cuda``.
    """

    steps: int = 400
    batch: int = 4
    crop_px: int = 96
    width: int = 32
    learning_rate: float = 5e-4
    keep: float = 1.0
    steadiness: float = 0.01
    hard: float = 0.05
    hard_limit: float = 2.0
    seed: int = 0
    device: str = "cpu"
    report_every: int = 25

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        for name, fine, expected in (
            ("steps", self.steps > 0, "1 or more"),
            ("batch", self.batch > 0, "1 or more"),
            ("crop_px", self.crop_px > 0 and self.crop_px % 8 == 0, "a multiple of 8"),
            ("width", self.width > 0, "1 or more"),
            ("report_every", self.report_every > 0, "1 or more"),
        ):
            if not fine:
                raise ConfigError(f"refiner: expected {name} to be {expected}, got {getattr(self, name)}.")


def importance_weights(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return weights float64 (N,) of synthetic pictures: the discriminator's odds p / (1 - p), clipped to ``WEIGHT_RANGE``.

    The output of an optimal discriminator is p = real / (real + synthetic), in densities. Weighting by its odds turns a mean
    over synthetic pictures into a mean over real ones (importance sampling, Hou et al. 2019).

    Parameters
    ----------
    logits : float (N,)
        log(p / (1 - p)).
    """
    low, high = np.log(WEIGHT_RANGE)
    return np.exp(np.clip(np.asarray(logits, np.float64), low, high))


def train_refiner(
    synthetic: Sequence[tuple[Rgb, NDArray[np.int32]]],
    real: Sequence[Rgb],
    config: RefineConfig,
    run: TrainingRun,
    *,
    task: nn.Module | None = None,
    on_line: Callable[[dict[str, float]], None] | None = None,
) -> tuple[Refiner, Discriminator]:
    """Train refiner and discriminator against each other.

    Parameters
    ----------
    synthetic
        Pictures uint8 (H, W, 3) and labels int32 (H, W).
    real
        Pictures of the target cohort, uint8 (H, W, 3).
    run
        Its folder receives ``refiner.pt`` (checkpoint of all) and ``curve.jsonl``.
    task
        Network (N, 3, H, W) -> logits (N, 2, H, W) for the hard-example term; it is not trained.

    Raises
    ------
    ConfigError
        The folder holds a run that is not to be resumed, or the checkpoint is of another width.
    InputError
        There are no pictures, or one is smaller than ``crop_px``.
    """
    _check(synthetic, real, config.crop_px)
    run_dir = run.folder
    run_dir.mkdir(parents=True, exist_ok=True)
    pair = _AdversarialPair(config, task)
    checkpoint = run_dir / "refiner.pt"
    if checkpoint.exists():
        if not run.resume:
            raise ConfigError(f"{run_dir} already contains a refiner. Resume it, or choose another folder.")
        pair.load(checkpoint)
    last = config.steps if run.stop_after is None else min(config.steps, pair.step + run.stop_after)
    curve = run_dir / "curve.jsonl"
    lines = curve.read_text(encoding="utf-8").splitlines() if curve.exists() else []
    kept = [text for text in lines if json.loads(text)["step"] <= pair.step]
    while pair.step < last:
        line = pair.advance(*_batch(synthetic, real, config, pair.step))
        if pair.step % config.report_every == 0 or pair.step == last:
            kept.append(json.dumps(line))
            with atomic_path(curve) as partial:
                partial.write_text("".join(f"{text}\n" for text in kept), encoding="utf-8")
            pair.save(checkpoint)
            if on_line is not None:
                on_line(line)
    return pair.refiner.eval(), pair.discriminator.eval()


def load_refiner(path: Path, width: int, device: str = "cpu") -> tuple[Refiner, Discriminator]:
    """Return the two networks of a checkpoint. Raises ``ConfigError`` if it has another width."""
    pair = _AdversarialPair(RefineConfig(width=width, device=device), None)
    pair.load(path)
    return pair.refiner.eval(), pair.discriminator.eval()


@torch.no_grad()
def refine_and_weigh(refiner: Refiner, discriminator: Discriminator, rgb: Rgb) -> tuple[Rgb, float]:
    """Return a refined picture uint8 (H, W, 3) and its weight, from the mean of the discriminator's logits over it."""
    h, w = rgb.shape[:2]
    padded = np.pad(rgb, ((0, -h % 8), (0, -w % 8), (0, 0)), mode="edge")
    refined = refiner(_as_input([padded], next(refiner.parameters()).device))
    logit = discriminator(refined).float().mean().item()
    pixels = ((refined[0, :, :h, :w].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return pixels.cpu().numpy(), float(importance_weights(np.array([logit]))[0])


class _AdversarialPair:
    """The content of a checkpoint: two networks, their optimizers and the step."""

    def __init__(self, config: RefineConfig, task: nn.Module | None) -> None:
        torch.manual_seed(config.seed)
        self.config, self.step = config, 0
        self.refiner = Refiner(config.width).to(config.device)
        self.discriminator = Discriminator(config.width).to(config.device)
        self.task = None if task is None else task.to(config.device).eval().requires_grad_(requires_grad=False)
        self.optimizers = [
            torch.optim.Adam(net.parameters(), config.learning_rate, (0.5, 0.99)) for net in (self.refiner, self.discriminator)
        ]

    def advance(self, synthetic: torch.Tensor, target: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
        config = self.config
        synthetic, target, real = (t.to(config.device) for t in (synthetic, target, real))
        refined = self.refiner(synthetic)
        self.discriminator.requires_grad_(requires_grad=False)
        fooled = functional.softplus(-self.discriminator(refined)).mean()
        kept = (refined - synthetic).abs().mean()
        hard = torch.zeros((), device=refined.device)
        if self.task is not None and config.hard > 0:
            weight = torch.ones_like(target[:, :1])
            hard = two_head_loss(self.task(refined).float(), target, weight, LossConfig())[0].clamp(max=config.hard_limit)
        self._descend(0, fooled + config.keep * kept - config.hard * hard)
        self.discriminator.requires_grad_(requires_grad=True)
        real.requires_grad_()
        on_real, on_refined = self.discriminator(real), self.discriminator(refined.detach())
        told = functional.softplus(-on_real).mean() + functional.softplus(on_refined).mean()
        (slope,) = torch.autograd.grad(on_real.mean((1, 2, 3)).sum(), real, create_graph=True)
        self._descend(1, told + config.steadiness / 2 * slope.square().sum((1, 2, 3)).mean())
        self.step += 1
        return {
            "step": self.step,
            "discriminator": told.item(),
            "refiner": fooled.item(),
            "change": kept.item(),
            "hard": hard.item(),
            "logit_real": on_real.mean().item(),
            "logit_refined": on_refined.mean().item(),
        }

    def _descend(self, which: int, loss: torch.Tensor) -> None:
        self.optimizers[which].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[which].step()

    def save(self, path: Path) -> None:
        nets = {"refiner": self.refiner.state_dict(), "discriminator": self.discriminator.state_dict()}
        content = {**nets, "optimizers": [o.state_dict() for o in self.optimizers], "step": self.step}
        with (
            atomic_path(path) as partial,
            partial.open("wb") as stream,
        ):  # given a path, torch would write its name into the file
            torch.save(content, stream)

    def load(self, path: Path) -> None:
        held = torch.load(path, map_location="cpu", weights_only=True)
        try:
            self.refiner.load_state_dict(held["refiner"])
            self.discriminator.load_state_dict(held["discriminator"])
        except RuntimeError as err:
            raise ConfigError(f"{path}: expected a refiner of width {self.config.width}, got another. Set its width.") from err
        for optimizer, state in zip(self.optimizers, held["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = int(held["step"])


def _batch(
    synthetic: Sequence[tuple[Rgb, NDArray[np.int32]]], real: Sequence[Rgb], config: RefineConfig, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([config.seed, step])
    pictures, targets, reals = [], [], []
    for _ in range(config.batch):
        rgb, labels = synthetic[int(rng.integers(len(synthetic)))]
        part = _crop(rgb.shape, config.crop_px, rng)
        pictures.append(rgb[part])
        targets.append(make_targets(labels[part])[:2])
        other = real[int(rng.integers(len(real)))]
        reals.append(np.rot90(other[_crop(other.shape, config.crop_px, rng)], int(rng.integers(4))))
    device = torch.device("cpu")
    return _as_input(pictures, device), torch.from_numpy(np.stack(targets)).float() / 255, _as_input(reals, device)


def _crop(shape: tuple[int, ...], side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    y, x = int(rng.integers(shape[0] - side + 1)), int(rng.integers(shape[1] - side + 1))
    return slice(y, y + side), slice(x, x + side)


def _as_input(pictures: Sequence[NDArray[np.uint8]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def _check(synthetic: Sequence[tuple[Rgb, NDArray[np.int32]]], real: Sequence[Rgb], crop_px: int) -> None:
    for name, pictures in (("synthetic", [rgb for rgb, _ in synthetic]), ("real", list(real))):
        least = min((min(p.shape[:2]) for p in pictures), default=0)
        if least < crop_px:
            raise InputError(
                f"refiner: expected {name} pictures of at least {crop_px} px per side, got {least if pictures else 'none'}."
            )

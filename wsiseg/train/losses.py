"""The loss of the two heads: cross-entropy per pixel plus soft Dice per image, for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional

from wsiseg.errors import ConfigError

__all__ = ["CenterLoss", "LossConfig", "two_head_loss"]

CenterLoss = Literal["overlap", "mse"]


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Weights of the terms.

    Attributes
    ----------
    center, material
        Weights of the two heads.
    dice, entropy
        Weights of a head's Dice and of its cross-entropy.
    focal_gamma
        Exponent of the focal loss (Lin et al. 2017); 0 is plain cross-entropy.
    center_loss
        ``overlap``: cross-entropy and Dice for the center, as for the material; ``mse``: only the mean squared error, as in
        Mahbod et al. 2019 for distance maps, of the linear output ``logit / 4 + 1/2``. This is the tangent of the sigmoid at 0;
        the gradient of the sigmoid itself vanishes for low outputs, and all maps would become empty.
    """

    center: float = 1.0
    material: float = 1.0
    dice: float = 1.0
    focal_gamma: float = 0.0
    entropy: float = 1.0
    center_loss: CenterLoss = "overlap"
    weighted_dice: bool = False

    def __post_init__(self) -> None:
        """Raise ``ConfigError`` for an unknown ``center_loss``."""
        if self.center_loss not in get_args(CenterLoss):
            raise ConfigError(f"Expected loss.center_loss to be one of {get_args(CenterLoss)}, got {self.center_loss!r}.")


def two_head_loss(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, config: LossConfig
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch and its terms.

    Parameters
    ----------
    logits : float32 (N, 2, H, W)
        Center and material.
    target : float32 (N, 2, H, W)
        0..1.
    weight : float32 (N, 1, H, W)
        Weight of a pixel in the cross-entropy and the squared error, and if ``weighted_dice``, in the Dice.

    Returns
    -------
    (scalar, dict of scalar)
        Dice is 1 - 2 sum(w p t) / sum(w (p^2 + t^2)) per image, smoothed by one pixel (Milletari et al. 2016); w is 1 unless
        ``weighted_dice``.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = torch.sigmoid(logits)
    if config.focal_gamma:
        entropy = entropy * (p - target).abs() ** config.focal_gamma
    per_head = (entropy * weight).mean((0, 2, 3))
    q, aim = (weight * p, weight * target) if config.weighted_dice else (p, target)
    overlap = 2 * (q * target).sum((2, 3)) + 1
    dice = (1 - overlap / ((q * p).sum((2, 3)) + (aim * target).sum((2, 3)) + 1)).mean(0)
    scale = torch.tensor([config.center, config.material], dtype=logits.dtype, device=logits.device)
    terms = config.entropy * per_head + config.dice * dice
    if config.center_loss == "mse":
        squared = ((logits[:, :1] / 4 + 0.5 - target[:, :1]).square() * weight).mean()
        loss = config.center * squared + config.material * terms[1]
        named = {"center_mse": squared, "material_ce": per_head[1], "material_dice": dice[1]}
        return loss, {name: term.detach() for name, term in named.items()}
    loss = (scale * terms).sum()
    names = ("center_ce", "material_ce", "center_dice", "material_dice")
    return loss, dict(zip(names, (*per_head.detach(), *dice.detach()), strict=True))

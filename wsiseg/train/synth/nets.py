"""The refiner and the discriminator of Hou et al. 2019, with the published numbers of convolutions and poolings.

Refiner: 21 convolutions, 2 poolings; discriminator: 15 convolutions, 3 poolings. The paper does not state widths or how the
refiner returns to full resolution: here by nearest-neighbor upsampling with skips, and with a residual output, so that an
untrained refiner does not change a picture.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

__all__ = ["Discriminator", "Refiner"]

_LEAK = 0.2
_MAX_CHANGE = 0.5  # maximum change of a color, on the scale of -1 to 1


class Refiner(nn.Module):
    """Network that refines pictures, float (N, 3, H, W) in -1 to 1, into pictures in -1.5 to 1.5; H and W multiples of 4.

    ``width`` is the number of channels at full resolution.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.fine = _convs(3, width, 3)
        self.middle = _convs(width, 2 * width, 4)
        self.coarse = _convs(2 * width, 4 * width, 6)
        self.to_middle = _convs(6 * width, 2 * width, 4)
        self.to_fine = _convs(3 * width, width, 3)
        self.last = nn.Conv2d(width, 3, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the refined batch."""
        fine = self.fine(x)
        middle = self.middle(self.pool(fine))
        up = functional.interpolate(self.coarse(self.pool(middle)), scale_factor=2.0)
        middle = self.to_middle(torch.cat([up, middle], 1))
        fine = self.to_fine(torch.cat([functional.interpolate(middle, scale_factor=2.0), fine], 1))
        return x + _MAX_CHANGE * torch.tanh(self.last(fine))


class Discriminator(nn.Module):
    """Network from pictures, float (N, 3, H, W) in -1 to 1, to logits (N, 1, H / 8, W / 8) that each region is real tissue."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            _convs(3, width, 3), nn.MaxPool2d(2), _convs(width, 2 * width, 4), nn.MaxPool2d(2),
            _convs(2 * width, 4 * width, 4), nn.MaxPool2d(2), _convs(4 * width, 4 * width, 3), nn.Conv2d(4 * width, 1, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch."""
        return self.layers(x)


def _convs(channels: int, width: int, n: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(n):
        conv = nn.Conv2d(width if i else channels, width, 3, padding=1)
        nn.init.kaiming_normal_(conv.weight, a=_LEAK, nonlinearity="leaky_relu")
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.LeakyReLU(_LEAK)]
    return nn.Sequential(*layers)

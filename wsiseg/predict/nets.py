"""The two-head U-Net: one class, and a table with one line per variant.

The two heads are two channels of the last convolution: 0 the nucleus center, 1 the nuclear material. ``hou43`` is the published
network of Hou et al. 2020 (doi 10.1038/s41597-020-0528-1; 43 convolutions, 5,746,706 parameters). ``lean`` starts at half
resolution through a pixel-unshuffle and has most convolutions at coarse levels, for a quarter of the multiply-adds.
``two_stage`` is the pair of U-Nets of Mahbod et al. 2019 (doi 10.1007/978-3-030-23937-4_9; 2 x 1,941,105 parameters): one makes
the distance map, which takes the place of the center, the other the material.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from wsiseg.errors import ConfigError

__all__ = ["NETS", "NetSpec", "UNet", "build_net", "fold_batch_norm", "half_field_wpx", "macs_per_px", "shaved", "spare_px"]


@dataclass(frozen=True, slots=True)
class NetSpec:
    """The structure of one variant.

    Attributes
    ----------
    widths
        Channels per level, finest first; between levels 2x2 max-pooling down and 2x2 transposed convolution up.
    down_convs, up_convs
        3x3 convolutions per level, finest first in ``down_convs``, coarsest first in ``up_convs``.
    stem
        Side of the pixel-unshuffle in front (and of the pixel-shuffle behind); 1: none.
    batch_norm
        Batch normalization after every 3x3 convolution; it folds into the convolution for inference.
    leak
        Slope of the ReLU below zero.
    wide_up
        The transposed convolution keeps its input's width and is followed by the activation (the published form); otherwise
        it is linear and halves the width.
    networks
        1: one network with two heads; 2: a separate network for each of the two channels.
    head_side
        Side of the last convolution's kernel.
    """

    widths: tuple[int, ...]
    down_convs: tuple[int, ...]
    up_convs: tuple[int, ...]
    stem: int = 2
    batch_norm: bool = True
    leak: float = 0.0
    wide_up: bool = False
    networks: int = 1
    head_side: int = 3

    @property
    def multiple(self) -> int:
        """Sides and origins of input windows are multiples of this many px."""
        return int(self.stem * 2 ** (len(self.widths) - 1))


NETS: dict[str, NetSpec] = {
    "hou43": NetSpec((16, 32, 64, 128, 256), (3, 4, 4, 5, 6), (5, 4, 4, 3), stem=1, batch_norm=False, leak=0.2, wide_up=True),
    "lean": NetSpec((24, 48, 96, 192), (2, 2, 3, 3), (3, 2, 2)),
    "wide": NetSpec((32, 64, 128, 256), (2, 2, 4, 4), (4, 3, 2)),
    "lean_shallow": NetSpec((24, 48, 96, 192), (2, 2, 2, 2), (2, 2, 2)),
    "lean_w16": NetSpec((16, 32, 64, 128), (2, 2, 3, 3), (3, 2, 2)),
    "lean_w32": NetSpec((32, 64, 128, 256), (2, 2, 2, 2), (2, 2, 2)),
    "two_stage": NetSpec((16, 32, 64, 128, 256), (2,) * 5, (2,) * 4, stem=1, batch_norm=False, networks=2, head_side=1),
    "tiny": NetSpec((16, 32), (1, 1), (1,)),  # for tests and smoke runs
}

_HEADS = 2


class UNet(nn.Module):
    """Network from float (N, 3, H, W) in [-1, 1] to float logits (N, 2, H, W); H and W are multiples of ``spec.multiple``."""

    def __init__(self, spec: NetSpec, *, is_center: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.ranges: dict[str, torch.Tensor] = {}
        """Ranges of the activations (``wsiseg.predict.quantize``); empty if not measured: then no int8."""
        channels = 3 * spec.stem**2
        self.down = nn.ModuleList()
        for width, convs in zip(spec.widths, spec.down_convs, strict=True):
            self.down.append(_block(spec, channels, width, convs))
            channels = width
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for width, convs in zip(spec.widths[-2::-1], spec.up_convs, strict=True):
            risen = channels if spec.wide_up else width
            rise: nn.Module = nn.ConvTranspose2d(channels, risen, 2, stride=2)
            self.up.append(nn.Sequential(rise, nn.LeakyReLU(spec.leak, inplace=True)) if spec.wide_up else rise)
            self.merge.append(_block(spec, risen + width, width, convs))
            channels = width
        heads = _HEADS // spec.networks
        self.head = nn.Conv2d(channels, heads * spec.stem**2, spec.head_side, padding=spec.head_side // 2)
        self._init_weights()
        self.center = UNet(spec, is_center=True) if spec.networks == 2 and not is_center else None

    def forward(self, x: torch.Tensor, margin: int = 0) -> torch.Tensor:
        """Return logits, without ``margin`` px (a multiple of ``spec.multiple``) on all four sides.

        Pixels that only the margin needs are cropped level by level in the decoder, before they are computed. The others equal
        those of the uncropped network if the margin is at least ``half_field_wpx``.
        """
        if self.center is not None:
            return torch.cat([self.center(x, margin), self._pass(x, margin)], 1)
        return self._pass(x, margin)

    def _pass(self, x: torch.Tensor, margin: int) -> torch.Tensor:
        spec = self.spec
        x = functional.pixel_unshuffle(x, spec.stem) if spec.stem > 1 else x
        skips: list[torch.Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.down) - 1:
                skips.append(x)
                x = functional.max_pool2d(x, 2)
        cropped = 0  # px of the current level already cropped on each side
        for step, (up, merge) in enumerate(zip(self.up, self.merge, strict=True)):
            x, skip, cropped = up(x), skips.pop(), 2 * cropped
            crop = max(0, spare_px(spec, step, margin) - cropped)
            x = shaved(x, crop)
            cropped += crop
            x = merge(torch.cat([x, shaved(skip, cropped)], 1))
        x = shaved(self.head(x), margin // spec.stem - cropped)
        return functional.pixel_shuffle(x, spec.stem) if spec.stem > 1 else x

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=self.spec.leak, nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def build_net(name: str) -> UNet:
    """Return a newly initialized network of ``NETS``; ``ConfigError`` for an unknown name."""
    if name not in NETS:
        raise ConfigError(f"No network named {name!r}. Expected one of {sorted(NETS)}.")
    return UNet(NETS[name])


def fold_batch_norm(net: UNet) -> UNet:
    """Return the network in evaluation mode with every batch normalization folded into its convolution (in place)."""
    net.eval()
    for block in (*net.down, *net.merge):
        layers = list(block)
        for i in range(len(layers) - 1):
            if isinstance(layers[i], nn.Conv2d) and isinstance(layers[i + 1], nn.BatchNorm2d):
                block[i] = fuse_conv_bn_eval(layers[i], layers[i + 1])
                block[i + 1] = nn.Identity()
    return net


def half_field_wpx(spec: NetSpec) -> int:
    """Return the largest distance in px between an output pixel and an input pixel on which it depends.

    One 3x3 convolution at a level of stride s reaches s px further; a pooling or a pixel-unshuffle of side 2 reaches at most
    its stride less one, rounded up here to the stride of the level it leads to.
    """
    strides = [spec.stem * 2**level for level in range(len(spec.widths))]
    reach = sum(n * s for n, s in zip(spec.down_convs, strides, strict=True))
    reach += sum(n * s for n, s in zip(spec.up_convs, strides[-2::-1], strict=True))
    return reach + spec.stem + strides[-1]


def macs_per_px(spec: NetSpec) -> float:
    """Return multiply-adds per input pixel (convolutions only)."""
    total, channels = 0.0, 3 * spec.stem**2
    strides = [spec.stem * 2**level for level in range(len(spec.widths))]
    for width, convs, stride in zip(spec.widths, spec.down_convs, strides, strict=True):
        total += 9 * width * (channels + (convs - 1) * width) / stride**2
        channels = width
    for width, convs, stride in zip(spec.widths[-2::-1], spec.up_convs, strides[-2::-1], strict=True):
        risen = channels if spec.wide_up else width
        total += (channels * risen + 9 * width * (risen + width + (convs - 1) * width)) / stride**2
        channels = width
    # the head's stem**2 groups of channels run at 1 / stem**2 of the pixels
    return spec.networks * total + spec.head_side**2 * channels * _HEADS


def _block(spec: NetSpec, channels: int, width: int, convs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(convs):
        layers.append(nn.Conv2d(width if i else channels, width, 3, padding=1, bias=not spec.batch_norm))
        if spec.batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.LeakyReLU(spec.leak, inplace=True) if spec.leak else nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def spare_px(spec: NetSpec, step: int, margin: int) -> int:
    """Return how many px can be cropped at the level after up-step ``step`` if ``margin`` px of the output are not needed."""
    level = len(spec.widths) - 2 - step
    need = spec.stem  # px of the input's scale that later convolutions still need
    for later in range(step, len(spec.up_convs)):
        need += spec.up_convs[later] * spec.stem * 2 ** (len(spec.widths) - 2 - later)
    stride = spec.stem * 2**level
    spare = max(0, margin - need) // stride
    return spare - spare % 2 if step < len(spec.up_convs) - 1 else spare


def shaved(x: torch.Tensor, px: int) -> torch.Tensor:
    """Return (N, C, H, W) without ``px`` on all four sides."""
    return x[:, :, px : x.shape[2] - px, px : x.shape[3] - px] if px else x

"""The network in int8: unsigned 8-bit activations, signed 7-bit kernels, 32-bit sums, by oneDNN's quantized convolution.

It is twice as fast as bf16 on processors that multiply bytes natively (VNNI, AMX). Integer sums do not depend on their order,
so the maps do not depend on windows, threads or processor, to the last bit. A processor without VNNI adds pairs of products in
16 bits, which would saturate with 8-bit kernels; with 7-bit kernels it never does.

Activations are scaled per channel. The scale of a channel is multiplied into the kernel that produces it and into the kernel
that reads it (Nagel et al. 2019, arXiv:1906.04721, section 4.1), so the arithmetic itself has one scale for all channels.
Kernels are scaled per output channel and rounded such that the errors of a kernel's elements sum to about zero (the data-free
steps of SQuant, Guo et al. 2022, arXiv:2202.07471): neighboring pixels are similar, so the error of the sum is what matters.
The gain exceeds the loss of the eighth bit (``benchmarks/precision.py``).

How a convolution becomes integers (``_Convolution``): with x = scale (q - zero) for an input byte q,
``w x + b = (w scale) q + (b - w scale zero)``: a kernel that reads bytes, and a bias. Dividing both by the output's scale gives
the output byte directly, and oneDNN rounds and clips it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from wsiseg.errors import WeightsError
from wsiseg.predict.nets import NetSpec, UNet, fold_batch_norm, shaved, spare_px

__all__ = [
    "KERNEL_MAX",
    "QUANTIZATION",
    "QuantizedUNet",
    "activation_ranges",
    "is_quantizable",
    "sums_are_exact",
    "whole_kernel",
]

KERNEL_MAX = 64
"""Largest kernel element: two products, 2 x 255 x 64, stay below 2**15."""

QUANTIZATION = "kernels of 7 bits, even sums"
"""Name of the rounding rule, part of a run's digest, because the maps depend on it."""

_QUANTILE = 0.9999
"""Quantile of a channel's absolute values over an image that is its range; larger values are clipped. It is close to 1,
because tissue of other laboratories has larger values than the calibration images."""

_MIN_SHARE = 0.1
"""A channel's range is at least this share of its layer's largest, so that noise of a channel that is
nearly zero is not amplified."""

_ZERO = 128
"""Byte for the value 0 in the output of a transposed convolution, which has both signs."""


def is_quantizable(spec: NetSpec) -> bool:
    """Return whether a network of this structure can run in int8: the ``lean`` family can, the published ``hou43`` cannot."""
    return spec.stem == 2 and spec.leak == 0 and not spec.wide_up and all(width % 8 == 0 for width in spec.widths)


def activation_ranges(net: UNet, images: Iterable[NDArray[np.uint8]]) -> dict[str, torch.Tensor]:
    """Measure the range of each channel of each layer.

    Parameters
    ----------
    net
        In evaluation mode, with batch normalization folded or not. It is not changed.
    images
        RGB uint8 (H, W, 3), such as training patches; sides are cut to multiples of the network's stride.

    Returns
    -------
    dict of float32 (channels,)
        Per layer (``down.0.1``: second convolution of the first block, after its activation; ``up.0``) the value of the byte
        255 (for ``up``: of the byte 127 above zero).
    """
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> None:
            values = out.detach().float().abs().flatten(2)[0]
            values = values[:, :: max(1, values.shape[1] // 50_000)]
            high = torch.quantile(values, _QUANTILE, dim=1)
            seen[name] = torch.maximum(seen[name], high) if name in seen else high

        return hook

    handles = []
    for part in ("down", "merge"):
        for k, block in enumerate(getattr(net, part)):
            activations = [layer for layer in block if isinstance(layer, nn.ReLU)]
            handles += [layer.register_forward_hook(watch(f"{part}.{k}.{j}")) for j, layer in enumerate(activations)]
    handles += [layer.register_forward_hook(watch(f"up.{k}")) for k, layer in enumerate(net.up)]
    multiple = net.spec.multiple
    try:
        with torch.inference_mode():
            for rgb in images:
                height, width = (side // multiple * multiple for side in rgb.shape[:2])
                x = torch.from_numpy(np.ascontiguousarray(rgb[:height, :width])).permute(2, 0, 1)[None].float()
                net((x / 127.5 - 1).contiguous(memory_format=torch.channels_last))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.maximum(high, high.max() * _MIN_SHARE).clamp_min(1e-6) for name, high in seen.items()}


class QuantizedUNet:
    """The network in int8: uint8 (H, W, 3) to bf16 logits (1, 2, H - 2 margin, W - 2 margin), see ``UNet.forward``.

    Parameters
    ----------
    net
        A quantizable network; it is folded in place.
    ranges
        From ``activation_ranges``.

    Raises
    ------
    WeightsError
        The network cannot run in integers, or the ranges belong to another network.
    """

    def __init__(self, net: UNet, ranges: dict[str, torch.Tensor]) -> None:
        if not is_quantizable(net.spec):
            raise WeightsError(f"A network of {net.spec} cannot run in int8. Use precision bf16 or fp32.")
        fold_batch_norm(net)
        self.spec = net.spec
        try:
            self._build(net, ranges)
        except (KeyError, RuntimeError) as err:
            raise WeightsError(f"The int8 ranges of the weights do not fit their network ({err}). Export them again.") from err

    def _build(self, net: UNet, ranges: dict[str, torch.Tensor]) -> None:
        self.down: list[list[_Convolution]] = []
        self.up: list[_Convolution] = []
        self.merge: list[list[_Convolution]] = []
        stem = net.spec.stem
        # the stem reads squares of stem x stem pixels: here in the order (row, column, color), in torch (color, row, column)
        order = torch.arange(3 * stem**2).view(3, stem, stem).permute(1, 2, 0).flatten()
        first = net.down[0][0].weight.detach().float()[:, order]
        scale, zero = torch.full((len(order),), 1 / 127.5), torch.full((len(order),), 127.5)  # the network sees rgb / 127.5 - 1
        skips: list[torch.Tensor] = []
        for k, block in enumerate(net.down):
            kernels = [first if k == 0 and j == 0 else c.weight.detach().float() for j, c in enumerate(_convolutions(block))]
            layers, scale = _chain(block, kernels, scale, zero, ranges, f"down.{k}")
            self.down.append(layers)
            skips.append(scale)
            zero = torch.zeros_like(scale)
        skips.pop()
        for k, (upward, block) in enumerate(zip(net.up, net.merge, strict=True)):
            up_scale = ranges[f"up.{k}"] / (255 - _ZERO)
            # a 2x2 transposed convolution of stride 2 is four 1x1 convolutions, one for each pixel of the 2x2 square
            kernel = upward.weight.detach().float().permute(2, 3, 1, 0).flatten(0, 2)[:, :, None, None]
            bias = upward.bias.detach().float().repeat(4)
            self.up.append(_Convolution(kernel, bias, scale, zero, up_scale.repeat(4), signed=True))
            skip = skips.pop()
            scale = torch.cat([up_scale, skip])
            zero = torch.cat([torch.full_like(up_scale, _ZERO), torch.zeros_like(skip)])
            kernels = [c.weight.detach().float() for c in _convolutions(block)]
            layers, scale = _chain(block, kernels, scale, zero, ranges, f"merge.{k}")
            self.merge.append(layers)
            zero = torch.zeros_like(scale)
        self.head = _Convolution(net.head.weight.detach().float(), net.head.bias.detach().float(), scale, zero, None)

    def __call__(self, rgb: torch.Tensor, margin: int = 0) -> torch.Tensor:
        """Return logits of a window without ``margin`` px on all sides (cf. ``UNet.forward``); sides are even."""
        x = _unshuffled(rgb)
        skips: list[torch.Tensor] = []
        for level, layers in enumerate(self.down):
            for layer in layers:
                x = layer(x)
            if level < len(self.down) - 1:
                skips.append(x)
                # 2x2 max pooling
                rows = torch.maximum(x[:, :, 0::2], x[:, :, 1::2])
                x = torch.maximum(rows[:, :, :, 0::2], rows[:, :, :, 1::2])
        cropped = 0
        for step, (up, layers) in enumerate(zip(self.up, self.merge, strict=True)):
            x, cropped = up(x), 2 * cropped
            crop = max(0, spare_px(self.spec, step, margin) - cropped) // 2  # px before upsampling, twice as many after it
            cropped += 2 * crop
            x = _upsampled_and_skip(shaved(x, crop), shaved(skips.pop(), cropped))
            for layer in layers:
                x = layer(x)
        return functional.pixel_shuffle(shaved(self.head(x), margin // self.spec.stem - cropped), self.spec.stem)


class _Convolution:
    """One quantized convolution with its requantization, from uint8 channels-last to uint8 or bf16."""

    def __init__(
        self,
        kernel: torch.Tensor,
        bias: torch.Tensor,
        scale: torch.Tensor,
        zero: torch.Tensor,
        out_scale: torch.Tensor | None,
        *,
        signed: bool = False,
    ) -> None:
        kernel = kernel * scale[None, :, None, None]
        # The zero point of the input is part of the bias. At the window's border oneDNN pads with byte 0 instead of the zero
        # point, so px there are wrong; they are in the halo and dropped.
        bias = bias - (kernel.double().sum((2, 3)) * zero).sum(1).float()
        out = torch.ones_like(bias) if out_scale is None else out_scale
        kernel, self.bias = kernel / out[:, None, None, None], bias / out
        self.scale = (kernel.abs().amax((1, 2, 3)) / KERNEL_MAX).clamp_min(1e-12)
        whole = whole_kernel(kernel / self.scale[:, None, None, None])
        self.pad = [kernel.shape[2] // 2] * 2
        self.packed = torch.ops.onednn.qconv_prepack(whole, self.scale, 1.0, 0, [1, 1], self.pad, [1, 1], 1, None)
        self.kernel_zero = torch.zeros(len(bias), dtype=torch.int64)
        self.dtype = torch.bfloat16 if out_scale is None else torch.uint8
        self.zero = _ZERO if signed else 0
        self.after = "none" if signed or out_scale is None else "relu"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, 0, self.packed, self.scale, self.kernel_zero, self.bias, [1, 1], self.pad, [1, 1], 1,
            1.0, self.zero, self.dtype, self.after, [], "",
        )  # fmt: skip
        return out


def whole_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Round a kernel such that errors cancel: first within each (h, w), then within each output channel.

    If the rounding errors of a group sum to about n, the n elements with the largest error in that direction are rounded the
    other way.

    Parameters
    ----------
    kernel
        float (out, in, h, w), -``KERNEL_MAX`` to ``KERNEL_MAX``.

    Returns
    -------
    int8 (out, in, h, w)
        Each element differs from the given one by less than 1 and is at most ``KERNEL_MAX`` in size.
    """
    exact = (kernel.double() * _FINE).round().to(torch.int64)  # integers: their sums are the same in any order
    whole = exact.div(_FINE, rounding_mode="floor")
    whole += (exact - whole * _FINE) * 2 >= _FINE
    if kernel.shape[2:].numel() > 1:
        whole = _even(exact.flatten(2), whole.flatten(2)).view_as(exact)
    return _even(exact.flatten(1), whole.flatten(1)).view_as(exact).clamp(-KERNEL_MAX, KERNEL_MAX).to(torch.int8)


_FINE = 2**24
"""Fixed-point unit of kernel elements while errors are summed, so that sums are exact in any order."""


@cache
def sums_are_exact() -> bool:
    """Return whether oneDNN sums bytes exactly on this processor, for the largest possible activations and kernels.

    The reference is 64-bit integers in NumPy. A processor (or a oneDNN) that rounds or saturates would give other maps.
    """
    rng = np.random.default_rng(0)
    for inner, side in ((12, 3), (48, 3), (64, 1)):
        kernel = rng.choice((-KERNEL_MAX, KERNEL_MAX), (32, inner, side, side))
        kernel[0], kernel[1] = KERNEL_MAX, -KERNEL_MAX
        x = rng.choice((0, 255), (inner, 24, 24), p=(0.2, 0.8))
        x[:, :12] = 255
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), *[(side // 2,) * 2] * 2)), (side, side), (1, 2))
        expected = np.tensordot(kernel, windows, ((1, 2, 3), (0, 3, 4)))
        layer = _Convolution(torch.from_numpy(kernel).float(), torch.zeros(32), torch.ones(inner), torch.zeros(inner), None)
        layer.dtype = torch.float32
        found = layer(torch.from_numpy(x.astype(np.uint8))[None].contiguous(memory_format=torch.channels_last))
        if not np.array_equal(found[0].numpy().astype(np.int64), expected):
            return False
    return True


def _even(exact: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Change elements by 1 such that the error of each sum over the last axis is at most 1/2."""
    error = whole * _FINE - exact
    total = error.sum(-1, keepdim=True)
    n = (total.abs() + _FINE // 2).div(_FINE, rounding_mode="floor")
    toward = error * total.sign()
    place = toward.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return whole - total.sign() * ((place < n) & (toward > 0))


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]


def _chain(
    block: nn.Module,
    kernels: Sequence[torch.Tensor],
    scale: torch.Tensor,
    zero: torch.Tensor,
    ranges: dict[str, torch.Tensor],
    name: str,
) -> tuple[list[_Convolution], torch.Tensor]:
    """Return a block's convolutions and the scale of the last one's output."""
    layers = []
    for j, (kernel, convolution) in enumerate(zip(kernels, _convolutions(block), strict=True)):
        assert convolution.bias is not None
        out_scale = ranges[f"{name}.{j}"] / 255
        layers.append(_Convolution(kernel, convolution.bias.detach().float(), scale, zero, out_scale))
        scale, zero = out_scale, torch.zeros_like(out_scale)
    return layers, scale


def _unshuffled(rgb: torch.Tensor) -> torch.Tensor:
    """Return uint8 (1, 12, H / 2, W / 2) channels-last of uint8 (H, W, 3), copied as 16-bit words."""
    height, width = rgb.shape[0] // 2, rgb.shape[1] // 2
    pairs = rgb.contiguous().view(-1).view(torch.int16).view(height, 2, width, 3).permute(0, 2, 1, 3)
    return pairs.reshape(height, width, 6).view(torch.uint8)[None].permute(0, 3, 1, 2)


def _upsampled_and_skip(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """Spread four 1x1 results over their 2x2 squares and append the skip's channels; copied as 64-bit words."""
    x, skip = (t.permute(0, 2, 3, 1)[0].view(torch.int64) for t in (x, skip))
    height, width, words = x.shape[0], x.shape[1], x.shape[2] // 4
    out = torch.empty((2 * height, 2 * width, words + skip.shape[2]), dtype=torch.int64)
    squares = out.view(height, 2, width, 2, -1)
    squares[..., :words] = x.unflatten(-1, (2, 2, words)).permute(0, 2, 1, 3, 4)
    out[..., words:] = skip
    return out.view(torch.uint8)[None].permute(0, 3, 1, 2)

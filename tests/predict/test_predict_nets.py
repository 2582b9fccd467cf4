"""Properties of the networks: sizes from the published layer list, receptive field and cost by experiment."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from wsiseg.errors import ConfigError
from wsiseg.predict import NETS, build_net, fold_batch_norm, half_field_wpx, macs_per_px

SMALL = ("tiny", "lean_w16")


def published_parameters() -> int:
    """Count parameters of Hou et al.'s network from its layer list: 3x3 convolutions and 2x2 transposed ones, with biases."""
    total, channels = 0, 3
    for width, convs in ((16, 3), (32, 4), (64, 4), (128, 5), (256, 6)):
        for _ in range(convs):
            total += 9 * channels * width + width
            channels = width
    for width, convs in ((128, 5), (64, 4), (32, 4), (16, 3)):
        total += 4 * channels * channels + channels  # upsampled at its own width, then joined with the skip
        channels += width
        for _ in range(convs):
            total += 9 * channels * width + width
            channels = width
    return total + 9 * channels * 2 + 2


def test_hou43_is_the_published_network() -> None:
    net = build_net("hou43")
    assert sum(p.numel() for p in net.parameters()) == published_parameters() == 5_746_706
    layers = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(layers) == 43
    assert all(m.negative_slope == 0.2 for m in net.modules() if isinstance(m, nn.LeakyReLU))


def test_two_stage_is_two_published_networks() -> None:
    """1,941,105 parameters each, as Mahbod et al. 2019 state."""
    net = build_net("two_stage")
    assert net.center is not None
    assert sum(p.numel() for p in net.center.parameters()) == 1_941_105
    assert sum(p.numel() for p in net.parameters()) == 2 * 1_941_105


def test_the_two_stages_share_nothing() -> None:
    torch.manual_seed(0)
    net = build_net("two_stage").eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = net(x)
        net.head.weight.mul_(2)
        after = net(x)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def counted_macs(name: str, side: int = 64) -> float:
    """Count multiply-adds per input px by watching every convolution run."""
    net, total = build_net(name).eval(), 0.0

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.ConvTranspose2d):
            total += inputs[0].numel() * module.weight[0].numel()
        else:
            total += output.numel() * module.weight[0].numel()

    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.register_forward_hook(watch)
    with torch.no_grad():
        net(torch.zeros(1, 3, side, side))
    return total / side**2


@pytest.mark.parametrize("name", sorted(NETS))
def test_cost_is_counted_right(name: str) -> None:
    assert macs_per_px(NETS[name]) == pytest.approx(counted_macs(name))


def test_the_default_network_costs_at_most_a_quarter_of_hou43() -> None:
    assert macs_per_px(NETS["lean"]) <= macs_per_px(NETS["hou43"]) / 4


def shaken(name: str) -> nn.Module:
    """Return a network whose every batch normalization does something."""
    torch.manual_seed(1)
    net = build_net(name)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return net.eval()


@pytest.mark.parametrize("name", SMALL)
def test_folding_changes_nothing(name: str) -> None:
    net, x = shaken(name), torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = net(x)
        after = fold_batch_norm(net)(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(NETS))
def test_nothing_beyond_the_half_field_matters(name: str) -> None:
    """The gradient of a whole stride's worth of outputs, by autograd, stays within the stated reach of them."""
    spec = NETS[name]
    reach, multiple = half_field_wpx(spec), spec.multiple
    side = 2 * (-(-reach // multiple) * multiple) + 3 * multiple
    net = fold_batch_norm(shaken(name))
    x = torch.rand(1, 3, side, side, requires_grad=True)
    low = (side // multiple // 2) * multiple
    net(x)[:, :, low : low + multiple, low : low + multiple].sum().backward()
    assert x.grad is not None
    rows = torch.nonzero(x.grad.abs().sum((0, 1, 3))).ravel()
    assert int(rows.min()) >= low - reach
    assert int(rows.max()) < low + multiple + reach
    assert int(rows.min()) <= low - reach + 2 * multiple, "the stated reach is far too large"


@pytest.mark.parametrize("name", SMALL)
def test_cropping_on_the_way_up_changes_nothing(name: str) -> None:
    spec = NETS[name]
    net = fold_batch_norm(shaken(name))
    margin = -(-half_field_wpx(spec) // spec.multiple) * spec.multiple
    x = torch.rand(1, 3, 2 * margin + 64, 2 * margin + 64 + spec.multiple) * 2 - 1
    with torch.no_grad():
        whole = net(x)[:, :, margin:-margin, margin:-margin]
        cropped = net(x, margin)
    assert cropped.shape == whole.shape
    torch.testing.assert_close(cropped, whole, rtol=1e-5, atol=1e-5)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(ConfigError, match="hou43"):
        build_net("hou44")

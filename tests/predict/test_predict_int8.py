"""The network in 8-bit integers: near the float network, and blind to windows, threads and order to the last bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage as ndi

from wsiseg.config import PredictConfig
from wsiseg.errors import BackendUnavailableError, WeightsError
from wsiseg.predict import (
    Model,
    UNet,
    activation_ranges,
    build_net,
    is_quantizable,
    load_weights,
    machine,
    model_from_net,
    predict,
    resolve_engine,
    resolve_precision,
    save_weights,
)
from wsiseg.predict.quantize import QuantizedUNet
from wsiseg.types import Box

pytestmark = pytest.mark.skipif(not hasattr(torch.ops.onednn, "qconv2d_pointwise"), reason="this torch has no int8 convolution")

CARD: dict[str, Any] = {"name": "t", "mpp": 0.25, "stain_method": "none", "licence": "none", "separate_defaults": {}}


def tissue(seed: int, height: int = 512, width: int = 640) -> NDArray[np.uint8]:
    """Blobs in two stains."""
    rng = np.random.default_rng(seed)
    density = np.stack([ndi.gaussian_filter(rng.random((height, width)), sigma) for sigma in (4, 12)])
    density = (density - density.min((1, 2), keepdims=True)) / np.ptp(density, axis=(1, 2), keepdims=True)
    absorbed = density[0, ..., None] * [0.65, 0.70, 0.29] + density[1, ..., None] * [0.07, 0.99, 0.11]
    return np.asarray((255 * 10 ** -np.clip(absorbed, 0, 2)).round(), np.uint8)


def shipped() -> UNet:
    net, _ = load_weights("default")
    return net


@pytest.fixture(scope="module")
def net() -> UNet:
    return shipped()


def model(net: UNet, precision: Any, **options: Any) -> Model:
    return model_from_net(copy.deepcopy(net), {**CARD, "sha256": ""}, PredictConfig(precision=precision, **options))


def maps_of(m: Model, rgb: NDArray[np.uint8], out: Box) -> NDArray[np.uint8]:
    box = m.input_box(out)
    white = np.pad(rgb, ((288, 288), (288, 288), (0, 0)), constant_values=255)
    return np.asarray(predict(m, white[288 + box.y : 288 + box.y1, 288 + box.x : 288 + box.x1], box, out))


def test_the_shipped_weights_in_int8_are_near_those_in_fp32(net: UNet) -> None:
    """Within two of 255 levels on average: what bf16 costs is of the same order, what a wrong scale or zero costs is not."""
    rgb = tissue(1)
    out = Box(0, 0, 640, 512)
    exact, whole = (maps_of(model(net, p), rgb, out).astype(np.int16) for p in ("fp32", "int8"))
    assert np.ptp(exact) > 100  # the picture has nuclei for the network
    assert np.abs(exact - whole).mean() < 2
    assert np.abs(exact - whole).max() < 60


@pytest.mark.parametrize("box", [Box(0, 0, 97, 83), Box(205, 101, 361, 33), Box(311, 200, 1, 1), Box(128, 128, 512, 384)])
def test_windows_leave_no_trace(net: UNet, box: Box) -> None:
    rgb = tissue(2)
    whole = maps_of(model(net, "int8", window_wpx=1040), rgb, Box(0, 0, 640, 512))
    part = maps_of(model(net, "int8", window_wpx=256), rgb, box)
    assert np.array_equal(part, whole[:, box.y : box.y1, box.x : box.x1])


@pytest.mark.parametrize("name", ["tiny", "lean_w16", "lean"])
def test_integers_follow_the_plain_network(name: str) -> None:
    """The oracle: the same network in fp32, of random weights, over the whole window."""
    torch.manual_seed(5)
    net = build_net(name).eval()
    rgb = tissue(3, 512, 512)
    ranges = activation_ranges(net, [rgb])
    with torch.inference_mode():
        expected = net(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 127.5 - 1)
        found = QuantizedUNet(copy.deepcopy(net), ranges)(torch.from_numpy(rgb)).float()
    inner = (slice(None), slice(None), slice(160, -160), slice(160, -160))
    error = (found - expected)[inner].square().mean().sqrt() / expected[inner].std()
    assert error < 0.05


def test_a_margin_takes_nothing_but_the_margin(net: UNet) -> None:
    whole = QuantizedUNet(copy.deepcopy(net), net.ranges)
    rgb = torch.from_numpy(tissue(4, 512, 512))
    with torch.inference_mode():
        cropped, plain = whole(rgb, 144), whole(rgb)
    assert cropped.shape == (1, 2, 224, 224)
    assert torch.equal(cropped, plain[:, :, 144:-144, 144:-144])


def test_tta_is_the_mean_of_eight_views(net: UNet) -> None:
    rgb, out = tissue(6, 256, 256), Box(64, 64, 128, 128)
    turned = maps_of(model(net, "int8", tta=8), np.ascontiguousarray(np.rot90(rgb)), out)
    assert np.array_equal(np.rot90(maps_of(model(net, "int8", tta=8), rgb, out), axes=(1, 2)), turned)


def test_ranges_travel_with_the_weights(tmp_path: Path) -> None:
    net = build_net("tiny").eval()
    net.ranges = activation_ranges(net, [tissue(7, 96, 96)])
    path = tmp_path / "w.safetensors"
    save_weights(net, "tiny", CARD, path)
    read, _ = load_weights(str(path))
    assert read.ranges.keys() == net.ranges.keys()
    assert all(torch.equal(read.ranges[name], net.ranges[name]) for name in net.ranges)
    net.ranges = {}
    save_weights(net, "tiny", CARD, path)
    assert load_weights(str(path))[0].ranges == {}


def test_what_cannot_run_in_int8_states_it(net: UNet) -> None:
    assert not is_quantizable(build_net("hou43").spec)
    with pytest.raises(WeightsError, match="bf16 or fp32"):
        QuantizedUNet(build_net("hou43"), {})
    with pytest.raises(WeightsError, match="Export them again"):
        QuantizedUNet(build_net("tiny"), net.ranges)
    with pytest.raises(BackendUnavailableError, match="no int8 ranges"):
        resolve_precision("int8", "cpu", int8=False)
    with pytest.raises(BackendUnavailableError, match="eager"):
        resolve_engine("inductor", "int8", "cpu")


def test_auto_takes_int8_only_where_bytes_multiply_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_has", lambda feature: feature == "vnni")
    assert resolve_precision("auto", "cpu", int8=True) == "int8"
    assert resolve_precision("auto", "cpu", int8=False) in ("bf16", "fp32")
    monkeypatch.setattr(machine, "cpu_has", lambda feature: False)
    assert resolve_precision("auto", "cpu", int8=True) == "fp32"
    assert resolve_precision("int8", "cpu", int8=True) == "int8", "exact all the same"

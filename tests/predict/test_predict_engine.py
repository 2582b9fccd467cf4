"""Windows: what is predicted at a pixel depends on the pixels around it and on nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.config import PredictConfig
from wsiseg.errors import BackendUnavailableError, InputError
from wsiseg.predict import Model, build_net, device_report, model_from_net, predict, resolve_precision, tune_malloc
from wsiseg.types import Box

CARD: dict[str, Any] = {"name": "t", "sha256": "", "mpp": 0.25, "stain_method": "none", "licence": "", "separate_defaults": {}}
FIELD = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
ORIGIN = (-64, 16)  # global position of the field's first pixel


def model(net: str = "tiny", **options: Any) -> Model:
    torch.manual_seed(3)
    return model_from_net(build_net(net), dict(CARD), PredictConfig(**{"precision": "fp32", "window_wpx": 256, **options}))


def maps_of(m: Model, out: Box, wanted: np.ndarray | None = None) -> np.ndarray:
    box = m.input_box(out)
    x, y = box.x - ORIGIN[0], box.y - ORIGIN[1]
    pixels = np.full((box.h, box.w, 3), 255, np.uint8)
    y0, y1, x0, x1 = max(0, y), min(FIELD.shape[0], y + box.h), max(0, x), min(FIELD.shape[1], x + box.w)
    pixels[y0 - y : y1 - y, x0 - x : x1 - x] = FIELD[y0:y1, x0:x1]
    return predict(m, pixels, box, out, wanted)


TINY, LEAN = model(), model("lean_w16")
WHOLE = Box(-64, 16, 640, 480)
TINY_WHOLE, LEAN_WHOLE = maps_of(TINY, WHOLE), maps_of(LEAN, WHOLE)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 639), st.integers(0, 479), st.integers(1, 400), st.integers(1, 400))
def test_any_box_gives_the_pixels_of_the_whole(x: int, y: int, w: int, h: int) -> None:
    w, h = min(w, WHOLE.w - x), min(h, WHOLE.h - y)
    part = maps_of(TINY, Box(WHOLE.x + x, WHOLE.y + y, w, h))
    assert np.array_equal(part, TINY_WHOLE[:, y : y + h, x : x + w])


@pytest.mark.parametrize("box", [Box(-64, 16, 97, 83), Box(5, 101, 361, 33), Box(111, 200, 1, 1)])
def test_the_lean_net_does_not_see_the_windows(box: Box) -> None:
    whole = LEAN_WHOLE
    x, y = box.x - WHOLE.x, box.y - WHOLE.y
    assert np.array_equal(maps_of(LEAN, box), whole[:, y : y + box.h, x : x + box.w])


def test_one_window_equals_the_network_itself() -> None:
    """The oracle: normalize, run the plain network on the whole input, sigmoid, round."""
    out = Box(0, 32, 96, 64)
    box = TINY.input_box(out)
    pixels = FIELD[box.y - ORIGIN[1] : box.y1 - ORIGIN[1], box.x - ORIGIN[0] : box.x1 - ORIGIN[0]]
    torch.manual_seed(3)
    net = build_net("tiny").eval()
    with torch.no_grad():
        logits = net(torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None])[0].numpy()
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    top, left = out.y - box.y, out.x - box.x
    expected = 255 * p[:, top : top + out.h, left : left + out.w]
    assert np.abs(maps_of(TINY, out) - expected).max() <= 0.5 + 0.2


def test_input_box_is_aligned_and_holds_the_halo() -> None:
    box = LEAN.input_box(Box(-3, 17, 10, 20))
    assert all(v % LEAN.multiple == 0 for v in (box.x, box.y, box.x1, box.y1))
    assert box.x <= -3 - LEAN.halo_wpx
    assert box.y1 >= 37 + LEAN.halo_wpx


def test_unwanted_pixels_are_zero_and_the_others_untouched() -> None:
    wanted = np.zeros((WHOLE.h, WHOLE.w), np.uint8)
    wanted[40:150, 200:260] = 255
    whole, masked = TINY_WHOLE, maps_of(TINY, WHOLE, wanted)
    assert np.array_equal(masked, whole * (wanted > 0))


def test_augmented_prediction_turns_with_the_image() -> None:
    m = model(tta=8)
    out = Box(0, 0, 128, 128)
    box = m.input_box(out)
    pixels = np.random.default_rng(1).integers(0, 256, (box.h, box.w, 3), np.uint8)
    straight = predict(m, pixels, box, out).astype(int)
    for turned, back in ((np.rot90(pixels), lambda a: np.rot90(a, -1, (1, 2))), (pixels[:, ::-1], lambda a: a[:, :, ::-1])):
        assert np.abs(back(predict(m, np.ascontiguousarray(turned), box, out)).astype(int) - straight).max() <= 1
    assert np.abs(predict(model(), pixels, box, out).astype(int) - straight).max() > 1, "eight views should not equal one"


def test_bf16_stays_near_fp32() -> None:
    out = Box(0, 32, 128, 128)
    exact, rounded = (maps_of(m, out).astype(int) for m in (LEAN, model("lean_w16", precision="bf16")))
    assert np.abs(exact - rounded).mean() < 2  # an untrained network: a worst case
    assert not np.array_equal(exact, rounded)


def test_precision_is_resolved_once_and_named() -> None:
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    chosen = resolve_precision("auto", "cpu")
    assert chosen == resolve_precision("auto", "cpu")
    assert chosen in {"fp32", "bf16"}
    assert {name for name, _, _ in device_report()} >= {"device cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_reported() -> None:
    with pytest.raises(BackendUnavailableError, match="cuda"):
        resolve_precision("auto", "cuda")


def test_malloc_is_tuned_on_linux() -> None:
    import sys

    assert tune_malloc() in ({True} if sys.platform == "linux" else {True, False})


def test_wrong_input_is_refused() -> None:
    out = Box(0, 0, 32, 32)
    box = TINY.input_box(out)
    good = np.zeros((box.h, box.w, 3), np.uint8)
    with pytest.raises(InputError, match="uint8"):
        predict(TINY, good.astype(np.float32), box, out)
    with pytest.raises(InputError, match="expected rgb"):
        predict(TINY, good[1:], box, out)
    with pytest.raises(InputError, match="input_box"):
        predict(TINY, good, box, out.padded(1))
    with pytest.raises(InputError, match="wanted"):
        predict(TINY, good, box, out, np.ones((3, 3)))

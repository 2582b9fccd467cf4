"""Run the network over RGB windows such that a pixel's value never depends on how the windows were cut.

Window origins are multiples of the network's stride and every kept pixel is at least the network's half receptive field
away from its window's border, so in fp32 and int8 the maps are those of one infinite window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from wsiseg.backend import array_namespace, is_cupy_array, memory_errors
from wsiseg.config import PredictConfig
from wsiseg.errors import InputError, TileComputeError
from wsiseg.log import log
from wsiseg.predict.graphs import CapturedGraph, record_on_gpu
from wsiseg.predict.machine import Engine, Precision, resolve_engine, resolve_precision
from wsiseg.predict.memory import Window
from wsiseg.predict.nets import NetSpec, UNet, fold_batch_norm, half_field_wpx
from wsiseg.predict.quantize import QuantizedUNet, is_quantizable
from wsiseg.predict.weights import load_weights
from wsiseg.types import Box, Stain

__all__ = ["Model", "load_model", "model_from_net", "predict", "predict_picture"]

Array = Any

_WINDOW_WPX = {"cpu": 1040, "cuda": 4160}
"""Side of a window without its halo. A single process is faster at 2080 px (benchmarks/network.py), but several share the
memory bus, and smaller windows fit the tissue more closely: with two processes on two cores 1040 px was faster."""

_INT8_WINDOW_WPX = 2080
"""The same for int8, which loads the memory bus less: 13 % faster than 1040 px over a slide, with two processes."""

_MIN_WPX = 112
"""Smallest side of a window: torch computes smaller layers by other code, whose results differ in the last bit."""

_CUT_WPX = 256
"""Windows are cut to the tissue in steps of this: few sizes, since torch makes and keeps a plan for each new size."""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A network that is ready to predict, with the fields of its card.

    Attributes
    ----------
    mpp
        um per working px of its training images.
    stain_aim
        The stain normalization of its training images, which slides need too: method and numbers of the reference image (none:
        the method's own reference).
    halo_wpx
        Context that it needs around a pixel, working px, a multiple of ``multiple``.
    separate_defaults
        Fitted values for the fields of ``SeparateConfig`` that are ``None``.
    precision, engine
        ``fp32``, ``bf16`` or ``int8``, and ``eager`` or ``inductor``: how it computes here.
    window
        Side of its windows without the halo; it is reduced when a device's memory is too small.
    logits, graph
        Functions of uint8 (H, W, 3) and a margin that return logits (1, 2, h, w) and maps uint8 (2, h, w); ``graph`` is run by
        the engine.
    """

    name: str
    sha256: str
    mpp: float
    stain_aim: Stain
    licence: str
    separate_defaults: dict[str, Any]
    card: dict[str, Any]
    precision: Precision
    engine: Engine
    device: str
    halo_wpx: int
    multiple: int
    window: Window
    tta: int
    spec: NetSpec
    logits: Callable[[torch.Tensor, int], torch.Tensor] = field(repr=False)
    graph: Callable[[torch.Tensor, int], torch.Tensor] = field(repr=False)

    def input_box(self, box: Box) -> Box:
        """Return the box that must be read to predict ``box``: grown by the halo, edges on multiples in global working px."""
        return _aligned(box, self.multiple).padded(self.halo_wpx)

    def without_tta(self) -> Model:
        """Return the same model without test-time augmentation."""
        return self if self.tta == 1 else replace(self, tta=1, graph=_prepared_graph(self.logits, 1, self.engine, self.device))


def load_model(config: PredictConfig, device: str = "cpu") -> Model:
    """Load weights and prepare the network on a device.

    Raises
    ------
    WeightsError
        The weights are missing, altered or of another network.
    BackendUnavailableError
        The device does not exist.
    """
    net, card = load_weights(config.weights)
    return model_from_net(net, card, config, device)


def model_from_net(net: UNet, card: dict[str, Any], config: PredictConfig, device: str = "cpu") -> Model:
    """Prepare a trained network to predict (it is folded in place); ``card`` as ``wsiseg.predict.weights`` describes."""
    precision = resolve_precision(config.precision, device, int8=bool(net.ranges) and is_quantizable(net.spec))
    engine = resolve_engine(config.engine, precision, device)
    multiple = net.spec.multiple
    logits: Any
    if precision == "int8":
        logits = QuantizedUNet(net, net.ranges)
    else:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        logits = _Floats(fold_batch_norm(net), dtype).to(device=device, dtype=dtype, memory_format=torch.channels_last)
    usual_wpx = _INT8_WINDOW_WPX if precision == "int8" else _WINDOW_WPX[torch.device(device).type]
    return Model(
        name=card["name"],
        sha256=card["sha256"],
        mpp=float(card["mpp"]),
        stain_aim=Stain(card["stain_method"], tuple(card.get("stain_reference", {}).get("params", ()))),
        licence=card["licence"],
        separate_defaults=dict(card["separate_defaults"]),
        card=card,
        precision=precision,
        engine=engine,
        device=device,
        halo_wpx=-(-half_field_wpx(net.spec) // multiple) * multiple,
        multiple=multiple,
        window=Window(max(config.window_wpx, 256) if config.window_wpx else usual_wpx),
        tta=config.tta,
        spec=net.spec,
        logits=logits,
        graph=_prepared_graph(logits, config.tta, engine, device),
    )


def predict(
    model: Model,
    rgb: Array,
    input_box: Box,
    out_box: Box,
    wanted: Array | None = None,
    events: Counter[str] | None = None,
) -> Array:
    """Return the center and material maps of a box.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        Pixels of ``input_box``, NumPy or CuPy.
    input_box, out_box
        Global working px; ``input_box`` contains ``model.input_box(out_box)``.
    wanted : (h, w), optional
        Mask of ``out_box``; where it is 0 the maps are 0, and windows in which it is all 0 are not computed.
    events
        ``window_halved`` counts windows that did not fit in the device's memory and were computed in parts.

    Returns
    -------
    uint8 (2, h, w)
        Probabilities times 255: 0 center, 1 material. NumPy or CuPy as ``rgb``.

    Raises
    ------
    InputError
        Shapes, dtype or boxes do not match.
    TileComputeError
        The device's memory is too small for the smallest window.
    """
    _check(model, rgb, input_box, out_box, wanted)
    xp = array_namespace(rgb)
    out = xp.zeros((2, out_box.h, out_box.w), np.uint8)
    waiting = _windows(out_box, model.window.side_wpx, model.multiple)[::-1]
    while waiting:
        window = waiting.pop()
        part = window if wanted is None else _wanted_part(window, wanted, out_box, cut=model.device == "cpu")
        if part.w == 0:
            continue
        inner = (slice(part.y - out_box.y, part.y1 - out_box.y), slice(part.x - out_box.x, part.x1 - out_box.x))
        core = _aligned(part, model.multiple)
        box = core.padded(model.halo_wpx)
        pixels = rgb[box.y - input_box.y : box.y1 - input_box.y, box.x - input_box.x : box.x1 - input_box.x]
        maps = _run_if_it_fits(model, pixels)
        if maps is None:
            waiting += _smaller(model, part)
            if events is not None:
                events["window_halved"] += 1
            continue
        top, left = part.y - core.y, part.x - core.x
        out[(slice(None), *inner)] = maps[:, top : top + part.h, left : left + part.w]
    if wanted is not None:
        out *= (wanted != 0)[None]
    return out


def predict_picture(model: Model, rgb: Array) -> Array:
    """Return the maps of a picture whose surroundings are not known; the model's device must be the CPU.

    Parameters
    ----------
    rgb : uint8 (H, W, 3)
        A picture at ``model.mpp``; both sides multiples of ``model.multiple``, 112 px or more.

    Returns
    -------
    uint8 (2, H, W)
        See ``predict``. The picture is padded with its mirror image, ``model.multiple`` px wide, and beyond that by the
        network's convolutions, so that within the receptive field of the edge the maps differ slightly from those of a slide.

    Raises
    ------
    InputError
        The picture does not have this size or dtype.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or min(rgb.shape[:2]) < _MIN_WPX:
        raise InputError(f"Expected uint8 (H, W, 3) of at least {_MIN_WPX} px per side, got {rgb.dtype} {rgb.shape}.")
    if rgb.shape[0] % model.multiple or rgb.shape[1] % model.multiple:
        raise InputError(f"Expected sides that are multiples of {model.multiple} px, got {rgb.shape[:2]}.")
    margin = model.multiple
    pixels = np.pad(rgb, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    with torch.inference_mode():
        return model.graph(torch.from_numpy(pixels), margin).numpy()


class _Floats(nn.Module):
    """The network in floating point: uint8 (H, W, 3) to logits (1, 2, h, w)."""

    def __init__(self, net: UNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = net, dtype

    def forward(self, rgb: torch.Tensor, margin: int) -> torch.Tensor:
        x = rgb.permute(2, 0, 1)[None].to(self.dtype) * (1 / 127.5) - 1
        logits: torch.Tensor = self.net(x.contiguous(memory_format=torch.channels_last), margin)
        return logits


def _prepared_graph(logits: Any, tta: int, engine: Engine, device: str) -> Any:
    graph: Any = _Graph(logits, tta).to(device).eval()
    if engine == "inductor":
        return torch.compile(graph, dynamic=False, options={"freezing": True})
    if engine == "graph":
        return CapturedGraph(graph, record_on_gpu, lambda: torch.cuda.current_stream().cuda_stream)
    return graph


class _Graph(nn.Module):
    """The network with the conversion from and to bytes, so that no float image leaves the device.

    It maps uint8 (H, W, 3) to uint8 (2, h, w).
    """

    def __init__(self, logits: Callable[[torch.Tensor, int], torch.Tensor], tta: int) -> None:
        super().__init__()
        self.logits, self.tta = logits, tta
        self.levels: torch.Tensor
        self.register_buffer("levels", _level_table(), persistent=False)

    def forward(self, rgb: torch.Tensor, margin: int) -> torch.Tensor:
        if self.tta == 1:
            return self._level(self.logits(rgb, margin))[0]
        total = torch.zeros((), dtype=torch.int32, device=rgb.device)
        for turns in range(4):
            for mirror in (False, True):
                seen = torch.rot90(rgb.flip(1) if mirror else rgb, turns, (0, 1)).contiguous()
                level = torch.rot90(self._level(self.logits(seen, margin)), -turns, (2, 3)).to(torch.int32)
                total = total + (level.flip(3) if mirror else level)
        return ((total[0] + 4) // 8).to(torch.uint8)

    def _level(self, logits: torch.Tensor) -> torch.Tensor:
        """Return 255 sigmoid(logit) rounded, by a table over the logit as bfloat16.

        A vectorized sigmoid ends each run of pixels with scalar code that differs in the last bit, so its result would
        depend on the window; a table does not. Rounding the logit moves the result by less than a fifth of a level.
        """
        bits = logits.contiguous().to(torch.bfloat16).view(torch.int16).to(torch.int32) + 32768
        return torch.index_select(self.levels, 0, bits.flatten()).view(logits.shape)


def _level_table() -> torch.Tensor:
    """uint8 (65536,): for each bfloat16, by its bits as int16 plus 32768, the rounded 255 sigmoid; 0 for nan."""
    bits = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16)
    return (torch.sigmoid(bits.view(torch.bfloat16).double()) * 255).round().nan_to_num(0).to(torch.uint8)


def _run_if_it_fits(model: Model, pixels: Array) -> Array | None:
    """Return the maps of a window; ``None`` if the device's memory is too small (the attempt's memory is then freed)."""
    try:
        return _run(model, pixels)
    except memory_errors():
        return None


def _smaller(model: Model, part: Box) -> list[Box]:
    """Return the smaller windows that replace one that did not fit."""
    tried = max(part.w, part.h)
    side = model.window.halve(tried)
    if side is None:
        raise TileComputeError(
            f"The memory of {model.device} is too small for a network window of {tried} px. Free some (other programs on it), "
            "or use --workers-per-gpu 1, a larger schedule.device_memory_frac, or --device cpu."
        )
    if model.device != "cpu":
        torch.cuda.empty_cache()
    log.warning("the memory of %s is too small for a window of %d px: continuing with %d px", model.device, tried, side)
    return _windows(part, side, model.multiple)


def _run(model: Model, pixels: Array) -> Array:
    with torch.inference_mode():
        # a GPU's library chooses kernels by size, and different kernels differ in the last bits
        as_it_is = model.engine == "eager" and model.device == "cpu"
        return _compute(model, pixels) if as_it_is else _run_at_one_size(model, pixels)


def _compute(model: Model, pixels: Array) -> Array:
    if is_cupy_array(pixels):
        maps = model.graph(torch.from_dlpack(array_namespace(pixels).ascontiguousarray(pixels)), model.halo_wpx)
        return array_namespace(pixels).from_dlpack(maps)
    rgb = torch.from_numpy(np.ascontiguousarray(pixels)).to(model.device)
    return model.graph(rgb, model.halo_wpx).cpu().numpy()


def _run_at_one_size(model: Model, pixels: Array) -> Array:
    """Run a window padded with white to the largest size that occurs, so that the graph is compiled or recorded once.

    The padding is at least the halo away from every px that is kept, so it changes none of them.
    """
    height, width = pixels.shape[:2]
    largest = _aligned(Box(0, 0, model.window.side_wpx, 1), model.multiple).w + 2 * model.multiple + 2 * model.halo_wpx
    side = max(largest, height, width)
    square = array_namespace(pixels).full((side, side, 3), 255, np.uint8)
    square[:height, :width] = pixels
    maps = _compute(model, square)
    return maps[:, : height - 2 * model.halo_wpx, : width - 2 * model.halo_wpx]


def _aligned(box: Box, multiple: int) -> Box:
    """Grow a box outward until its edges are multiples of ``multiple`` and its sides at least ``_MIN_WPX``."""
    x, y = box.x // multiple * multiple, box.y // multiple * multiple
    w, h = (-(-max(end, start + _MIN_WPX) // multiple) * multiple - start for start, end in ((x, box.x1), (y, box.y1)))
    return Box(x, y, w, h)


def _wanted_part(window: Box, wanted: Array, out_box: Box, *, cut: bool) -> Box:
    """Return the part of a window, in steps of ``_CUT_WPX``, that contains all its wanted px; of width 0 if there are none.

    If windows are not cut it is the whole window, or of width 0.
    """
    inside = wanted[window.y - out_box.y : window.y1 - out_box.y, window.x - out_box.x : window.x1 - out_box.x]
    if not cut:
        return window if bool(inside.any()) else Box(window.x, window.y, 0, 0)
    rows, columns = np.flatnonzero(_on_host(inside.any(axis=1))), np.flatnonzero(_on_host(inside.any(axis=0)))
    if len(rows) == 0:
        return Box(window.x, window.y, 0, 0)
    x0, y0 = (int(v[0]) // _CUT_WPX * _CUT_WPX for v in (columns, rows))
    x1, y1 = (-(-(int(v[-1]) + 1) // _CUT_WPX) * _CUT_WPX for v in (columns, rows))
    return Box(window.x + x0, window.y + y0, min(x1, window.w) - x0, min(y1, window.h) - y0)


def _on_host(array: Array) -> Array:
    return array.get() if is_cupy_array(array) else array


def _windows(box: Box, side: int, multiple: int) -> list[Box]:
    """Partition a box into windows of about equal size, at most ``side`` plus one multiple, cut on multiples."""

    def cuts(start: int, stop: int) -> list[int]:
        n = max(1, -(-(stop - start) // side))
        inner = {round((start + (stop - start) * i / n) / multiple) * multiple for i in range(1, n)}
        return [start, *sorted(c for c in inner if start < c < stop), stop]

    xs, ys = cuts(box.x, box.x1), cuts(box.y, box.y1)
    return [Box(x0, y0, x1 - x0, y1 - y0) for y0, y1 in pairwise(ys) for x0, x1 in pairwise(xs)]


def _check(model: Model, rgb: Array, input_box: Box, out_box: Box, wanted: Array | None) -> None:
    if str(rgb.dtype) != "uint8" or rgb.shape != (input_box.h, input_box.w, 3):
        expected = (input_box.h, input_box.w, 3)
        raise InputError(f"predict: expected rgb uint8 {expected} for {input_box}, got {rgb.dtype} {rgb.shape}.")
    need = model.input_box(out_box)
    if need.x < input_box.x or need.y < input_box.y or need.x1 > input_box.x1 or need.y1 > input_box.y1:
        raise InputError(
            f"predict: the output {out_box} needs input pixels of {need}, got only {input_box}. Read model.input_box(out_box)."
        )
    if wanted is not None and wanted.shape != (out_box.h, out_box.w):
        raise InputError(f"predict: expected wanted of shape {(out_box.h, out_box.w)}, got {wanted.shape}.")

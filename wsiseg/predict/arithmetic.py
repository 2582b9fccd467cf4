"""Identify the arithmetic of this processor by a digest of a model's maps of a fixed picture.

Processors compute the same network differently in the last bit, and their names do not show which. So it is measured: equal
digests mean equal maps. By ``tests/predict/test_predict_processors.py``, int8 is the same on every x86 processor, because its
sums are integers; fp32 is the same with AVX2 and AVX-512; bf16 differs between AMX, AVX512_BF16 and emulation.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsiseg.predict.engine import Model
from wsiseg.predict.machine import processor_name
from wsiseg.types import Processor

__all__ = ["arithmetic_of", "machine_id", "probe_picture"]

_SIDE_WPX = 128
"""Side of the compared maps: 32,768 numbers; on another processor bf16 changes thousands of them."""


def arithmetic_of(model: Model) -> Processor:
    """Return a digest that is equal on processors where a model gives the same results, and the processor's name.

    Returns
    -------
    Processor
        ``digest``: 16 hex digits over the network's output for ``probe_picture``, before it is rounded to bytes; the same for
        any number of threads. A compiled graph is not run for it, which would need a compilation: its convolutions are the
        same. ``device`` (``cpu`` or ``cuda``), and ``processor`` and ``host``, for messages.
    """
    picture = torch.from_numpy(probe_picture(_SIDE_WPX + 2 * model.halo_wpx)).to(model.device)
    with torch.inference_mode():
        logits = model.logits(picture, model.halo_wpx).float().cpu().contiguous().numpy()
    digest = hashlib.sha256(logits.tobytes()).hexdigest()[:16]
    kind = torch.device(model.device).type
    return Processor(digest, processor_name(model.device), platform.node(), kind)


def machine_id(device: str) -> str:
    """Return an id of this machine since its last boot, with its processor's name; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return f"{boot} {platform.node()} {processor_name(device)}"


def probe_picture(side: int) -> NDArray[np.uint8]:
    """Return dark blobs of several sizes on pink, uint8 (side, side, 3), in integer arithmetic: the same on every machine."""
    rng = np.random.default_rng(12)
    density = np.zeros((side, side), np.int64)
    for step in (6, 12, 24):
        n = side // step + 3
        coarse = rng.integers(0, 256, (n, n)).repeat(step, 0).repeat(step, 1)
        for axis in (0, 1):
            summed = np.cumsum(coarse, axis=axis)
            coarse = (np.roll(summed, -step, axis) - summed) // step
        density += coarse[:side, :side]
    dark = np.clip(density - 340, 0, 255)[..., None] * np.array([150, 190, 90])
    return np.asarray(np.clip(np.array([240, 205, 225]) - dark // 128, 0, 255), np.uint8)

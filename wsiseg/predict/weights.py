"""Read and write weights: a ``.safetensors`` file and a ``.json`` card of the same name.

The card contains the network's name, the file's sha256, the working resolution, the stain normalization of the training images,
the separation thresholds, the licence, the data and the scores.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode
from safetensors.torch import save as encode

from wsiseg.errors import WeightsError
from wsiseg.predict.nets import NETS, UNet, build_net
from wsiseg.tables import atomic_write_bytes

__all__ = ["DEFAULT_WEIGHTS", "SHIPPED_DIR", "as_stored", "load_weights", "save_weights", "weights_path"]

SHIPPED_DIR = Path(__file__).parent / "weights"
DEFAULT_WEIGHTS = "research"
"""The weights that ``default`` means: the set that scores better on validation data."""

_RANGE = "range."
"""Prefix of the tensors in the file with the int8 ranges measured by ``wsiseg.predict.quantize``."""

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "net": str,
    "sha256": str,
    "mpp": (int, float),
    "stain_method": str,
    "licence": str,
    "separate_defaults": dict,
}


def weights_path(weights: str) -> Path:
    """Return the weights file of an option value (``default``, ``open``, ``research`` or a path).

    Raises
    ------
    WeightsError
        The file does not exist; the message names the weights that ship.
    """
    shipped = {path.stem: path for path in sorted(SHIPPED_DIR.glob("*.safetensors"))}
    name = DEFAULT_WEIGHTS if weights == "default" else weights
    if name in shipped:
        return shipped[name]
    path = Path(weights)
    if path.suffix != ".safetensors":
        raise WeightsError(f"No weights named {name!r}. Expected one of {sorted(shipped)} or a path to a .safetensors file.")
    if not path.is_file():
        raise WeightsError(f"Weights file {path} does not exist. Give a .safetensors file, or one of {sorted(shipped)}.")
    return path


def load_weights(weights: str) -> tuple[UNet, dict[str, Any]]:
    """Return the network with its weights (fp32, CPU, evaluation mode) and its card.

    Raises
    ------
    WeightsError
        The file or its card is missing, altered, or belongs to another network.
    """
    path = weights_path(weights)
    card = _read_card(path.with_suffix(".json"))
    try:
        raw = path.read_bytes()
    except OSError as err:
        raise WeightsError(f"Weights file {path}: cannot be read: {err.strerror or err}.") from err
    digest = hashlib.sha256(raw).hexdigest()
    if digest != card["sha256"]:
        raise WeightsError(
            f"Weights file {path.name} was altered: its card states sha256 {card['sha256'][:12]}..., the file has "
            f"{digest[:12]}.... Restore both from one source."
        )
    net = build_net(card["net"])
    try:
        state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in decode(raw).items()}
        net.ranges = {name.removeprefix(_RANGE): state.pop(name) for name in sorted(state) if name.startswith(_RANGE)}
        net.load_state_dict(state)
    except (SafetensorError, RuntimeError) as err:
        raise WeightsError(f"Weights file {path.name} does not fit the network {card['net']!r}: {err}") from err
    return net.eval(), card


def save_weights(net: UNet, net_name: str, card: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write ``path`` (.safetensors) and its card (.json), each atomically, and return the card as written.

    Kernels are stored as fp16 (half the size; inference rounds them to bf16 anyway), all other tensors unchanged.

    Raises
    ------
    WeightsError
        The card lacks a required field, or the path does not end in .safetensors.
    """
    if path.suffix != ".safetensors":
        raise WeightsError(f"Expected a path ending in .safetensors, got {path}.")
    state = {name: (t.half() if t.ndim > 1 else t).detach().cpu().contiguous() for name, t in net.state_dict().items()}
    state |= {_RANGE + name: high.detach().cpu().contiguous() for name, high in net.ranges.items()}
    raw = encode(state)
    whole = {**card, "net": net_name, "sha256": hashlib.sha256(raw).hexdigest()}
    _check_card(whole, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, raw)
    atomic_write_bytes(path.with_suffix(".json"), (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())
    return whole


def as_stored(net: UNet) -> UNet:
    """Return the network with its kernels rounded as ``save_weights`` rounds them (in place), to score what is shipped."""
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.ndim > 1:
                tensor.copy_(tensor.half().to(tensor.dtype))
    return net


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as err:
        raise WeightsError(f"The card {path} of the weights: {err}. Weights are only used together with their card.") from err
    _check_card(card, path)
    return dict(card)


def _check_card(card: object, path: Path) -> None:
    if not isinstance(card, dict):
        raise WeightsError(f"The card {path}: expected an object, got {type(card).__name__}.")
    for field, kind in _REQUIRED.items():
        if not isinstance(card.get(field), kind):
            raise WeightsError(f"The card {path}: field {field!r} is missing or of the wrong type, got {card.get(field)!r}.")
    if card["net"] not in NETS:
        raise WeightsError(f"The card {path} names the network {card['net']!r}. Expected one of {sorted(NETS)}.")

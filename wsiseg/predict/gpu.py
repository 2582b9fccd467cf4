"""Prepare a GPU for tiles: limit the memory of PyTorch and CuPy together, load the network, choose windows, make streams."""

from __future__ import annotations

from typing import Any

import torch

from wsiseg.backend import device_number
from wsiseg.config import PredictConfig
from wsiseg.errors import BackendUnavailableError
from wsiseg.predict.engine import Model, load_model
from wsiseg.predict.memory import plan_device

__all__ = ["claim_device", "cuda_obstacle", "ready_device"]


def ready_device(config: PredictConfig, device: str, share: float, tile_wpx: int) -> tuple[Model, list[Any]]:
    """Load the network onto a GPU; return it and one stream for each tile that may be on the device at the same time.

    Parameters
    ----------
    config
        With ``window_wpx`` 0 the largest window that fits is used.
    device
        ``cuda`` or ``cuda:1``.
    share
        Fraction of the device's free memory that this process may use.
    tile_wpx
        Side of the window that a tile reads, including the separation halo.

    Raises
    ------
    BackendUnavailableError
        The device cannot be used; the message states why.
    WeightsError
        See ``load_model``.
    """
    from wsiseg.backend.dlpack import streams

    max_bytes = claim_device(device, share)
    model = load_model(config, device)
    torch.cuda.synchronize(device_number(device))  # loaded on the default stream, used on others
    spec = model.spec
    plan = plan_device(max_bytes, spec, 2 if model.precision == "bf16" else 4, tile_wpx, model.halo_wpx)
    if not config.window_wpx:
        model.window.side_wpx = plan.window_wpx
    return model, streams(device_number(device), plan.batch)


def claim_device(device: str, share: float) -> int:
    """Limit this process's memory on a GPU to a share of the free memory, for PyTorch and CuPy together; return the bytes.

    Raises
    ------
    BackendUnavailableError
        The device cannot be used.
    """
    from wsiseg.backend.dlpack import share_pool

    obstacle = cuda_obstacle()
    if obstacle:
        raise BackendUnavailableError(f"Expected a usable GPU for --device cuda: {obstacle}. Use --device cpu.")
    number = device_number(device)
    free, _ = torch.cuda.mem_get_info(number)
    most = int((free + torch.cuda.memory_reserved(number)) * share)  # what this process holds already is its own
    share_pool(number, most)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # the same bytes each time
    torch.backends.cudnn.allow_tf32 = False  # no TF32: maps then agree with the CPU's within one level of 255
    return most


def cuda_obstacle() -> str:
    """Return in one line why PyTorch and CuPy cannot compute on a GPU here; empty if they can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA (pip install torch from PyPI's CUDA wheels)"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no usable GPU (its CUDA {torch.version.cuda} may be newer than the driver)"
    from wsiseg.backend.cuda import cuda_report

    usable, detail = cuda_report()
    return "" if usable else detail

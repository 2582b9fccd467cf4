"""Train one network with several processes, started by torchrun; each computes its part of every batch.

Gradients are averaged (DistributedDataParallel: gloo between CPUs, NCCL between GPUs) and batch normalization uses the whole
batch, so n processes with b patches each take the same steps as one process with n * b patches. Only rank 0 writes files.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed.nn  # before a process group exists: its default arguments keep the group of the time of import
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from wsiseg.errors import ConfigError

__all__ = ["ProcessGroup", "own_device", "rank_and_size", "process_group", "training_device"]

_TIMEOUT = timedelta(hours=12)  # the others wait in a collective while rank 0 validates


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes, as set by torchrun; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def training_device(name: str) -> str:
    """Return ``cuda`` or ``cpu`` for ``auto`` (whether PyTorch can use a GPU), and any other device unchanged."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def own_device(device: str) -> torch.device:
    """Return this process's device; with ``cuda``, each of several processes uses its own GPU. Raises as ``process_group``."""
    rank, size = rank_and_size()
    place = torch.device(device)
    if size == 1 or place.type != "cuda":
        return place
    if place.index is not None:
        raise ConfigError(f'{size} processes cannot share {device}: give device = "cuda", and each takes its own.')
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The group of processes of one run, as seen by one of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files (rank 0)."""
        return self.rank == 0

    def wrap(self, net: nn.Module) -> nn.Module:
        """Return the module for the forward pass: the network itself, or a wrapper that averages gradients over the group."""
        if self.size == 1:
            return net
        shared: nn.Module = net
        if self.device.type == "cuda":
            shared = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        else:
            for module in net.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = _GroupBatchNorm  # torch's SyncBatchNorm supports GPUs only
        return DistributedDataParallel(shared, device_ids=[self.device.index] if self.device.type == "cuda" else None)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over the processes."""
        if self.size > 1:
            values = values.clone()
            distributed.all_reduce(values)
            values /= self.size
        return values

    def agree(self, step: int) -> None:
        """Wait for the other processes. Raises ``ConfigError`` if they do not all start from the same step."""
        if self.size > 1:
            steps: list[Any] = [None] * self.size
            distributed.all_gather_object(steps, step)
            if len(set(steps)) > 1:
                raise ConfigError(
                    f"The {self.size} processes start from different steps, {steps}. Use a run folder that all of them share."
                )


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Yield the group of processes that torchrun started (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``), or a group of one.

    Parameters
    ----------
    device
        ``cpu``, ``cuda`` (each process uses the GPU of its ``LOCAL_RANK``) or ``cuda:k`` (one process).

    Raises
    ------
    ConfigError
        There are several processes, but ``device`` is a single GPU.
    """
    rank, size = rank_and_size()
    place = own_device(device)
    if size == 1:
        yield ProcessGroup(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    mine = not distributed.is_initialized()
    if mine:
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield ProcessGroup(rank, size, place)
    finally:
        if mine:
            # The threads of the group end with its last reference. A thread that still runs while Python shuts down is killed
            # when it requests the interpreter lock, which aborts the process.
            gc.collect()  # DistributedDataParallel has a reference to the group, and to itself
            distributed.destroy_process_group()


class _Sum(torch.autograd.Function):
    """Sum over the processes, forward and backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class _GroupBatchNorm(nn.BatchNorm2d):
    """Batch normalization over the patches of all processes (equal numbers in each)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        size = distributed.get_world_size()
        wide = x.float()
        mean = _Sum.apply(wide.mean((0, 2, 3))) / size
        centered = wide - mean[:, None, None]
        variance = _Sum.apply(centered.square().mean((0, 2, 3))) / size
        n = size * x.numel() // x.shape[1]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / max(1, n - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

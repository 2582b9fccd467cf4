"""PyTorch and CuPy together on one GPU: one memory pool, one stream at a time, arrays passed without a copy.

Arrays are passed by DLPack in ``wsiseg.predict``. This module does the rest: CuPy's memory comes from
PyTorch's pool, so that one limit holds for both and neither keeps memory that the other needs. A tile's work goes to one stream
of both, so that neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from wsiseg.backend.cuda import shared_stream, use_allocator

__all__ = ["on_stream", "pool_facts", "share_pool", "streams"]


def share_pool(device_id: int, max_bytes: int) -> None:
    """Make CuPy allocate from PyTorch's pool on a device, and limit that pool for this process.

    A request beyond ``max_bytes`` raises ``torch.OutOfMemoryError``, from either library.
    """
    total = torch.cuda.get_device_properties(device_id).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, max_bytes / total), device_id)
    use_allocator(_allocate, torch.cuda.caching_allocator_delete)


def _allocate(n_bytes: int, device_id: int) -> int:
    stream = torch.cuda.current_stream(device_id)  # a block is reused in the order of the stream that it was allocated for
    return int(torch.cuda.caching_allocator_alloc(n_bytes, device_id, stream))


def streams(device_id: int, n: int) -> list[Any]:
    """Return ``n`` streams, one for each tile that is on the device at the same time."""
    return [torch.cuda.Stream(device_id) for _ in range(n)]


@contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """Send this thread's work of both libraries to a stream of ``streams``."""
    with torch.cuda.stream(stream), shared_stream(stream.cuda_stream, stream.device.index):
        yield


def pool_facts(device_id: int) -> dict[str, int]:
    """Return bytes in use now, bytes reserved, and the most that were reserved since the process began."""
    return {
        "used_bytes": int(torch.cuda.memory_allocated(device_id)),
        "held_bytes": int(torch.cuda.memory_reserved(device_id)),
        "peak_bytes": int(torch.cuda.max_memory_reserved(device_id)),
    }

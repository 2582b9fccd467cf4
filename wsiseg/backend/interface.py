"""The interface between a stage's device code and a device: arrays, two scans, and kernels by name.

The same driver code runs with CuPy on a GPU (``wsiseg.backend.cuda``) and, in the tests, with kernels compiled for the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["BLOCK", "BLOCK_2D", "Backend", "DeviceTimer", "blocks_for", "blocks_over"]

Array = Any

BLOCK = (256,)
"""Threads of a block for kernels with one thread per element of a list."""
BLOCK_2D = (32, 8)
"""Threads of a block for kernels with one thread per pixel: a warp reads one row."""


class Backend(Protocol):
    """Arrays in C order on one device, and kernels that work on them in the order in which they are launched."""

    def empty(self, shape: int | Sequence[int], dtype: str) -> Array:
        """Return an uninitialized array."""

    def full(self, shape: int | Sequence[int], value: int, dtype: str) -> Array:
        """Return an array filled with ``value``."""

    def contiguous(self, array: Array) -> Array:
        """Return ``array`` in C order, copied on the device if it is not."""

    def upload(self, array: npt.NDArray[Any]) -> Array:
        """Copy to the device."""

    def kept(self, name: str, array: npt.NDArray[Any]) -> Array:
        """Return a table that is the same for all tiles, copied at the first call for its name."""

    def to_host(self, array: Array) -> npt.NDArray[Any]:
        """Copy to the host, after all work launched before."""

    def nonzero(self, flags: Array) -> Array:
        """Return the ascending flat indices, int32, of nonzero elements (waits for their number)."""

    def running_sum(self, array: Array) -> Array:
        """Return the inclusive running sums of a 1-D array, with its dtype."""

    def launch(self, name: str, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]) -> None:
        """Run a kernel. Python integers become the kernel's ``int``; arrays become pointers."""


class DeviceTimer(Protocol):
    """Marks on a device's current stream, to measure afterwards when its work reached them."""

    def mark(self) -> Any:
        """Add a mark after all work launched so far on the stream."""

    def wait(self, mark: Any) -> None:
        """Wait until the device has reached a mark."""

    def seconds(self, before: Any, after: Any) -> float:
        """Return the time between two marks that the device has reached."""


def blocks_for(n: int) -> tuple[int]:
    """Return the grid of ``BLOCK`` that covers ``n`` >= 1 elements."""
    return (-(-n // BLOCK[0]),)


def blocks_over(shape: Sequence[int]) -> tuple[int, int]:
    """Return the grid of ``BLOCK_2D`` that covers an image (H, W)."""
    return -(-shape[1] // BLOCK_2D[0]), -(-shape[0] // BLOCK_2D[1])

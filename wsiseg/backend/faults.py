"""Errors of PyTorch and CuPy -> whether this process can still compute on its GPU.

An illegal address, an uncorrectable ECC error or a GPU that fell off the bus breaks the process's CUDA context: every later
call fails with the same error, and nothing but a new process mends it. Told apart here are those errors, full memory, which
passes, and all others, which are a tile's own. Neither library is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from wsiseg.errors import DeviceBrokenError, one_line

__all__ = ["device_fault"]

_OF_CUDA = frozenset({"AcceleratorError", "CUDARuntimeError", "CUDADriverError", "CUBLASError", "CuDNNError"})
"""Classes by which PyTorch and CuPy hand on an error of the driver."""

_TEXT = re.compile(
    r"CUDA (driver )?error: |CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)|"
    r"CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"
)
"""What PyTorch's plain RuntimeError says where a library on the GPU failed."""

_MEMORY = re.compile(r"out of memory|memory allocation|ALLOC_FAILED", re.IGNORECASE)


def device_fault(err: BaseException) -> str:
    """Say in one line which error of the GPU is behind an error; empty: none, or its memory was full."""
    for each in _chain(err):
        if isinstance(each, DeviceBrokenError):
            return str(each)
        text = str(each)
        of_cuda = any(kind.__name__ in _OF_CUDA for kind in type(each).__mro__)
        if (of_cuda or (isinstance(each, RuntimeError) and _TEXT.search(text))) and not _MEMORY.search(text):
            return one_line(each)[:300]
    return ""


def _chain(err: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__

"""Decide from an error of PyTorch or CuPy whether this process can still compute on its GPU.

An illegal address, an uncorrectable ECC error or a GPU that fell off the bus breaks the process's CUDA context: every later
call fails with the same error, and only a new process helps. This module distinguishes those errors, full memory, which
is temporary, and all others, which concern one tile. Neither library is imported.
"""

from __future__ import annotations

import re

from wsiseg.errors import DeviceBrokenError, error_chain, one_line

__all__ = ["device_fault"]

_OF_CUDA = frozenset({"AcceleratorError", "CUDARuntimeError", "CUDADriverError", "CUBLASError", "CuDNNError"})
"""Names of the classes with which PyTorch and CuPy report an error of the driver."""

_TEXT = re.compile(
    r"CUDA (driver )?error: |CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)|"
    r"CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR|MAPPING_ERROR)"
)
"""Texts of PyTorch's plain RuntimeError after a library on the GPU failed."""

_MEMORY = re.compile(r"out of memory|memory allocation|ALLOC_FAILED", re.IGNORECASE)


def device_fault(err: BaseException) -> str:
    """Return the GPU error behind an exception, as one line; empty if there is none, or if the GPU's memory was full."""
    for each in error_chain(err):
        if isinstance(each, DeviceBrokenError):
            return str(each)
        text = str(each)
        of_cuda = any(kind.__name__ in _OF_CUDA for kind in type(each).__mro__)
        if (of_cuda or (isinstance(each, RuntimeError) and _TEXT.search(text))) and not _MEMORY.search(text):
            return one_line(each)[:300]
    return ""

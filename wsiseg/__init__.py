"""Whole-slide images in, one spatially indexed nucleus polygon table per slide out, graded.

Importing this package loads no heavy library (torch, cupy, openslide, dask, pyarrow).
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "read_nuclei"]


def __getattr__(name: str) -> Any:
    """Load ``read_nuclei`` (and with it pyarrow) when it is first asked for."""
    if name == "read_nuclei":
        from wsiseg.export import read_nuclei

        return read_nuclei
    raise AttributeError(f"module 'wsiseg' has no attribute {name!r}")

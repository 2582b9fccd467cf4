"""Whole-slide images in, one spatially indexed nucleus polygon table per slide out, graded.

Importing this package loads no heavy library (torch, cupy, openslide, dask).
"""

from __future__ import annotations

__version__ = "0.1.0"

__all__ = ["__version__"]

"""Segment the nuclei of whole-slide images into one spatially indexed polygon table per slide, and grade the results.

Importing this package loads no large library (torch, cupy, openslide, dask, pyarrow); its functions do, when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsiseg.library import evaluate, label_image, open_slide, read_nuclei, read_slides, segment, segment_image

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "evaluate",
    "label_image",
    "open_slide",
    "read_nuclei",
    "read_slides",
    "segment",
    "segment_image",
]


def __getattr__(name: str) -> Any:
    """Load the functions of ``wsiseg.library`` when one is first used."""
    if name in __all__:
        from wsiseg import library

        return getattr(library, name)
    raise AttributeError(f"module 'wsiseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)

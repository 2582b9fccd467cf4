"""One slide to segment, as the user named it."""

from __future__ import annotations

from dataclasses import dataclass, field

from wsiseg.fetch import Wanted, absolute_place, is_address

__all__ = ["ALL_TISSUE", "SlideInput", "absolute_mask", "wanted_of"]

ALL_TISSUE = "all"
"""As ``SlideInput.tissue_mask``: no mask, the whole slide is segmented."""


@dataclass(frozen=True, slots=True)
class SlideInput:
    """One slide to segment, as the user named it.

    ``path`` may be an address (``https://``, ``s3://``, ...): then ``filename``, ``size_bytes`` and ``md5`` are what a manifest
    says of the object there (empty, 0: nothing). It may hold lone surrogates where a name is not UTF-8 (as ``os.fsdecode``
    gives it); ``slide_id`` never does. ``origin`` says where the slide was named, such as a manifest's line.
    ``tissue_mask`` is a file, ``all`` (the whole slide), or empty (it is found).
    """

    slide_id: str
    path: str
    cohort: str = ""
    mpp: float | None = None
    tissue_mask: str = ""
    frame: str = ""
    filename: str = ""
    size_bytes: int = 0
    md5: str = ""
    origin: str = field(default="", compare=False)


def wanted_of(slide: SlideInput) -> Wanted | None:
    """Return what is to be fetched for a slide; ``None``: it is a path, there is nothing to fetch."""
    return Wanted(slide.path, slide.filename, slide.size_bytes, slide.md5) if is_address(slide.path) else None


def absolute_mask(mask: str) -> str:
    """Return a ``SlideInput.tissue_mask`` without its working folder; the word for no mask as it is."""
    return mask if mask == ALL_TISSUE else absolute_place(mask)

"""One slide to segment, as given by the user."""

from __future__ import annotations

from dataclasses import dataclass, field

from wsiseg.fetch import Wanted, absolute_place, is_address

__all__ = ["ALL_TISSUE", "SlideInput", "absolute_mask", "wanted_of"]

ALL_TISSUE = "all"
"""Value of ``SlideInput.tissue_mask`` for no mask: the whole slide is segmented."""


@dataclass(frozen=True, slots=True)
class SlideInput:
    """One slide to segment, as given by the user.

    Attributes
    ----------
    slide_id
        Name of its files in the run folder; valid UTF-8.
    path
        File, folder or address (``https://``, ``s3://``, ...); it may have lone surrogates for bytes that are not UTF-8 (as
        from ``os.fsdecode``).
    tissue_mask
        A file, ``all`` (the whole slide), or empty (tissue is detected).
    filename, size_bytes, md5
        Properties of the object at an address by the manifest; empty and 0: unknown.
    origin
        Where the slide was listed, such as the line of a manifest.
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
    """Return what to fetch for a slide; ``None`` if it is a path."""
    return Wanted(slide.path, slide.filename, slide.size_bytes, slide.md5) if is_address(slide.path) else None


def absolute_mask(mask: str) -> str:
    """Return ``SlideInput.tissue_mask`` as an absolute path; ``all`` and empty unchanged."""
    return mask if mask == ALL_TISSUE else absolute_place(mask)

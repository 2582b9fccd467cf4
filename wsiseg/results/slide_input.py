"""One slide to segment, as the user named it."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SlideInput"]


@dataclass(frozen=True, slots=True)
class SlideInput:
    """One slide to segment, as the user named it.

    ``path`` may hold lone surrogates where a name is not UTF-8 (as ``os.fsdecode`` gives it); ``slide_id`` never does.
    ``origin`` says where it was named, such as a manifest's line.
    """

    slide_id: str
    path: str
    cohort: str = ""
    mpp: float | None = None
    tissue_mask: str = ""
    frame: str = ""
    origin: str = field(default="", compare=False)

"""Check that scoring an image does not need more memory than allowed, before any is allocated."""

from __future__ import annotations

from collections.abc import Sequence

from wsiseg.errors import FormatError

__all__ = ["require_memory"]

BYTES_PER_PX = 26
"""Peak memory of drawing and scoring two label maps, bytes per pixel: 4.0 GB for 13,198 x 11,685 px."""


def require_memory(shape: Sequence[int], what: str, max_gb: float) -> None:
    """Raise ``FormatError`` if an image is too large to be scored at once, before any of it is allocated.

    Parameters
    ----------
    shape
        (H, W) of the image, px.
    what
        Beginning of the message, which states what has this size.
    max_gb
        Maximum memory, 10^9 bytes.

    Raises
    ------
    FormatError
        Scoring would need more memory.
    """
    need_gb = shape[-2] * shape[-1] * BYTES_PER_PX / 1e9
    if need_gb > max_gb:
        raise FormatError(
            f"{what} {shape[-1]:,} x {shape[-2]:,} px: scoring that at once takes about {need_gb:,.1f} GB, but the limit is "
            f"{max_gb:g} GB (--max-gb). Compare whole slides window by window, in constant memory, with 'wsiseg compare A B -o "
            "OUT'; convert files of other tools for it with 'wsiseg import'."
        )

"""Whether an image can be scored at once: what that takes is known before anything is allocated."""

from __future__ import annotations

from collections.abc import Sequence

from wsiseg.errors import FormatError

__all__ = ["require_room"]

BYTES_PER_PX = 26
"""Memory that drawing and scoring two label maps takes at its peak, bytes a pixel: 4.0 GB for 13,198 x 11,685 px."""


def require_room(shape: Sequence[int], what: str, max_gb: float) -> None:
    """Refuse an image too large to be scored at once, before any of it is allocated.

    Parameters
    ----------
    shape
        (H, W) of the image, px.
    what
        Names what makes it so large, and begins the message.
    max_gb
        Most memory, 10^9 bytes.

    Raises
    ------
    FormatError
        It would take more.
    """
    need_gb = shape[-2] * shape[-1] * BYTES_PER_PX / 1e9
    if need_gb > max_gb:
        raise FormatError(
            f"{what} {shape[-1]:,} x {shape[-2]:,} px: to score that at once takes about {need_gb:,.1f} GB, and the limit is "
            f"{max_gb:g} GB (--max-gb). Whole slides are compared window by window, in memory that does not grow, by "
            "'wsiseg compare A B -o OUT', of runs, or of what 'wsiseg import' makes of other files."
        )

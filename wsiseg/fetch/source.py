"""What a download needs of a server: facts of an object, and its bytes from here to there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Facts", "Source", "TryAgain"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of an object.

    ``size_bytes`` -1: not said. ``version`` changes with the content (an ETag; empty: none), ``md5`` is hex (empty: not said),
    ``ranges``: parts of it can be asked for, ``filename`` as the server would have it saved.
    """

    size_bytes: int
    version: str = ""
    md5: str = ""
    ranges: bool = True
    filename: str = ""


class TryAgain(Exception):  # noqa: N818 - not an error: the server may answer later
    """A request failed that may succeed later.

    ``reason`` holds no secrets; ``wait_s`` is how long the server asks to wait (``None``: it says nothing).
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class Source(Protocol):
    """One object at its address."""

    address: str

    def facts(self) -> Facts:
        """Ask for its facts. Raises ``FetchError``, ``TryAgain``."""

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive), fewer where the connection ends early.

        Raises ``FetchError``, ``TryAgain``.
        """

    def close(self) -> None:
        """Close connections."""

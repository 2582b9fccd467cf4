"""The interface of a download to a server: the facts of an object, and its bytes by range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Facts", "Source", "TryAgain"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server states about an object.

    ``size_bytes`` is -1 if unknown. ``version`` changes with the content (an ETag; empty: unknown), ``md5`` is hex (empty:
    unknown). ``ranges``: whether byte ranges can be requested. ``filename`` is the name that the server suggests.
    """

    size_bytes: int
    version: str = ""
    md5: str = ""
    ranges: bool = True
    filename: str = ""


class TryAgain(Exception):  # noqa: N818 - not a final error
    """A request failed, but may succeed later.

    ``reason`` contains no secrets; ``wait_s`` is the pause that the server requests (``None``: none).
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class Source(Protocol):
    """One object at its address."""

    address: str

    def facts(self) -> Facts:
        """Request and return the facts of the object. Raises ``FetchError``, ``TryAgain``."""

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive), or fewer if the connection ends early.

        Raises ``FetchError``, ``TryAgain``.
        """

    def close(self) -> None:
        """Close connections."""

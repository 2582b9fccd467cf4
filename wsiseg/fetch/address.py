"""Addresses of slides: what is one, and how it is written where others read it (without secrets)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

__all__ = ["HIDDEN", "Wanted", "absolute_place", "is_address", "local_of", "name_in", "scrubbed", "shown"]

HIDDEN = "***"
"""Stands where a secret stood."""

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+:/?/")
_SECRET_KEY = re.compile(
    r"(sig|signature|token|secret|password|passwd|pwd|credential|key|auth|policy|hash|se|sp|st|sv|sr|code|session|ticket)$"
    r"|^(x-amz-|x-goog-|awsaccesskeyid|expires)",
    re.IGNORECASE,
)
"""Names in a query whose values give access: signatures of Amazon, Google and Azure, tokens."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A slide at an address.

    What a manifest says of it is checked: ``size_bytes`` (0: not said) and ``md5`` (hex; empty: not said). ``filename`` is the
    slide's own name where the address does not end with it. ``version`` is the tag of a listed
    object, which is not checked. An address that ends in ``/`` is a folder: the instances of a DICOM
    series.
    """

    address: str
    filename: str = ""
    size_bytes: int = 0
    md5: str = ""
    version: str = ""

    @property
    def is_series(self) -> bool:
        """Return whether the address is that of a folder."""
        return self.address.endswith("/")


def is_address(text: str) -> bool:
    """Return whether a text is an address of something elsewhere, not a path of this machine (``file://`` is a path)."""
    return bool(_SCHEME.match(text)) and text[:5].lower() != "file:"


def local_of(text: str) -> str:
    """Return the path of a ``file://`` address; other texts as they are."""
    return unquote(urlsplit(text).path) if text[:7].lower() == "file://" else text


def absolute_place(path: str) -> str:
    """Return a path without its working folder, an address as it is; empty stays empty."""
    return path if not path or is_address(path) else os.path.abspath(path)


def shown(address: str) -> str:
    """Return an address as it may stand in logs and records: without login, and without the values of secrets in its query."""
    if not is_address(address):
        return address
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    pairs = []
    for pair in parts.query.split("&") if parts.query else ():
        key, equals, _ = pair.partition("=")
        pairs.append(f"{key}={HIDDEN}" if equals and _SECRET_KEY.search(key) else pair)
    return urlunsplit((parts.scheme, host, parts.path, "&".join(pairs), ""))


def name_in(address: str) -> str:
    """Return the last name in an address's path: of a folder, the folder's."""
    return unquote(urlsplit(address).path).rstrip("/").rpartition("/")[2] or urlsplit(address).netloc


def scrubbed(text: str, address: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a library's message without an address's secrets."""
    parts = urlsplit(address)
    text = text.replace(address, shown(address))
    values = [v for pair in parts.query.split("&") for k, _, v in [pair.partition("=")] if v and _SECRET_KEY.search(k)]
    for secret in (*secrets, *values, *(s for s in (parts.password, parts.username) if s)):
        text = text.replace(secret, HIDDEN) if secret else text
    return text

"""Addresses (URLs) of slides: how to recognize one, and how to write one without its secrets."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

__all__ = ["HIDDEN", "Wanted", "absolute_place", "is_address", "local_of", "name_in", "scrubbed", "shown"]

HIDDEN = "***"
"""Text that replaces a secret."""

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+:/?/")
_SECRET_KEY = re.compile(
    r"(sig|signature|token|secret|password|passwd|pwd|credential|key|auth|policy|hash|se|sp|st|sv|sr|code|session|ticket)$"
    r"|^(x-amz-|x-goog-|awsaccesskeyid|expires)",
    re.IGNORECASE,
)
"""Names of query parameters whose values give access: tokens, and signatures of Amazon, Google and Azure."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A slide at an address, to be fetched.

    Attributes
    ----------
    address
        Its URL. A URL that ends in ``/`` is a folder with the instances of a DICOM series.
    filename
        File name of the slide, if the address does not end with it.
    size_bytes, md5
        Size and MD5 (hex) by the manifest, checked after the transfer; 0 and empty: unknown.
    version
        Tag of a listed object; not checked.
    """

    address: str
    filename: str = ""
    size_bytes: int = 0
    md5: str = ""
    version: str = ""

    @property
    def is_series(self) -> bool:
        """Return whether the address is a folder."""
        return self.address.endswith("/")


def is_address(text: str) -> bool:
    """Return whether a text is a remote address and not a local path (``file://`` is a local path)."""
    return bool(_SCHEME.match(text)) and text[:5].lower() != "file:"


def local_of(text: str) -> str:
    """Return the path of a ``file://`` address; any other text unchanged."""
    return unquote(urlsplit(text).path) if text[:7].lower() == "file://" else text


def absolute_place(path: str) -> str:
    """Return a path as an absolute path; an address or an empty text unchanged."""
    return path if not path or is_address(path) else os.path.abspath(path)


def shown(address: str) -> str:
    """Return an address for logs and records: without its login, and without the values of secrets in its query."""
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
    """Return the last name in the path of an address: the file or the folder."""
    return unquote(urlsplit(address).path).rstrip("/").rpartition("/")[2] or urlsplit(address).netloc


def scrubbed(text: str, address: str, secrets: tuple[str, ...] = ()) -> str:
    """Return a library's message without the secrets of an address and without the texts ``secrets``."""
    parts = urlsplit(address)
    text = text.replace(address, shown(address))
    values = [v for pair in parts.query.split("&") for k, _, v in [pair.partition("=")] if v and _SECRET_KEY.search(k)]
    for secret in (*secrets, *values, *(s for s in (parts.password, parts.username) if s)):
        text = text.replace(secret, HIDDEN) if secret else text
    return text

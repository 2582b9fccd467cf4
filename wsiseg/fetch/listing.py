"""List the objects in folders of buckets, or that match a pattern, and read the first bytes of objects."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from wsiseg.errors import FetchDeniedError, FetchError, FetchUnreachableError
from wsiseg.fetch.address import Wanted, name_in, shown
from wsiseg.fetch.source import TryAgain
from wsiseg.fetch.stores import file_system, logins, md5_of, store_errors, translate_error

__all__ = ["headers_of", "list_address"]

HEADER_BYTES = 1 << 16
_AT_ONCE = 8


def list_address(address: str) -> list[Wanted]:
    """Return the objects below a folder (an address that ends in ``/``) or that match a pattern, sorted by address.

    Raises
    ------
    FetchError
        The address cannot be listed (web servers cannot), or access is refused.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https"):
        raise FetchError(f"{shown(address)}: folders of web servers cannot be listed. Name files, or give a manifest.")
    refused: Exception | None = None
    for anonymous in logins(address):
        fs = file_system(address, anonymous=anonymous)
        try:
            return _found(fs, address, parts.scheme)
        except store_errors() as err:
            refused = translate_error(err, address)
            if not isinstance(refused, FetchDeniedError):
                break
    if isinstance(refused, TryAgain):
        raise FetchUnreachableError(f"{shown(address)}: cannot be listed: {refused.reason}.") from None
    assert refused is not None
    raise refused from None


def _found(fs: Any, address: str, scheme: str) -> list[Wanted]:
    path = fs._strip_protocol(address)
    if glob.has_magic(path):
        listed: dict[str, dict[str, Any]] = fs.glob(path, detail=True)
    else:
        listed = fs.find(path.rstrip("/"), detail=True)
    out = []
    for name, info in sorted(listed.items()):
        if info.get("type") == "directory" or not info.get("size"):
            continue
        tag = str(info.get("ETag") or info.get("etag") or "").strip('"')
        out.append(Wanted(f"{scheme}://{name}", "", int(info["size"]), md5_of(info, tag), tag))
    return out


def headers_of(parts: Sequence[Wanted], n_bytes: int = HEADER_BYTES) -> list[tuple[str, bytes]]:
    """Return the names and first bytes of objects of one bucket. Raises ``FetchError``."""

    def first(part: Wanted) -> tuple[str, bytes]:
        return name_in(part.address), _first_bytes(part.address, n_bytes)

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(first, parts))


def _first_bytes(address: str, n_bytes: int) -> bytes:
    refused: Exception | None = None
    for anonymous in logins(address):
        fs = file_system(address, anonymous=anonymous)
        try:
            data: bytes = fs.cat_file(fs._strip_protocol(address), start=0, end=n_bytes)
            return data
        except store_errors() as err:
            refused = translate_error(err, address)
            if not isinstance(refused, FetchDeniedError):
                break
    if isinstance(refused, TryAgain):
        raise FetchUnreachableError(f"{shown(address)}: {refused.reason}.") from None
    assert refused is not None
    raise refused from None

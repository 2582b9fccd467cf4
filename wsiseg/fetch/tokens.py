"""The token of the Genomic Data Commons: from a file or the environment, sent to its own address alone, never written."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from wsiseg.errors import FetchError
from wsiseg.fetch.address import is_address

__all__ = ["GDC_API", "TOKEN_HEADER", "gdc_address", "gdc_api", "gdc_token", "token_headers"]

GDC_API = "https://api.gdc.cancer.gov"
TOKEN_HEADER = "X-Auth-Token"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def gdc_api() -> str:
    """Return where the GDC answers: ``WSISEG_GDC_API`` (a mirror, a test), else its public address."""
    return (os.environ.get("WSISEG_GDC_API") or GDC_API).rstrip("/")


def gdc_address(file_id: str) -> str:
    """Return the address of a file of the GDC."""
    return f"{gdc_api()}/data/{file_id}"


def gdc_token(token_file: str = "") -> str:
    """Return the token: of the file given, else of ``GDC_TOKEN_FILE``, else ``GDC_TOKEN``; empty: none.

    Raises
    ------
    FetchError
        The file cannot be read, or holds no token.
    """
    path = token_file or os.environ.get("GDC_TOKEN_FILE", "")
    if not path:
        return os.environ.get("GDC_TOKEN", "").strip()
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not plain text"
        raise FetchError(f"GDC token file {path} cannot be read: {why}. Name it with --gdc-token-file on every host.") from None
    if not token or any(c.isspace() for c in token):
        raise FetchError(f"GDC token file {path}: expected one line with the token, got {len(token.split())} words.")
    return token


def token_headers(address: str, token_file: str = "") -> dict[str, str]:
    """Return the headers that an address may get: the token for the GDC's own, over TLS (or to this machine), else nothing."""
    at, api = urlsplit(address), urlsplit(gdc_api())
    if not is_address(address) or (at.scheme, at.netloc) != (api.scheme, api.netloc):
        return {}
    if at.scheme != "https" and at.hostname not in _LOOPBACK:
        return {}
    token = gdc_token(token_file)
    return {TOKEN_HEADER: token} if token else {}

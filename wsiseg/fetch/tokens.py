"""The token of the Genomic Data Commons: read from a file or the environment, sent only to the GDC, never written."""

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
    """Return the URL of the GDC API: ``WSISEG_GDC_API`` (for a mirror or a test), else the public one."""
    return (os.environ.get("WSISEG_GDC_API") or GDC_API).rstrip("/")


def gdc_address(file_id: str) -> str:
    """Return the URL of a file of the GDC."""
    return f"{gdc_api()}/data/{file_id}"


def gdc_token(token_file: str = "") -> str:
    """Return the token from ``token_file``, else from the file ``GDC_TOKEN_FILE``, else ``GDC_TOKEN``; empty if none is set.

    Raises
    ------
    FetchError
        The file cannot be read, or contains no token.
    """
    path = token_file or os.environ.get("GDC_TOKEN_FILE", "")
    if not path:
        return os.environ.get("GDC_TOKEN", "").strip()
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as err:
        why = err.strerror if isinstance(err, OSError) else "it is not plain text"
        raise FetchError(f"GDC token file {path} cannot be read: {why}. Check --gdc-token-file on every host.") from None
    if not token or any(c.isspace() for c in token):
        raise FetchError(f"GDC token file {path}: expected one line with the token, got {len(token.split())} words.")
    return token


def token_headers(address: str, token_file: str = "") -> dict[str, str]:
    """Return the headers to send to an address: the token if it is the GDC over TLS (or this machine), else none."""
    at, api = urlsplit(address), urlsplit(gdc_api())
    if not is_address(address) or (at.scheme, at.netloc) != (api.scheme, api.netloc):
        return {}
    if at.scheme != "https" and at.hostname not in _LOOPBACK:
        return {}
    token = gdc_token(token_file)
    return {TOKEN_HEADER: token} if token else {}

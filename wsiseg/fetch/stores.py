"""Objects in buckets and in all other stores that fsspec opens (``s3://``, ``gs://``, ``ftp://``, ...)."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wsiseg.errors import (
    BackendUnavailableError,
    FetchDeniedError,
    FetchError,
    FetchMissingError,
    FetchUnreachableError,
)
from wsiseg.fetch.address import scrubbed, shown
from wsiseg.fetch.source import Facts, TryAgain

__all__ = ["StoreSource", "StoredObject", "file_system", "send_file", "store_errors",
           "stored_objects", "translate_error"]  # fmt: skip

_MD5 = re.compile(r"^[0-9a-f]{32}$")
_EXTRA = ("s3", "s3a", "gs", "gcs", "http", "https")
_FOREIGN = (
    ("botocore.exceptions", "BotoCoreError"), ("botocore.exceptions", "ClientError"), ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"), ("google.auth.exceptions", "GoogleAuthError"), ("requests", "RequestException"),
)  # fmt: skip
"""Errors of the libraries behind fsspec that are not an ``OSError``."""


def store_errors() -> tuple[type[BaseException], ...]:
    """Return the exception classes that file systems of fsspec raise, of the libraries that are loaded."""
    found = [getattr(sys.modules.get(module), name, None) for module, name in _FOREIGN]
    return (OSError, asyncio.TimeoutError, *(f for f in found if isinstance(f, type)))


_ACCOUNT = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
"""Environment variables that change the connection for an address."""


@lru_cache(maxsize=32)
def _made(protocol: str, netloc: str, anonymous: bool, account: tuple[str, ...]) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        options = {"anon": anonymous}
    elif protocol in ("gs", "gcs"):
        options = {"token": "anon" if anonymous else None}
    elif netloc:
        options = fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(f"{protocol}://{netloc}/")
    return fsspec.filesystem(protocol, skip_instance_cache=True, **options)


def file_system(address: str, *, anonymous: bool) -> Any:
    """Return the fsspec file system of an address.

    Raises
    ------
    BackendUnavailableError
        The library for the scheme is not installed.
    FetchError
        fsspec does not support the scheme.
    """
    parts = urlsplit(address)
    protocol = parts.scheme.lower()
    own = protocol not in ("s3", "s3a", "gs", "gcs")
    try:
        account = tuple(os.environ.get(name, "") for name in _ACCOUNT)
        return _made(protocol, parts.netloc if own else "", anonymous, account)
    except ImportError as err:
        how = "pip install 'wsiseg[cloud]'" if protocol in _EXTRA else f"{err}"
        raise BackendUnavailableError(f"{shown(address)}: this needs a library that is not installed: {how}.") from err
    except ValueError as err:
        raise FetchError(f"{shown(address)}: unsupported kind of address ({scrubbed(str(err), address)}).") from None


def has_login(protocol: str) -> bool:
    """Return whether this machine has credentials for a protocol; without them, buckets are read anonymously."""
    if protocol in ("s3", "s3a"):
        import botocore.session

        return botocore.session.get_session().get_credentials() is not None
    if protocol in ("gs", "gcs"):
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError

        try:
            google.auth.default()
        except DefaultCredentialsError:
            return False
    return True


def logins(address: str) -> list[bool]:
    """Return the values of ``anonymous`` to try for an address, in order."""
    protocol = urlsplit(address).scheme.lower()
    if protocol not in ("s3", "s3a", "gs", "gcs"):
        return [False]
    try:
        return [False, True] if has_login(protocol) else [True]
    except ImportError:
        return [True]  # file_system reports what is not installed


def translate_error(err: BaseException, address: str) -> Exception:
    """Convert a library's error to a ``FetchError``, or to ``TryAgain`` if it may be temporary."""
    where = shown(address)
    said = scrubbed(" ".join(f"{type(err).__name__}: {err}".split()), address)[:300]
    if isinstance(err, FileNotFoundError):
        return FetchMissingError(f"{where}: there is no such object.")
    kind = type(err).__name__
    if isinstance(err, PermissionError) or kind in ("NoCredentialsError", "PartialCredentialsError", "GoogleAuthError"):
        return FetchDeniedError(f"{where}: access is refused ({said}). If the bucket is not public, set credentials.")
    code = getattr(err, "code", None) or getattr(err, "status", None)
    if code in (401, 403):
        return FetchDeniedError(f"{where}: access is refused ({said}).")
    if code == 404:
        return FetchMissingError(f"{where}: there is no such object ({said}).")
    return TryAgain(said)


class StoreSource:
    """One object, read with fsspec; several threads may read it at the same time."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._fs: Any = None
        self._path = ""

    def facts(self) -> Facts:
        """Request and return the facts of the object, with this machine's credentials or else anonymously."""
        refused: Exception | None = None
        for anonymous in logins(self.address):
            fs = file_system(self.address, anonymous=anonymous)
            try:
                path = fs._strip_protocol(self.address)
                info = fs.info(path)
            except store_errors() as err:
                refused = translate_error(err, self.address)
                if not isinstance(refused, FetchDeniedError):
                    raise refused from None
                continue
            self._fs, self._path = fs, path
            size = info.get("size")
            tag = str(info.get("ETag") or info.get("etag") or "").strip('"')
            return Facts(-1 if size is None else int(size), tag, md5_of(info, tag), info.get("partial", True) is not False)
        assert refused is not None
        raise refused from None

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive) in one piece."""
        try:
            yield self._fs.cat_file(self._path, start=start, end=stop)
        except store_errors() as err:
            raise translate_error(err, self.address) from None

    def close(self) -> None:
        """Do nothing, because file systems are cached."""


def md5_of(info: dict[str, Any], tag: str) -> str:
    """Return the MD5 (hex) of a listed object: the ETag of S3 if uploaded in one piece, or Google's hash; else empty."""
    import base64

    hashed = info.get("md5Hash")
    if hashed:
        return base64.b64decode(str(hashed)).hex()
    encrypted = str(info.get("ServerSideEncryption", "")).startswith("aws:kms")
    return tag if _MD5.match(tag) and not encrypted and "StorageClass" in info else ""


def send_file(path: Path, address: str, part_bytes: int) -> tuple[int, str]:
    """Upload a file to a bucket, where it appears complete or not at all; return the size and the tag of the object.

    Parameters
    ----------
    part_bytes
        Files larger than twice this are sent in parts of this size.

    Raises
    ------
    FetchError
        The bucket refuses access, does not exist or does not answer.
    """
    fs = file_system(address, anonymous=False)
    target = fs._strip_protocol(address)
    parts = {"chunksize": part_bytes} if urlsplit(address).scheme in ("s3", "s3a") else {}
    try:
        fs.put_file(str(path), target, **parts)
        fs.invalidate_cache(fs._parent(target))
        info = fs.info(target)
    except store_errors() as err:
        raise _final(err, address) from None
    return int(info["size"]), str(info.get("ETag") or info.get("etag") or "").strip('"')


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a bucket that can be opened for reading; only the bytes that are read are transferred."""

    address: str
    size_bytes: int
    anonymous: bool = False

    def opened(self) -> Any:
        """Return the object as an open file; each read is one request, without read-ahead. Raises ``FetchError``."""
        fs = file_system(self.address, anonymous=self.anonymous)
        try:
            return fs.open(fs._strip_protocol(self.address), "rb", cache_type="none", size=self.size_bytes)
        except store_errors() as err:
            raise _final(err, self.address) from None


def stored_objects(address: str) -> dict[str, StoredObject]:
    """Return the objects below a folder of a bucket, by their path relative to it. Raises ``FetchError``."""
    refused: Exception | None = None
    for anonymous in logins(address):
        fs = file_system(address, anonymous=anonymous)
        root = fs._strip_protocol(address).rstrip("/")
        scheme = urlsplit(address).scheme
        try:
            found = fs.find(root, detail=True)
        except store_errors() as err:
            refused = _final(err, address)
            continue
        return {
            name.removeprefix(f"{root}/"): StoredObject(f"{scheme}://{name}", int(info["size"]), anonymous)
            for name, info in sorted(found.items())
        }
    assert refused is not None
    raise refused from None


def _final(err: BaseException, address: str) -> Exception:
    """Convert a library's error to a ``FetchError``, also if it may be temporary."""
    ours = translate_error(err, address)
    return FetchUnreachableError(f"{shown(address)}: {ours.reason}.") if isinstance(ours, TryAgain) else ours

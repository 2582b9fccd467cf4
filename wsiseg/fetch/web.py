"""Objects on web servers, read with urllib3: the GDC, mirrors, presigned URLs of buckets."""

from __future__ import annotations

import base64
import binascii
import datetime
import re
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from wsiseg.errors import FetchDamagedError, FetchDeniedError, FetchError, FetchMissingError
from wsiseg.fetch.address import scrubbed, shown
from wsiseg.fetch.source import Facts, TryAgain
from wsiseg.fetch.tokens import TOKEN_HEADER, gdc_api

__all__ = ["WebSource", "retry_after_s"]

CHUNK_BYTES = 1 << 18
_TIMEOUT = urllib3.Timeout(connect=30.0, read=60.0)
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_MD5 = re.compile(r"^[0-9a-f]{32}$")


class WebSource:
    """One object on a web server; several threads may read it at the same time.

    Parameters
    ----------
    headers
        Sent with every request, except that a token is not sent to the target of a redirect.
    """

    def __init__(self, address: str, headers: Mapping[str, str] | None = None) -> None:
        self.address = address
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "wsiseg", **(headers or {})}
        self._secrets = tuple((headers or {}).values())
        self._pool = _pool_for(address)
        self._version = ""

    def facts(self) -> Facts:
        """Return the facts by requesting the first byte, which also shows whether ranges work; some servers refuse HEAD."""
        with self._asked(0, 1) as answer:
            headers = answer.headers
            ranges = answer.status == 206
            size = _whole_size(headers) if ranges else int(headers.get("Content-Length") or -1)
        self._version = headers.get("ETag", "").strip('"')
        return Facts(size, self._version, _md5_of(headers), ranges, _filename_of(headers))

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes ``start`` to ``stop`` (exclusive)."""
        with self._asked(start, stop) as answer:
            version = answer.headers.get("ETag", "").strip('"')
            if version != self._version:
                raise FetchDamagedError(f"{shown(self.address)}: the object changed during the fetch. Run again.")
            if answer.status == 206 and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                raise TryAgain(f"requested bytes from {start}, got {answer.headers.get('Content-Range')!r}")
            if answer.status == 200 and start > 0:
                raise TryAgain(f"requested bytes from {start}, got the whole object")
            left = stop - start
            try:
                for chunk in answer.stream(CHUNK_BYTES, decode_content=False):
                    yield chunk[:left]
                    left -= len(chunk)
                    if left <= 0:
                        return
            except HTTPError:
                return  # the connection ended early; the caller requests the rest

    def close(self) -> None:
        """Close connections."""
        self._pool.clear()

    def _asked(self, start: int, stop: int) -> _Answer:
        headers = {**self._headers, "Range": f"bytes={start}-{stop - 1}"}
        follow = urllib3.Retry(
            total=8, connect=0, read=0, status=0, other=0, redirect=5, raise_on_status=False,
            remove_headers_on_redirect=[TOKEN_HEADER, "Authorization", "Cookie", "Proxy-Authorization"],
        )  # fmt: skip
        try:
            answer = self._pool.request(
                "GET", self.address, headers=headers, preload_content=False, timeout=_TIMEOUT, retries=follow
            )
        except HTTPError as err:
            reason = getattr(err, "reason", None) or err
            raise TryAgain(scrubbed(f"{type(reason).__name__}: {reason}", self.address, self._secrets)) from None
        if answer.status not in (200, 206):
            try:
                self._refuse(answer)
            finally:
                answer.close()
        return _Answer(answer)

    def _refuse(self, answer: urllib3.BaseHTTPResponse) -> None:
        where, status = shown(self.address), answer.status
        if status in _LATER:
            raise TryAgain(f"HTTP {status} {answer.reason or ''}".strip(), _pause_s(answer))
        if status in (401, 403):
            what = "access is refused."
            if where.startswith(gdc_api()):
                what = (
                    f"{'the token given was refused' if self._secrets else 'no token was given'}. Controlled files need one: "
                )
                what += "--gdc-token-file FILE, a new one if it expired."
            raise FetchDeniedError(f"{where}: HTTP {status}, {what}")
        if status in (404, 410):
            raise FetchMissingError(f"{where}: HTTP {status}, there is no such object.")
        if status == 416:
            raise FetchDamagedError(f"{where}: HTTP 416, the object is empty or shorter than the server stated before.")
        raise FetchError(f"{where}: HTTP {status} {answer.reason or ''}".strip() + ".")


class _Answer:
    """Context manager of a response; at its end the connection is closed if unread bytes are left, else reused."""

    def __init__(self, answer: urllib3.BaseHTTPResponse) -> None:
        self._answer = answer

    def __enter__(self) -> urllib3.BaseHTTPResponse:
        return self._answer

    def __exit__(self, *_: object) -> None:
        if self._answer.length_remaining:
            self._answer.close()
        self._answer.release_conn()


def retry_after_s(text: str | None, now: datetime.datetime | None = None) -> float | None:
    """Return the pause that a ``Retry-After`` header requests, in s; None if it states none.

    ``now`` is the time by the server's clock (its ``Date`` header), since the clocks may differ. It is needed if the header
    states a date.
    """
    if not text:
        return None
    if text.strip().isdecimal():
        return float(text)
    then = _time_of(text)
    return None if then is None or now is None else max(0.0, (then - now).total_seconds())


def _pause_s(answer: urllib3.BaseHTTPResponse) -> float | None:
    return retry_after_s(answer.headers.get("Retry-After"), _time_of(answer.headers.get("Date") or ""))


def _time_of(text: str) -> datetime.datetime | None:
    """Return the time of an HTTP date; None if the text is not one."""
    try:
        time = parsedate_to_datetime(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _pool_for(address: str) -> urllib3.PoolManager:
    """Return a connection pool for an address, through the proxy that the environment sets for its host, if any."""
    parts = urlsplit(address)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy if "://" in proxy else f"http://{proxy}", maxsize=64)
    return urllib3.PoolManager(maxsize=64)


def _whole_size(headers: Mapping[str, str]) -> int:
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total) if total.isdecimal() else -1


def _md5_of(headers: Mapping[str, str]) -> str:
    """Return the MD5 (hex) from a bucket's headers: ``x-goog-hash`` of Google, or Amazon's ETag if uploaded in one piece."""
    for part in headers.get("x-goog-hash", "").split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "md5":
            try:
                return base64.b64decode(value, validate=True).hex()
            except binascii.Error:
                return ""
    tag = headers.get("ETag", "").strip('"')
    names = {name.lower() for name in headers}
    plain = "x-amz-request-id" in names and "x-amz-server-side-encryption-aws-kms-key-id" not in names
    return tag if plain and _MD5.match(tag) else ""


def _filename_of(headers: Mapping[str, str]) -> str:
    message = Message()
    message["Content-Disposition"] = headers.get("Content-Disposition", "")
    return message.get_filename() or ""
